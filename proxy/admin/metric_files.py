"""
The supervisor's side of the metrics: the folder with the workers' files, their sum, and gauges of its own.

The counts of dead workers are added up in memory, so that a worker that keeps dying leaves no files behind. The
supervisor reads files and maps none: on a full disk a map may end a process, see ``metric_space``.
"""

import asyncio
import contextlib
import json
import shutil
import struct
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, mmap_dict, multiprocess
from prometheus_client.metrics_core import Metric

from proxy.control.live import LiveModes
from proxy.core.modes import Mode
from proxy.runtime.data_folder import replace_file
from proxy.runtime.process import METRICS_VARIABLE
from proxy.telemetry.log_output import logger
from proxy.vendors.operations import switchable

Totals = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Sample values by name and sorted labels."""

Figures = dict[str, float]
"""Values by the library's key: JSON of the metric's name, the sample's, the labels and the help text."""

# Both come without types.
_mmap_dict: Any = mmap_dict.MmapedDict
_collector: Any = multiprocess.MultiProcessCollector

_PREFIX = "dashcache-metrics-"
_SUMMED = ("counter", "histogram")
_KINDS = (*_SUMMED, "gauge_livesum")
_BROKEN = (struct.error, RuntimeError, ValueError)


class MetricFiles:
    """One private folder, from the start of the supervisor to its end."""

    def __init__(self, data_folder: Path) -> None:
        self._note = data_folder / "metrics.folder"
        self._remove_left_over()
        self.directory = self._made(data_folder)
        """None: there is no folder that can be written, and each worker counts for itself, where nobody gathers it."""
        self._lock = asyncio.Lock()
        self._registry = CollectorRegistry()
        self._summed = _Summed(self.directory)
        self._registry.register(self._summed)
        self._workers = Gauge("dashcache_workers", "Workers that serve.", registry=self._registry)
        self._wanted = Gauge("dashcache_workers_wanted", "Workers that should serve.", registry=self._registry)
        self._mode = Gauge(
            "dashcache_mode_active",
            "1 while the mode holds for the operation at any upstream.",
            ("mode", "operation"),
            registry=self._registry,
        )
        self._stranger = Gauge(
            "dashcache_redis_stranger",
            "1 while Redis is not used, as another deployment's fingerprint is in it.",
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
        """Keep what worker *pid* has counted; forget its gauges. Never raises: a figure must not cost a worker."""
        async with self._lock:
            await asyncio.to_thread(self._summed.fold, pid)

    def environment(self) -> dict[str, str]:
        """The variable that tells a worker where to count."""
        return {METRICS_VARIABLE: str(self.directory)} if self.directory is not None else {}

    def lacks(self, pids: Collection[int]) -> list[str]:
        """The parts that these metrics lack, in words; *pids* are the workers that serve."""
        if self.directory is None:
            return ["metrics of all workers: no folder can be written"]
        files = {pid: [self.directory / f"{kind}_{pid}.db" for kind in _KINDS] for pid in pids}
        absent = sum(not all(file.exists() for file in its) for its in files.values())
        return [f"metrics of {absent} of {len(pids)} workers: their folder cannot be written"] if absent else []

    def workers(self, serving: int, wanted: int) -> None:
        """Set the number of workers."""
        self._workers.set(serving)
        self._wanted.set(wanted)

    def modes(self, modes: LiveModes, upstreams: Mapping[str, Sequence[str]]) -> None:
        """
        Set the gauges of the modes, so that a dashboard shows a switch that somebody forgot.

        *upstreams* have their operations beside them.
        """
        for operation in switchable():
            holding = {modes.mode(upstream, operation) for upstream, names in upstreams.items() if operation in names}
            for mode in (Mode.BYPASS, Mode.SHADOW):
                self._mode.labels(mode.value, operation).set(1 if mode in holding else 0)

    def redis_stranger(self, *, is_stranger: bool) -> None:
        """Set whether another deployment keeps us from Redis."""
        self._stranger.set(is_stranger)

    def purged(self) -> None:
        """Count a purge."""
        self._purges.inc()

    def close(self) -> None:
        """Remove the folder."""
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._note.unlink()

    def _remove_left_over(self) -> None:
        """A run that ended by kill -9 could not; the data folder is locked, so nobody uses what it names any more."""
        with contextlib.suppress(OSError, ValueError):
            left = Path(self._note.read_text())
            if left.name.startswith(_PREFIX) and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)

    def _made(self, data_folder: Path) -> Path | None:
        # Where the folder for temporary files cannot be written: a read-only container.
        for parent in (None, data_folder):
            try:
                directory = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
            except OSError as error:
                why = error.strerror or type(error).__name__
                continue
            with contextlib.suppress(OSError):
                replace_file(self._note, directory.encode())
            return Path(directory)
        logger().error("metrics_not_gathered", kind="all", error=why)
        return None

    def _totals(self) -> Totals:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for metric in self._registry.collect()
            for sample in metric.samples
        }


class _Summed:
    """The metrics of the workers whose files are in *directory*, with what dead ones have counted."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._of_dead: dict[str, Figures] = {kind: {} for kind in _SUMMED}
        self._dead: set[int] = set()

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client."""
        metrics: dict[str, Any] = {}
        for kind, figures in (*self._of_dead.items(), *self._of_files()):
            for key, value in figures.items():
                metric_name, name, its_labels, help_text = json.loads(key)
                metric = metrics.setdefault(metric_name, Metric(metric_name, help_text, kind))
                metric._multiprocess_mode = "livesum"  # noqa: SLF001  what all our gauges are
                metric.add_sample(name, tuple(sorted(its_labels.items())), value)
        # Adds up samples of one name and labels, and the buckets of histograms.
        return iter(list(_collector._accumulate_metrics(metrics, accumulate=True)))  # noqa: SLF001

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance: what workers count is known once they have counted it."""
        return iter(())

    def fold(self, pid: int) -> None:
        """Add what worker *pid*, which is dead, has counted to what others have, and remove its files."""
        self._dead.add(pid)
        for kind, file in self._files(pid):
            figures = _figures(file)
            try:
                file.unlink()
            except OSError as error:  # what is still there goes on being added up as a file
                logger().warning("metrics_of_dead_worker_not_removed", pid=pid, kind=kind, error=error.strerror)
                continue
            if figures is None:
                logger().warning("metrics_of_dead_worker_lost", pid=pid, kind=kind)
            elif kind in _SUMMED:
                sums = self._of_dead[kind]
                sums.update({key: sums.get(key, 0.0) + value for key, value in figures.items()})
        if not any(self._files(pid)):
            self._dead.discard(pid)

    def _of_files(self) -> Iterator[tuple[str, Figures]]:
        """The kind and the figures of each file, but for the gauges of the dead (a file that could not be removed)."""
        gone = {f"gauge_livesum_{pid}.db" for pid in self._dead}
        for kind, file in self._files("*"):
            # One that its worker is just making has no figures yet, a damaged one never.
            if file.name not in gone and (figures := _figures(file)) is not None:
                yield kind, figures

    def _files(self, pid: int | str) -> Iterator[tuple[str, Path]]:
        for file in sorted(self._directory.glob(f"*_{pid}.db")) if self._directory is not None else ():
            yield file.name.partition("_")[0], file


def _figures(file: Path) -> Figures | None:
    """The values in *file* by key; None if there are none to be read."""
    try:
        return {key: value for key, value, _, _ in _mmap_dict.read_all_values_from_file(str(file))}
    except (*_BROKEN, OSError):
        return None
