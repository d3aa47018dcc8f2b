"""
Random crossings of reads and writes over two replicas, both protocols, two credentials; with a model of what is legal.

Each interleaving has a collection of its own, in which two documents are written in turn with rising versions. Answers
wait at the vendor, before or after they are made, until a seeded schedule lets them go. A hit, or a read that shared
another's flight, which began after a write was acknowledged must know of it: the time for settling is longer than the
vendor takes to show a write. A read that crosses a write may tell of either state.

    python -m tests.consistency.interleavings --count 1000 --seed 7
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.consistency.calls import PROTOCOLS, Call, Clients, Door
from tests.consistency.rig import ANN, BOB, CALM, SETTLE_S, Rig, rig
from tests.consistency.vendor import Point, Vendor
from tests.support.redis_server import RedisServer
from tests.vendor_sim.dashvector_recorder import DashVectorRecord

VISIBILITY_MS = 500 * SETTLE_S
AT_ONCE = 48
READS, WRITES, DOCS = 7, 3, ("a", "b")
_FOLLOWS_S = 0.1
READ_KINDS = ("query_doc", "query_doc", "query_doc_group_by", "fetch_doc", "stats_collection")
WRITE_KINDS = ("upsert_doc", "upsert_doc", "update_doc")
_COUNT = re.compile(r"total_doc_count\D*(\d+)")


@dataclass(slots=True)
class Figures:
    """What happened; *stale* has a line for each hit or collapsed answer that was older than it may be."""

    seed: int
    interleavings: int = 0
    reads: int = 0
    hits: int = 0
    collapsed: int = 0
    crossed: int = 0
    """Reads that were under way while a write was."""
    writes: int = 0
    held: Counter[str] = field(default_factory=Counter)
    stale: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        waits = ", ".join(f"{number} {point}" for point, number in sorted(self.held.items()))
        return (
            f"seed {self.seed}: {self.interleavings} interleavings, {self.reads} reads ({self.hits} hits, "
            f"{self.collapsed} collapsed, {self.crossed} across a write), {self.writes} writes, held: {waits}; "
            f"{self.seconds:.1f} s; stale hits: {len(self.stale)}" + "".join(f"\n  {line}" for line in self.stale[:20])
        )


class Interleaving:
    """One collection, its operations, and what is known of them."""

    def __init__(self, made: Rig, figures: Figures, number: int) -> None:
        self._rig, self._vendor, self._figures, self._number = made, made.vendor, figures, number
        self._random = random.Random(f"{figures.seed}:{number}")
        self._name = made.vendor.create(version=0)
        with made.vendor.sim.hold_visibility(self._name):  # whose end shows at once what there is
            made.vendor.put(self._name, 0, doc="b")
        made.vendor.scripts[self._name] = self._arrived
        # Few questions, so that some are asked again: who asks what, at either replica.
        kinds = self._random.sample(READ_KINDS, 2)
        askers = self._random.sample(list(itertools.product(PROTOCOLS, (ANN, BOB))), 2)
        self._questions = [(asker, Call(kind, self._name, docs=DOCS)) for asker in askers for kind in kinds]
        self._serial = itertools.count(1)
        self._to_park: dict[str, set[str]] = {}
        self._parked: dict[str, asyncio.Event] = {}
        self._running: set[str] = set()
        self._changed = asyncio.Event()
        self._busy: set[str] = set()
        self._sent = dict.fromkeys((*DOCS, "count"), 0)
        self._acknowledged = dict(self._sent)

    async def _arrived(self, point: Point, record: DashVectorRecord) -> None:
        """A call is at the vendor; it stays if its operation was drawn to."""
        operation = record.header("x-user-agent") or ""
        if point not in self._to_park.get(operation, ()):
            return
        self._to_park[operation].discard(point)
        self._figures.held[f"{operation[0]}-{point}"] += 1
        self._parked[operation] = asyncio.Event()
        self._changed.set()
        await self._parked[operation].wait()

    async def run(self) -> None:
        """Play it."""
        reads, writes = READS, WRITES
        try:
            async with asyncio.timeout(150), asyncio.TaskGroup() as group:
                while reads or writes or self._running:
                    move = self._move(reads, writes)
                    if move == "read":
                        reads -= 1
                        group.create_task(self._read(*self._new("read")))
                    elif move == "write":
                        writes -= 1
                        doc = self._random.choice([doc for doc in DOCS if doc not in self._busy])
                        self._busy.add(doc)
                        group.create_task(self._write(*self._new("write"), doc))
                    elif move == "release":
                        self._release(self._random.choice(sorted(self._parked)))
                    elif move == "pause":
                        await asyncio.sleep(SETTLE_S * 1.5)
                    if move == "wait" or self._random.random() < 0.6:
                        await self._quiet()
            await self._end()
        finally:
            for operation in list(self._parked):
                self._release(operation)
            del self._vendor.scripts[self._name]
        self._figures.interleavings += 1

    def _move(self, reads: int, writes: int) -> str:
        moves = ["read"] * 4 * (reads > 0 and len(self._running) < 5)
        moves += ["write"] * 2 * (writes > 0 and len(self._busy) < len(DOCS))
        moves += ["release"] * 3 * bool(self._parked)
        moves += ["pause"] * bool(reads or writes)
        return self._random.choice(moves or ["wait"])

    def _new(self, kind: str) -> tuple[str, random.Random]:
        operation = f"{kind}-{next(self._serial)}"
        drawn = random.Random(self._random.random())
        self._to_park[operation] = {point for point in ("execute", "answer") if drawn.random() < 0.4}
        self._running.add(operation)
        return operation, drawn

    def _release(self, operation: str) -> None:
        self._parked.pop(operation).set()

    def _done(self, operation: str) -> None:
        self._running.discard(operation)
        self._changed.set()

    async def _quiet(self) -> None:
        """Until everything under way waits at the vendor, or is over, or waits for another read's flight."""
        with contextlib.suppress(TimeoutError):  # what waits for a flight is not to be seen from here
            async with asyncio.timeout(_FOLLOWS_S):
                while len(self._running) > len(self._parked):
                    self._changed.clear()
                    await self._changed.wait()

    async def _write(self, operation: str, drawn: random.Random, doc: str) -> None:
        self._sent[doc] += 1
        version, kind = self._sent[doc], drawn.choice(WRITE_KINDS)
        call = Call(kind, self._name, version=version, docs=(doc,))
        if kind == "upsert_doc":
            call = Call(kind, self._name, version=version, docs=(doc, f"{doc}{version}"))
            self._sent["count"] += 1
        door = self._rig.door(drawn.choice(PROTOCOLS), drawn.choice((ANN, BOB)), drawn.randrange(2))
        try:
            answer = await door.ask(call, agent=operation)
            assert answer.is_success, (self._number, answer)
            self._acknowledged[doc] = version
            self._acknowledged["count"] += len(call.docs) - 1
            self._figures.writes += 1
        finally:
            self._busy.discard(doc)
            self._done(operation)

    async def _read(self, operation: str, drawn: random.Random) -> None:
        asker, call = drawn.choice(self._questions)
        await self._checked(self._rig.door(*asker, drawn.randrange(2)), call, operation)

    async def _checked(self, door: Door, call: Call, operation: str) -> bool:
        least, crosses = dict(self._acknowledged), bool(self._busy)
        try:
            answer = await door.ask(call, agent=operation)
        finally:
            self._done(operation)
        assert answer.is_success, (self._number, answer)
        self._figures.reads += 1
        self._figures.hits += answer.is_hit
        is_collapsed = "collapsed" in answer.cache
        self._figures.collapsed += is_collapsed
        self._figures.crossed += crosses or bool(self._busy)
        if call.operation == "stats_collection":
            found = _COUNT.search(str(answer.output))
            told = {"count": int(found[1]) - len(DOCS) if found else -1}
        else:
            told = {doc: answer.versions[doc] for doc in DOCS}
        for what, version in told.items():
            if version > self._sent[what] or ((answer.is_hit or is_collapsed) and version < least[what]):
                self._figures.stale.append(
                    f"interleaving {self._number}, {operation}: {call.operation} over {door.protocol} as {door.token}: "
                    f"{what} is {version}, at least {least[what]} was acknowledged ({answer.cache})"
                )
        return answer.is_hit

    async def _end(self) -> None:
        """Once more, everything at both replicas, until it is kept: nothing old may be lying about."""
        await asyncio.sleep(SETTLE_S * 1.5)
        for asker, call in self._questions[:2]:
            for replica in (0, 1):
                await self._checked(self._rig.door(*asker, replica), call, "last")


async def crossed(made: Rig, count: int, seed: int) -> Figures:
    """Play *count* interleavings over the first two replicas, whose time for settling is `SETTLE_S`."""
    figures, numbers = Figures(seed), iter(range(count))
    made.vendor.sim.configure(visibility_ms=VISIBILITY_MS, records=False)
    started_s = time.monotonic()

    async def player() -> None:
        for number in numbers:
            await Interleaving(made, figures, number).run()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(AT_ONCE, count)):
            group.create_task(player())
    figures.seconds = time.monotonic() - started_s
    return figures


@asynccontextmanager
async def crossing_rig() -> AsyncIterator[Rig]:
    """Two replicas, one worker each, before one Redis."""
    clients = Clients()
    env = {**CALM, "DASHCACHE_LOG_REQUESTS": "false"}
    try:
        with RedisServer() as redis:
            async with Vendor() as vendor, rig(vendor, clients, redis, replicas=2, env=env) as made:
                yield made
    finally:
        await clients.close()


async def main(count: int, seed: int) -> int:
    """Play and print; 1 if anything was stale."""
    async with crossing_rig() as made:
        figures = await crossed(made, count, seed)
    print(figures)
    return bool(figures.stale)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    arguments = parser.parse_args()
    raise SystemExit(asyncio.run(main(arguments.count, arguments.seed)))
