"""A deadline for somebody else's answer that a busy loop of our own does not run down."""

import asyncio
import time
from types import TracebackType
from typing import Self

# How soon the loop must come round again to count as free. Event loops look at timers before they look at sockets, so
# one more turn is always granted: an answer that is there already must be heard first.
_TURN_S = 0.001
_FREE_S = 0.002
_MOST = 10
"""However busy the loop, nobody waits longer than so many times the deadline."""


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
        self._last_s = time.monotonic() + self._seconds * _MOST
        self._handle = self._loop.call_later(self._seconds, self._look_again)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _look_again(self) -> None:
        due_s = time.monotonic() + _TURN_S
        self._handle = self._loop.call_later(_TURN_S, self._judge, due_s)

    def _judge(self, due_s: float) -> None:
        now_s = time.monotonic()
        if now_s - due_s > _FREE_S and now_s < self._last_s:
            self._look_again()
        else:
            self._expired = True
            self._task.cancel()
