"""
Small hits beside dear bodies, to one worker: twenty JSON bodies at once, every second, of 4 MiB or of many members.

Real processes on loopback: simulator, redis-server, one worker with the default settings, and the senders of the large
bodies. Rounds without and with them alternate; every figure is the median of its rounds, times count from when a call
was due.
"""

import argparse
import asyncio
import re
import statistics
import sys
from dataclasses import dataclass

from tests.faults.workload import Workload
from tests.support.large_bodies import LargeBodies
from tests.support.open_loop import run_open_loop
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.vendor_sim import sim_process

UPSTREAM_MS = 50
PARALLEL = 20
RATE = 200.0

Lags = dict[float, float]
"""How many of the loop's looks were late by at most so many seconds."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round found, in seconds; *bodies* is how many large ones were answered."""

    p50_s: float
    p99_s: float
    lag_p99_s: float
    lag_worst_s: float
    bodies: int
    errors: int


async def lags(proxy: ProxyProcess) -> Lags:
    """The loop's lags since the start."""
    text = await asyncio.to_thread(proxy.metrics)
    found = re.findall(r'^dashcache_loop_lag_seconds_bucket{le="([^"]+)"} (\S+)$', text, re.MULTILINE)
    return {float(at_most): float(count) for at_most, count in found}


def lag_s(before: Lags, after: Lags, percent: float) -> float:
    """Which of the histogram's bounds *percent* of the looks between *before* and *after* did not exceed."""
    counts = {at_most: after[at_most] - before.get(at_most, 0.0) for at_most in sorted(after)}
    wanted = percent / 100 * max(counts.values())
    return next(at_most for at_most, count in counts.items() if count >= wanted)


async def play(proxy: ProxyProcess, load: Workload, *, shapes: str | None, seconds: float) -> Round:
    """One round, beside bodies of these *shapes* if there are to be any."""
    before = await lags(proxy)
    if shapes is not None:
        async with LargeBodies(proxy.http_port, shapes=shapes, parallel=PARALLEL, seconds=seconds) as large:
            report = await run_open_loop(load.call, RATE, duration_s=seconds)
        statuses = large.statuses
    else:
        report, statuses = await run_open_loop(load.call, RATE, duration_s=seconds), None
    after = await lags(proxy)
    # What was due before the first large body was there says nothing.
    report = report.between(1.0)
    return Round(
        report.latency(50),
        report.latency(99),
        lag_s(before, after, 99),
        lag_s(before, after, 100),
        statuses.total() if statuses else 0,
        report.errors.total(),
    )


async def compare(rounds: int, seconds: float, shapes: str) -> tuple[list[Round], list[Round]]:
    """Rounds without and with large bodies."""
    without, beside = [], []
    env = {"DASHCACHE_LOG_REQUESTS": "false"}
    with RedisServer() as redis, sim_process("--no-record", "--latency-ms", str(UPSTREAM_MS)) as sim:
        async with (
            ProxyProcess(dashscope_url=sim.url, redis_url=redis.url, env=env) as proxy,
            Workload(proxy.http_url, repeats=1.0) as load,
        ):
            await load.warm_up()
            for number in range(rounds):
                print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
                without.append(await play(proxy, load, shapes=None, seconds=seconds))
                beside.append(await play(proxy, load, shapes=shapes, seconds=seconds))
    return without, beside


def line(name: str, rounds: list[Round]) -> str:
    """The medians of *rounds*, in milliseconds."""

    def median(field: str) -> float:
        return statistics.median(getattr(found, field) for found in rounds)

    times = "".join(f"{median(field) * 1000:>14.1f}" for field in ("p50_s", "p99_s", "lag_p99_s", "lag_worst_s"))
    return f"{name:<22}{times}{median('bodies'):>10.0f}{sum(found.errors for found in rounds):>8}"


def main() -> int:
    """Compare and print; the exit status tells whether a small hit was not answered right."""
    parser = argparse.ArgumentParser(prog="benchmarks.large_bodies", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="of each round")
    parser.add_argument("--shapes", choices=("large", "many"), default="large")
    given = parser.parse_args()
    without, beside = asyncio.run(compare(given.rounds, given.seconds, given.shapes))
    print(f"\r{given.rounds} rounds of {given.seconds:g} s, {RATE:g} small hits/s; ms, medians\n", file=sys.stdout)
    print(f"{'':<22}{'hit p50':>14}{'hit p99':>14}{'loop lag p99':>14}{'worst':>14}{'bodies':>10}{'errors':>8}")
    print(line("small hits alone", without))
    print(line(f"beside {given.shapes} bodies", beside))
    return 1 if any(found.errors for found in (*without, *beside)) else 0


if __name__ == "__main__":
    sys.exit(main())
