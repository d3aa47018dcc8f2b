"""The week of matching: what it counts is right, and it would notice a stale answer."""

import dataclasses
from collections import Counter

import orjson
import pytest

from benchmarks.profiles import Profile
from benchmarks.seed_vectors import (
    HOUR_S,
    Holds,
    Load,
    Result,
    Week,
    document,
    events,
    lines,
    query_body,
    spoken,
    week,
)
from tests.support.clock import FakeClock
from tests.support.redis_server import RedisServer

SMALL = Load(users=40, projects=30, queries_per_hour=60, embeddings_per_hour=30, hours=3, update_every_s=HOUR_S / 2)


def test_as_much_happens_as_the_load_says() -> None:
    happening = events(SMALL)
    assert Counter(kind for _, kind, _ in happening) == {"vector-query": 180, "embedding": 90, "update": 6}
    assert happening == sorted(happening)
    assert {who for _, _, who in happening} <= set(range(70))


def test_without_updates_nothing_is_written() -> None:
    assert not any(kind == "update" for _, kind, _ in events(dataclasses.replace(SMALL, update_every_s=None)))


@pytest.mark.timeout(180)
async def test_three_hours_of_the_base_case_save_seven_queries_in_ten_and_nothing_is_stale() -> None:
    result = await week(Load(hours=3))
    assert result.stale == result.wrong_vectors == result.failed == 0
    assert result.troubles == ()
    assert result.compared == result.asked["vector-query"] == 600
    assert result.at_vendor["vector-query"] == result.asked["vector-query"] - result.hits["vector-query"]
    assert result.saved("vector-query") >= 0.70


@pytest.mark.timeout(180)
async def test_every_update_reaches_the_vendor_and_costs_hits() -> None:
    quiet = await week(dataclasses.replace(SMALL, update_every_s=None))
    busy = await week(dataclasses.replace(SMALL, update_every_s=60))
    assert busy.at_vendor["vector-write"] == busy.asked["vector-write"] == 180
    assert busy.hit_ratio("vector-query") < quiet.hit_ratio("vector-query")
    assert quiet.stale == busy.stale == 0
    assert quiet.troubles == busy.troubles == ()


async def test_a_write_past_the_proxy_would_be_noticed_as_stale() -> None:
    async with Week(dataclasses.replace(SMALL, users=25, projects=25)) as running:
        await running._match(0)
        away = [running._people[25 + number].updated for number in range(25)]
        body = orjson.dumps({"docs": [document(profile, SMALL.dimension) for profile in away]})
        await running._post(f"{running._sim.url}/v1/collections/projects/docs/upsert", body)
        running._told.clear()
        await running._match(0)
    assert running.result.stale == 1


def test_a_hold_ends_when_its_simulated_time_is_over() -> None:
    clock = FakeClock()
    with RedisServer() as redis:
        holds = Holds(redis, clock)
        redis.command("SET", "dashcache:h:one", "1")
        holds.noted()
        clock.advance(1.9)
        holds.end()
        assert redis.command("DBSIZE") == 1
        clock.advance(0.2)
        holds.end()
        assert redis.command("DBSIZE") == 0


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "never"), (900, "every 15 min"), (3_600, "every 1 h"), (21_600, "every 6 h")]
)
def test_intervals_are_spoken(seconds: float | None, said: str) -> None:
    assert spoken(seconds) == said


def test_what_is_printed_says_what_is_assumed() -> None:
    result = Result(
        Counter({"vector-query": 10, "embedding": 4}), Counter({"vector-query": 3, "embedding": 1}), Counter()
    )
    text = "\n".join(lines(Load(), result))
    assert "24 profiles a day in all" in text
    assert "each changes about every 62 days" in text
    assert "4 loads of the matches each" in text
    assert "70.0%" in text


def test_a_question_is_the_same_each_time() -> None:
    assert query_body(Profile("users", 1), SMALL) == query_body(Profile("users", 1), SMALL)
    assert query_body(Profile("users", 1), SMALL) != query_body(Profile("users", 1).updated, SMALL)
