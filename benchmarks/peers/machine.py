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
from typing import NamedTuple

from tests.support.child import descendants, reap, send_signal, spawn


class Placement(NamedTuple):
    """Core numbers, as taskset takes them: of the server that is measured; of its Redis and its upstream; of wrk."""

    server: str
    other: str
    load: str

    @property
    def is_crowded(self) -> bool:
        """Whether wrk shares a core with anything."""
        return self.load in (self.server, self.other)

    def __str__(self) -> str:
        said = f"the server that is measured on core {self.server}, Redis and upstreams on {self.other}, "
        return f"{said}wrk on {self.load}"


def placed(cores: Sequence[int]) -> Placement:
    """Share out *cores*, of which four are wanted. With two, the server keeps its own, and wrk goes beside Redis."""
    server, other, *load = *map(str, cores), *[str(cores[-1])] * (len(cores) == 1)
    return Placement(server, other, ",".join(load) or other)


PLACED = placed(sorted(os.sched_getaffinity(0)))
SERVER_CORE, OTHER_CORE, LOAD_CORES = PLACED

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
