"""The one place that starts background tasks: keeps a reference, so none is lost half-way, and tells of failures."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Tasks:
    """A set of running background tasks; *on_failure* is told of the exceptions of those that nobody awaits."""

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._on_failure = on_failure

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, Any], *, is_awaited: bool = False) -> "asyncio.Task[Any]":
        """Start *work*; an exception is told, unless somebody *awaits* the task and so sees it anyway."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard if is_awaited else self._finished)
        return task

    async def wait_done(self, timeout_s: float) -> int:
        """Wait up to *timeout_s* seconds for all; return how many were still running and are now cancelled."""
        if not self._running:
            return 0
        _, pending = await asyncio.wait(set(self._running), timeout=timeout_s)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return len(pending)

    def _finished(self, task: "asyncio.Task[Any]") -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)
