"""
``dashcache run``: one supervisor, its workers, perhaps a Redis, and the order in which they come and go.

The supervisor serves no data. It holds what must be one of its kind: the data folder, the ports' numbers, the modes
and purges, the admin listener. Open ``Supervisor._start`` for the way up; the exit stack walks the same way down.
"""

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

import proxy
from proxy.admin.api import Admin
from proxy.admin.health import Phase, RedisKind, State
from proxy.admin.metric_files import MetricFiles
from proxy.admin.stats import modes_document, version
from proxy.admin.visitors import BACKLOG
from proxy.control.channel import Hello, settings_to_json
from proxy.control.modes import ModeBook, rule_fields
from proxy.control.order_store import Reached
from proxy.control.purges import PurgeBook
from proxy.control.redis_link import RedisLink
from proxy.control.redis_sweep import Sweep
from proxy.control.redis_watch import RecordFile, RedisWatch
from proxy.control.share import Share
from proxy.control.shared_redis import incarnation
from proxy.core.errors import ConfigError
from proxy.core.key import Secret
from proxy.core.listening import shown
from proxy.core.loops import new_id
from proxy.core.modes import Mode, Modes
from proxy.core.purges import Marks
from proxy.runtime import running
from proxy.runtime.data_folder import DataFolder
from proxy.runtime.open_files import room_for
from proxy.runtime.process import SPARING, child_environment, python_module
from proxy.runtime.tasks import Tasks
from proxy.settings.model import Settings
from proxy.settings.types import split_address
from proxy.supervisor.redis_child import REDIS_PATIENCE, RedisChild, find_program
from proxy.supervisor.reload import Reloader
from proxy.supervisor.silence import WORKER_PATIENCE, Patience
from proxy.supervisor.sockets import Reserved, bind, cannot_listen, place_sockets, reserve_all
from proxy.supervisor.workers import NotReplacedError, Workers
from proxy.telemetry import labels
from proxy.telemetry.log_output import configure, error_fields, logger

REDIS_CONFIG = "redis.conf"

# Of a replaced worker nobody's balancer knows: clients need a moment to bring the request that they were about to send.
_LINGER_S = 1.0
_OWN_FILES = 96
"""Standard streams, listeners, the lock, Redis and its link, and what a start of a child needs for a moment."""
_WORKER_FILES = 6
"""Of a worker, and of those before it that still drain: a channel and a handle each."""
_AGE_SPREAD = 1.1  # gRPC's library spreads the ages of connections by a tenth in both directions


class Supervisor:
    """
    One run, from ``run`` to its return.

    *config_folder* holds ``redis.conf``; *worker_command* is what starts a worker, and the *patience* with
    children that do not answer is what it is (tests bring others).
    """

    def __init__(
        self,
        settings: Settings,
        config_folder: Path,
        *,
        worker_command: Sequence[str] | None = None,
        environ: Mapping[str, str] = os.environ,
        patience: Patience = WORKER_PATIENCE,
        redis_patience: Patience = REDIS_PATIENCE,
    ) -> None:
        self.state = State(wanted=settings.workers or len(os.sched_getaffinity(0)))
        self._settings = settings
        self._redis_config = config_folder / REDIS_CONFIG
        self._worker_command = worker_command or [*python_module(Path(proxy.__file__).parent.parent), "worker"]
        self._environ = environ
        self._patience = patience
        self._redis_patience = redis_patience
        self._tasks = Tasks(lambda error: logger().error("background_failed", **error_fields(error)))
        self._stop = asyncio.Event()
        self._is_quiet = True
        self._reloader = Reloader(settings, environ, self.state, self._put_in_force)
        self._hello_with: Callable[[Settings], Callable[[int], Hello]]
        self._take_up: Callable[[Settings], None]
        self._workers: Workers | None = None
        self._upstreams = labels.upstream_operations(settings)

    async def run(self) -> None:
        """
        Serve until a signal comes or ``stop`` is called.

        Raises:
            ConfigError: the settings cannot be put into practice here.
        """
        self._handle_signals()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._tasks.wait_done, 0)
            starting = self._tasks.start(self._start(stack), is_awaited=True)
            stopping = self._tasks.start(self._stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
            await asyncio.wait({starting})
            if not starting.cancelled():
                starting.result()
            await stopping
            await self._announce_end()
        logger().info("stopped")

    def stop(self, *, at_once: bool = False) -> None:
        """Drain and end, *at_once*: without waiting for balancers to see it; called again: hurry."""
        self._is_quiet = self._is_quiet and not at_once
        if self._stop.is_set() and self._workers is not None:
            self._workers.hurry()
        self._stop.set()

    async def _announce_end(self) -> None:
        """Whoever asks whether to send requests here hears no from now on, while they are still answered."""
        was_serving = self.state.phase is Phase.SERVING
        self.state.phase = Phase.DRAINING
        limits = self._settings.limits
        notice_s = limits.notice_s if was_serving and self._is_quiet else 0.0
        logger().info("draining", notice_s=notice_s, within_s=limits.drain_s)
        if self._workers is not None:
            await self._workers.last_call(notice_s)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        # Ctrl-C: somebody waits for the prompt, and no balancer asks.
        loop.add_signal_handler(signal.SIGINT, lambda: self.stop(at_once=True))
        loop.add_signal_handler(signal.SIGHUP, lambda: self._tasks.start(self._reloader.by_signal()))

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        """The way up; everything that is taken is put on *stack* at once, so that a stop half-way leaves nothing."""
        folder = DataFolder(self._settings.data_dir)
        stack.callback(folder.close)
        secret = self._key_secret(folder)
        metrics = MetricFiles(folder.path)
        stack.callback(metrics.close)
        ports = reserve_all(self._settings)
        for reserved in ports:
            stack.callback(reserved.socket.close)
        self.state.listening = [reserved.port for reserved in ports]
        book = ModeBook(self._settings.start, folder.path, self._set_modes, lambda: self._modes_changed(metrics, book))
        purges = PurgeBook(folder.path, self._set_purges)
        for known in (book, purges):
            known.load()
            self.state.lacking.append(known.lacks)
        stack.callback(self._tasks.start(book.run()).cancel)
        admin = Admin(self._settings, self.state, book, purges, metrics)
        admin.reload = self._reloader.reload

        def take_up(settings: Settings) -> None:
            book.live.begin_with(settings.start)
            admin.use(settings)
            self._modes_changed(metrics, book)

        self._take_up = take_up
        stack.push_async_callback(admin.close)
        stack.callback(self._tasks.start(admin.rates.run()).cancel)
        await self._start_admin(admin)
        stack.callback(running.remove, folder.path)
        self._note_running(folder.path, admin.run_token)
        redis_url = await self._redis(folder, stack)
        if redis_url is not None:
            await self._share(redis_url, secret, folder=folder, books=(book, purges), admin=admin, stack=stack)
        await self._start_workers(stack, book, purges, metrics, ports=ports, secret=secret, redis_url=redis_url)

    def _key_secret(self, folder: DataFolder) -> bytes:
        given = self._settings.key_secret
        return given.reveal().encode() if given is not None else folder.key_secret()

    async def _start_admin(self, admin: Admin) -> None:
        host, port = split_address(self._settings.listen.admin)
        try:
            bound = bind(host, port, shared=False)
        except OSError as error:
            stated = self._settings.listen.admin
            raise ConfigError([cannot_listen(("listen", "admin"), "listen.admin", stated, error)]) from error
        self.state.admin = shown(host, bound.getsockname()[1])
        # What is left for looking after children: a visitor must never be the reason why a worker is not replaced.
        others = _OWN_FILES + self.state.wanted * (_WORKER_FILES + len(self.state.listening)) + BACKLOG
        admin.visitors.most = room_for(admin.visitors.most, others)
        await admin.start(bound)

    def _note_running(self, folder: Path, token: str) -> None:
        """Let commands find us, whatever happens to the files that our settings come from."""
        try:
            running.write(folder, running.Running(os.getpid(), self._settings.listen.admin, self.state.admin, token))
        except OSError as error:
            logger().warning("running_not_noted", error=error.strerror, consequence="commands go by the settings alone")

    async def _redis(self, folder: DataFolder, stack: contextlib.AsyncExitStack) -> str | None:
        """The URL of the configured Redis, of one of our own, or none."""
        if self._settings.redis.url is not None:
            self.state.redis = RedisKind.CONFIGURED
            return self._settings.redis.url.reveal()
        program = find_program()
        if program is None or not self._redis_config.is_file():
            missing = "redis-server" if program is None else REDIS_CONFIG
            logger().warning("no_redis", missing=missing, consequence="memory tier alone; nothing outlives a restart")
            return None
        child = RedisChild(program, self._redis_config, folder.path, self._tasks, self._redis_patience)
        stack.push_async_callback(child.stop)
        self.state.redis = RedisKind.EMBEDDED
        self.state.lacking.append(child.lacks)
        if not await child.start():
            logger().warning("embedded_redis_silent")
        return child.url

    async def _watch_redis(
        self, link: RedisLink, secret: bytes, folder: DataFolder, stack: contextlib.AsyncExitStack
    ) -> None:
        """Before anybody else asks Redis: whether it may be used, and whether its data are those of before."""
        file = RecordFile(folder.path)
        known, stopped_with = file.take()
        data = incarnation(self._settings, secret, known=known)
        # Of a Redis that others share, nobody can say with what it was stopped.
        trusted = stopped_with if self.state.redis is RedisKind.EMBEDDED else b""
        self.state.watch = watch = RedisWatch(link, data, file, trusted)
        await watch.first()
        stack.push_async_callback(watch.stop)
        stack.callback(self._tasks.start(watch.run()).cancel)

    async def _share(
        self,
        redis_url: str,
        secret: bytes,
        *,
        folder: DataFolder,
        books: tuple[ModeBook, PurgeBook],
        admin: Admin,
        stack: contextlib.AsyncExitStack,
    ) -> None:
        link = RedisLink(redis_url, self._settings.redis.key_prefix, self._tasks)
        stack.push_async_callback(link.close)
        self.state.link = link
        admin.sweep = Sweep(link, self._tasks)
        stack.callback(admin.sweep.cancel)
        await self._watch_redis(link, secret, folder, stack)
        # The embedded server is ours alone: there are no replicas to share with.
        if self.state.redis is RedisKind.CONFIGURED:
            admin.share = Share(link, Secret.derive(secret), books)
            # Before the first request: what others have purged while this replica was away must not be answered.
            await admin.share.first()
            stack.callback(self._tasks.start(admin.share.run()).cancel)

    async def _start_workers(
        self,
        stack: contextlib.AsyncExitStack,
        book: ModeBook,
        purges: PurgeBook,
        metrics: MetricFiles,
        *,
        ports: list[Reserved],
        secret: bytes,
        redis_url: str | None,
    ) -> None:
        held = tuple(reserved.port for reserved in ports)

        own_id = new_id()

        def hello(settings: msgspec.Raw, number: int) -> Hello:
            rules, marks, of = book.held.rules, purges.held.marks, self.state.wanted
            return Hello(number, of, settings, held, secret, redis_url, rules, marks, own_id=own_id)

        self._hello_with = lambda settings: functools.partial(hello, msgspec.Raw(settings_to_json(settings)))
        workers = Workers(
            self.state.wanted,
            self._worker_command,
            {**SPARING, **child_environment(self._environ), **metrics.environment()},
            hello=self._hello_with(self._settings),
            changed=lambda: metrics.workers(self.state.serving, self.state.wanted),
            died=metrics.worker_died,
            drain_s=self._settings.limits.drain_s,
            tasks=self._tasks,
            sockets=lambda: place_sockets(ports),
            patience=self._patience,
        )
        self.state.workers = self._workers = workers
        self.state.lacking.append(lambda: metrics.lacks(workers.serving_pids))
        stack.push_async_callback(workers.stop)
        self._modes_changed(metrics, book)
        metrics.workers(0, self.state.wanted)
        workers.start()
        await workers.wait_all_serve()
        self.state.phase = Phase.SERVING
        self._log_ready(book)

    def _log_ready(self, book: ModeBook) -> None:
        modes = modes_document(book.live, self._upstreams)["effective"]
        logger().info(
            "ready",
            **self.state.listeners(),
            workers=self.state.wanted,
            redis=self.state.redis_words,
            upstreams={upstream.name: upstream.origin for upstream in self._settings.all_upstreams()},
            modes=sorted({mode for by_operation in modes.values() for mode in by_operation.values()}),
            version=version(),
        )
        for rule in book.live.valid().rules:
            if rule.mode is not Mode.ON:  # it may have outlived a restart, and be forgotten
                logger().warning("mode_is_not_on", **rule_fields(rule))

    async def _put_in_force(self, settings: Settings) -> None:
        """Replace the workers by others with *settings*, and then go by them here too. Raises NotReplacedError."""
        if self._workers is None:
            raise NotReplacedError("there are no workers yet")
        limits = settings.limits
        linger_s = max(limits.notice_s, _LINGER_S)
        if any(port.protocol in ("grpc", "grpcs") for port in self.state.listening):
            # The old workers' connections have the age that the old settings say.
            linger_s = max(linger_s, self._settings.limits.grpc_connection_s * _AGE_SPREAD + _LINGER_S)
        await self._workers.replace_all(self._hello_with(settings), limits.drain_s, linger_s)
        if settings.log != self._settings.log:
            configure(settings.log, "supervisor")
        self._settings = settings
        self._upstreams = labels.upstream_operations(settings)
        self._take_up(settings)

    async def _set_modes(self, modes: Modes) -> Reached:
        return await self._workers.set_modes(modes) if self._workers is not None else Reached(0, 0)

    async def _set_purges(self, marks: Marks) -> Reached:
        return await self._workers.set_purges(marks) if self._workers is not None else Reached(0, 0)

    def _modes_changed(self, metrics: MetricFiles, book: ModeBook) -> None:
        metrics.modes(book.live, self._upstreams)
