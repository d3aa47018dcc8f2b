"""
Questions to the workers: each is asked over its channel, and those that answer in time are heard.

A worker that hangs, or ends meanwhile, makes the answer partial and holds nobody up.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from proxy.control.channel import Answered, Ask, Question, Reply
from proxy.supervisor.place import Worker

ANSWER_S = 1.0
"""How long an answer is waited for; a worker whose loop turns has it at once."""


class Questions:
    """All that are open."""

    def __init__(self) -> None:
        self._last = 0
        self._open: dict[tuple[Worker, int], asyncio.Future[Mapping[str, Any] | None]] = {}

    async def ask(self, workers: Iterable[Worker], question: Question, within_s: float = ANSWER_S) -> list[Reply]:
        """Ask all *workers*, and wait for as many answers as come within *within_s* seconds; in the order of places."""
        self._last += 1
        number, asked = self._last, sorted(workers, key=lambda worker: (worker.place.number, worker.process.pid))
        futures = [asyncio.get_running_loop().create_future() for _ in asked]
        for worker, future in zip(asked, futures, strict=True):
            self._open[worker, number] = future
            worker.channel.send(Ask(number, question))
        try:
            if futures:
                await asyncio.wait(futures, timeout=within_s)
        finally:
            for worker in asked:
                self._open.pop((worker, number), None)
        return [
            Reply(worker.place.number, worker.process.pid, worker.age_s, future.result() if future.done() else None)
            for worker, future in zip(asked, futures, strict=True)
        ]

    def answered(self, worker: Worker, message: Answered) -> None:
        """An answer has come; if it comes too late, nobody minds."""
        future = self._open.pop((worker, message.number), None)
        if future is not None and not future.done():
            future.set_result(message.document)

    def lost(self, worker: Worker) -> None:
        """The *worker* has ended: what it was asked is not answered any more."""
        for key in [key for key in self._open if key[0] is worker]:
            future = self._open.pop(key)
            if not future.done():
                future.set_result(None)
