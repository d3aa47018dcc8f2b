"""The openai SDK through the proxy; ``Cache-Status`` tells where an answer came from (RFC 9211)."""

import os

import openai

base = os.environ.get("DASHCACHE_URL", "http://127.0.0.1:8080") + "/compatible-mode/v1"
with openai.OpenAI(base_url=base, api_key=os.environ.get("DASHSCOPE_API_KEY", "any-word")) as client:
    for _ in range(2):
        answer = client.embeddings.with_raw_response.create(model="text-embedding-v4", input="a text for openai")
        print(answer.headers["Cache-Status"], len(answer.parse().data[0].embedding), "numbers")
