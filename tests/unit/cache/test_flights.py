"""Flights: who waits for whom within a process, and when a trip ends early (R6a, R6b, R8)."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from proxy.cache.flights import Flights, Land, Trip
from proxy.runtime.tasks import Tasks
from tests.support.clock import FakeClock
from tests.support.gate import Gate
from tests.support.waiting import wait_until


class Rig:
    """Flights whose trips hold before they land, and again before their work ends."""

    def __init__(self, uncacheable_s: float = 10.0) -> None:
        self.clock, self.faults = FakeClock(), list[BaseException]()
        self.tasks, self.clients = Tasks(self.faults.append), Tasks(self.faults.append)
        self.flights: Flights[str] = Flights(self.tasks, uncacheable_s, self.clock.monotonic)
        self.landing, self.keeping = Gate("landing"), Gate("keeping")
        self.cancelled = 0

    def set_off(self, *keys: bytes, came: str = "came", may_board: bool = True) -> Trip[str]:
        async def work(land: Land[str]) -> None:
            try:
                await self.landing.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            land(came, may_board)
            await self.keeping.wait()

        return self.flights.set_off(keys, work, 100.0)

    def client(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        return self.clients.start(work, is_awaited=True)

    async def ride(self, trip: Trip[str]) -> str:
        trip.board()
        try:
            return await trip.landed()
        finally:
            trip.leave()


async def test_all_who_board_have_what_came_and_nothing_is_left():
    rig = Rig()
    trip = rig.set_off(b"a", b"b")
    assert rig.flights.carrying([b"b", b"c", b"a"]) == {b"b": trip, b"a": trip}
    assert rig.flights.free([b"a", b"c"]) == {b"c"}
    riders = [rig.client(rig.ride(trip)) for _ in range(20)]
    await rig.landing.wait_arrived()
    rig.landing.open()
    rig.keeping.open()
    assert await asyncio.gather(*riders) == ["came"] * 20
    assert await rig.tasks.wait_done(5.0) == 0
    assert len(rig.flights) == 0


async def test_what_came_can_be_had_until_it_is_kept():
    """Who looked for the entry just before it was there must not ask again."""
    rig = Rig()
    trip = rig.set_off(b"a")
    rider = rig.client(rig.ride(trip))
    rig.landing.open()
    await rider
    assert rig.flights.carrying([b"a"]) == {b"a": trip}
    assert await rig.ride(trip) == "came"
    rig.keeping.open()
    assert await rig.tasks.wait_done(5.0) == 0
    assert rig.cancelled == 0
    assert rig.flights.carrying([b"a"]) == {}


async def test_nobody_boards_what_has_failed():
    """Those who waited ask anew as soon as they wake, and must not find what they have just left."""
    rig = Rig()
    trip = rig.set_off(b"a", may_board=False)

    async def ride_and_look() -> dict[bytes, Trip[str]]:
        await rig.ride(trip)
        return rig.flights.carrying([b"a"])

    riders = [rig.client(ride_and_look()) for _ in range(3)]
    rig.landing.open()
    assert await asyncio.gather(*riders) == [{}, {}, {}]
    rig.keeping.open()


async def test_the_trip_ends_when_the_last_one_leaves_and_not_before():
    rig = Rig()
    trip = rig.set_off(b"a")
    riders = [rig.client(rig.ride(trip)) for _ in range(3)]
    await rig.landing.wait_arrived()
    for rider in riders[:2]:
        rider.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rider
    assert rig.flights.carrying([b"a"]) == {b"a": trip}
    riders[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await riders[2]
    assert rig.flights.carrying([b"a"]) == {}, "nobody may board what is being cancelled"
    await wait_until(lambda: len(rig.tasks) == 0)
    assert rig.cancelled == 1


async def test_a_trip_that_was_cancelled_does_not_take_its_successor_along():
    rig = Rig()
    first = rig.set_off(b"a")
    first.board()
    await rig.landing.wait_arrived()
    first.leave()
    second = rig.set_off(*rig.flights.free([b"a"]))
    await wait_until(lambda: rig.cancelled == 1)
    assert rig.flights.carrying([b"a"]) == {b"a": second}
    rig.landing.open()
    rig.keeping.open()
    assert await rig.ride(second) == "came"


async def test_a_mark_lets_everybody_go_alone_for_a_while():
    rig = Rig()
    rig.set_off(b"a", b"b")
    rig.flights.mark([b"a", b"c"])
    assert set(rig.flights.carrying([b"a", b"b"])) == {b"b"}
    assert rig.flights.free([b"a", b"c", b"d"]) == {b"d"}
    rig.clock.advance(9.9)
    assert rig.flights.free([b"c"]) == set()
    rig.clock.advance(0.2)
    assert rig.flights.free([b"c"]) == {b"c"}
    rig.landing.open()
    rig.keeping.open()


async def test_marks_can_be_switched_off():
    rig = Rig(uncacheable_s=0)
    rig.flights.mark([b"a"])
    assert rig.flights.free([b"a"]) == {b"a"}


async def test_a_fault_in_the_work_reaches_all_who_wait_and_is_told_once():
    rig = Rig()

    async def work(_land: Land[str]) -> None:
        await rig.landing.wait()
        raise KeyError("a bug")

    trip = rig.flights.set_off([b"a"], work, 100.0)
    riders = [rig.client(rig.ride(trip)) for _ in range(3)]
    await rig.landing.wait_arrived()
    rig.landing.open()
    ends = await asyncio.gather(*riders, return_exceptions=True)
    assert [type(end) for end in ends] == [KeyError] * 3
    assert [type(fault) for fault in rig.faults] == [KeyError]
    assert len(rig.flights) == 0


@pytest.mark.parametrize("ends", ["cancelled", "without landing"])
async def test_nobody_waits_for_a_trip_that_will_not_land(ends: str):
    rig = Rig()

    async def work(_land: Land[str]) -> None:
        await rig.landing.wait()

    trip = rig.flights.set_off([b"a"], work, 100.0)
    rider = rig.client(rig.ride(trip))
    await rig.landing.wait_arrived()
    if ends == "cancelled":  # as at the end of a drain
        assert await rig.tasks.wait_done(0) == 1
    else:
        rig.landing.open()
    with pytest.raises(asyncio.CancelledError):
        await rider


async def test_who_has_left_can_have_something_done_with_what_comes():
    rig, heard = Rig(), list[str]()
    trip, lost = rig.set_off(b"a"), rig.set_off(b"b")
    for each in (trip, lost):
        each.board()
        each.when_landed(heard.append)
    trip.board()
    trip.leave()
    await rig.landing.wait_arrived(2)
    lost.leave()
    await wait_until(lambda: rig.cancelled == 1)
    rig.landing.open()
    rig.keeping.open()
    await wait_until(lambda: heard)
    assert heard == ["came"]
    trip.leave()
