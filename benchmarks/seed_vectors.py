"""
A week of matching in simulated time: 1,000 users and 500 projects, 200 vector queries and 100 embedding calls an hour.

Real sockets, real Redis, the simulator as vendor; only the clock is moved by hand. What is assumed:

- Two collections. A user's matches are a query of ``projects`` with the user's vector, a project's one of ``users``.
  Each asks for 20 documents.
- Visits. Somebody opens their matches and comes back to them ``--loads-per-visit`` times in all, three minutes apart on
  average; the app keeps nothing between. Who visits is drawn by Zipf's law, as the embedded texts are.
- Updates. Every ``--update-every-s`` on average one profile, any one, is rewritten: one embedding call more, and one
  upsert, which makes every answer about its whole collection stale. Nothing else writes.
- Traffic is as thin at every hour; real traffic has peaks, where an hour's lifetime saves more.

Both the visits and the updates decide what is saved, so both are varied. Every answer is held against what the vendor
says at that moment, asked past the proxy. Questions travel over HTTP; what came over gRPC lives by the same rules.
"""

import argparse
import asyncio
import dataclasses
import functools
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
import orjson

from benchmarks.inprocess import Recorder, serving
from benchmarks.profiles import FIELDS, SIDES, Profile, everybody, popularity
from benchmarks.seed_workload import HEADERS, MODEL, PATH
from proxy.core.outcome import CacheState
from proxy.core.ports import Clock
from proxy.settings.model import Redis, Settings, Vector
from proxy.worker.build import Worker
from tests.support.clock import FakeClock
from tests.support.redis_server import RedisServer
from tests.vendor_sim import vector
from tests.vendor_sim.runner import ProcessSim, sim_process

HOUR_S = 3_600.0
SETTLE_S = 2.0
BETWEEN_LOADS_S = 180.0
VECTOR_HEADERS = {"dashvector-auth-token": "sk-seed-vectors", "Content-Type": "application/json"}

Document = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """
    What is asked, and how often.

    Vectors are short, so that a week takes a minute or two: neither calls nor answers hang on their length.
    """

    users: int = 1_000
    projects: int = 500
    queries_per_hour: int = 200
    embeddings_per_hour: int = 100
    hours: float = 168
    update_every_s: float | None = HOUR_S
    loads_per_visit: int = 4
    topk: int = 20
    dimension: int = 64
    seed: int = 1

    @property
    def updates(self) -> int:
        """Profiles rewritten in all."""
        return round(self.hours * HOUR_S / self.update_every_s) if self.update_every_s else 0


@dataclass
class Result:
    """What it came to; the vendor's numbers are its own, less what was asked past the proxy."""

    asked: Counter[str] = field(default_factory=Counter)
    at_vendor: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    wrong_vectors: int = 0
    failed: int = 0
    compared: int = 0
    troubles: tuple[str, ...] = ()

    def saved(self, kind: str) -> float:
        """Share of the calls that the vendor did not see."""
        return 1 - self.at_vendor[kind] / self.asked[kind]

    def hit_ratio(self, kind: str) -> float:
        """Share of the calls that were answered from the cache."""
        return self.hits[kind] / self.asked[kind]


Event = tuple[float, str, int]
"""Seconds from the start, what happens, and to which profile."""


def events(load: Load) -> list[Event]:
    """Everything that happens, in order."""
    chance = random.Random(load.seed)
    count, end_s = load.users + load.projects, load.hours * HOUR_S
    ranked = chance.sample(range(count), count)
    found: list[Event] = []
    visits = round(load.queries_per_hour * load.hours / load.loads_per_visit)
    for who in chance.choices(ranked, popularity(count), k=visits):
        at_s = chance.uniform(0, end_s)
        for _ in range(load.loads_per_visit):
            found.append((at_s, "vector-query", who))
            at_s += chance.expovariate(1 / BETWEEN_LOADS_S)
    embedded_ones = chance.choices(ranked, popularity(count), k=round(load.embeddings_per_hour * load.hours))
    found += [(chance.uniform(0, end_s), "embedding", who) for who in embedded_ones]
    found += [(chance.uniform(0, end_s), "update", chance.randrange(count)) for _ in range(load.updates)]
    return sorted(found)


class Holds:
    """
    The seconds after a write in which nothing is kept, in simulated time.

    Redis ends them by its own clock, which here runs a thousand times too slowly: so they are made to last, and ended
    by hand once their time is over.
    """

    REAL_S = 600.0

    def __init__(self, redis: RedisServer, clock: FakeClock) -> None:
        self._redis = redis
        self._clock = clock
        self._ends: dict[bytes, float] = {}

    def noted(self) -> None:
        """A write has just ended."""
        held = self._redis.command("KEYS", "dashcache:h:*")
        self._ends.update(dict.fromkeys(held, self._clock.monotonic() + SETTLE_S))

    def end(self) -> None:
        """Let go of those whose time is over."""
        over = [name for name, end_s in self._ends.items() if end_s <= self._clock.monotonic()]
        if over:
            self._redis.command("DEL", *over)
        for name in over:
            del self._ends[name]


class Week:
    """One run of a load, inside ``async with``."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.result = Result()
        self._people = everybody(load.users, load.projects)
        self._writes: Counter[str] = Counter()
        self._clock = FakeClock(wall_unix_s=time.time())
        self._past_the_proxy = 0
        self._stack = AsyncExitStack()
        self._told: dict[tuple[Profile, int], Document] = {}

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_context
        redis, self._sim = enter(RedisServer()), enter(sim_process("--no-record"))
        self._holds = Holds(redis, self._clock)
        settings = Settings(
            dashscope_url=self._sim.url,
            dashvector_url=self._sim.url,
            # A pause of a busy machine is no trouble with Redis; the promise about deadlines has tests of its own.
            redis=Redis(deadline_ms=2_000),
            vector=Vector(settle_s=Holds.REAL_S),
        )
        clock = Clock(self._clock.monotonic, self._clock.wall)
        served = await self._stack.enter_async_context(serving(settings, redis.url, clock))
        self._worker: Worker = served[1]
        self._recorder: Recorder = served[2]
        self._client = await self._stack.enter_async_context(aiohttp.ClientSession())
        self._proxy_url = f"http://127.0.0.1:{served[0]}"
        await fill(self._client, self._sim.url, self._people, self.load.dimension)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def play(self, *, progress: bool = False) -> Result:
        """Let everything happen."""
        happening = events(self.load)
        now_s = 0.0
        before = vendor_calls(self._sim)
        for number, (at_s, kind, who) in enumerate(happening):
            self._clock.advance(at_s - now_s)
            now_s = at_s
            self._holds.end()
            await {"vector-query": self._match, "embedding": self._embed, "update": self._update}[kind](who)
            # What is kept is kept within a millisecond, which is nothing at this pace.
            await self._worker.tasks.wait_done(5)
            if progress and number % 500 == 0:
                print(f"\r{number}/{len(happening)}", end="", file=sys.stderr, flush=True)
        self._count(vendor_calls(self._sim) - before)
        return self.result

    def _count(self, at_vendor: Counter[str]) -> None:
        self.result.at_vendor = at_vendor
        self.result.at_vendor["vector-query"] -= self._past_the_proxy
        for outcome in self._recorder.outcomes:
            self.result.asked[outcome.operation] += 1
            self.result.hits[outcome.operation] += outcome.state is CacheState.HIT
        self.result.troubles = tuple(self._recorder.failures)

    async def _match(self, who: int) -> None:
        """Ask for the matches of one profile, and whether they are what the vendor says now."""
        profile = self._people[who]
        body = query_body(profile, self.load)
        path = f"/v1/collections/{profile.others}/query"
        answered = await self._post(self._proxy_url + path, body)
        asked = (profile, self._writes[profile.others])
        if asked not in self._told:
            self._told[asked] = await self._post(self._sim.url + path, body)
            self._past_the_proxy += 1
        truth = self._told[asked]
        self.result.compared += 1
        self.result.failed += answered["code"] != 0 or len(truth["output"]) != self.load.topk
        self.result.stale += answered["output"] != truth["output"]

    async def _embed(self, who: int) -> None:
        text = self._people[who].text
        parameters = {"dimension": self.load.dimension}
        body = {"model": MODEL, "input": {"texts": [text]}, "parameters": parameters}
        answered = await self._post(self._proxy_url + PATH, orjson.dumps(body), HEADERS)
        self.result.wrong_vectors += answered["output"]["embeddings"][0]["embedding"] != embedded(
            text, self.load.dimension
        )

    async def _update(self, who: int) -> None:
        """A profile is rewritten: embedded anew and stored through the proxy."""
        profile = self._people[who] = self._people[who].updated
        await self._embed(who)
        body = orjson.dumps({"docs": [document(profile, self.load.dimension)]})
        answered = await self._post(f"{self._proxy_url}/v1/collections/{profile.side}/docs/upsert", body)
        self.result.failed += answered["code"] != 0
        self._writes[profile.side] += 1
        self._told = {key: told for key, told in self._told.items() if key[0].others != profile.side}
        self._holds.noted()

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str] = VECTOR_HEADERS) -> Document:
        async with self._client.post(url, data=body, headers=headers) as answer:
            found: Document = orjson.loads(await answer.read())
            return found


@functools.lru_cache(maxsize=4_000)
def embedded(text: str, dimension: int) -> list[float]:
    """The vendor's embedding of *text*."""
    return [float(number) for number in vector(MODEL, dimension, text)]


@functools.lru_cache(maxsize=4_000)
def query_body(profile: Profile, load: Load) -> bytes:
    """The question for *profile*'s matches."""
    return orjson.dumps({"vector": embedded(profile.text, load.dimension), "topk": load.topk})


def document(profile: Profile, dimension: int) -> Document:
    """*profile* as DashVector keeps it."""
    return {"id": profile.id, "vector": embedded(profile.text, dimension), "fields": profile.fields}


async def fill(client: aiohttp.ClientSession, url: str, people: list[Profile], dimension: int) -> None:
    """Make both collections at the vendor and store everybody."""
    kinds = {name: {str: "STRING", int: "INT", bool: "BOOL"}[kind] for name, kind in FIELDS.items()}
    for side in SIDES:
        about = {"name": side, "dimension": dimension, "metric": "cosine", "fields_schema": kinds}
        documents = [document(profile, dimension) for profile in people if profile.side == side]
        asks = [("", about)] + [
            (f"/{side}/docs/upsert", {"docs": documents[at : at + 250]}) for at in range(0, len(documents), 250)
        ]
        for path, body in asks:
            target = f"{url}/v1/collections{path}"
            async with client.post(target, data=orjson.dumps(body), headers=VECTOR_HEADERS) as answer:
                if orjson.loads(await answer.read())["code"] != 0:
                    raise RuntimeError(f"the simulator refused to be filled: {await answer.text()}")


def vendor_calls(sim: ProcessSim) -> Counter[str]:
    """What the vendor was asked, by its own count, under the proxy's names."""
    vectors = sim.control("GET", "dashvector/stats")["asked"]
    return Counter(
        {
            "embedding": sim.stats["requests"],
            "vector-query": vectors.get("query_doc", 0),
            "vector-write": vectors.get("upsert_doc", 0),
        }
    )


async def week(load: Load, *, progress: bool = False) -> Result:
    """Run *load*."""
    async with Week(load) as running:
        return await running.play(progress=progress)


# --- what is printed --------------------------------------------------------------------------------------------------

EVERY_S = (None, 6 * HOUR_S, HOUR_S, HOUR_S / 2, HOUR_S / 4, HOUR_S / 6, HOUR_S / 12, HOUR_S / 60)
LOADS = (1, 2, 3, 4, 8)
GOAL = 0.70


def spoken(seconds: float | None) -> str:
    """An interval in words."""
    if seconds is None:
        return "never"
    return f"every {seconds / HOUR_S:g} h" if seconds >= HOUR_S else f"every {seconds / 60:g} min"


def lines(load: Load, result: Result) -> Iterator[str]:
    """The base case in words and figures."""
    if load.update_every_s:
        days = (load.users + load.projects) * load.update_every_s / 86_400
        yield (
            f"updates: {86_400 / load.update_every_s:g} profiles a day in all, {spoken(load.update_every_s)} one of "
            f"{load.users + load.projects}: each changes about every {days:.0f} days; each voids its collection"
        )
    yield f"visits: {load.loads_per_visit} loads of the matches each, {BETWEEN_LOADS_S / 60:g} minutes apart on average"
    yield f"{'':14}{'asked':>8}{'at vendor':>11}{'fewer':>8}{'hits':>8}"
    for kind in ("vector-query", "embedding"):
        figures = f"{result.saved(kind):>8.1%}{result.hit_ratio(kind):>8.1%}"
        yield f"{kind:14}{result.asked[kind]:>8}{result.at_vendor[kind]:>11}{figures}"
    yield f"{'vector-write':14}{result.asked['vector-write']:>8}{result.at_vendor['vector-write']:>11}"
    yield f"stale answers   {result.stale} of {result.compared} compared with the vendor at that moment"
    yield f"wrong vectors   {result.wrong_vectors}, failed {result.failed}"
    yield from (f"trouble: {trouble}" for trouble in result.troubles)


async def table(load: Load) -> bool:
    """Vary the updates, then the visits, a simulated day each; whether all answers were right."""
    day = dataclasses.replace(load, hours=24)
    rows = [dataclasses.replace(day, update_every_s=every_s) for every_s in EVERY_S]
    rows += [dataclasses.replace(day, loads_per_visit=loads) for loads in LOADS if loads != day.loads_per_visit]
    print("\na simulated day each:")
    print(f"{'a profile is rewritten':<24}{'loads per visit':>16}{'asked':>8}{'at vendor':>11}{'fewer':>8}{'stale':>7}")
    is_right, kind, saved = True, "vector-query", []
    for row in rows:
        result = await week(row)
        saved.append(result.saved(kind))
        figures = f"{result.asked[kind]:>8}{result.at_vendor[kind]:>11}{result.saved(kind):>8.1%}{result.stale:>7}"
        print(f"{spoken(row.update_every_s):<24}{row.loads_per_visit:>16}{figures}", flush=True)
        is_right &= not (result.stale or result.wrong_vectors or result.failed or result.troubles)
    kept = [every_s for every_s, share in zip(EVERY_S, saved, strict=False) if share >= GOAL]
    lost = [every_s for every_s, share in zip(EVERY_S, saved, strict=False) if share < GOAL]
    if kept and lost:
        print(f"{GOAL:.0%} fewer: kept down to one update {spoken(kept[-1])}, lost at one {spoken(lost[0])}")
    return is_right


def main() -> int:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=168)
    parser.add_argument("--update-every-s", type=float, default=HOUR_S, help="on average; 0: never")
    parser.add_argument("--loads-per-visit", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-table", action="store_true", help="only the base case")
    given = parser.parse_args()
    load = Load(
        hours=given.hours,
        update_every_s=given.update_every_s or None,
        loads_per_visit=given.loads_per_visit,
        seed=given.seed,
    )
    result = asyncio.run(week(load, progress=True))
    print("\r", end="", file=sys.stderr)
    print("\n".join(lines(load, result)))
    is_right = not (result.stale or result.wrong_vectors or result.failed or result.troubles)
    if not given.no_table:
        is_right &= asyncio.run(table(load))
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
