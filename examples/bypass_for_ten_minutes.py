"""The cache out of the way for ten minutes; the same as ``dashcache bypass on --for 10m``."""

import json
import os
import urllib.request

admin = os.environ.get("DASHCACHE_ADMIN", "http://127.0.0.1:9180")


def put(order: dict[str, object]) -> dict[str, object]:
    """Send an order; what is in force now, by upstream and operation."""
    lines = {"Content-Type": "application/json"}
    request = urllib.request.Request(admin + "/v1/mode", json.dumps(order).encode(), lines, method="PUT")
    with urllib.request.urlopen(request) as answer:
        effective: dict[str, object] = json.load(answer)["effective"]
        return effective


print(put({"mode": "bypass", "for_s": 600, "reason": "vendor incident"}))
print(put({"mode": "on"}))  # nobody has to wait for the ten minutes
