"""A query is cached until a write to its collection goes through the proxy; then it is asked anew."""

import json
import os
import urllib.request

base = os.environ.get("DASHCACHE_URL", "http://127.0.0.1:8080") + "/v1/collections/" + os.environ["COLLECTION"]
lines = {"dashvector-auth-token": os.environ["DASHVECTOR_API_KEY"], "Content-Type": "application/json"}


def post(path: str, body: dict[str, object]) -> str:
    """Ask; where the answer came from."""
    with urllib.request.urlopen(urllib.request.Request(base + path, json.dumps(body).encode(), lines)) as answer:
        assert json.load(answer)["code"] == 0
        return answer.headers.get("Cache-Status", "forwarded: a write")


query = {"vector": [0.1, 0.2, 0.3, 0.4], "topk": 3}
print("query:", post("/query", query))
print("again:", post("/query", query))
print("write:", post("/docs", {"docs": [{"id": "an-example", "vector": [0.1, 0.2, 0.3, 0.5]}]}))
print("query:", post("/query", query))
