"""Hits told of together: every count is what it would be if each were told of by itself."""

import asyncio
import random
from typing import Any

import pytest

from proxy.core.outcome import CacheState, Outcome
from proxy.telemetry.hits import Hits, HitSum
from proxy.telemetry.metrics import REQUEST_BUCKETS, Metrics
from proxy.telemetry.observer import Observer
from tests.support import fake_loop

EDGES_MS = [bound * 1000 for bound in REQUEST_BUCKETS]


def hit(**members: Any) -> Outcome:
    plain: dict[str, Any] = {"operation": "embedding", "upstream": "dashscope", "status": 200, "hits_memory": 1}
    return Outcome(**{**plain, "state": CacheState.HIT, "items": 1, **members})


def samples(metrics: Metrics) -> dict[Any, float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): pytest.approx(sample.value)  # sums, in another order
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


class Lines:
    """What takes the log's lines."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.told.append((event, fields))


def observer(singly: int, *, logs: bool = True) -> tuple[Observer, Metrics, Lines]:
    metrics, lines = Metrics(("dashscope", "vectors")), Lines()
    made = Observer(metrics, log_requests=logs, hits_singly=singly)
    made._log = lines  # type: ignore[assignment]
    return made, metrics, lines


def many(count: int) -> list[Outcome]:
    chance = random.Random(7)
    return [
        hit(
            operation=chance.choice(("embedding", "query", "nobody knows it")),
            upstream=chance.choice(("dashscope", "vectors")),
            items=3,
            hits_memory=chance.randrange(4),
            hits_redis=chance.randrange(4),
            tokens_saved=chance.choice((0, 7, 1_000)),
            total_ms=chance.choice((0.0, *EDGES_MS, 61_000.0, chance.random() * 100)),
            bytes_in=chance.randrange(1_000),
            bytes_out=chance.randrange(1_000),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("singly", [0, 1, 100, 10_000])
def test_counters_and_histograms_are_those_of_each_told_of_alone(singly: int) -> None:
    async def play() -> None:
        outcomes = many(500)
        together, metrics, lines = observer(singly)
        alone, expected, _ = observer(10**9)
        for at, outcome in enumerate(outcomes):
            together.observe(outcome)
            alone.observe(outcome)
            if at % 100 == 99:
                await asyncio.sleep(0.11)
        together.close()
        alone.close()
        assert samples(metrics) == samples(expected)
        told = [fields.get("requests", 1) for _, fields in lines.told]
        assert sum(told) == 500
        assert (len(told) < 250) is (singly < 1_000)

    fake_loop.run(play())


def test_above_the_rate_hits_share_a_line() -> None:
    async def play() -> None:
        made, _, lines = observer(100)
        for at in range(50):
            made.observe(hit(total_ms=at, bytes_in=2, bytes_out=3))
        assert [event for event, _ in lines.told] == ["request"] * 20
        await asyncio.sleep(0.3)
        ((event, fields),) = lines.told[20:]
        assert event == "hits"
        assert fields == {
            "operation": "embedding",
            "upstream": "dashscope",
            "state": "hit",
            "requests": 30,
            "hits_memory": 30,
            "hits_redis": 0,
            "mean_ms": 34.5,
            "max_ms": 49,
            "bytes_in": 60,
            "bytes_out": 90,
        }
        made.observe(hit())
        assert lines.told[-1][0] == "request"  # the next moment begins anew

    fake_loop.run(play())


@pytest.mark.parametrize(
    "members",
    [
        {"state": CacheState.MISS},
        {"state": CacheState.STALE, "detail": "stale-if-error"},
        {"forwarded": 1},
        {"coalesced": 1},
        {"redis_ok": False},
        {"client_gone": True},
        {"detail": "settling"},
        {"grpc_code": 5},
    ],
)
def test_what_is_no_plain_hit_has_a_line_of_its_own(members: dict[str, Any]) -> None:
    async def play() -> None:
        made, _, lines = observer(0)
        made.observe(hit(**members))
        assert [event for event, _ in lines.told] == ["request"]
        made.close()
        assert len(lines.told) == 1

    fake_loop.run(play())


def test_what_is_left_is_told_of_at_the_end_and_once() -> None:
    async def play() -> None:
        made, metrics, lines = observer(0)
        for _ in range(3):
            made.observe(hit())
        assert not lines.told
        made.close()
        made.close()
        await asyncio.sleep(1)
        assert [fields["requests"] for _, fields in lines.told] == [3]
        labels = {"operation": "embedding", "state": "hit"}
        assert metrics.registry.get_sample_value("dashcache_requests_total", labels) == 3

    fake_loop.run(play())


def test_without_lines_counters_count_all_the_same() -> None:
    async def play() -> None:
        made, metrics, lines = observer(0, logs=False)
        made.observe(hit(hits_memory=0, hits_redis=1))
        made.close()
        labels = {"operation": "embedding", "result": "redis"}
        assert metrics.registry.get_sample_value("dashcache_items_total", labels) == 1
        assert not lines.told

    fake_loop.run(play())


def test_nothing_is_told_while_nothing_comes() -> None:
    async def play() -> None:
        told: list[HitSum] = []
        hits = Hits(singly=0, bounds=(1.0,), tell=told.append)
        assert hits.take(hit())
        await asyncio.sleep(10)
        assert len(told) == 1
        assert hits._window is None

    fake_loop.run(play())
