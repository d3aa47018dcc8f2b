"""
``dashcache try``: a proxy before a simulated vendor, and two requests to send to it.

Runs from a checkout only: the simulator is part of the tests, and the installed package has none. Both run as children
in sessions of their own, so that Ctrl-C is told to this process alone, which then ends them one after the other; when
this process is killed, the kernel tells them. Nothing of the user's is touched: a Redis, a data folder and settings of
its own, for as long as it runs. Only the addresses to listen on are the user's.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from proxy.runtime.process import child_environment, die_with_parent, python_module

_LATENCY_MS: Final = 150
_PATIENCE_S: Final = 10.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ROOT: Final = Path(__file__).parents[2]
_PASSED_ON: Final = ("DASHCACHE_HTTP_LISTEN", "DASHCACHE_ADMIN_LISTEN")
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  never listened on, only asked

_TOLD: Final = """\
Dashcache {version} listens on {http}, before a simulated vendor that takes {latency_ms} ms. No key is needed.
In another terminal, ask for an embedding:

  {curl}

That was a miss: the vendor was asked (Cache-Status: ...; fwd=miss). Now the same again, which is a hit:

  {curl}

The answers are the same; the second one came from the cache, and the vendor saw nothing of it.
The Content-Type line matters: without it `curl -d` calls the body a form, which is passed on and not kept.
Operate it, too: `curl http://{admin}/v1/stats`. Ctrl-C ends everything and leaves nothing behind.
"""

_CURL: Final = (
    "curl -sS -o /dev/null -D - -w 'answered in %{{time_total}} s\\n' http://{http}/compatible-mode/v1/embeddings"
    " -H 'Content-Type: application/json' -H 'Authorization: Bearer any-word'"
    ' -d \'{{"model": "text-embedding-v4", "input": "a text to embed"}}\''
)


class NoSimulatorError(Exception):
    """This is no checkout; the message says so to the user."""


class _EndedError(BaseException):
    """A signal has come; not an ``Exception``, so that nothing takes it for a failure."""


def run(environ: Mapping[str, str]) -> int:
    """
    Run both until a signal comes, and return the exit status.

    Raises:
        NoSimulatorError: this package was not started from a checkout.
    """
    if not (_ROOT / "tests" / "vendor_sim" / "__main__.py").is_file():
        raise NoSimulatorError(
            "dashcache try needs the simulated vendor, which only a checkout of the source has: run `make try` there"
        )
    for number in _SIGNALS:
        signal.signal(number, _end)
    with contextlib.suppress(_EndedError), tempfile.TemporaryDirectory(prefix="dashcache-try-") as folder:
        return _run(environ, Path(folder))
    return 0


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # nothing interrupts the ending
    raise _EndedError


def _run(environ: Mapping[str, str], folder: Path) -> int:
    surroundings = child_environment(environ)
    with _child(_simulator(), surroundings, subprocess.PIPE, None) as simulator:
        settings = {
            **surroundings,
            "DASHCACHE_DASHSCOPE_URL": _line(simulator.stdout),
            "DASHCACHE_DATA_DIR": str(folder),
            "DASHCACHE_WORKERS": "1",
            "DASHCACHE_LOG_FORMAT": "json",  # is read below
            "DASHCACHE_LIMITS_NOTICE_S": "0",
            "DASHCACHE_LIMITS_DRAIN_S": "1",
            **{name: environ[name] for name in _PASSED_ON if name in environ},
        }
        with _child([*python_module(_ROOT), "run"], settings, None, subprocess.PIPE) as proxy:
            for record in _records(proxy):
                if record.get("event") == "ready":
                    print(_told(record), flush=True)  # noqa: T201  what the command is for
        return proxy.returncode or 1


def _simulator() -> list[str]:
    return [sys.executable, "-m", "tests.vendor_sim", "--port", "0", "--no-record", "--latency-ms", str(_LATENCY_MS)]


def _told(ready: Mapping[str, Any]) -> str:
    from proxy.admin.stats import version  # noqa: PLC0415  loads much, and children are to start first

    http, admin = _asked_at(ready["http"][0]), _asked_at(ready["admin"])
    curl = _CURL.format(http=http)
    return _TOLD.format(version=version(), http=http, admin=admin, latency_ms=_LATENCY_MS, curl=curl)


def _asked_at(address: str) -> str:
    """*address* as a client can use it."""
    host, _, port = address.rpartition(":")
    return f"{_EVERYWHERE.get(host, host)}:{port}"


def _records(proxy: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """The proxy's log until it ends; what speaks of trouble, or is no log line, is shown as it is."""
    assert proxy.stderr is not None  # noqa: S101  as it was started
    for line in proxy.stderr:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and record.get("level") in ("debug", "info"):
            yield record
        else:
            sys.stderr.write(line.decode(errors="replace"))
    proxy.wait()


def _line(output: Any) -> str:  # noqa: ANN401  a pipe
    line: bytes = output.readline()
    if not line:
        raise RuntimeError("the simulated vendor did not start; it has said why")
    return line.decode().strip()


@contextlib.contextmanager
def _child(
    command: Sequence[str], env: Mapping[str, str], stdout: int | None, stderr: int | None
) -> Iterator[subprocess.Popen[bytes]]:
    """*command*, until the block ends: told to end first, killed with its whole session when it does not."""
    child = subprocess.Popen(  # noqa: S603  our own programs
        command,
        cwd=_ROOT,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=functools.partial(_not_without, os.getpid()),  # noqa: PLW1509  there is no thread yet
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


def _not_without(parent: int) -> None:
    """Runs in the child: it ends when *parent* does, also if that has been already."""
    die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
