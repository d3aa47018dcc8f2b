"""Answers out of memory: what may be in them, what speaks against another one, and until when it would be the same."""

import asyncio
import gc
import math
import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest

from proxy.cache.memory import MemoryTier
from proxy.core.answer import Answer
from proxy.core.entry import Entry, Row
from proxy.core.found import Found
from proxy.core.freshness import NONE, Directives
from proxy.core.modes import Mode
from proxy.core.outcome import CacheState, Outcome
from proxy.core.ports import Clock
from proxy.request.from_memory import AtOnce
from proxy.request.planner import Planned, Route
from proxy.runtime.offload import LARGE_BYTES
from tests.support.clock import FakeClock

NOW_S = 1_700_000_000.25
KEYS = (b"key one", b"key two")


@dataclass
class Plan:
    """Joins by writing down what it gets."""

    operation: str = "embedding"

    def join(self, rows: list[Row], request_id: str) -> bytes:
        return b"|".join([request_id.encode(), *(row.vector for row in rows)])


@dataclass
class Rig:
    """The parts around, each of which says what it is told to."""

    mode_now: Mode = Mode.ON
    current: bool = True
    refusal: bytes | None = None
    asked: list[str] = field(default_factory=list)
    max_age_s: float = 60.0

    def __post_init__(self) -> None:
        self.clock = FakeClock(wall_unix_s=NOW_S)
        self.memory = MemoryTier(10 << 20, self.max_age_s, self.clock.monotonic)
        self.has_redis = False
        parts: Any = self
        self.at_once = AtOnce(
            planner=parts,
            tiers=parts,
            voidable=parts,
            callers=parts,
            modes=parts,
            request_id=lambda: "ours",
            clock=Clock(self.clock.monotonic, self.clock.wall),
        )

    same_until_unix_s = math.inf

    def mode(self, upstream: str, operation: str) -> Mode:
        self.asked.append(f"{upstream}/{operation}")
        return self.mode_now

    def is_current(self, planned: Planned) -> bool:
        return self.current

    def mark(self, owner: bytes, shared: bytes | None, *, has_entries: bool) -> bytes | None:
        assert (owner, shared, has_entries) == (b"owner", None, True)
        return self.refusal

    def hold(self, *, ages_ms: tuple[int, int] = (0, 0), ttl_ms: int = 100_000, vector: bytes = b"[1]") -> None:
        now_unix_ms = int(self.clock.wall() * 1000)
        for key, age_ms in zip(KEYS, ages_ms, strict=True):
            row = Row(b"", b"", vector, (("total_tokens", 3), ("other", 9)), f"vendor-{key.decode()}")
            self.memory.put(key, Entry(row, now_unix_ms - age_ms, ttl_ms), ttl_ms - age_ms)

    def planned(self, wishes: Directives = NONE, scopes: tuple[bytes, ...] = ()) -> Planned:
        adapter: Any = None
        plan: Any = Plan()
        route = Route(adapter, "dashscope", "embedding", None, wishes, None, is_kept=True)
        return Planned(route, plan, KEYS, b"owner", scopes, (), ("dashscope", "embedding", "m", ()), 0)

    def answer(self, planned: Planned) -> tuple[Any, Outcome]:
        outcome = Outcome()
        return self.at_once.answer(planned, outcome), outcome


def test_a_hit_tells_all_of_itself() -> None:
    rig = Rig()
    rig.hold(ages_ms=(1_500, 7_999))
    answer, outcome = rig.answer(rig.planned())
    assert answer.body == b"ours|[1]|[1]"
    assert (outcome.state, outcome.items, outcome.hits_memory, outcome.hits_redis) == (CacheState.HIT, 2, 2, 0)
    assert (outcome.age_s, outcome.ttl_s, outcome.tokens_saved) == (7, 92, 6)
    assert outcome.origins == ("vendor-key one", "vendor-key two")


@pytest.mark.parametrize(
    ("wishes", "ages_ms"),
    [
        (Directives(no_cache=True), (0, 0)),
        (Directives(max_age_s=5), (0, 6_000)),
        (Directives(min_fresh_s=95), (6_000, 0)),
        (NONE, (0, 100_000)),
    ],
)
def test_what_the_client_does_not_want_or_is_not_fresh_is_no_answer(
    wishes: Directives, ages_ms: tuple[int, int]
) -> None:
    rig = Rig()
    rig.hold(ages_ms=ages_ms)
    answer, outcome = rig.answer(rig.planned(wishes))
    assert answer is None
    assert outcome == Outcome()


def test_one_item_less_is_no_answer() -> None:
    rig = Rig()
    rig.hold()
    rig.memory.put(KEYS[1], Entry(Row(b"", b"", b"", (), ""), 0, 0), 0)
    assert rig.answer(rig.planned()) == (None, Outcome())


def test_what_writes_make_stale_is_never_answered_from_memory() -> None:
    rig = Rig()
    rig.hold()
    assert rig.answer(rig.planned(scopes=(b"scope",)))[0] is None


def test_a_refused_credential_gets_nothing() -> None:
    rig = Rig(refusal=b"mark")
    rig.hold()
    assert rig.answer(rig.planned()) == (None, Outcome())


def test_what_is_long_to_join_is_left_to_those_who_do_it_off_the_loop() -> None:
    rig = Rig()
    rig.hold(vector=b"1" * (LARGE_BYTES // 2))
    assert rig.answer(rig.planned())[0] is None


@pytest.mark.parametrize(
    ("change", "speaks_against"),
    [
        ({}, False),
        ({"mode_now": Mode.BYPASS}, True),
        ({"mode_now": Mode.SHADOW}, True),
        ({"current": False}, True),
        ({"refusal": b"mark"}, True),
    ],
)
def test_another_answer_is_given_as_things_stand_now(change: dict[str, Any], speaks_against: bool) -> None:
    rig = Rig()
    rig.hold()
    again = rig.answer(rig.planned())[0].again
    for name, value in change.items():
        setattr(rig, name, value)
    outcome = Outcome()
    assert (again(outcome) is None) is speaks_against
    if not speaks_against:
        assert (outcome.upstream, outcome.operation, outcome.state) == ("dashscope", "embedding", CacheState.HIT)


def test_those_of_one_plan_are_one() -> None:
    rig = Rig()
    rig.hold()
    planned = rig.planned()
    first, second = rig.answer(planned)[0].again, rig.answer(planned)[0].again
    other = rig.answer(rig.planned())[0].again
    assert first == second
    assert hash(first) == hash(second)
    assert first != other


@pytest.mark.parametrize(
    ("ages_ms", "ttl_ms", "same_ms"),
    [
        ((0, 0), 100_000, 0),  # the lifetime counts its next second down at once
        ((400, 0), 100_900, 500),  # of the older one, 0.5 s; Age 0.6 s; Date 0.75 s
        ((0, 0), 100_950, 750),  # Date
        ((700, 0), 100_999, 299),  # ttl of the older one: 100,299 ms
        ((950, 0), 100_999, 49),  # ttl; Age would have had 50
    ],
)
def test_it_is_the_same_until_a_second_is_over_for_one_of_its_lines(
    ages_ms: tuple[int, int], ttl_ms: int, same_ms: int
) -> None:
    rig = Rig()
    rig.hold(ages_ms=ages_ms, ttl_ms=ttl_ms)
    again = rig.answer(rig.planned())[0].again
    assert again.same_until_unix_s() == pytest.approx(NOW_S + same_ms / 1000, abs=0.0011)


def test_it_is_not_the_same_for_longer_than_memory_holds_it() -> None:
    rig = Rig(max_age_s=0.1)
    rig.hold(ttl_ms=100_900)
    again = rig.answer(rig.planned())[0].again
    assert again.same_until_unix_s() == pytest.approx(NOW_S + 0.1, abs=0.0011)


def test_it_is_not_the_same_beyond_the_end_of_a_switch() -> None:
    rig = Rig()
    rig.hold(ttl_ms=100_900)
    again = rig.answer(rig.planned())[0].again
    rig.same_until_unix_s = NOW_S + 0.2
    assert again.same_until_unix_s() == NOW_S + 0.2


def test_with_wishes_of_its_own_nothing_is_said_of_the_next_moment() -> None:
    rig = Rig()
    rig.hold(ttl_ms=100_900)
    again = rig.answer(rig.planned(Directives(max_age_s=100)))[0].again
    assert again.same_until_unix_s() == 0.0


def test_what_has_gone_from_memory_is_not_the_same_any_more() -> None:
    rig = Rig()
    rig.hold()
    again = rig.answer(rig.planned())[0].again
    rig.memory.clear()
    assert again.same_until_unix_s() == 0.0


def test_a_plan_that_is_forgotten_is_gone_at_once() -> None:
    """Not when the collector of cycles comes: what planners and lanes hold is bounded in bytes."""
    rig = Rig()
    rig.hold()
    planned = rig.planned()
    again = rig.answer(planned)[0].again
    assert rig.at_once.again(planned) is again
    forgotten = weakref.ref(again)
    gc.disable()
    try:
        del planned, again
        assert forgotten() is None
    finally:
        gc.enable()


class Slow(Rig):
    """With a Redis that answers when it is told to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.has_redis, self.gate, self.asked_for = True, asyncio.Event(), 0

    async def read(self, keys: tuple[bytes, ...], owner: bytes) -> Found:
        assert (keys, owner) == (KEYS, b"owner")
        self.asked_for += 1
        await self.gate.wait()
        now_unix_ms, row = int(self.clock.wall() * 1000), Row(b"", b"", b"[1]", (("total_tokens", 3),), "vendor")
        entries = {key: Entry(row, now_unix_ms - 2_000, 100_000) for key in KEYS}
        return Found(entries=entries, from_memory={KEYS[0]}, redis_s=0.5)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, Answer),
        ({"mode_now": Mode.BYPASS}, type(None)),
        ({"current": False}, type(None)),
        ({"refusal": b"mark"}, Found),
    ],
)
async def test_what_changes_while_redis_is_asked_counts(change: dict[str, Any], kind: type) -> None:
    rig = Slow()
    again = rig.at_once.again(rig.planned())
    assert again is not None
    assert again.lacks_entries()
    outcome = Outcome()
    asking = asyncio.ensure_future(again.look_up(outcome))
    await asyncio.sleep(0)
    for name, value in change.items():
        setattr(rig, name, value)
    rig.gate.set()
    came = await asking
    assert type(came) is kind
    assert rig.asked_for == 1
    if isinstance(came, Answer):
        assert came.body == b"ours|[1]|[1]"
        assert (outcome.state, outcome.items, outcome.hits_memory, outcome.hits_redis) == (CacheState.HIT, 2, 1, 1)
        assert (outcome.age_s, outcome.redis_ms, outcome.tokens_saved) == (2, 500.0, 6)


def test_redis_is_asked_only_where_that_may_help() -> None:
    rig = Slow()
    planned = rig.planned()
    again = rig.at_once.again(planned)
    assert again is not None
    assert again.lacks_entries()
    for name, value, kept in (("has_redis", False, True), ("mode_now", Mode.SHADOW, Mode.ON), ("current", False, True)):
        setattr(rig, name, value)
        assert not again.lacks_entries()
        setattr(rig, name, kept)
    rig.hold()
    assert not again.lacks_entries(), "memory has all"
    assert rig.at_once.again(rig.planned(scopes=(b"scope",))) is None
