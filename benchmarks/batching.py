"""
What micro-batching saves in upstream calls and costs in time: many misses of single texts at once, window by window.

Four processes on loopback: this client, a simulated vendor, one worker of the proxy, and its Redis. Each round asks
for texts that nobody has asked for, one per request and connection, all written before an answer is read; shown are
medians over the rounds.
"""

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass

import orjson

from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient, request_bytes
from tests.support.redis_server import RedisServer
from tests.vendor_sim import ProcessSim, sim_process
from tests.vendor_sim.app import NATIVE_EMBEDDING

LINES = ((b"Authorization", b"Bearer sk-batching"), (b"Content-Type", b"application/json"))


@dataclass(frozen=True)
class Round:
    """One flock of misses."""

    calls: int
    p50_ms: float
    p99_ms: float
    wall_ms: float


async def measured(window_ms: float, texts: int, rounds: int, latency_ms: float) -> list[Round]:
    """*rounds* rounds of *texts* single misses, after one that warms everything up."""
    env = {"DASHCACHE_BATCHING_WINDOW_MS": str(window_ms), "DASHCACHE_LOG_REQUESTS": "false"}
    with RedisServer() as redis, sim_process("--latency-ms", str(latency_ms), "--no-record") as sim:
        async with ProxyProcess(dashscope_url=sim.url, redis_url=redis.url, env=env) as proxy:
            clients = [await RawClient.connect(proxy.http_port) for _ in range(texts)]
            try:
                found = [await _round(clients, sim, number) for number in range(rounds + 1)]
            finally:
                await asyncio.gather(*(client.close() for client in clients))
    return found[1:]


async def _round(clients: list[RawClient], sim: ProcessSim, number: int) -> Round:
    before = (await asyncio.to_thread(lambda: sim.stats))["requests"]
    bodies = [
        orjson.dumps({"model": "text-embedding-v4", "input": {"texts": [f"round {number} text {at}"]}})
        for at in range(len(clients))
    ]
    began_s = time.perf_counter()

    async def ask(client: RawClient, body: bytes) -> float:
        await client.send(request_bytes("POST", NATIVE_EMBEDDING, LINES, body))
        response = await client.read_response(method="POST", timeout=60)
        if response.status != 200:
            raise AssertionError(response.status_line)
        return (time.perf_counter() - began_s) * 1000

    took_ms = sorted(await asyncio.gather(*map(ask, clients, bodies)))
    wall_ms = (time.perf_counter() - began_s) * 1000
    calls = (await asyncio.to_thread(lambda: sim.stats))["requests"] - before
    return Round(calls, statistics.median(took_ms), took_ms[int(len(took_ms) * 0.99)], wall_ms)


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--latency-ms", type=float, default=120.0)
    parser.add_argument("--windows-ms", type=float, nargs="+", default=[0.0, 5.0])
    given = parser.parse_args()
    print(f"{given.texts} misses of single texts at once, the vendor at {given.latency_ms:g} ms")
    print("window ms  upstream calls  p50 ms  p99 ms  all answered after ms")
    for window_ms in given.windows_ms:
        rounds = asyncio.run(measured(window_ms, given.texts, given.rounds, given.latency_ms))
        middle = [
            statistics.median(getattr(one, name) for one in rounds) for name in ("calls", "p50_ms", "p99_ms", "wall_ms")
        ]
        print("{:9g}  {:14g}  {:6.1f}  {:6.1f}  {:21.1f}".format(window_ms, *middle))


if __name__ == "__main__":
    main()
