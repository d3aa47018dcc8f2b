"""What the processes take up over the time, as /proc tells it; and Redis."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import redis

from tests.soak.rig import Rig

MIB = 2**20
EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment: bytes resident, open files, sockets among them, threads."""

    rss: int
    files: int
    sockets: int
    threads: int


def look(pid: int) -> Sample | None:
    """*pid* now; None when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        names = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                names.append(str(entry.readlink()))
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "VmRSS" not in found:  # a zombie
        return None
    sockets = sum(name.startswith("socket:") for name in names)
    return Sample(int(found["VmRSS"].split()[0]) * 1024, len(names), sockets, int(found["Threads"]))


@dataclass(slots=True)
class Series:
    """The samples of one role; *role* names a process through its restarts."""

    role: str
    is_judged: bool
    """Whether one and the same process is behind it from beginning to end."""
    samples: list[Sample] = field(default_factory=list)

    def thirds(self, of: Callable[[Sample], int]) -> tuple[float, float]:
        """The median of the first and of the last third."""
        values = [of(sample) for sample in self.samples]
        third = max(1, len(values) // 3)
        return statistics.median(values[:third]), statistics.median(values[-third:])


@dataclass(slots=True)
class Watch:
    """Gathers samples while the load runs."""

    rig: Rig
    series: dict[str, Series] = field(default_factory=dict)
    redis_bytes: list[int] = field(default_factory=list)

    async def run(self) -> None:
        """Until cancelled."""
        next_s = time.monotonic()
        while True:
            for role, is_judged, pid in self._processes():
                sample = look(pid)
                if sample is not None:
                    self.series.setdefault(role, Series(role, is_judged)).samples.append(sample)
            used = await asyncio.to_thread(self._redis_used)
            if used is not None:
                self.redis_bytes.append(used)
            next_s += EVERY_S
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))

    def _processes(self) -> Iterable[tuple[str, bool, int]]:
        for replica in self.rig.replicas:
            if not (replica.is_serving and replica.proxy.is_running):
                continue
            yield f"{replica.name} supervisor", replica.name == "A", replica.proxy.pid
            for number, pid in enumerate(replica.proxy.worker_pids(), 1):
                yield f"{replica.name} worker {number}", replica.name == "A", pid

    def _redis_used(self) -> int | None:
        """Bytes; None while it does not answer. By a connection of its own, as this is another thread."""
        with redis.Redis(port=self.rig.redis.port, socket_timeout=0.5, socket_connect_timeout=0.5) as client:
            try:
                return int(client.info("memory")["used_memory"])
            except (redis.RedisError, OSError):
                return None
