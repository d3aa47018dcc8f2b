"""Nothing of one model is answered from the cache again; the same as ``dashcache purge --model text-embedding-v4``."""

import json
import os
import urllib.request

admin = os.environ.get("DASHCACHE_ADMIN", "http://127.0.0.1:9180")
order = json.dumps({"model": "text-embedding-v4"}).encode()
request = urllib.request.Request(admin + "/v1/purge", order, {"Content-Type": "application/json"})
with urllib.request.urlopen(request) as answer:
    done = json.load(answer)
print(f"purged {done['scope']}: confirmed by {done['confirmed']} of {done['workers']} workers")
