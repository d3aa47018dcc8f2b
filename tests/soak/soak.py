"""One soak from beginning to end, and what it showed."""

import asyncio
import errno
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.soak.faults import Deck, watch_untold
from tests.soak.history import History
from tests.soak.load import NO_BREACH, Kept, Load
from tests.soak.rig import Rig, rig
from tests.soak.watch import MIB, Sample, Series, Watch, look
from tests.support import namespace
from tests.support.open_loop import Report, run_open_loop
from tests.support.process_log import Record
from tests.support.waiting import WaitTimeoutError, wait_until

WARM_UP_S = 10.0
"""Nothing goes wrong before; code paths, pools and tiers fill."""
MAX_GROWTH = 0.15, 8 * MIB
MAX_MORE_FILES = 0.2, 20
MAX_AT_REST = 40
"""Sockets of a worker once all clients have gone: listeners, Redis, kept upstream connections of the last seconds."""
TOLD_OF_B = ("worker_silent", "worker_hung", "metrics_not_gathered")
"""Errors that replica B is to log: its workers are hung on purpose, and its disks filled."""
NO_ROOM = (os.strerror(errno.ENOSPC), "the journal took a part of a line only", "there is no journal")
"""The reasons of ``journal_not_written`` on its full disk: of a worker that ran on, and of one that started there."""


@dataclass(slots=True)
class Soaked:
    """What a soak showed."""

    seed: int
    rate: float
    seconds: float
    report: Report
    kinds: dict[int, str]
    history: History
    began_s: float
    breaches: list[str]
    series: list[Series]
    redis_bytes: list[int]
    excused: int
    restarts: int
    at_rest: list[Sample] = field(default_factory=list)
    untried: str = ""
    """The fault that could not be had here, and why."""

    @property
    def verdicts(self) -> Counter[str]:
        """How the calls ended that were not answered as the vendor would."""
        return self.report.errors


async def soak(seconds: float, rate: float, every_s: float, seed: int, only: str = "") -> Soaked:
    """Load for *seconds* at *rate* calls a second, a fault every *every_s* seconds: one that has *only* in its name."""
    obstacle = await asyncio.to_thread(namespace.obstacle)
    async with rig(seed, has_small_disks=not obstacle) as made:
        history = History()
        load, watch, deck = Load(made, history, seed), Watch(made), Deck(made, history, seed, only)
        await load.prepare()
        await run_open_loop(load.call, rate, duration_s=min(WARM_UP_S, seconds))
        load.kinds.clear()
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(watch.run()), group.create_task(watch_untold(made, history))]
            faults = group.create_task(deck.play(every_s, began_s + seconds))
            report = await run_open_loop(load.call, rate, duration_s=seconds, drain_s=30.0)
            await faults
            for task in watching:
                task.cancel()
        breaches = [f"{one.at_s - began_s:.1f} s, {one.kind}: {one.verdict}" for one in load.breaches]
        breaches += unexplained(report, load.breaches)
        at_rest = await _at_rest(made, breaches)
        breaches += _of_processes(made) + grown(list(watch.series.values()))
        return Soaked(
            seed=seed,
            rate=rate,
            seconds=seconds,
            report=report,
            kinds=load.kinds,
            history=history,
            began_s=began_s,
            breaches=breaches,
            series=list(watch.series.values()),
            redis_bytes=watch.redis_bytes,
            excused=load.documents.excused,
            restarts=sum(replica.restarts for replica in made.replicas),
            at_rest=at_rest,
            untried=f"disk full: no namespaces here: {obstacle}" if obstacle else "",
        )


def unexplained(report: Report, known: Sequence[Kept]) -> list[str]:
    """Calls that ended in no way that the load foresees: an error of its own, or never."""
    foreseen = {one.verdict.partition(";")[0] for one in known}
    others = {error for error in report.errors if error not in foreseen and not error.startswith(NO_BREACH)}
    return [f"{report.errors[error]} calls: {error}" for error in sorted(others)]


async def _at_rest(made: Rig, breaches: list[str]) -> list[Sample]:
    """What the workers still hold once all clients have gone."""
    await made.clients.close()
    found: list[Sample] = []

    def is_at_rest() -> bool:
        pids = [pid for replica in made.replicas for pid in replica.proxy.worker_pids()]
        found[:] = [sample for pid in pids if (sample := look(pid))]
        return all(sample.sockets <= MAX_AT_REST for sample in found)

    try:
        await wait_until(is_at_rest, 40.0)
    except WaitTimeoutError:
        breaches.append(f"sockets of workers without clients: {[sample.sockets for sample in found]}")
    return found


def _of_processes(made: Rig) -> list[str]:
    """What the replicas say themselves that must not be."""
    found = []
    for replica in made.replicas:
        found += [f"replica {replica.name} {fault}" for fault in replica.faults]
        errors = Counter(
            str(line.get("event"))
            for line in replica.logs
            if line.get("level") in ("error", "critical") and not (replica.name == "B" and _is_told_of_b(line))
        )
        found += [f"replica {replica.name} logged {count} times {event!r}" for event, count in errors.items()]
    return found


def _is_told_of_b(line: Record) -> bool:
    """Whether replica B is to log this error. A write whose journal has no room goes on, and is said to do so."""
    has_no_room = line.get("event") == "journal_not_written" and line.get("error") in NO_ROOM
    return line.get("event") in TOLD_OF_B or has_no_room


def grown(series: list[Series]) -> list[str]:
    """Which processes take up more in the last third than in the first."""
    found = []
    for one in series:
        if not one.is_judged:
            continue
        first, last = one.thirds(lambda sample: sample.rss)
        if last > first * (1 + MAX_GROWTH[0]) + MAX_GROWTH[1]:
            found.append(f"{one.role} grew from {first / MIB:.1f} to {last / MIB:.1f} MiB")
        first, last = one.thirds(lambda sample: sample.files)
        if last > first * (1 + MAX_MORE_FILES[0]) + MAX_MORE_FILES[1]:
            found.append(f"{one.role} had {first:.0f} open files, then {last:.0f}")
    return found
