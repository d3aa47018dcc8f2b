"""
The worker processes: started, replaced when they die or settings change, told of modes and purges, drained at the end.

Each has a place with sockets of its own, which its successor goes on with. Knows nothing of what workers do; that is in
the Hello that each of them is given.
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from proxy.control.channel import (
    Answered,
    Confirmed,
    Drain,
    LastCall,
    Met,
    Question,
    Ready,
    Reply,
    SetModes,
    SetPurges,
    supervisor_end,
)
from proxy.control.order_store import Reached
from proxy.core.modes import Modes
from proxy.core.purges import Marks
from proxy.runtime.process import CONTROL_VARIABLE, Backoff
from proxy.runtime.tasks import Tasks
from proxy.supervisor.heartbeat import Heartbeats
from proxy.supervisor.place import Greeting, Place, Sockets, Worker
from proxy.supervisor.questions import Questions
from proxy.supervisor.silence import WORKER_PATIENCE, Patience
from proxy.supervisor.sockets import close_all
from proxy.telemetry.log_output import logger
from proxy.telemetry.names import Names

CONFIRM_S = 1.0
"""How long an order waits for the workers' confirmations."""

# Beyond the time for draining: a worker also closes its connections, and has a deadline of its own.
_LAST_SECONDS = 7.0
_HURRY_S = 1.0
# A start takes about a second; on a machine that swaps, many.
_SERVE_S = 30.0
# Beyond the first restart nobody is left waiting for a worker that may never come.
_PATIENT_S = 0.1

# Old workers of one place, each with all its memory; a further reload waits until one of them has ended.
_MOST_LEAVING = 2


class NotReplacedError(Exception):
    """A new worker did not come to serve, so the old ones go on; the message says which and why."""


class Workers:
    """
    A fixed number of workers; *hello* makes the first message, *changed* is called when their number changes.

    *sockets* makes what a place accepts on, one for each port; it may raise OSError. ``serve_s`` is how long the
    successor of a worker may take to serve.
    """

    def __init__(
        self,
        count: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        hello: Greeting,
        changed: Callable[[], None],
        died: Callable[[int], Awaitable[None]],
        drain_s: float,
        tasks: Tasks,
        sockets: Callable[[], Sockets] = list,
        patience: Patience = WORKER_PATIENCE,
    ) -> None:
        self.count = count
        self.serve_s = _SERVE_S
        self.names = Names()
        self._command = command
        self._environment = environment
        self._changed = changed
        self._died = died
        self._drain_s = drain_s
        self._tasks = tasks
        self._sockets = sockets
        self._running: set[Worker] = set()
        self._heartbeats = Heartbeats(self._running, self._count, patience)
        self._questions = Questions()
        self._beating: asyncio.Task[None] | None = None
        self._places = [Place(number, hello) for number in range(1, count + 1)]
        self._replacing = asyncio.Lock()
        self._version = 0
        self._is_last_call = False
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._all_serve = asyncio.Event()

    @property
    def serving(self) -> int:
        """How many serve now; those that are told to end, or do not answer, are not among them."""
        return sum(
            worker.serves and not worker.leaving.is_set() and not worker.silence.is_long for worker in self._running
        )

    @property
    def serving_pids(self) -> list[int]:
        """The processes of those that have come to serve."""
        return sorted(worker.process.pid for worker in self._running if worker.serves)

    @property
    def silent(self) -> list[int]:
        """The numbers of the places whose worker does not answer."""
        return sorted(worker.place.number for worker in self._running if worker.silence.is_long)

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return sorted(worker.process.pid for worker in self._running)

    def start(self) -> None:
        """Start all; returns at once."""
        for place in self._places:
            place.keeper = self._tasks.start(self._keep(place))
        self._beating = self._tasks.start(self._heartbeats.run())

    async def wait_all_serve(self) -> None:
        """Return when all serve."""
        await self._all_serve.wait()

    async def ask(self, question: Question) -> list[Reply]:
        """Ask all that serve; see ``Questions.ask``."""
        return await self._questions.ask([worker for worker in self._running if worker.serves], question)

    async def set_modes(self, modes: Modes) -> Reached:
        """Hand *modes* to all; which of those that serve confirmed within a second."""
        return await self._order(lambda version: SetModes(version, modes.rules))

    async def set_purges(self, marks: Marks) -> Reached:
        """Hand *marks* to all, likewise."""
        return await self._order(lambda version: SetPurges(version, marks.marks))

    async def _order(self, message: Callable[[int], SetModes | SetPurges]) -> Reached:
        # One count of versions for all kinds: a worker takes messages in turn, so the last it confirmed tells it all.
        self._version += 1
        version = self._version
        for worker in self._running:
            worker.channel.send(message(version))
        asked = [
            worker for worker in self._running if worker.serves
        ]  # also those that are told to end: they answer yet
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONFIRM_S):
                await asyncio.gather(*(self._wait_confirmed(worker, version) for worker in asked))
        alive = [worker for worker in asked if worker in self._running]
        missing = sorted({worker.place.number for worker in alive if worker.confirmed < version})
        if missing:
            logger().warning("order_not_confirmed", workers=missing, consequence="they may still go by what was before")
        return Reached(sum(worker.confirmed >= version for worker in alive), len(alive), tuple(missing))

    async def last_call(self, for_s: float) -> None:
        """Let no connection outlive its next answer, and return after *for_s* seconds, or when told to hurry."""
        self._is_last_call = True
        for worker in self._running:
            worker.channel.send(LastCall())
        if for_s:
            await _first(self._hurry.wait(), self._stopping.wait(), self._tasks, timeout_s=for_s)

    async def stop(self) -> None:
        """Drain all and wait for their end, also of who is just being started; who does not end in time is killed."""
        self._stopping.set()
        for place in self._places:
            # Before the workers close theirs: nobody would accept what came in after that.
            close_all(place.sockets)
            place.sockets = []
        for worker in self._running:
            if worker.leaving.is_set():  # replaced, and still lingering
                worker.channel.send(Drain(self._drain_s))
            self._retire(worker, Drain(self._drain_s))
        async with self._replacing:  # whoever is in the middle of it gives up
            pass
        keepers = [place.keeper for place in self._places if place.keeper is not None]
        ended = [worker.ended for worker in self._running if worker.ended is not None]
        await asyncio.gather(*keepers, *ended)
        if self._beating is not None:
            self._beating.cancel()

    def hurry(self) -> None:
        """Give the workers a second, not more."""
        self._hurry.set()

    async def replace_all(self, hello: Greeting, drain_s: float, linger_s: float) -> None:
        """
        Replace one worker after the other by one that is told *hello*: it serves before its predecessor drains.

        Raises:
            NotReplacedError: one did not come to serve. Those of before go on, or are started again.
        """
        replaced: list[tuple[Place, Greeting]] = []
        async with self._replacing:
            try:
                for place in self._places:
                    before = place.hello
                    await self._replace(place, hello, linger_s)
                    replaced.append((place, before))
            except NotReplacedError:
                for place, before in replaced:
                    await self._give_back(place, before, linger_s)
                raise
            self._drain_s = drain_s

    async def _give_back(self, place: Place, hello: Greeting, linger_s: float) -> None:
        try:
            await self._replace(place, hello, linger_s)
        except NotReplacedError as error:
            # To serve with settings that the other places do not have is better than not to serve.
            place.hello = hello
            if not self._stopping.is_set():
                logger().error("reload_not_undone", worker=place.number, reason=str(error))

    async def _replace(self, place: Place, hello: Greeting, linger_s: float) -> None:
        await self._wait_room(place)
        try:
            new = await self._spawn(place, hello)
        except OSError as error:
            raise NotReplacedError(f"worker {place.number} could not be started: {error.strerror or error}") from error
        try:
            async with asyncio.timeout(self.serve_s):
                while not new.serves and new in self._running:
                    new.heard.clear()
                    await new.heard.wait()
        except TimeoutError:
            pass
        if not new.serves or self._stopping.is_set():
            raise NotReplacedError(await self._gave_up(new))
        # The old one's keeper sees that the place is no longer its own, and does not fill it again.
        old, place.worker, place.hello = place.worker, new, hello
        place.keeper = self._tasks.start(self._keep(place, new))
        if old is not None:
            self._retire(old, Drain(self._drain_s, linger_s, is_replaced=True))
            self._changed()

    async def _gave_up(self, new: Worker) -> str:
        """End *new*; why it is of no use."""
        number = new.place.number
        if self._stopping.is_set():
            return "the proxy is ending"
        if new in self._running:
            with contextlib.suppress(ProcessLookupError):
                new.process.kill()
            return f"worker {number} did not serve within {self.serve_s:g} s"
        status = await new.ended if new.ended is not None else None
        return f"worker {number} ended with status {status} before it served"

    async def _wait_room(self, place: Place) -> None:
        """Return when not too many replaced workers linger at *place*."""
        while not self._stopping.is_set():
            leaving = [other for other in self._running if other.place is place and other.leaving.is_set()]
            if len(leaving) < _MOST_LEAVING:
                return
            ended = [other.ended for other in leaving if other.ended is not None]
            await _first(asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED), self._stopping.wait(), self._tasks)
        raise NotReplacedError("the proxy is ending")

    def _retire(self, worker: Worker, order: Drain) -> None:
        if not worker.leaving.is_set():
            worker.linger_s = order.linger_s
            worker.leaving.set()
            worker.channel.send(order)

    async def _wait_confirmed(self, worker: Worker, version: int) -> None:
        while worker.confirmed < version and worker in self._running:
            worker.heard.clear()
            await worker.heard.wait()

    async def _keep(self, place: Place, worker: Worker | None = None) -> None:
        """See that somebody serves at *place*, first *worker*, until all stop or another keeper takes over."""
        backoff, me = Backoff(), asyncio.current_task()
        while not self._stopping.is_set() and place.keeper is me:
            started_s, status = time.monotonic(), None
            try:
                worker = worker or await self._spawn(place, place.hello)
                if place.keeper is me:
                    place.worker = worker
                else:  # a successor came to serve while this one was being started
                    self._retire(worker, Drain(self._drain_s, is_replaced=True))
                status = await self._end_of(worker)
            except OSError as error:  # no more processes or memory
                logger().error("worker_not_started", worker=place.number, error=type(error).__name__)
            if self._stopping.is_set() or place.keeper is not me:
                return
            worker = place.worker = None
            wait_s = backoff.wait_s(time.monotonic() - started_s)
            logger().warning("worker_ended", worker=place.number, status=status, restart_in_s=wait_s)
            if wait_s > _PATIENT_S and not any(other.place is place for other in self._running):
                close_all(place.sockets)
                place.sockets = []
            await _first(self._stopping.wait(), asyncio.sleep(wait_s), self._tasks)

    async def _spawn(self, place: Place, hello: Greeting) -> Worker:
        """Start a process for *place*; it counts from now on. Raises OSError."""
        if not place.sockets and not self._stopping.is_set():
            place.sockets = self._sockets()
        ours, theirs = socket.socketpair()
        with theirs:
            channel = await supervisor_end(ours)
            numbers = tuple(-1 if one is None else one.fileno() for one in place.sockets)
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    env={**self._environment, CONTROL_VARIABLE: str(theirs.fileno())},
                    pass_fds=(theirs.fileno(), *(number for number in numbers if number >= 0)),
                    stdin=asyncio.subprocess.DEVNULL,
                    process_group=0,  # Ctrl-C in a terminal goes to a whole group; workers are told by us
                )
            except BaseException:
                channel.close()
                raise
        channel.send(msgspec.structs.replace(hello(place.number), sockets=numbers))
        worker = Worker(place, process, channel)
        self._running.add(worker)
        worker.ended = self._tasks.start(self._watch(worker))
        if self._is_last_call:
            channel.send(LastCall())
        if self._stopping.is_set():  # told while it was being started
            self._retire(worker, Drain(self._drain_s))
        return worker

    async def _end_of(self, worker: Worker) -> int | None:
        return await worker.ended if worker.ended is not None else None

    async def _watch(self, worker: Worker) -> int:
        listening = self._tasks.start(self._listen(worker))
        try:
            return await self._ended(worker)
        finally:
            self._running.discard(worker)
            self._questions.lost(worker)
            listening.cancel()
            worker.channel.close()
            worker.heard.set()
            self._changed()
            await self._died(worker.process.pid)

    async def _listen(self, worker: Worker) -> None:
        while (message := await worker.channel.receive()) is not None:
            self._heartbeats.heard(worker)
            if isinstance(message, Confirmed):
                worker.confirmed = max(worker.confirmed, message.version)
            elif isinstance(message, Answered):
                self._questions.answered(worker, message)
            elif isinstance(message, Met):
                self.names.add(message.name)
            elif isinstance(message, Ready):
                worker.serves = True
                self._count()
            worker.heard.set()

    def _count(self) -> None:
        """Called when more, or fewer, serve than before."""
        self._changed()
        if self.serving == self.count:
            self._all_serve.set()

    async def _ended(self, worker: Worker) -> int:
        """The exit status of *worker*; when stopping takes too long, it is killed."""
        ended = self._tasks.start(worker.process.wait())
        await _first(ended, worker.leaving.wait(), self._tasks)
        if not ended.done():
            await _first(ended, self._stopping.wait(), self._tasks, timeout_s=self._drain_s + worker.linger_s)
        if not ended.done():
            limit_s = (self._drain_s if self._stopping.is_set() else 0.0) + _LAST_SECONDS
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
