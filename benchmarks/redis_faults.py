"""
Redis dies, hangs and is emptied under load: what clients notice, and how soon the cache is of use again.

Real processes: simulator, redis-server, one worker with the default settings, but without its memory tier, so that
every request asks Redis. Four in five requests are repeats. Everything stays on loopback.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from proxy.settings.model import Settings
from tests.faults.observed import CLOSED, OPENED, events
from tests.faults.redis_tap import RedisTap
from tests.faults.workload import Running, Workload
from tests.support.open_loop import Report
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.vendor_sim import sim_process

UPSTREAM_MS = 50
KNOWN = 500
WATCH_S = 0.002


@dataclass
class Rig:
    """What a fault is played on."""

    redis: RedisServer
    tap: RedisTap
    proxy: ProxyProcess
    load: Workload
    upstream_p99_s: float


@dataclass
class Watched:
    """When, in the load's seconds, the breaker was seen to open and to close."""

    opened_s: float | None = None
    closed_s: float | None = None


@dataclass(frozen=True)
class Line:
    """One line of the table; times in seconds, ``None`` where there is nothing to tell."""

    fault: str
    calls: int
    errors: int
    wrong: int
    until_open_s: float | None
    worst_added_s: float
    p99_added_s: float
    first_hit_s: float | None
    asked_while_open: int | None

    def cells(self) -> tuple[str, ...]:
        """As text."""
        return (
            self.fault,
            str(self.calls),
            str(self.errors),
            str(self.wrong),
            _ms(self.until_open_s),
            _ms(self.worst_added_s),
            _ms(self.p99_added_s),
            _ms(self.first_hit_s),
            "-" if self.asked_while_open is None else str(self.asked_while_open),
        )


HEADINGS = (
    "fault",
    "calls",
    "errors",
    "wrong",
    "breaker open after",
    "worst added wait",
    "p99 added wait",
    "first hit after return",
    "commands while open",
)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


Fault = Callable[[Rig, float, float], Awaitable[Line]]


async def dead(rig: Rig, rate: float, seconds: float) -> Line:
    """SIGKILL after a sixth of the time; a new, empty server after two thirds."""
    return await _away(rig, rate, seconds, "killed, back empty", rig.redis.kill, rig.redis.restart, 2 / 3)


async def hung(rig: Rig, rate: float, seconds: float) -> Line:
    """SIGSTOP after a sixth of the time, for half of it: connecting works, nothing is answered."""
    return await _away(rig, rate, seconds, "hung (SIGSTOP)", rig.redis.hang, rig.redis.resume, 2 / 3)


async def _away(
    rig: Rig, rate: float, seconds: float, name: str, begin: Callable[[], None], end: Callable[[], None], until: float
) -> Line:
    async with _watched(rig, rate, seconds) as (running, watched):
        await running.until(seconds / 6)
        begin()
        began_s = running.now_s
        await running.until(seconds * until)
        ending_s, ending_mono_s = running.now_s, time.monotonic()
        end()
        ended_s = running.now_s
    opened_mono_s = None if watched.opened_s is None else running.began_s + watched.opened_s
    # What was under way when it opened may still be sent within its deadline.
    deadline_s = Settings().redis.deadline_ms / 1000
    return _line(
        name,
        running.report,
        running.report.between(began_s, ending_s),
        rig.upstream_p99_s,
        until_open_s=None if watched.opened_s is None else watched.opened_s - began_s,
        first_hit_s=_first_hit_s(running.report, ended_s),
        asked_while_open=opened_mono_s and rig.tap.between(opened_mono_s + deadline_s, ending_mono_s),
    )


async def emptied(rig: Rig, rate: float, seconds: float) -> Line:
    """FLUSHALL half-way: Redis is well, and all must be fetched again."""
    async with _watched(rig, rate, seconds) as (running, watched):
        await running.until(seconds / 2)
        rig.redis.command("FLUSHALL")
        flushed_s = running.now_s
    return _line(
        "emptied (FLUSHALL)",
        running.report,
        running.report.between(flushed_s),
        rig.upstream_p99_s,
        until_open_s=None if watched.opened_s is None else watched.opened_s - flushed_s,
        first_hit_s=_first_hit_s(running.report, flushed_s),
        asked_while_open=None,
    )


def _line(
    name: str,
    whole: Report,
    during: Report,
    upstream_p99_s: float,
    *,
    until_open_s: float | None,
    first_hit_s: float | None,
    asked_while_open: int | None,
) -> Line:
    wrong = whole.errors.get("wrong", 0)
    return Line(
        fault=name,
        calls=whole.count,
        errors=whole.errors.total() - wrong,
        wrong=wrong,
        until_open_s=until_open_s,
        worst_added_s=max(0.0, during.latency(100) - upstream_p99_s),
        p99_added_s=max(0.0, during.latency(99) - upstream_p99_s),
        first_hit_s=first_hit_s,
        asked_while_open=asked_while_open,
    )


def _first_hit_s(report: Report, since_s: float) -> float | None:
    """How long after *since_s* the first answer from the cache was complete."""
    ends = [sample.planned_s + sample.latency_s for sample in report.between(since_s).samples if sample.outcome.cached]
    return min(ends) - since_s if ends else None


@contextlib.asynccontextmanager
async def _watched(rig: Rig, rate: float, seconds: float) -> AsyncIterator[tuple[Running, Watched]]:
    """Load, and an eye on the log."""
    before, watched = len(rig.proxy.logs), Watched()
    async with rig.load.running(rate, seconds) as running, asyncio.TaskGroup() as group:
        watching = group.create_task(_watch(rig.proxy, before, running, watched))
        telling = group.create_task(_tell(running, seconds))
        yield running, watched
        await running.until(seconds)
        watching.cancel()
        telling.cancel()


async def _watch(proxy: ProxyProcess, before: int, running: Running, watched: Watched) -> None:
    while watched.closed_s is None:
        seen = events(proxy, before)
        if seen[OPENED] and watched.opened_s is None:
            watched.opened_s = running.now_s
        if seen[CLOSED]:
            watched.closed_s = running.now_s
        await asyncio.sleep(WATCH_S)


async def _tell(running: Running, seconds: float) -> None:
    while True:
        print(f"\r{running.now_s:5.0f} of {seconds:.0f} s", end="", file=sys.stderr, flush=True)
        await asyncio.sleep(1)


async def play(fault: Fault, rate: float, seconds: float) -> Line:
    """One fault, on processes of its own."""
    env = {"DASHCACHE_MEMORY_MAX_BYTES": "0", "DASHCACHE_LOG_REQUESTS": "false"}
    with RedisServer() as redis, sim_process("--no-record", "--latency-ms", str(UPSTREAM_MS)) as sim:
        async with (
            RedisTap(redis.url) as tap,
            ProxyProcess(dashscope_url=sim.url, redis_url=tap.instead_of(redis.url), env=env) as proxy,
            Workload(sim.url, repeats=0.0) as direct,
            Workload(proxy.http_url, known=KNOWN) as load,
        ):
            async with direct.running(rate, 3.0) as alone:
                pass
            await load.warm_up(within_s=60.0)
            return await fault(Rig(redis, tap, proxy, load, alone.report.latency(99)), rate, seconds)


def table(lines: list[Line]) -> str:
    """The lines under their headings."""
    rows = [HEADINGS, *(line.cells() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> int:
    """Play all faults and print the table; the exit status tells whether a client got an error or a wrong answer."""
    parser = argparse.ArgumentParser(prog="benchmarks.redis_faults", description=__doc__)
    parser.add_argument("--rate", type=float, default=200, help="requests per second")
    parser.add_argument("--seconds", type=float, default=20, help="load per fault; 60 is the full length")
    given = parser.parse_args()
    if not (1 <= given.rate <= 2_000 and 6 <= given.seconds <= 600):
        parser.error("--rate must be from 1 to 2000, --seconds from 6 to 600")
    lines = []
    for fault in (dead, hung, emptied):
        print(f"\r{fault.__name__}: warming up   ", end="", file=sys.stderr, flush=True)
        lines.append(asyncio.run(play(fault, given.rate, given.seconds)))
    print("\r", end="", file=sys.stderr)
    defaults = Settings()
    print(f"{given.rate:g} requests/s for {given.seconds:g} s each, the vendor takes {UPSTREAM_MS} ms; ", end="")
    print(f"deadline {defaults.redis.deadline_ms} ms, breaker {defaults.breaker.fail_max} failures, ", end="")
    print(f"reset {defaults.breaker.reset_s:g} s, memory tier off\n")
    print(table(lines))
    return 1 if any(line.errors or line.wrong for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
