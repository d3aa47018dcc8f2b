"""A batch of which some texts are known: the vendor is asked, and paid, for the others only."""

import os

import openai

base = os.environ.get("DASHCACHE_URL", "http://127.0.0.1:8080") + "/compatible-mode/v1"
with openai.OpenAI(base_url=base, api_key=os.environ.get("DASHSCOPE_API_KEY", "any-word")) as client:
    for texts in (["red", "green"], ["green", "blue", "red"]):
        answer = client.embeddings.with_raw_response.create(model="text-embedding-v4", input=texts)
        print(f"{texts}: {answer.headers['X-Dashcache-Items']} from the cache")
