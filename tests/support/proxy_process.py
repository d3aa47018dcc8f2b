"""
The real product as a child process, with its own data folder and ports of its own. Used by whatever tests it whole.

Everything here blocks. A test on whose event loop the upstream lives uses ``async with`` and ``asyncio.to_thread`` for
what may need an answer from that upstream (`stop`, which lets requests finish), so that the loop can give it.
"""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.admin_calls import AdminCalls
from tests.support.child import ProcessInfo, children, descendants, kill_leftovers, reap, send_signal, spawn
from tests.support.process_log import ProcessLog, Record
from tests.support.waiting import LONG_S

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "proxy", "run")
# Nothing else of the surroundings: a REDIS_URL or an http_proxy of the developer's must not decide a test.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")


class ProxyStartError(Exception):
    """The product did not become ready; the message has its log."""


class ProxyProcess(AdminCalls):
    """
    One supervisor with its workers, from `start` to `close`, or within ``with`` or ``async with``.

    *redis_url* None means the embedded server. *env* adds to the variables, and wins. A *data_dir* of the caller's is
    kept, so that a second process can go on with it.
    """

    def __init__(
        self,
        *,
        dashscope_url: str | None = None,
        dashvector_url: str | None = None,
        dashvector_grpc_url: str | None = None,
        redis_url: str | None = None,
        workers: int = 1,
        profile: str | None = None,
        key_secret: str | None = None,
        data_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = COMMAND,
        start_timeout_s: float = 90.0,
    ) -> None:
        self.key_secret = key_secret or secrets.token_hex(32)
        self._owns_data_dir = data_dir is None
        # A short path: the embedded Redis' socket is in there.
        self.data_dir = data_dir or Path(tempfile.mkdtemp(prefix="dashcache-"))
        stated = {
            "DASHCACHE_DASHSCOPE_URL": dashscope_url,
            "DASHCACHE_DASHVECTOR_URL": dashvector_url,
            "DASHCACHE_DASHVECTOR_GRPC_URL": dashvector_grpc_url,
            "REDIS_URL": redis_url,
            "DASHCACHE_PROFILE": profile,
        }
        self.env = {
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
            "DASHCACHE_HTTP_LISTEN": "127.0.0.1:0",
            "DASHCACHE_GRPC_LISTEN": "127.0.0.1:0",
            "DASHCACHE_ADMIN_LISTEN": "127.0.0.1:0",
            "DASHCACHE_WORKERS": str(workers),
            "DASHCACHE_KEY_SECRET": self.key_secret,
            "DASHCACHE_DATA_DIR": str(self.data_dir),
            "TMPDIR": str(self.data_dir),  # what one that was killed leaves goes with it
            # No test's upstream has its name from a public authority, and to read them all takes each process 70 ms.
            "SSL_CERT_FILE": os.devnull,
            # Nobody balances here; the tests of restarts ask for a notice.
            "DASHCACHE_LIMITS_NOTICE_S": "0",
            **{name: value for name, value in stated.items() if value is not None},
            **(env or {}),
        }
        self._command = list(command)
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log: ProcessLog | None = None
        self._ready: Record = {}
        self.exit_code: int | None = None
        self.left_behind: list[ProcessInfo] = []
        """Processes of the product's that were still there after it had ended; `stop` has killed them."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        # Not from the other thread: a child dies with the thread that started it.
        self._spawn()
        await asyncio.to_thread(self._wait_ready)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def start(self) -> Self:
        """Start it and return once all workers serve."""
        self._spawn()
        self._wait_ready()
        return self

    def _spawn(self) -> None:
        if self._process is not None:
            raise ProxyStartError("started already; make another ProxyProcess with the same data_dir")
        self._process = spawn(
            self._command,
            env=self.env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Not SIGKILL: should the test process die, the supervisor can still take its workers along.
            death_signal=signal.SIGTERM,
        )
        assert self._process.stdout is not None
        self._log = ProcessLog(self._process.stdout)

    def _wait_ready(self) -> None:
        try:
            self._ready = self.wait_log(event="ready", timeout=self._start_timeout_s)
        except LookupError as error:
            self.close()
            raise ProxyStartError(f"the proxy did not become ready (exit code {self.exit_code}): {error}") from None
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The supervisor's number."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the supervisor lives."""
        return self._process is not None and self._process.poll() is None

    def worker_pids(self) -> list[int]:
        """The supervisor's children that serve, oldest first; the embedded Redis and Python's own helpers are none."""
        helpers = ("redis-server", "resource_tracker", "forkserver")
        return [info.pid for info in children(self.pid) if not any(word in " ".join(info.command) for word in helpers)]

    @property
    def http_port(self) -> int:
        """The data port."""
        return int(self._ready["http"][0].rpartition(":")[2])

    @property
    def http_url(self) -> str:
        """The data port as a base URL, without a slash at the end."""
        return f"http://{self._ready['http'][0]}"

    @property
    def https_url(self) -> str:
        """The data port with TLS as a base URL, without a slash at the end; KeyError when it is not open."""
        return f"https://{self._ready['https'][0]}"

    @property
    def grpc_address(self) -> str:
        """``host:port`` of the first gRPC port, which is the default cluster's; KeyError when none is open."""
        return str(self._ready["grpc"][0])

    @property
    def grpcs_address(self) -> str:
        """``host:port`` of the gRPC port with TLS; KeyError when it is not open."""
        return str(self._ready["grpcs"][0])

    @property
    def admin_address(self) -> str:
        """Host and port of the admin listener."""
        return str(self._ready["admin"])

    @property
    def admin_token(self) -> str | None:
        """The token it asks for, if it does."""
        return self.env.get("DASHCACHE_ADMIN_TOKEN")

    @property
    def logs(self) -> list[Record]:
        """All log lines so far, parsed."""
        return self._log.records if self._log else []

    @property
    def output(self) -> bytes:
        """All that it wrote to stdout and stderr, as it is."""
        return self._log.raw if self._log else b""

    def wait_log(self, event: str | None = None, timeout: float = LONG_S, *, after: int = 0, **fields: Any) -> Record:
        """
        The first log line with this *event* and these *fields*, counted from line *after*; LookupError without one.

        For what happens from now on: ``after=len(proxy.logs)``, taken before.
        """
        if self._log is None:
            raise RuntimeError("not started")
        wanted = {**fields, **({"event": event} if event is not None else {})}
        return self._log.wait_record(wanted, timeout, after)

    def stop(self, timeout: float = 35.0) -> int | None:
        """
        SIGTERM and wait, then SIGKILL if need be; returns the exit code (negative: the signal that ended it).

        The product gives open requests 30 seconds unless set otherwise, hence the default.
        """
        return self._end(signal.SIGTERM, timeout)

    def kill(self) -> int | None:
        """SIGKILL all of it at once, supervisor, workers and embedded Redis: what an out-of-memory kill looks like."""
        for info in descendants(self.pid) if self.is_running else []:
            send_signal(info.pid, signal.SIGKILL)
        return self._end(signal.SIGKILL, 10.0)

    def _end(self, number: signal.Signals, timeout: float) -> int | None:
        if self._process is None or self.exit_code is not None:
            return self.exit_code
        known = descendants(self.pid)
        if self._process.poll() is None:
            send_signal(self.pid, number)
            send_signal(self.pid, signal.SIGCONT)  # a stopped process does not take SIGTERM
            if reap(self._process, timeout) is None:
                send_signal(self.pid, signal.SIGKILL)
        self.exit_code = self._process.wait(10.0)
        self.left_behind = kill_leftovers(self.pid, known)
        if self._log is not None:
            self._log.close()
        return self.exit_code

    def close(self) -> None:
        """Stop without much patience, and remove the data folder if it is not the caller's; may be called twice."""
        try:
            self.stop(10.0)
        finally:
            if self._owns_data_dir:
                shutil.rmtree(self.data_dir, ignore_errors=True)
