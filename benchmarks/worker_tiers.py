"""
What it costs that each worker has a memory tier of its own: ``python -m benchmarks.worker_tiers``.

The same texts, as popular as words are (Zipf), are asked for at a steady rate from many connections, of one worker, of
two and of four; all are in Redis before. Told: where hits came from, how long they took, and the workers' memory.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.content import TARGET, body, text
from benchmarks.peers.load import LINES, one_by_one_ms, p99
from benchmarks.peers.machine import OTHER_CORE, free_port, process, python, resident_mib
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_sync

_CONNECTIONS = 64
_NOTHING: Mapping[str, str] = {}
_SECRET = {"DASHCACHE_KEY_SECRET": "the-same-for-all-" * 2}


@dataclass(frozen=True)
class Asked:
    """How many texts there are, and how many requests a second, for how long."""

    texts: int
    rate: float
    seconds: float

    def order(self) -> list[int]:
        """Which texts are asked for: the n-th most popular one n times less often than the first."""
        weights = [1 / (rank + 1) for rank in range(self.texts)]
        return random.Random(7).choices(range(self.texts), weights, k=round(self.rate * self.seconds))


@dataclass(frozen=True)
class Found:
    """Of one number of workers: hits by tier, how long they took, MiB that each worker has, and all tiers together."""

    workers: int
    from_memory: int
    from_redis: int
    p50_ms: float
    p99_ms: float
    resident_mib: float
    tiers_mib: float


def measure(asked: Asked, workers: Sequence[int] = (1, 2, 4), env: Mapping[str, str] = _NOTHING) -> list[Found]:
    """So many *workers*, one after the other, before a Redis that has all texts; *env* adds to the proxy's settings."""
    port = free_port()
    with process(python("benchmarks.peers.servers", "upstream", str(port)), port, OTHER_CORE), RedisServer() as redis:
        url = f"http://127.0.0.1:{port}"
        with ProxyProcess(dashscope_url=url, redis_url=redis.url, env=_SECRET) as proxy:
            one_by_one_ms(proxy.http_port, [body([text(at)]) for at in range(asked.texts)])
            wait_until_sync(lambda: redis.count_entries() == asked.texts, 30.0, "all to be stored")
        return [_measured(number, url, redis.url, asked, {**_SECRET, **env}) for number in workers]


def _measured(workers: int, url: str, redis_url: str, asked: Asked, env: Mapping[str, str]) -> Found:
    with ProxyProcess(dashscope_url=url, redis_url=redis_url, workers=workers, env=env) as proxy:
        took_ms = asyncio.run(_ask(proxy.http_port, asked))

        def told() -> dict[str, Any] | None:
            """The figures, once all requests are in them and each worker has told of its tier (once a second)."""
            stats = proxy.stats()
            embedding = stats["operations"]["embedding"]
            if embedding["upstream_calls"]:
                raise RuntimeError("no hits")
            return stats if embedding["items"] == len(took_ms) and stats["memory"]["bytes"] else None

        stats = wait_until_sync(told, 30.0, "all requests to be counted")
        embedding = stats["operations"]["embedding"]
        return Found(
            workers,
            embedding["hits"]["memory"],
            embedding["hits"]["redis"],
            statistics.median(took_ms),
            p99(took_ms),
            statistics.mean(map(resident_mib, proxy.worker_pids())),
            stats["memory"]["bytes"] / 2**20,
        )


async def _ask(port: int, asked: Asked) -> list[float]:
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "127.0.0.1", **LINES}.items())
    order, took_ms = asked.order(), list[float]()
    began_s = time.perf_counter()

    async def client(first: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for at in range(first, len(order), _CONNECTIONS):
            await asyncio.sleep(began_s + at / asked.rate - time.perf_counter())
            content = body([text(order[at])])
            head = f"POST {TARGET} HTTP/1.1\r\n{lines}Content-Length: {len(content)}\r\n\r\n".encode()
            sent_s = time.perf_counter()
            writer.write(head + content)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(answer.partition(b"content-length: ")[2].partition(b"\r")[0]))
            took_ms.append((time.perf_counter() - sent_s) * 1000)
        writer.close()

    await asyncio.gather(*map(client, range(_CONNECTIONS)))
    return took_ms


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=2_000)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    print("workers   from memory   from Redis   p50 ms   p99 ms   MiB a worker   MiB in all tiers")
    for found in measure(Asked(given.texts, given.rate, given.seconds)):
        share = found.from_memory / (found.from_memory + found.from_redis)
        print(
            f"{found.workers:>7}{share:>14.1%}{1 - share:>13.1%}{found.p50_ms:>9.2f}{found.p99_ms:>9.2f}"
            f"{found.resident_mib:>15.1f}{found.tiers_mib:>19.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
