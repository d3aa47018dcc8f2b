"""The vendor's own SDK through the proxy: one line says where."""

import os

import dashscope

dashscope.base_http_api_url = os.environ.get("DASHCACHE_URL", "http://127.0.0.1:8080") + "/api/v1"
dashscope.api_key = os.environ.get("DASHSCOPE_API_KEY", "any-word")

answer = dashscope.TextEmbedding.call(model="text-embedding-v4", input="a text to embed")
print(f"status {answer.status_code}: {len(answer.output['embeddings'][0]['embedding'])} numbers")
