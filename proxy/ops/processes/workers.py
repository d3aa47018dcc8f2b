"""
The worker processes: started, replaced when they die, told of modes and purges, drained at the end.

Knows nothing of what workers do; that is in the Hello that each of them is given.
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.core.modes import Modes
from proxy.core.purges import Marks
from proxy.core.tasks import Tasks
from proxy.ops.processes.channel import (
    Channel,
    Confirmed,
    Drain,
    Hello,
    SetModes,
    SetPurges,
    ToSupervisor,
    supervisor_end,
)
from proxy.ops.processes.process import CONTROL_VARIABLE, Backoff
from proxy.ops.telemetry.log_output import logger

CONFIRM_S = 1.0
"""How long an order waits for the workers' confirmations."""

# Beyond the time for draining: a worker also closes its connections, and has a deadline of its own.
_LAST_SECONDS = 5.0
_HURRY_S = 1.0


@dataclass(slots=True, eq=False)
class Worker:
    """One running process."""

    process: asyncio.subprocess.Process
    channel: Channel[ToSupervisor]
    serves: bool = False
    confirmed: int = 0
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever the worker has said something or is gone; whoever waits clears it."""


class Workers:
    """A fixed number of workers; *hello* makes the first message, *changed* is called when their number changes."""

    def __init__(
        self,
        count: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        hello: Callable[[int], Hello],
        changed: Callable[[], None],
        died: Callable[[int], Awaitable[None]],
        drain_s: float,
        tasks: Tasks,
    ) -> None:
        self.count = count
        self._command = command
        self._environment = environment
        self._hello = hello
        self._changed = changed
        self._died = died
        self._drain_s = drain_s
        self._tasks = tasks
        self._running: set[Worker] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._version = 0
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._all_serve = asyncio.Event()

    @property
    def serving(self) -> int:
        """How many serve now."""
        return sum(worker.serves for worker in self._running)

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return sorted(worker.process.pid for worker in self._running)

    def start(self) -> None:
        """Start all; returns at once."""
        self._keepers = [self._tasks.start(self._keep(number)) for number in range(1, self.count + 1)]

    async def wait_all_serve(self) -> None:
        """Return when all serve."""
        await self._all_serve.wait()

    async def set_modes(self, modes: Modes) -> tuple[int, int]:
        """Hand *modes* to all; how many of those that serve confirmed within a second, and how many serve."""
        return await self._order(lambda version: SetModes(version, modes.rules))

    async def set_purges(self, marks: Marks) -> tuple[int, int]:
        """Hand *marks* to all, likewise."""
        return await self._order(lambda version: SetPurges(version, marks.marks))

    async def _order(self, message: Callable[[int], SetModes | SetPurges]) -> tuple[int, int]:
        # One count of versions for all kinds: a worker takes messages in turn, so the last it confirmed tells it all.
        self._version += 1
        version = self._version
        for worker in self._running:
            worker.channel.send(message(version))
        asked = [worker for worker in self._running if worker.serves]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONFIRM_S):
                await asyncio.gather(*(self._wait_confirmed(worker, version) for worker in asked))
        alive = [worker for worker in asked if worker in self._running]
        return sum(worker.confirmed >= version for worker in alive), len(alive)

    async def stop(self) -> None:
        """Drain all and wait for their end; whoever does not end in time is killed."""
        self._stopping.set()
        for worker in self._running:
            worker.channel.send(Drain(self._drain_s))
        await asyncio.gather(*self._keepers)

    def hurry(self) -> None:
        """Give the workers a second, not more."""
        self._hurry.set()

    async def _wait_confirmed(self, worker: Worker, version: int) -> None:
        while worker.confirmed < version and worker in self._running:
            worker.heard.clear()
            await worker.heard.wait()

    async def _keep(self, number: int) -> None:
        """One place in the team: always taken, until all stop."""
        backoff = Backoff()
        while not self._stopping.is_set():
            started_s = time.monotonic()
            try:
                status = await self._run_one(number)
            except OSError as error:  # no more processes or memory
                logger().error("worker_not_started", worker=number, error=type(error).__name__)
                status = None
            if self._stopping.is_set():
                return
            wait_s = backoff.wait_s(time.monotonic() - started_s)
            logger().warning("worker_ended", worker=number, status=status, restart_in_s=wait_s)
            await _first(self._stopping.wait(), asyncio.sleep(wait_s), self._tasks)

    async def _run_one(self, number: int) -> int:
        worker = await self._spawn(number)
        self._running.add(worker)
        listening = self._tasks.start(self._listen(worker))
        try:
            if self._stopping.is_set():  # told while it was being started
                worker.channel.send(Drain(self._drain_s))
            return await self._ended(worker)
        finally:
            self._running.discard(worker)
            listening.cancel()
            worker.channel.close()
            worker.heard.set()
            self._changed()
            await self._died(worker.process.pid)

    async def _spawn(self, number: int) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    env={**self._environment, CONTROL_VARIABLE: str(theirs.fileno())},
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    process_group=0,  # Ctrl-C in a terminal goes to a whole group; workers are told by us
                )
            except BaseException:
                ours.close()
                raise
        channel = await supervisor_end(ours)
        channel.send(self._hello(number))
        return Worker(process, channel)

    async def _listen(self, worker: Worker) -> None:
        while (message := await worker.channel.receive()) is not None:
            if isinstance(message, Confirmed):
                worker.confirmed = max(worker.confirmed, message.version)
            else:
                worker.serves = True
                self._changed()
                if self.serving == self.count:
                    self._all_serve.set()
            worker.heard.set()

    async def _ended(self, worker: Worker) -> int:
        """The exit status of *worker*; when stopping takes too long, it is killed."""
        ended = self._tasks.start(worker.process.wait())
        await _first(ended, self._stopping.wait(), self._tasks)
        if not ended.done():
            limit_s = self._drain_s + _LAST_SECONDS
            await _first(ended, self._hurry.wait(), self._tasks, timeout_s=limit_s)
            if not ended.done() and self._hurry.is_set():
                await asyncio.wait({ended}, timeout=_HURRY_S)
            if not ended.done():
                logger().warning("worker_killed", pid=worker.process.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, signal.SIGKILL)
        status: int = await ended
        return status


async def _first(
    one: Awaitable[object], other: Awaitable[object], tasks: Tasks, timeout_s: float | None = None
) -> None:
    """Return when either is done, or after *timeout_s*; what was a coroutine is cancelled, a task goes on."""
    started = [item if isinstance(item, asyncio.Task) else tasks.start(_awaited(item)) for item in (one, other)]
    try:
        await asyncio.wait(started, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for item, task in zip((one, other), started, strict=True):
            if item is not task:
                task.cancel()


async def _awaited(item: Awaitable[object]) -> None:
    await item
