"""Answers kept ready for a moment: when one is kept, what is looked at each time, and that every one is counted."""

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest

from proxy.core.answer import Answer
from proxy.core.found import Found
from proxy.core.outcome import QUICK_MS, CacheState, Outcome, Repeats
from proxy.core.ports import Clock
from proxy.server.http.micro_cache import Ready
from tests.support.clock import FakeClock
from tests.support.waiting import wait_until

ID = "00000000-0000-4000-8000-000000000000"
DATA = f'HTTP/1.1 200 OK\r\nX-Request-Id: {ID}\r\n\r\n{{"request_id":"{ID}"}}'.encode()
SINGLY = 50  # answers in a window before the first is kept


@dataclass(eq=False)
class Again:
    """What has answered, and would."""

    clock: FakeClock
    lasts_s: float = 0.5

    def __call__(self, outcome: Outcome) -> Answer | None:
        raise NotImplementedError

    def lacks_entries(self) -> bool:
        raise NotImplementedError

    async def look_up(self, outcome: Outcome) -> Answer | Found:
        raise NotImplementedError

    def same_until_unix_s(self) -> float:
        return self.clock.wall() + self.lasts_s


@dataclass
class Rig:
    clock: FakeClock = field(default_factory=FakeClock)
    told: list[Repeats] = field(default_factory=list)
    written: list[bytes] = field(default_factory=list)
    version: int = 0

    def __post_init__(self) -> None:
        ids = itertools.count(1)
        clock = Clock(self.clock.monotonic, self.clock.wall)
        self.ready = Ready(self, lambda: f"id-{next(ids)}", clock, lambda: self.version)

    def observe_repeats(self, repeats: Repeats) -> None:
        self.told.append(repeats)

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def give(self, asked: Again | bytes) -> bool:
        transport: Any = self
        return self.ready.give(asked, transport)

    def keep(self, again: Again, data: bytes = DATA, times: int = SINGLY + 1) -> None:
        for _ in range(times):
            self.ready.keep(again, data, Outcome(state=CacheState.HIT, request_id=ID))


@pytest.fixture
async def rig():
    made = Rig()
    yield made
    made.ready.tell_all()


async def test_an_answer_differs_in_its_id_alone(rig: Rig) -> None:
    again = Again(rig.clock)
    rig.keep(again)
    assert rig.give(again)
    assert rig.give(again)
    assert rig.written == [DATA.replace(ID.encode(), b"id-1"), DATA.replace(ID.encode(), b"id-2")]


async def test_below_the_rate_nothing_is_kept(rig: Rig) -> None:
    again = Again(rig.clock)
    rig.keep(again, times=SINGLY)
    assert not rig.give(again)
    rig.keep(again, times=1)
    assert rig.give(again)


async def test_what_was_kept_before_a_change_is_not_given_after_it(rig: Rig) -> None:
    again, other = Again(rig.clock), Again(rig.clock)
    rig.keep(again)
    rig.keep(other)
    assert rig.give(again)
    rig.version += 1
    assert not rig.give(again)
    rig.keep(again, times=1)
    assert rig.give(again)
    assert not rig.give(other)
    assert len(rig.written) == 2


async def test_it_ends_with_its_second(rig: Rig) -> None:
    again = Again(rig.clock)
    rig.keep(again)
    rig.clock.advance(again.lasts_s - 0.01)
    assert rig.give(again)
    rig.clock.advance(0.01)
    assert not rig.give(again)


@pytest.mark.parametrize("data", [DATA.replace(ID.encode(), b"", 1), DATA + ID.encode(), b""])
async def test_an_answer_that_does_not_say_its_id_twice_is_not_kept(rig: Rig, data: bytes) -> None:
    again = Again(rig.clock)
    rig.keep(again, data)
    assert not rig.give(again)


async def test_what_has_passed_already_is_not_kept(rig: Rig) -> None:
    again = Again(rig.clock, lasts_s=0.0)
    rig.keep(again)
    again.lasts_s = 1.0
    assert not rig.give(again)


async def test_no_more_is_kept_than_there_is_room_for(rig: Rig) -> None:
    rig.keep(Again(rig.clock), times=SINGLY)
    large = DATA + bytes(1 << 20)
    many = [Again(rig.clock) for _ in range(20)]
    for again in many:
        rig.keep(again, large, times=1)
    assert sum(rig.give(again) for again in many) == 7  # 8 MiB


async def test_what_is_not_given_any_more_leaves_its_room_to_others(rig: Rig) -> None:
    rig.keep(Again(rig.clock), times=SINGLY)
    large = DATA + bytes(1 << 20)
    many = [Again(rig.clock) for _ in range(7)]
    for _ in range(10):
        for again in many:
            rig.keep(again, large, times=1)
            rig.ready.know(b"%d" % id(again), again)
        assert all(rig.give(again) and rig.give(b"%d" % id(again)) for again in many)
        rig.version += 1
        assert not any(rig.give(again) or rig.give(b"%d" % id(again)) for again in many)


async def test_all_are_told_of_and_gone_when_the_moment_is_over(rig: Rig) -> None:
    again = Again(rig.clock)
    rig.keep(again)
    for _ in range(3):
        assert rig.give(again)
    assert rig.told == []
    await wait_until(lambda: bool(rig.told))
    (repeats,) = rig.told
    assert repeats.times == 3
    assert not rig.give(again)


async def test_the_window_ends_by_itself_and_a_new_one_begins(rig: Rig) -> None:
    again = Again(rig.clock)
    for _ in range(2):
        rig.keep(again)
        assert rig.give(again)
        told = len(rig.told)
        await wait_until(lambda told=told: len(rig.told) == told + 1)
    assert [each.times for each in rig.told] == [1, 1]


async def test_what_was_dropped_in_the_middle_is_told_of_too(rig: Rig) -> None:
    again = Again(rig.clock)
    rig.keep(again)
    assert rig.give(again)
    rig.version += 1
    assert not rig.give(again)
    rig.ready.tell_all()
    assert [each.times for each in rig.told] == [1]


async def test_an_answer_is_found_by_the_bytes_that_it_answers_too(rig: Rig) -> None:
    again, other = Again(rig.clock), Again(rig.clock)
    rig.ready.know(b"too early", again)
    rig.keep(again)
    rig.keep(other)
    rig.ready.know(b"one", again)
    rig.ready.know(b"two", again)
    rig.ready.know(b"of other", other)
    assert [rig.give(key) for key in (b"one", b"two", again, b"of other", b"too early", b"")] == [
        *[True] * 4,
        *[False] * 2,
    ]
    rig.version += 1
    assert not rig.give(b"two")
    rig.version -= 1
    assert not rig.give(b"one"), "what was dropped does not come back by another name"
    assert not rig.give(again)
    assert rig.give(b"of other")
    rig.ready.tell_all()
    assert not rig.give(b"of other")
    assert [each.times for each in rig.told] == [3, 2]


async def test_no_more_requests_are_known_than_there_is_room_for(rig: Rig) -> None:
    again = Again(rig.clock)
    rig.keep(again)
    for number in range(5_000):
        rig.ready.know(b"%d" % number, again)
    assert sum(rig.give(b"%d" % number) for number in range(5_000)) == 4_095


def test_repeats_keep_slow_ones_apart() -> None:
    repeats = Repeats(Outcome())
    for took_ms in (0.1, QUICK_MS, 0.6, 20.0, 0.2):
        repeats.add(took_ms)
    assert (repeats.times, repeats.quick, repeats.slow_ms) == (5, 3, [0.6, 20.0])
    assert repeats.quick_ms == pytest.approx(0.8)
    assert repeats.quick_max_ms == QUICK_MS


def test_nothing_is_left_to_be_told_without_a_loop() -> None:
    async def kept() -> Rig:
        rig = Rig()
        rig.keep(Again(rig.clock))
        rig.ready.tell_all()
        return rig

    assert asyncio.run(kept()).told == []
