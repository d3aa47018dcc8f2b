"""How each worker does; the same as ``dashcache workers``."""

import json
import os
import urllib.request

admin = os.environ.get("DASHCACHE_ADMIN", "http://127.0.0.1:9180")
with urllib.request.urlopen(admin + "/v1/workers") as answer:
    for worker in json.load(answer)["workers"]:
        print(f"worker {worker['worker']}: {worker['connections']} connections, breaker {worker['breaker']}")
