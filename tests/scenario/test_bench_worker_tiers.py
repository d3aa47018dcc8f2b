"""The benchmark of memory tiers: it measures hits and nothing else, and more workers have more of the same."""

import pytest

from benchmarks.worker_tiers import Asked, measure


@pytest.mark.slow
def test_hits_alone_are_counted_and_all_of_them() -> None:
    asked = Asked(texts=20, rate=400.0, seconds=0.5)
    order = asked.order()
    assert order == asked.order()
    assert order.count(0) > order.count(10)
    # A busy machine's pauses are no trouble with Redis, which would turn hits into calls.
    found = measure(asked, (1, 2), {"DASHCACHE_REDIS_DEADLINE_MS": "5000"})
    assert [each.workers for each in found] == [1, 2]
    assert [each.from_memory + each.from_redis for each in found] == [len(order)] * 2
    assert all(each.tiers_mib > 0 and 0 < each.p50_ms <= each.p99_ms for each in found)
    assert len(set(order)) <= found[0].from_redis < len(order)
