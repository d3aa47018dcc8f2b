"""
What the proxy costs and saves on a gRPC call: direct, through a bare relay, through the proxy as miss and as hit.

Five processes on loopback, each with its own event loop: a client that sends bytes, an upstream that answers 20
documents after a fixed delay, a relay that is nothing but the library's server and channel, one worker of the proxy,
and its Redis. Questions have 1,024 numbers. Every round measures every way, so that a disturbance meets all of them;
shown are medians over the rounds with the lowest and the highest.
"""

import argparse
import contextlib
import dataclasses
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from benchmarks.grpc_parts import Plan, Sample, Way
from tests.support.child import reap, send_signal, spawn
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer

_ROOT = Path(__file__).parents[1]
LIMIT_S = 300.0
DIRECT, RELAY, MISS, HIT = "direct", "bare relay", "proxy, miss", "proxy, hit"


@dataclass(frozen=True)
class Spread:
    """A median with what lay around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Over all rounds."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Line:
    """One way at one delay; *ratios* are to the direct call of the same round."""

    delay_ms: float
    way: str
    p50_ms: Spread
    p99_ms: Spread
    per_s: Spread
    p50_ratio: float
    per_s_ratio: float
    failed: int
    upstream_share: float
    """How many of its calls the upstream saw: 1 but for hits, where it is 0."""


@contextlib.contextmanager
def part(*arguments: str) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """One of ``grpc_parts`` in a process, and the first line that it prints."""
    command = [sys.executable, "-m", "benchmarks.grpc_parts", *arguments]
    process = spawn(command, cwd=_ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=None)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().decode().strip()
    finally:
        send_signal(process.pid, signal.SIGTERM)
        if reap(process, 10.0) is None:
            process.kill()
            process.wait()
        process.stdout.close()


def measure(shape: Callable[[tuple[Way, ...], str], Plan] = Plan) -> list[Sample]:
    """Start everything, let the client measure the plan that *shape* makes, and end everything."""
    patience = {"DASHCACHE_LOG_REQUESTS": "false", "DASHCACHE_REDIS_DEADLINE_MS": "1000"}
    with contextlib.ExitStack() as stack:
        _, upstream = stack.enter_context(part("upstream"))
        _, relay = stack.enter_context(part("relay", "--to", upstream))
        redis = stack.enter_context(RedisServer())
        proxy = stack.enter_context(
            ProxyProcess(
                dashvector_url=f"http://{upstream}",
                dashvector_grpc_url=f"http://{upstream}",
                redis_url=redis.url,
                env=patience,
            )
        )
        ways = (
            Way(DIRECT, upstream),
            Way(RELAY, relay),
            Way(MISS, proxy.grpc_address),
            Way(HIT, proxy.grpc_address, is_repeated=True),
        )
        plan = orjson.dumps(dataclasses.asdict(shape(ways, upstream))).decode()
        _, said = stack.enter_context(part("client", plan))
        return [Sample(**sample) for sample in orjson.loads(said)]


def lines(samples: Sequence[Sample]) -> list[Line]:
    """Medians by delay and way, in the order in which they were measured."""
    cases = dict.fromkeys((sample.delay_ms, sample.way) for sample in samples)
    return [_line(samples, delay_ms, way) for delay_ms, way in cases]


def _line(samples: Sequence[Sample], delay_ms: float, way: str) -> Line:
    own = [sample for sample in samples if (sample.delay_ms, sample.way) == (delay_ms, way)]
    direct = [sample for sample in samples if (sample.delay_ms, sample.way) == (delay_ms, DIRECT)]
    pairs = list(zip(own, direct, strict=True))
    return Line(
        delay_ms=delay_ms,
        way=way,
        p50_ms=Spread.of([sample.p50_ms for sample in own]),
        p99_ms=Spread.of([sample.p99_ms for sample in own]),
        per_s=Spread.of([sample.per_s for sample in own]),
        p50_ratio=statistics.median(sample.p50_ms / other.p50_ms for sample, other in pairs),
        per_s_ratio=statistics.median(sample.per_s / other.per_s for sample, other in pairs),
        failed=sum(sample.failed for sample in own),
        upstream_share=sum(sample.upstream_calls for sample in own) / sum(sample.calls for sample in own),
    )


def is_right(found: Sequence[Line]) -> bool:
    """Whether nothing failed, hits never and all others always reached the upstream."""
    return all(line.failed == 0 and line.upstream_share == (line.way != HIT) for line in found)


def shown(line: Line) -> str:
    """A line of the table."""

    def cell(spread: Spread, digits: int) -> str:
        return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}-{spread.high:.{digits}f})"

    latencies = f"{cell(line.p50_ms, 2):>19}{line.p50_ratio:>6.2f}x{cell(line.p99_ms, 1):>20}"
    rates = f"{cell(line.per_s, 0):>20}{line.per_s_ratio:>6.2f}x{line.upstream_share:>11.0%}{line.failed:>8}"
    return f"{line.delay_ms:>5g} ms  {line.way:12}{latencies}{rates}"


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.6, help="for each latency and each throughput")
    parser.add_argument("--concurrency", type=int, default=32)
    given = parser.parse_args()

    def shape(ways: tuple[Way, ...], upstream: str) -> Plan:
        return Plan(ways, upstream, rounds=given.rounds, seconds=given.seconds, concurrency=given.concurrency)

    found = lines(measure(shape))
    crowd = f"calls/s by {given.concurrency}"
    print(f"medians of {given.rounds} rounds (lowest-highest); x: relative to the direct call")
    tail = f"{'forwarded':>11}{'failed':>8}"
    print(f"upstream  {'':12}{'p50 ms, one by one':>19}{'':7}{'p99 ms':>20}{crowd:>20}{'':7}{tail}")
    print("\n".join(map(shown, found)))
    return 0 if is_right(found) else 1


if __name__ == "__main__":
    sys.exit(main())
