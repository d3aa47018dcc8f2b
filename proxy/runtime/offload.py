"""
Where work on large bodies is done: beside the event loop, one piece at a time, so that small requests go on meanwhile.

A thread helps although all share the interpreter's lock: hashing and compressing let go of it, Python code is made to
every ``SWITCH_S`` seconds, and what does neither (the parser) is bounded. See decision 14.
"""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

LARGE_BYTES = 256 * 1024
"""From this size on, work is worth a thread's detour of about 0.1 ms."""

SWITCH_S = 0.001
"""How long the thread may go on while the loop has something to do; Python's own default is five times that."""


class Heavy:
    """
    Runs functions that take the processor for long, in the order in which they came.

    One thread: two would only take the lock from each other, and from the loop. Those who wait for their turn wait
    here and not in the thread's own queue, so that who leaves lets go of its body at once.
    """

    def __init__(self, large_bytes: int = LARGE_BYTES) -> None:
        self._large_bytes = large_bytes
        self._turn = asyncio.Lock()
        self._thread: ThreadPoolExecutor | None = None

    async def __call__(self, size: int, work: Callable[..., Result], *arguments: object) -> Result:
        """
        What *work* returns or raises; done in place unless it is about *size* bytes that are many.

        *work* must not touch what others use meanwhile. It cannot be stopped: who is cancelled leaves it to its end.
        """
        if size < self._large_bytes:
            return work(*arguments)
        await self._turn.acquire()
        try:
            future = self._started(work, arguments)
        except BaseException:
            self._turn.release()
            raise
        return await asyncio.wrap_future(future)

    def _started(self, work: Callable[..., Result], arguments: tuple[object, ...]) -> "Future[Result]":
        """*work* in the thread; the turn lasts twice as long, so that half of the time is the loop's alone."""
        if self._thread is None:
            sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
            self._thread = ThreadPoolExecutor(1, "heavy")
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        def rest() -> None:
            loop.call_later(loop.time() - began_s, self._turn.release)

        future = self._thread.submit(work, *arguments)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(rest))
        return future

    async def close(self) -> None:
        """Wait for what is running; only to be called when nobody asks any more."""
        async with self._turn:
            if self._thread is not None:
                self._thread.shutdown()
