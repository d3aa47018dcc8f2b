"""
One flight per item: concurrent misses of one key in this process are one upstream request.

A *trip* is one upstream request, in a task of its own, and carries the flights of all items that it asks for. Whoever
needs an item that is on its way waits for that trip; so overlapping batches share what they share and no more. The
client that set a trip off is nobody special: the trip ends early only when nobody waits for it any more.

Nobody waits for long: a trip that has not landed within its *lock time* is overdue. It flies on for the client that set
it off, but carries nothing any more, and those who waited go on without it. Should it land after all, what it brings
also serves the trip that was set off in its place.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, Generic, TypeVar

from cachetools import TTLCache

from proxy.runtime.tasks import Tasks

Landing = TypeVar("Landing")

Land = Callable[[Landing, bool], None]
"""
Tells what came of a trip, and whether those who come too late to wait for it may have it too, until its work ends.

They may while what came is not yet where others look for it; otherwise who looked just before would ask again.
"""
Work = Callable[[Land[Landing]], Coroutine[Any, Any, None]]

_MAX_MARKED = 10_000


def _nothing(_: object) -> None:
    """For a trip that carries nothing."""


class Trip(Generic[Landing]):
    """
    One upstream request on its way, and the number of requests that wait for it.

    *forget* is called when nobody may board any more, *overdue* after *lock_s* seconds without a landing.
    """

    def __init__(
        self,
        work: Work[Landing],
        tasks: Tasks,
        lock_s: float,
        *,
        forget: "Callable[[Trip[Landing]], None]" = _nothing,
        overdue: "Callable[[Trip[Landing]], None]" = _nothing,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._landing: asyncio.Future[Landing] = loop.create_future()
        self._in_time: asyncio.Future[Landing | None] = loop.create_future()
        """The landing, or ``None`` when the lock time ends without one."""
        self._forget = forget
        self._overdue = overdue
        self._waiting = 0
        self._lock = loop.call_later(lock_s, self._end_lock)
        self._task = tasks.start(work(self._land))
        self._task.add_done_callback(self._ended)

    @property
    def has_landed(self) -> bool:
        """Whether it is known what came."""
        return self._landing.done()

    def board(self) -> None:
        """One more request waits; every ``board`` needs a ``leave``."""
        self._waiting += 1

    def leave(self) -> None:
        """One request less waits; when none is left, the upstream need not answer."""
        self._waiting -= 1
        if not self._waiting and not self._landing.done():
            self._forget(self)  # first, as nobody may board what is being cancelled
            self._task.cancel()

    def when_landed(self, heard: Callable[[Landing], None]) -> None:
        """Call *heard* with what came of it, unless it was cancelled."""

        def landed(landing: "asyncio.Future[Landing]") -> None:
            if not landing.cancelled() and landing.exception() is None:
                heard(landing.result())

        self._landing.add_done_callback(landed)

    async def landed(self) -> Landing:
        """What came of it; only between ``board`` and ``leave``. Raises what its work raised: a fault of ours."""
        return await asyncio.shield(self._landing)

    async def landed_in_time(self) -> Landing | None:
        """The same, or ``None`` when its lock time ends first."""
        return await asyncio.shield(self._in_time)

    def land_instead(self, landing: Landing) -> None:
        """Another trip has brought what this one asks for: its own request is given up."""
        if not self._landing.done():
            self._land(landing, may_board=True)
            self._task.cancel()

    def _land(self, landing: Landing, may_board: bool) -> None:
        if self._landing.done():  # another one has landed instead, and this one's end was on its way
            return
        if not may_board:
            self._forget(self)
        self._landing.set_result(landing)
        self._hear(landing)

    def _end_lock(self) -> None:
        """Nobody is to wait for it any longer."""
        self._overdue(self)
        self._hear(None)

    def _hear(self, landing: Landing | None) -> None:
        self._lock.cancel()
        if not self._in_time.done():
            self._in_time.set_result(landing)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._forget(self)
        self._lock.cancel()
        if self._landing.done():
            return
        error = None if task.cancelled() else task.exception()
        for future in (self._landing, self._in_time):
            if future.done():
                continue
            if error is None:
                future.cancel()
            else:
                future.set_exception(error)
                future.exception()  # those who waited for it in time, if anybody did, have it


class Flights(Generic[Landing]):
    """
    The trips of this process, by the keys of what they carry; *uncacheable_s* is how long a mark holds.

    A mark on a key says that its last answer could not be kept: to wait for another request's would be to wait in vain,
    so those that ask for it next go on their own, side by side.
    """

    def __init__(self, tasks: Tasks, uncacheable_s: float, monotonic: Callable[[], float]) -> None:
        self._tasks = tasks
        self._trips: dict[bytes, Trip[Landing]] = {}
        self._overdue: dict[bytes, Trip[Landing]] = {}
        """By key, the trip that carried it last and has not landed within its lock time."""
        self._marked: TTLCache[bytes, bool] = TTLCache(_MAX_MARKED, uncacheable_s, monotonic)

    def __len__(self) -> int:
        return len(self._trips)

    def carrying(self, keys: Iterable[bytes]) -> dict[bytes, Trip[Landing]]:
        """Those of *keys* that are on their way, each with its trip."""
        return {key: trip for key in keys if key not in self._marked and (trip := self._trips.get(key)) is not None}

    def free(self, keys: Iterable[bytes]) -> frozenset[bytes]:
        """Those of *keys* that a trip may carry: not marked, and not on their way."""
        return frozenset(key for key in keys if key not in self._marked and key not in self._trips)

    def set_off(
        self,
        keys: Collection[bytes],
        work: Work[Landing],
        lock_s: float,
        *,
        overdue: Callable[[], None] = lambda: None,
        relieve: Callable[[Landing], Landing | None] = lambda _: None,
    ) -> Trip[Landing]:
        """
        Start *work*, which is told how to land, and carries *keys* (all ``free``) until it ends or is overdue.

        After *lock_s* seconds *overdue* is called. *relieve* makes of an earlier trip's landing, if that was overdue
        and all of *keys* were its, what this one lands with; ``None`` if it goes on.
        """

        def forget(trip: Trip[Landing]) -> None:
            _remove(self._trips, keys, trip)
            _remove(self._overdue, keys, trip)

        def end_lock(trip: Trip[Landing]) -> None:
            _remove(self._trips, keys, trip)
            self._overdue.update(dict.fromkeys(keys, trip))
            overdue()

        earlier = {self._overdue.get(key) for key in keys}
        trip = Trip(work, self._tasks, lock_s, forget=forget, overdue=end_lock)
        self._trips.update(dict.fromkeys(keys, trip))
        if len(earlier) == 1 and (first := earlier.pop()) is not None:
            first.when_landed(lambda landing: _relieve(trip, relieve(landing)))
        return trip

    def mark(self, keys: Iterable[bytes]) -> None:
        """The answer for *keys* could not be kept."""
        for key in keys:
            self._marked[key] = True


def _remove(trips: dict[bytes, Trip[Landing]], keys: Iterable[bytes], trip: Trip[Landing]) -> None:
    for key in keys:
        if trips.get(key) is trip:
            del trips[key]


def _relieve(trip: Trip[Landing], landing: Landing | None) -> None:
    if landing is not None:
        trip.land_instead(landing)
