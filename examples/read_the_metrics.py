"""The hit ratio of embeddings, item by item, out of ``/metrics``."""

import os
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

admin = os.environ.get("DASHCACHE_ADMIN", "http://127.0.0.1:9180")
with urllib.request.urlopen(admin + "/metrics") as answer:
    families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}

items = {
    sample.labels["result"]: sample.value
    for sample in families["dashcache_items"].samples
    if sample.labels["operation"] == "embedding"
}
found, asked = items["memory"] + items["redis"], sum(items.values())
print(f"{found:.0f} of {asked:.0f} items came from the cache" + (f": {found / asked:.0%}" if asked else ""))
