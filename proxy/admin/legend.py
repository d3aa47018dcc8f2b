"""The meaning of the columns of ``dashcache stats``."""

COLUMNS: dict[str, str] = {
    "requests": "answered requests; totals are since the start of this proxy, and count replaced workers too",
    "items": "texts, or queries, that were looked up; a batch of 10 texts is 10",
    "memory, redis": "items answered from the workers' memory, and from Redis",
    "misses": "items that were fetched from the vendor, also by waiting for another request that fetched them",
    "hit ratio": "(memory + redis) / items",
    "calls": "requests made to the vendor to answer these",
    "saved": "requests that were answered without one",
    "tokens saved": "tokens that the vendor would have counted for the items answered from the cache",
    "unknown price": "tokens saved of models whose list price is not known: counted, but in no amount of money",
    "1m, 1h": "of the last minute and the last hour, or since the start if that is less",
    "how they ended": "calls by the vendor's status, or by why none came",
    "until, since": "when a mode ends by itself, and when it was set; one that waits holds when those above end",
}
"""By heading; several with a comma between them share one line."""

_WIDTH = max(map(len, COLUMNS))

LEGEND = "\n".join(f"{heading:<{_WIDTH}}  {meaning}" for heading, meaning in COLUMNS.items())
