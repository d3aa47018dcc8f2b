"""
Child processes that never outlive the test process, and what /proc knows about them. Linux only.

Used by `redis_server` and `proxy_process`; tests use `process_state` and friends for questions about workers.
"""

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.support.waiting import wait_until_sync

# A launcher instead of preexec_fn: the latter runs between fork and exec, where threads of ours may hold locks (and
# from Python 3.12 on it warns). PR_SET_PDEATHSIG (1) survives exec. The parent may be gone before the call: look again.
_LAUNCHER = """
import ctypes, os, signal, sys
for number in (signal.SIGHUP, signal.SIGINT):  # whoever runs the tests in the background has them ignored
    signal.signal(number, signal.SIG_DFL)
parent, death_signal = int(sys.argv[1]), int(sys.argv[2])
ctypes.CDLL(None, use_errno=True).prctl(1, death_signal, 0, 0, 0)
if os.getppid() != parent:
    sys.exit(1)
os.execvpe(sys.argv[3], sys.argv[3:], os.environ)
"""


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: int | IO[bytes] | None = subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = subprocess.DEVNULL,
    death_signal: signal.Signals = signal.SIGKILL,
) -> "subprocess.Popen[bytes]":
    """
    Start *command* in a session of its own; it gets *death_signal* when the calling thread ends (that is Linux's rule).

    So start children from the main thread, or from one that lives as long as they should.
    """
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(int(death_signal))]
    return subprocess.Popen(
        [*launcher, *command],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One line of the process table. *started_ticks* tells a process from a later one with the same number."""

    pid: int
    parent: int
    session: int
    state: str
    started_ticks: int
    command: tuple[str, ...]


def process_info(pid: int) -> ProcessInfo | None:
    """What /proc says of *pid*; None when there is no such process. A zombie has the state Z."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses and may itself contain any of both.
    fields = stat.rpartition(")")[2].split()
    words = tuple(word.decode(errors="replace") for word in command.rstrip(b"\0").split(b"\0") if word)
    return ProcessInfo(pid, int(fields[1]), int(fields[3]), fields[0], int(fields[19]), words)


def process_state(pid: int) -> str | None:
    """R, S, D, T (stopped), Z (dead, not yet reaped); None when gone."""
    info = process_info(pid)
    return info.state if info else None


def all_processes() -> list[ProcessInfo]:
    """The process table, as far as it could be read."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [info for pid in pids if (info := process_info(pid)) is not None]


def children(pid: int) -> list[ProcessInfo]:
    """The living children of *pid*, oldest first."""
    found = [info for info in all_processes() if info.parent == pid and info.state != "Z"]
    return sorted(found, key=lambda info: (info.started_ticks, info.pid))


def descendants(pid: int) -> list[ProcessInfo]:
    """The living children of *pid*, and theirs, and so on."""
    table = [info for info in all_processes() if info.state != "Z"]
    found: list[ProcessInfo] = []
    parents = {pid}
    while parents:
        generation = [info for info in table if info.parent in parents]
        found += generation
        parents = {info.pid for info in generation}
    return found


def kill_leftovers(session: int, known: Sequence[ProcessInfo] = ()) -> list[ProcessInfo]:
    """
    Kill what is left of a *session* that `spawn` began, of the *known* descendants, and of sessions that these began.

    Waits for their end and returns them. A stranger who got a dead child's number is safe: start times are compared.
    """
    seen = {(info.pid, info.started_ticks) for info in known}
    sessions = ({session} | {info.session for info in known}) - {os.getsid(0), 0}  # never our own, nor the kernel's
    killed: list[ProcessInfo] = []
    # Again until there is nothing: one that is being killed may have just started another.
    while left := [
        info
        for info in all_processes()
        if (info.session in sessions or (info.pid, info.started_ticks) in seen) and info.state != "Z"
    ]:
        for info in left:
            send_signal(info.pid, signal.SIGKILL)
        wait_until_sync(functools.partial(_are_gone, left), 10.0, "killed processes to go")
        killed += left
    return killed


def _are_gone(infos: Sequence[ProcessInfo]) -> bool:
    now = [(info, process_info(info.pid)) for info in infos]
    return all(late is None or late.state == "Z" or late.started_ticks != info.started_ticks for info, late in now)


def send_signal(pid: int, number: signal.Signals) -> bool:
    """Signal *pid*; False when it was gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def reap(process: "subprocess.Popen[Any]", timeout: float) -> int | None:
    """Wait for *process*; its exit code (negative: the signal), or None when it still runs after *timeout* seconds."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
