"""
The supervisor's side of the metrics: the folder with the workers' files, their sum, and gauges of its own.

The sum of dead workers is folded into one file, so that a worker that keeps dying leaves no files behind.
"""

import asyncio
import contextlib
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, mmap_dict, multiprocess
from prometheus_client.metrics_core import Metric

from proxy.core.modes import Mode
from proxy.ops.processes.data_folder import replace_file
from proxy.ops.switches.live import LiveModes
from proxy.ops.telemetry import labels
from proxy.ops.telemetry.log_output import logger

Totals = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Sample values by name and sorted labels."""

# Both come without types.
_mmap_dict: Any = mmap_dict.MmapedDict
_multiprocess: Any = multiprocess

# A process id that no worker can have: process 0 is the kernel's own.
_FOLDED = "0"
# A file caught while its worker makes it is empty for a moment.
_ATTEMPTS = 5
_PREFIX = "dashcache-metrics-"
_BROKEN = (struct.error, RuntimeError, ValueError)


class MetricFiles:
    """One private folder, from the start of the supervisor to its end."""

    def __init__(self, data_folder: Path) -> None:
        self._note = data_folder / "metrics.folder"
        self._remove_left_over()
        try:
            directory = tempfile.mkdtemp(prefix=_PREFIX)
        except OSError:  # no folder for temporary files that can be written: a read-only container
            directory = tempfile.mkdtemp(prefix=_PREFIX, dir=data_folder)
        self.directory = Path(directory)
        with contextlib.suppress(OSError):
            replace_file(self._note, directory.encode())
        self._lock = asyncio.Lock()
        self._registry = CollectorRegistry()
        self._registry.register(_Summed(self.directory))
        self._workers = Gauge("dashcache_workers", "Workers that serve.", registry=self._registry)
        self._wanted = Gauge("dashcache_workers_wanted", "Workers that should serve.", registry=self._registry)
        self._mode = Gauge(
            "dashcache_mode_active",
            "1 while the mode holds for the operation at any upstream.",
            ("mode", "operation"),
            registry=self._registry,
        )
        self._purges = Counter("dashcache_purges", "Purges that operators ordered here.", registry=self._registry)

    async def render(self) -> bytes:
        """All metrics in Prometheus' text form."""
        async with self._lock:
            return await asyncio.to_thread(generate_latest, self._registry)

    async def totals(self) -> Totals:
        """All samples, added up over workers."""
        async with self._lock:
            return await asyncio.to_thread(self._totals)

    async def worker_died(self, pid: int) -> None:
        """Keep what worker *pid* has counted; forget its gauges."""
        async with self._lock:
            await asyncio.to_thread(self._fold, pid)

    def workers(self, serving: int, wanted: int) -> None:
        """Set the number of workers."""
        self._workers.set(serving)
        self._wanted.set(wanted)

    def modes(self, modes: LiveModes, upstreams: Mapping[str, Sequence[str]]) -> None:
        """
        Set the gauges of the modes, so that a dashboard shows a switch that somebody forgot.

        *upstreams* have their operations beside them.
        """
        for operation in labels.SWITCHABLE:
            holding = {modes.mode(upstream, operation) for upstream, names in upstreams.items() if operation in names}
            for mode in (Mode.BYPASS, Mode.SHADOW):
                self._mode.labels(mode.value, operation).set(1 if mode in holding else 0)

    def purged(self) -> None:
        """Count a purge."""
        self._purges.inc()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._note.unlink()

    def _remove_left_over(self) -> None:
        """A run that ended by kill -9 could not; the data folder is locked, so nobody uses what it names any more."""
        with contextlib.suppress(OSError, ValueError):
            left = Path(self._note.read_text())
            if left.name.startswith(_PREFIX) and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)

    def _totals(self) -> Totals:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for metric in self._registry.collect()
            for sample in metric.samples
        }

    def _fold(self, pid: int) -> None:
        _multiprocess.mark_process_dead(pid, str(self.directory))
        for kind in ("counter", "histogram"):
            dead = self.directory / f"{kind}_{pid}.db"
            if not dead.exists():
                continue
            folded = _mmap_dict(str(self.directory / f"{kind}_{_FOLDED}.db"))
            try:
                for key, value, timestamp, _ in _mmap_dict.read_all_values_from_file(str(dead)):
                    folded.write_value(key, folded.read_value(key)[0] + value, timestamp)
            except _BROKEN:
                logger().warning("metrics_of_dead_worker_lost", pid=pid, kind=kind)
            finally:
                folded.close()
                dead.unlink()


class _Summed:
    """The workers' metrics; retries while a file is being made."""

    def __init__(self, directory: Path) -> None:
        self._collector = _multiprocess.MultiProcessCollector(None, path=str(directory))

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client."""
        for attempt in range(_ATTEMPTS):
            try:
                return iter(list(self._collector.collect()))
            except (*_BROKEN, FileNotFoundError):
                if attempt == _ATTEMPTS - 1:
                    raise
        return iter(())

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance: what workers count is known once they have counted it."""
        return iter(())
