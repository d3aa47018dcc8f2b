"""What the product tells of itself while Redis is in trouble, as questions that the tests ask."""

import asyncio
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import LONG_S, wait_until

OPENED, CLOSED = "redis_breaker_open", "redis_breaker_closed"
# What an operator may read about Redis: a line for a change, none for a request.
WENT_BACK = "redis_went_back"
"""Each process that finds that Redis lost data, or is told, says so once."""
ABOUT_REDIS = {
    WENT_BACK,
    "redis_not_usable",
    "redis_usable",
    OPENED,
    CLOSED,
    "orders_not_shared",
    "orders_shared_again",
}


def settings(**changes: object) -> dict[str, str]:
    """
    Variables for a proxy that asks Redis for every item, waits 200 ms at most and tries again after half a second.

    ``redis_deadline_ms=50`` sets that, and so on.
    """
    usual = {"memory_max_bytes": 0, "redis_deadline_ms": 200, "breaker_reset_s": 0.5, "lifetimes_embedding_s": 600}
    return {f"DASHCACHE_{name.upper()}": str(value) for name, value in {**usual, **changes}.items()}


def events(proxy: ProxyProcess, after: int = 0, process: str | None = None) -> Counter[str]:
    """How often each kind of line stands in the log (of *process*) from line *after* on, requests' own left out."""
    lines = [record for record in proxy.logs[after:] if process in (None, record.get("process"))]
    found = Counter(str(record.get("event")) for record in lines)
    del found["request"], found["hits"]  # of one, and of several
    return found


def redis_waits_s(proxy: ProxyProcess, after: int = 0) -> list[float]:
    """How long each request waited for Redis, by its own log line."""
    return [record["redis_ms"] / 1000 for record in proxy.logs[after:] if record.get("event") == "request"]


async def wait_event(proxy: ProxyProcess, event: str, timeout: float = LONG_S, *, after: int = 0) -> None:  # noqa: ASYNC109
    """Wait for a line of this kind, with the event loop running."""
    await wait_until(lambda: events(proxy, after)[event], timeout, f"a line {event!r}")


async def stats(proxy: ProxyProcess) -> Any:
    """GET /v1/stats, with the event loop running: it asks Redis, perhaps through a proxy of the test's."""
    return await asyncio.to_thread(proxy.stats)


async def open_breakers(proxy: ProxyProcess) -> int:
    """How many workers keep Redis out of the way, by the metrics."""
    text = await asyncio.to_thread(proxy.metrics)
    found = re.search(r"^dashcache_breaker_open_workers (\S+)$", text, re.MULTILINE)
    assert found, text
    return round(float(found.group(1)))


async def redis_failures(proxy: ProxyProcess) -> Mapping[str, int]:
    """Failed Redis operations by kind."""
    failures: Mapping[str, int] = (await stats(proxy))["redis"]["failures"]
    return failures


def assert_quiet(proxy: ProxyProcess, after: int, *, opened: int, closed: int) -> None:
    """The log from line *after* on: so many changes of the breaker, and at most one each way of the orders' sharing."""
    found = events(proxy, after)
    assert set(found) <= ABOUT_REDIS, found
    assert (found[OPENED], found[CLOSED]) == (opened, closed), found
    assert found["orders_not_shared"] <= 1, found
    assert found["orders_shared_again"] <= 1, found


async def stored(redis: RedisServer, count: int) -> None:
    """Wait until Redis holds at least *count* keys: entries are written after the answer."""
    await wait_until(lambda: redis.count_entries() >= count, what=f"{count} entries")
