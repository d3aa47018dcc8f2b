"""
Random batches through the real proxy, each vector held against the vendor's: is any wrong, misplaced, paid for twice?

Batches overlap, hold texts twice, differ in model, dialect and parameters; the simulated vendor answers in random
order; two workers share one Redis. One batch at a time, each asked twice, and nothing is asked before the last answer
has reached Redis: so every text of every kind must be asked of the vendor exactly once, whichever worker is asked.
"""

import argparse
import asyncio
import base64
import functools
import gzip
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient, RawResponse
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.vendor_sim import SimSettings, VendorSim, sim_thread, vector
from tests.vendor_sim.app import COMPATIBLE_EMBEDDING, NATIVE_EMBEDDING
from tests.vendor_sim.vectors import sparse_vector

CONNECTIONS = 6  # the kernel spreads them over the workers
HEADERS = ((b"Authorization", b"Bearer sk-batches"), (b"Content-Type", b"application/json"))
STORE_S = 10.0


@dataclass(frozen=True)
class Kind:
    """What is asked about each text: all of a request but its texts."""

    model: str
    cap: int
    parameters: tuple[tuple[str, Any], ...] = ()
    is_compatible: bool = False

    @property
    def target(self) -> str:
        return COMPATIBLE_EMBEDDING if self.is_compatible else NATIVE_EMBEDDING

    def body(self, texts: list[str]) -> bytes:
        if self.is_compatible:
            return orjson.dumps({"model": self.model, "input": texts, **dict(self.parameters)})
        return orjson.dumps({"model": self.model, "input": {"texts": texts}, "parameters": dict(self.parameters)})

    def truth(self, text: str) -> "tuple[npt.NDArray[Any] | None, list[dict[str, Any]] | None]":
        """The vendor's dense and sparse vector of *text*, as far as they are asked for."""
        return _truth(self, text)

    def answered(self, row: dict[str, Any]) -> "tuple[npt.NDArray[Any] | None, list[dict[str, Any]] | None]":
        """The same out of an answer's row."""
        dense = row.get("embedding")
        if isinstance(dense, str):
            return np.frombuffer(base64.b64decode(dense), "<f4").astype(np.float64), None
        return None if dense is None else np.array(dense), row.get("sparse_embedding")


@functools.lru_cache(maxsize=5_000)
def _truth(kind: Kind, text: str) -> "tuple[npt.NDArray[Any] | None, list[dict[str, Any]] | None]":
    given = dict(kind.parameters)
    text_type, output = given.get("text_type", "document"), given.get("output_type", "dense")
    dimension = given.get("dimension", given.get("dimensions"))
    dense = vector(kind.model, dimension, text, text_type, given.get("instruct")).astype(np.float64)
    sparse = sparse_vector(kind.model, text, text_type) if "sparse" in output else None
    return (dense if "dense" in output else None), sparse


V3, V4 = "text-embedding-v3", "text-embedding-v4"
KINDS = (
    Kind(V4, 10),
    Kind(V4, 10, (("dimension", 64),)),
    Kind(V4, 10, (("dimension", 64), ("text_type", "query"))),
    Kind(V4, 10, (("dimension", 64), ("text_type", "query"), ("instruct", "find the answer"))),
    Kind(V4, 10, (("dimension", 128), ("output_type", "dense&sparse"))),
    Kind(V4, 10, (("output_type", "sparse"),)),
    Kind(V3, 10, (("dimension", 64),)),
    Kind("text-embedding-v2", 25),
    Kind("text-embedding-v1", 25, (("text_type", "query"),)),
    Kind("qwen3.7-text-embedding", 20, (("dimension", 256),)),
    Kind(V4, 10, (("dimensions", 64),), is_compatible=True),
    Kind(V4, 10, (("dimensions", 64), ("encoding_format", "float")), is_compatible=True),
    Kind(V4, 10, (("dimensions", 128), ("encoding_format", "base64")), is_compatible=True),
    Kind("text-embedding-v2", 25, (), is_compatible=True),
)


@dataclass
class Result:
    """What so many batches came to. A vector is *misplaced* when it is right for another text of its batch."""

    batches: int = 0
    texts: int = 0
    distinct: int = 0
    wrong: int = 0
    misplaced: int = 0
    wrong_positions: int = 0
    wrong_usages: int = 0
    upstream_texts: int = 0
    asked_more_than_once: int = 0
    states: Counter[str] = field(default_factory=Counter)
    hit_ratio: float = 0.0
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        """Whether nothing at all was wrong, and nothing was paid for twice."""
        faults = (self.wrong, self.misplaced, self.wrong_positions, self.wrong_usages, self.asked_more_than_once)
        return not any(faults) and self.upstream_texts == self.distinct


def texts_of(chance: random.Random, count: int) -> list[str]:
    """Short and long, in several scripts, and some that differ from another in almost nothing."""
    alphabets = ("abc defgh ijkl", "衣服的质量杠杠的 很漂亮", 'é"\\\n\t/{}[],:', "😀👍🏽 ñandú Å ")
    found: dict[str, None] = {}
    while len(found) < count:
        text = "".join(chance.choices(chance.choice(alphabets), k=chance.choice((1, 3, 20, 200)))) + f"{len(found)}"
        changes = (text, text + " ", " " + text, text.upper(), text.replace("é", "e\u0301"))
        for like in changes[: chance.choice((1, 1, 3, 5))]:
            found[like] = None
    return list(found)[:count]


async def play(batches: int, seed: int, *, workers: int = 2, texts: int = 2_000, progress: bool = False) -> Result:
    """Ask for so many random batches."""
    chance = random.Random(seed)
    pool = texts_of(chance, texts)
    settings = SimSettings(shuffles_embeddings=True, honours_base64=True, seed=seed)
    # A pause of a busy machine is no trouble with Redis; the promises about deadlines have tests of their own.
    patience = {"DASHCACHE_REDIS_DEADLINE_MS": "5000", "DASHCACHE_LOG_REQUESTS": "false"}
    result = Result()
    started_s = time.perf_counter()
    with RedisServer() as redis, sim_thread(settings) as sim:
        async with ProxyProcess(dashscope_url=sim.url, redis_url=redis.url, workers=workers, env=patience) as proxy:
            clients = [await RawClient.connect(proxy.http_port) for _ in range(CONNECTIONS)]
            known: set[tuple[Kind, str]] = set()
            for number in range(batches):
                kind = chance.choice(KINDS)
                asked = _batch(chance, pool, kind.cap)
                known.update((kind, text) for text in asked)
                usages = []
                for client in chance.sample(clients, 2):
                    usages.append(await _ask(client, kind, asked, result, chance))
                    await wait_until(lambda: redis.count_entries() == len(known), STORE_S, "the store")
                result.wrong_usages += usages[0] != usages[1]
                if progress and number % 500 == 0:
                    print(f"\r{number}/{batches} batches", end="", file=sys.stderr, flush=True)
            for client in clients:
                await client.close()
            result.hit_ratio = proxy.stats()["operations"]["embedding"]["hit_ratio"]
        paid = sim.call(_paid_for)
    result.batches, result.distinct = batches, len(known)
    result.upstream_texts = sum(paid.values())
    result.asked_more_than_once = sum(count > 1 for count in paid.values())
    result.seconds = time.perf_counter() - started_s
    return result


def _batch(chance: random.Random, pool: list[str], cap: int) -> list[str]:
    """Texts that lie near each other in the *pool*, so that batches overlap; some stand twice."""
    size = chance.randint(1, cap)
    middle = chance.randrange(len(pool))
    return [pool[round(chance.gauss(middle, size)) % len(pool)] for _ in range(size)]


async def _ask(client: RawClient, kind: Kind, texts: list[str], result: Result, chance: random.Random) -> Any:
    """Ask, hold every row against the truth, and return the usage."""
    coding = ((b"Accept-Encoding", b"gzip"),) if chance.random() < 0.5 else ()
    response = await client.request("POST", kind.target, (*HEADERS, *coding), kind.body(texts))
    if response.status != 200:
        raise AssertionError(f"{response.status_line!r} {response.body!r}")
    document = orjson.loads(_decoded(response))
    rows = document["data"] if kind.is_compatible else document["output"]["embeddings"]
    name = "index" if kind.is_compatible else "text_index"
    by_position = {row[name]: row for row in rows}
    result.texts += len(texts)
    result.states[_state(response)] += 1
    if sorted(row[name] for row in rows) != list(range(len(texts))):
        result.wrong_positions += 1
        return document["usage"]
    for position, text in enumerate(texts):
        given = kind.answered(by_position[position])
        if not _equal(given, kind.truth(text)):
            is_neighbours = any(_equal(given, kind.truth(other)) for other in texts)
            result.misplaced += is_neighbours
            result.wrong += not is_neighbours
    return document["usage"]


def _equal(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    return bool(np.array_equal(one[0], other[0])) and one[1] == other[1]


def _decoded(response: RawResponse) -> bytes:
    return gzip.decompress(response.body) if response.header("Content-Encoding") == b"gzip" else response.body


def _state(response: RawResponse) -> str:
    said = (response.header("Cache-Status") or b"").decode()
    return next((name for name in ("hit", "partial", "miss") if name in said.split(";")[1]), "other")


def _paid_for(sim: VendorSim) -> Counter[tuple[str, bytes, str]]:
    """How often the vendor was asked for each text of each kind, by what it was really sent."""
    paid: Counter[tuple[str, bytes, str]] = Counter()
    for request in sim.requests:
        document = orjson.loads(request.body)
        document.pop("input")
        fields = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
        paid.update((request.path, fields, text) for text in request.texts)
    return paid


def main() -> int:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--texts", type=int, default=2_000, help="different texts to choose from")
    given = parser.parse_args()
    result = asyncio.run(play(given.batches, given.seed, workers=given.workers, texts=given.texts, progress=True))
    print(file=sys.stderr)
    states = ", ".join(f"{count} {name}" for name, count in sorted(result.states.items()))
    print(f"batches                 {result.batches} (each asked twice: {states})")
    print(f"texts asked             {result.texts}")
    print(f"distinct                {result.distinct} (text and kind of question)")
    print(f"wrong                   {result.wrong}")
    print(f"misplaced               {result.misplaced + result.wrong_positions}")
    print(f"other usage when asked again  {result.wrong_usages}")
    print(f"upstream texts asked    {result.upstream_texts}")
    print(f"asked more than once    {result.asked_more_than_once}")
    print(f"hit ratio               {result.hit_ratio:.1%}")
    print(f"seconds                 {result.seconds:.1f}")
    return 0 if result.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
