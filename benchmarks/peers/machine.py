"""The machine: which core does what, what a process uses, and what is to be said of it all in a report."""

import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.child import descendants, reap, send_signal, spawn

_CORES = [str(core) for core in sorted(os.sched_getaffinity(0))]
SERVER_CORE, OTHER_CORE = _CORES[0], _CORES[1 % len(_CORES)]
LOAD_CORES = ",".join(_CORES[2:] or _CORES)
"""The server that is measured; its Redis and its upstream; wrk. Four cores are wanted; with less they share."""

_ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port of the loopback interface that is free just now."""
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


def pin(pid: int, cores: str) -> None:
    """Keep the process *pid* and all below it on *cores*."""
    for each in (pid, *(info.pid for info in descendants(pid))):
        for task in Path(f"/proc/{each}/task").iterdir():
            os.sched_setaffinity(int(task.name), {int(core) for core in cores.split(",")})


@contextlib.contextmanager
def process(command: Sequence[str], port: int, cores: str, env: Mapping[str, str] | None = None) -> Iterator[int]:
    """*command* on *cores* until the block ends, from when it listens on *port*; its number."""
    with tempfile.TemporaryFile() as output:
        child = spawn(
            ["taskset", "-c", cores, *command],
            cwd=_ROOT,
            env={**os.environ, **(env or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_listens(port, child, output)
            yield child.pid
        finally:
            send_signal(child.pid, signal.SIGTERM)
            if reap(child, 10.0) is None:
                child.kill()
                child.wait()


def _wait_listens(port: int, child: "subprocess.Popen[bytes]", output: "tempfile._TemporaryFileWrapper[bytes]") -> None:
    ends_s = time.monotonic() + 60.0  # LiteLLM takes half a minute
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        if child.poll() is not None or time.monotonic() > ends_s:
            output.seek(0)
            raise RuntimeError(f"{child.args!r} does not listen: {output.read()[-500:]!r}")
        time.sleep(0.02)


def python(module: str, *arguments: str) -> list[str]:
    """A command that runs *module* in this very Python."""
    return [sys.executable, "-m", module, *arguments]


def resident_mib(pid: int) -> float:
    """Memory of the process *pid* that is in use, shared pages included (RSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def described() -> str:
    """The machine in a line."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else "unknown processor"
    return f"{os.cpu_count()} cores of {model}, {platform.system()}, Python {platform.python_version()}"
