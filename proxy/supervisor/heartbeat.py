"""
Heartbeats of the workers: each is asked, over its channel, whether its event loop still turns.

One that does not answer is reported, no longer counted as serving, and at last killed, so that its place is filled
anew. Its HTTP sockets stay, held by the supervisor: connections that were let in and not yet accepted are accepted by
its successor. Connections that it had accepted are lost, and so are those in the queues that gRPC's library bound.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection

from proxy.control.channel import Ping
from proxy.supervisor.place import Worker
from proxy.supervisor.silence import Patience
from proxy.telemetry.log_output import logger


class Heartbeats:
    """Of all that are *running*, those that are starting or told to end included; *changed*: others serve now."""

    def __init__(self, running: Collection[Worker], changed: Callable[[], None], patience: Patience) -> None:
        self._running = running
        self._changed = changed
        self._patience = patience

    async def run(self) -> None:
        """Ask them, again and again."""
        while True:
            await asyncio.sleep(self._patience.turn_s)
            for worker in list(self._running):
                self._turn(worker)

    def heard(self, worker: Worker) -> None:
        """*worker* has said something, no matter what."""
        silent_s = worker.silence.for_s
        if worker.silence.ended():
            logger().warning("worker_answers_again", worker=worker.place.number, silent_s=silent_s)
            self._changed()

    def _turn(self, worker: Worker) -> None:
        silence, fields = worker.silence, {"worker": worker.place.number, "pid": worker.process.pid}
        if not silence.is_asked:
            silence.is_asked = True
            worker.channel.send(Ping())
            return
        patience = self._patience
        long_s, lost_s = (patience.long_s, patience.lost_s) if worker.serves else (patience.start_s,) * 2
        if silence.goes_on(patience.turn_s, long_s):
            logger().error("worker_silent", **fields, silent_s=silence.for_s)
            self._changed()
        if silence.for_s >= lost_s and not silence.is_given_up:
            silence.is_given_up = True
            logger().error("worker_hung", **fields, silent_s=silence.for_s, consequence="killed; its connections break")
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()
