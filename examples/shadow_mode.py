"""Shadow mode: the vendor is always asked, and the statistics tell how the cache would have done."""

import json
import os
import urllib.request

import openai

admin = os.environ.get("DASHCACHE_ADMIN", "http://127.0.0.1:9180")
base = os.environ.get("DASHCACHE_URL", "http://127.0.0.1:8080") + "/compatible-mode/v1"


def ask(method: str, path: str, order: dict[str, str] | None = None) -> dict[str, object]:
    """One request to the admin API."""
    data = None if order is None else json.dumps(order).encode()
    request = urllib.request.Request(admin + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request) as answer:
        document: dict[str, object] = json.load(answer)
        return document


ask("PUT", "/v1/mode", {"mode": "shadow"})
with openai.OpenAI(base_url=base, api_key=os.environ.get("DASHSCOPE_API_KEY", "any-word")) as client:
    for _ in range(3):
        client.embeddings.create(model="text-embedding-v4", input="a text in the shadow")
print(json.dumps(ask("GET", "/v1/stats")["shadow"]))
ask("PUT", "/v1/mode", {"mode": "on"})
