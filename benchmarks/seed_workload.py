"""
A week of the seed workload in simulated time: 1,500 distinct texts, 100 calls an hour, popular ones more often.

Real sockets, real Redis, the simulator as vendor; only the clock is moved by hand. Prints how many calls the vendor was
spared, and what 1,500 embeddings of 1,024 numbers cost in Redis, keys included.
"""

import argparse
import asyncio
import random
import sys
import time
from dataclasses import dataclass

import aiohttp
import orjson

from benchmarks.inprocess import serving
from benchmarks.profiles import popularity
from proxy.core.ports import Clock
from proxy.settings.model import Redis, Settings
from tests.support.clock import FakeClock
from tests.support.redis_server import RedisServer
from tests.vendor_sim import vector
from tests.vendor_sim.runner import sim_process

MODEL = "text-embedding-v4"
PATH = "/api/v1/services/embeddings/text-embedding/text-embedding"
HEADERS = {"Authorization": "Bearer sk-seed", "Content-Type": "application/json"}


@dataclass(frozen=True)
class Result:
    """What a simulated week came to."""

    calls: int
    distinct: int
    upstream_calls: int
    wrong: int
    redis_bytes: int
    redis_entries: int
    troubles: tuple[str, ...]

    @property
    def saved(self) -> float:
        """Share of the calls that the vendor did not see."""
        return 1 - self.upstream_calls / self.calls


async def week(*, texts: int, calls_per_hour: int, hours: int, seed: int, progress: bool = False) -> Result:
    """Run the workload; time moves 3600 / *calls_per_hour* seconds per call."""
    chance = random.Random(seed)
    names = [f"profile {number}: {chance.randbytes(8).hex()}" for number in range(texts)]
    asked = chance.choices(names, popularity(texts), k=calls_per_hour * hours)
    clock = FakeClock(wall_unix_s=time.time())
    with RedisServer() as redis, sim_process("--no-record") as sim:
        empty_bytes = redis.memory_used()
        # A pause of a busy machine is no trouble with Redis; the promise about deadlines has tests of its own.
        settings = Settings(dashscope_url=sim.url, redis=Redis(deadline_ms=2_000))
        async with serving(settings, redis.url, Clock(clock.monotonic, clock.wall)) as (port, worker, recorder):
            wrong = await _ask_all(port, asked, clock, 3600 / calls_per_hour, progress=progress)
            upstream_calls = sum(outcome.upstream_calls for outcome in recorder.outcomes)
            # The rest of the texts, so that Redis holds all of them when its memory is read.
            wrong += await _ask_all(port, names, clock, 0.0, progress=False)
            await worker.tasks.wait_done(5)
        return Result(
            calls=len(asked),
            distinct=len(set(asked)),
            upstream_calls=upstream_calls,
            wrong=wrong,
            redis_bytes=redis.memory_used() - empty_bytes,
            redis_entries=redis.count_entries(),
            troubles=tuple(recorder.failures),
        )


async def _ask_all(port: int, texts: list[str], clock: FakeClock, step_s: float, *, progress: bool) -> int:
    """Ask for each text in turn; how many vectors were not the vendor's."""
    truth = {text: [float(number) for number in vector(MODEL, 1024, text)] for text in set(texts)}
    wrong = 0
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=HEADERS) as client:
        for number, text in enumerate(texts):
            body = orjson.dumps({"model": MODEL, "input": {"texts": [text]}, "parameters": {}})
            async with client.post(PATH, data=body) as answer:
                answered = orjson.loads(await answer.read())
            wrong += answered["output"]["embeddings"][0]["embedding"] != truth[text]
            clock.advance(step_s)
            if progress and number % 500 == 0:
                print(f"\r{number}/{len(texts)} calls", end="", file=sys.stderr)
    return wrong


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1_500)
    parser.add_argument("--calls-per-hour", type=int, default=100)
    parser.add_argument("--hours", type=int, default=168)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    result = asyncio.run(
        week(texts=given.texts, calls_per_hour=given.calls_per_hour, hours=given.hours, seed=given.seed, progress=True)
    )
    print(f"\rcalls by the app        {result.calls} (for {result.distinct} distinct texts)")
    print(f"calls to the vendor     {result.upstream_calls}")
    print(f"fewer calls             {result.saved:.1%}")
    print(f"wrong vectors           {result.wrong}")
    print(f"entries in Redis        {result.redis_entries}")
    each = result.redis_bytes / result.redis_entries
    print(f"Redis memory            {result.redis_bytes / 1e6:.2f} MB, {each:.0f} B each")
    for trouble in result.troubles:
        print(f"trouble: {trouble}")


if __name__ == "__main__":
    main()
