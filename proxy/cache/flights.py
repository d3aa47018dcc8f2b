"""
One flight per item: concurrent misses of one key in this process are one upstream request.

A *trip* is one upstream request, in a task of its own, and carries the flights of all items that it asks for. Whoever
needs an item that is on its way waits for that trip; so overlapping batches share what they share and no more. The
client that set a trip off is nobody special: the trip ends early only when nobody waits for it any more.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, Generic, TypeVar

from cachetools import TTLCache

from proxy.core.tasks import Tasks

Landing = TypeVar("Landing")

Land = Callable[[Landing, bool], None]
"""
Tells what came of a trip, and whether those who come too late to wait for it may have it too, until its work ends.

They may while what came is not yet where others look for it; otherwise who looked just before would ask again.
"""
Work = Callable[[Land[Landing]], Coroutine[Any, Any, None]]

_MAX_MARKED = 10_000


class Trip(Generic[Landing]):
    """One upstream request on its way, and the number of requests that wait for it."""

    def __init__(self, work: Work[Landing], tasks: Tasks, forget: "Callable[[Trip[Landing]], None]") -> None:
        self._landing: asyncio.Future[Landing] = asyncio.get_running_loop().create_future()
        self._forget = forget
        self._waiting = 0
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

    def _land(self, landing: Landing, may_board: bool) -> None:
        if not may_board:
            self._forget(self)
        self._landing.set_result(landing)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._forget(self)
        if self._landing.done():
            return
        error = None if task.cancelled() else task.exception()
        if error is None:
            self._landing.cancel()
        else:
            self._landing.set_exception(error)


class Flights(Generic[Landing]):
    """
    The trips of this process, by the keys of what they carry; *uncacheable_s* is how long a mark holds.

    A mark on a key says that its last answer could not be kept: to wait for another request's would be to wait in vain,
    so those that ask for it next go on their own, side by side.
    """

    def __init__(self, tasks: Tasks, uncacheable_s: float, monotonic: Callable[[], float]) -> None:
        self._tasks = tasks
        self._trips: dict[bytes, Trip[Landing]] = {}
        self._marked: TTLCache[bytes, bool] = TTLCache(_MAX_MARKED, uncacheable_s, monotonic)

    def __len__(self) -> int:
        return len(self._trips)

    def carrying(self, keys: Iterable[bytes]) -> dict[bytes, Trip[Landing]]:
        """Those of *keys* that are on their way, each with its trip."""
        return {key: trip for key in keys if key not in self._marked and (trip := self._trips.get(key)) is not None}

    def free(self, keys: Iterable[bytes]) -> frozenset[bytes]:
        """Those of *keys* that a trip may carry: not marked, and not on their way."""
        return frozenset(key for key in keys if key not in self._marked and key not in self._trips)

    def set_off(self, keys: Collection[bytes], work: Work[Landing]) -> Trip[Landing]:
        """Start *work*, which is told how to land, and carries *keys* (all ``free``) until it ends."""

        def forget(trip: Trip[Landing]) -> None:
            for key in keys:
                if self._trips.get(key) is trip:
                    del self._trips[key]

        trip = Trip(work, self._tasks, forget)
        self._trips.update(dict.fromkeys(keys, trip))
        return trip

    def mark(self, keys: Iterable[bytes]) -> None:
        """The answer for *keys* could not be kept."""
        for key in keys:
            self._marked[key] = True
