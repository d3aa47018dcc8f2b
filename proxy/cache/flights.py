"""
One flight per item: concurrent misses of one key in this process are one upstream request.

A *trip* is one upstream request, in a task of its own, and carries the flights of all items that it asks for. Whoever
needs an item that is on its way waits for that trip; so overlapping batches share what they share and no more. The
client that set a trip off is nobody special: the trip ends early only when nobody waits for it any more.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from typing import Any, Generic, TypeVar

from cachetools import TTLCache

from proxy.core.tasks import Tasks

Landing = TypeVar("Landing")

_MAX_MARKED = 10_000


class Trip(Generic[Landing]):
    """One upstream request on its way, and the number of requests that wait for it."""

    def __init__(self, task: "asyncio.Task[Landing]", forget: Callable[[], None]) -> None:
        self._task = task
        self._forget = forget
        self._waiting = 0

    def board(self) -> None:
        """One more request waits; every ``board`` needs a ``leave``."""
        self._waiting += 1

    def leave(self) -> None:
        """One request less waits; when none is left, the upstream need not answer."""
        self._waiting -= 1
        if not self._waiting and not self._task.done():
            self._forget()  # first, as nobody may board what is being cancelled
            self._task.cancel()

    def when_landed(self, heard: Callable[[Landing], None]) -> None:
        """Call *heard* with what came of it, unless it was cancelled."""

        def ended(task: "asyncio.Task[Landing]") -> None:
            if not task.cancelled() and task.exception() is None:
                heard(task.result())

        self._task.add_done_callback(ended)

    async def landed(self) -> Landing:
        """What came of it; only between ``board`` and ``leave``."""
        return await asyncio.shield(self._task)


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

    def carrying(self, keys: Iterable[bytes]) -> dict[bytes, Trip[Landing]]:
        """Those of *keys* that are on their way, each with its trip."""
        return {key: trip for key in keys if key not in self._marked and (trip := self._trips.get(key)) is not None}

    def set_off(self, keys: Collection[bytes], work: Coroutine[Any, Any, Landing]) -> Trip[Landing]:
        """Start *work*, which carries *keys*: others can board until it ends. It must not raise."""
        shared = [key for key in keys if key not in self._marked and key not in self._trips]
        task = self._tasks.start(work)
        trip = Trip(task, lambda: self._forget(shared, trip))
        for key in shared:
            self._trips[key] = trip
        task.add_done_callback(lambda _task: self._forget(shared, trip))
        return trip

    def mark(self, keys: Iterable[bytes]) -> None:
        """The answer for *keys* could not be kept."""
        for key in keys:
            self._marked[key] = True

    def __len__(self) -> int:
        return len(self._trips)

    def _forget(self, keys: Sequence[bytes], trip: Trip[Landing]) -> None:
        for key in keys:
            if self._trips.get(key) is trip:
                del self._trips[key]
