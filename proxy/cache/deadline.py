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
    allowed to take, and Redis would be found guilty. Here the time ends only once the loop comes round promptly and
    still has no answer.

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
        self._last_s = time.monotonic() + self._seconds * MOST_DEADLINES
        self._handle: asyncio.TimerHandle | PromptTurn = self._loop.call_later(self._seconds, self._look_again)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _look_again(self) -> None:
        self._handle = PromptTurn(self._loop, self._last_s, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()
