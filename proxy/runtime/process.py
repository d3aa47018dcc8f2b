"""
What every child process needs: to die with its parent, to be restarted with patience, to inherit no secret.

Imports nothing heavy: it must run before prometheus_client is first imported.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import cast

from proxy.runtime import collector

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client keeps values that several processes share; it looks once, when it is first imported."""

CONTROL_VARIABLE = "DASHCACHE_INTERNAL_CONTROL_FD"
"""The number of a worker's end of its channel."""

SPARING = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""
What a worker starts with unless the operator says otherwise: no threads for linear algebra, as there is none, and one
heap, as nearly everything is allocated by one thread.
"""

_PR_SET_PDEATHSIG = 1
# Loaded before any fork: between fork and exec a child may not wait for the loader's lock.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(number: signal.Signals) -> None:
    """
    Have the kernel send this process the signal *number* when its parent dies, however that dies (Linux only).

    Runs in the child. Elsewhere a worker still sees the end of its channel.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """
    *environ* without our own settings, which may be secret, and without anybody else's folder for metrics.

    What a process started with is readable in /proc for its whole life and is inherited by all that it starts.
    """
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith("DASHCACHE_") and name != "REDIS_URL" and name.upper() != METRICS_VARIABLE
    }


def load_sparingly() -> None:
    """Leave out, from now on, what costs time at the start of a process and is of no use to it; see ``collector``."""
    collector.pause()
    # structlog loads it, where it is installed, for tracebacks, which are never logged: 3 MiB in each worker.
    sys.modules.setdefault("rich", cast(ModuleType, None))


def forget_metrics_directory() -> None:
    """Make this process count in memory; only workers share files. Before prometheus_client is imported."""
    for name in (METRICS_VARIABLE, METRICS_VARIABLE.lower()):
        os.environ.pop(name, None)


def python_module(package_root: Path) -> list[str]:
    """
    The command that runs this very package again.

    With ``-m`` the interpreter looks in the working folder first, and a folder called ``proxy`` is nothing rare; so
    that is switched off unless the working folder is where we were loaded from.
    """
    safe_path = [] if Path.cwd() == package_root else ["-P"]
    return [sys.executable, *safe_path, "-m", "proxy"]


class Backoff:
    """Seconds to wait before a restart: nothing after a long life, growing when children die young."""

    def __init__(self, first_s: float = 0.1, most_s: float = 5.0, young_s: float = 10.0) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._young_s = young_s
        self._next_s = first_s

    def wait_s(self, lived_s: float) -> float:
        """How long to wait after a child that lived *lived_s* seconds."""
        if lived_s >= self._young_s:
            self._next_s = self._first_s
            return 0.0
        wait_s = self._next_s
        self._next_s = min(self._most_s, wait_s * 2)
        return wait_s
