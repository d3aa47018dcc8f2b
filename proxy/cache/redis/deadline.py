"""A deadline for somebody else's answer that a busy loop of our own does not run down."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

# How soon the loop must come round again to count as free. Event loops look at timers before they look at sockets, so
# one more turn is always granted: an answer that is there already must be heard first.
_TURN_S = 0.001
_FREE_S = 0.002
MOST_DEADLINES = 10
"""However busy the loop, nobody waits longer than so many times the deadline."""

SLICES = 10
"""How many slices a deadline has."""
_LEAST_SLICE_S = 0.001
"""The resolution of event loops' timers."""


class Slices:
    """
    Counts a deadline's slices as the loop comes round, and calls *each* after every one.

    A slice counts once, however late the loop comes to see that it is over: what took a whole turn of ours was no time
    in which an answer could have been heard. An answer that takes several turns (a connection does: its greeting, its
    password, the command) has all of them. So that it ends at all, a slice that took more than ``MOST_DEADLINES`` times
    its length counts for as many as that makes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, each: Callable[[], None]) -> None:
        self._loop = loop
        self._slice_s = max(seconds / SLICES, _LEAST_SLICE_S)
        self._each = each
        self._handle: asyncio.TimerHandle | None = None
        self._began_s = 0.0
        self.count = 0.0

    @property
    def is_running(self) -> bool:
        """Whether it counts."""
        return self._handle is not None

    def start(self) -> None:
        """Count from now on."""
        self._began_s = time.monotonic()
        self._handle = self._loop.call_later(self._slice_s, self._over)

    def stop(self) -> None:
        """Count no more; the count stays."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _over(self) -> None:
        took = (time.monotonic() - self._began_s) / self._slice_s
        self.count += max(min(took, 1.0), took / MOST_DEADLINES)
        self.start()
        self._each()


class PromptTurn:
    """Calls *then* once the loop has come round promptly, and at *last_s* (monotonic seconds) in any case."""

    def __init__(self, loop: asyncio.AbstractEventLoop, last_s: float, then: Callable[[], None]) -> None:
        self._loop = loop
        self._last_s = last_s
        self._then = then
        self._again()

    def cancel(self) -> None:
        """Do not call it."""
        self._handle.cancel()

    def _again(self) -> None:
        self._handle = self._loop.call_later(_TURN_S, self._judge, time.monotonic() + _TURN_S)

    def _judge(self, due_s: float) -> None:
        now_s = time.monotonic()
        if now_s - due_s > _FREE_S and now_s < self._last_s:
            self._again()
        else:
            self._then()


class Deadline:
    """
    Cancels what runs in its block after *seconds* in which the loop could have heard an answer.

    ``asyncio.timeout`` counts all time alike: two hundred hits at once keep the loop busy for longer than Redis is
    allowed to take, and Redis would be found guilty. Here the time is counted in slices (see ``Slices``), and ends only
    once the loop comes round promptly and still has no answer.

    Raises TimeoutError at the end of the block, as ``asyncio.timeout`` does.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._expired = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline needs a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._loop = asyncio.get_running_loop()
        self._slices = Slices(self._loop, self._seconds, self._look)
        self._slices.start()
        self._last_turn: PromptTurn | None = None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slices.stop()
        if self._last_turn is not None:
            self._last_turn.cancel()
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _look(self) -> None:
        if self._slices.count >= SLICES:
            self._slices.stop()
            self._last_turn = PromptTurn(self._loop, time.monotonic() + self._seconds, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()
