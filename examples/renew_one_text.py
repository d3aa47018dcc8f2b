"""One answer made anew: ``Cache-Control: no-cache`` asks the vendor and replaces what was kept."""

import os

import openai

base = os.environ.get("DASHCACHE_URL", "http://127.0.0.1:8080") + "/compatible-mode/v1"
with openai.OpenAI(base_url=base, api_key=os.environ.get("DASHSCOPE_API_KEY", "any-word")) as client:
    for lines in ({}, {"Cache-Control": "no-cache"}, {}):
        answer = client.embeddings.with_raw_response.create(
            model="text-embedding-v4", input="a text to renew", extra_headers=lines
        )
        print(lines or "as usual", "->", answer.headers["Cache-Status"])
