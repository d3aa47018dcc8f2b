"""
HTTP/2 frames, good and bad, against a running proxy's gRPC port: ``python -m tests.fuzz.grpc_edge --seconds 60``.

Beside each hostile connection a client of the library's asks the same collections with the same credential, and all of
its answers must be the vendor's. A call of the hostile connection that is sound gets its own answer or none. The vendor
gets no message that nobody sent. Then a fresh connection by hand is answered rightly, from the cache or not; the log
holds no traceback, the worker stays the same process, and its memory does not grow.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from tests.consistency.calls import Answer, Call, Clients, Door, grpc_answer, grpc_form
from tests.consistency.rig import ANN, CALM
from tests.consistency.vendor import Vendor
from tests.fuzz.grpc_input import Input, drawn, may_be_read, messages, sound
from tests.scenario.wire_rig import WireRig, wire_rig
from tests.support.http2 import PREFACE

COLLECTIONS, DOCS = 4, ("a", "b", "c", "d")
MOST_GROWTH = 64 * 2**20
_WARM_INPUTS = 200
_PATIENCE_S = 15.0
DIRECT = "sk-dv-direct"
"""The credential of those who ask the vendor itself."""
_OPERATIONS = ("query_doc", "query_doc", "query_doc_group_by", "fetch_doc", "stats_collection", "describe_collection")


@dataclass
class GrpcEdge:
    """The rig, and what is checked after each input; AssertionError tells what is wrong."""

    wire: WireRig
    vendor: Vendor
    clients: Clients
    inputs: int = 0
    answers: int = 0
    hits: int = 0
    forwarded: int = 0
    _truth: dict[Call, object] = field(default_factory=dict)
    _names: Sequence[str] = ()
    _written: str = ""
    _earlier: set[bytes] = field(default_factory=set)
    _workers: Sequence[int] = ()
    _rss_bytes: int = 0

    async def prepare(self) -> None:
        """Make collections whose documents tell them apart, and one that the attackers write to."""
        self._names = [self.vendor.create(version=10 * number + 1) for number in range(COLLECTIONS)]
        for number, name in enumerate(self._names):
            for doc in DOCS:
                self.vendor.put(name, 10 * number + 1 + DOCS.index(doc), doc=doc)
        # Of another dimension, so that a write whose collection was altered changes nothing of the others'.
        self._written = self.vendor.create(dimension=3)
        self._workers = self.wire.proxy.worker_pids()

    async def one_input(self, chance: random.Random) -> None:
        """Attack, ask beside it and after it, and judge all that was answered."""
        beside, after = self._questions(chance, 3), self._questions(chance, 2)
        asked = self._questions(chance, chance.randint(1, 5))
        await self._learn([*beside, *after, *asked])
        if chance.random() < 0.3:
            asked.insert(0, Call("upsert_doc", self._written, version=self.inputs + 1, dimension=3))
        said, control = drawn(chance, asked, ANN.encode()), sound(after, ANN.encode())
        door = Door(self.clients, "grpc", self.wire.proxy.http_url, self.wire.proxy.grpc_address, ANN)
        attack = asyncio.ensure_future(self._attack(said, chance))
        answers = await asyncio.gather(*(door.ask(call, timeout_s=_PATIENCE_S) for call in beside))
        for call, answer in zip(beside, answers, strict=True):
            self._judge(call, answer)
        for stream, contents in messages(await attack).items():
            call = said.asked.get(stream)
            for content in contents if call is not None and call.operation != "upsert_doc" else ():
                self._judge(call, grpc_answer(call.operation, 200, {}, content))
        await self._control(control)
        sent = {grpc_form(call)[1] for call in [*beside, *after]}
        self._check_upstream(sent | may_be_read(said.data[len(PREFACE) :]))
        assert self.wire.proxy.worker_pids() == self._workers, "a worker was replaced"
        self.inputs += 1
        if self.inputs == _WARM_INPUTS:
            self._rss_bytes = self.wire.rss_bytes()

    async def _learn(self, calls: Sequence[Call]) -> None:
        """Ask the vendor itself what is not known yet."""
        direct = Door(self.clients, "grpc", "", self.vendor.grpc_address, DIRECT)
        for call in calls:
            if call not in self._truth:
                self._truth[call] = (await direct.ask(call)).output

    def _questions(self, chance: random.Random, count: int) -> list[Call]:
        docs = [tuple(chance.sample(DOCS, chance.randint(1, len(DOCS)))) for _ in range(count)]
        return [Call(chance.choice(_OPERATIONS), chance.choice(self._names), docs=each) for each in docs]

    async def _attack(self, said: Input, chance: random.Random) -> bytes:
        """Send it, cut anywhere; what came back until the end, or until nobody waits any more."""
        got = bytearray()
        with contextlib.suppress(ConnectionError):
            async with self._connection() as (reader, writer):
                cuts = sorted(chance.randint(0, len(said.data)) for _ in range(chance.choice((0, 0, 1, 3))))
                for start, end in zip([0, *cuts], [*cuts, len(said.data)], strict=True):
                    writer.write(said.data[start:end])
                    await writer.drain()
                    await asyncio.sleep(0.001)  # so that it arrives in pieces, which changes what a parser does
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(chance.choice((0.0, 0.02, 0.05))):
                        while piece := await reader.read(65_536):
                            got += piece
                if chance.random() < 0.3:
                    writer.transport.abort()
        return bytes(got)

    async def _control(self, said: Input) -> None:
        """Good calls by hand on a fresh connection are all answered."""
        got = bytearray()
        async with self._connection() as (reader, writer), asyncio.timeout(_PATIENCE_S):
            writer.write(said.data)
            while set(messages(bytes(got))) != set(said.asked):
                piece = await reader.read(65_536)
                assert piece, "a good connection was ended"
                got += piece
        for stream, (content,) in messages(bytes(got)).items():
            self._judge(said.asked[stream], grpc_answer(said.asked[stream].operation, 200, {}, content))

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        host, _, port = self.wire.proxy.grpc_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _judge(self, call: Call, answer: Answer) -> None:
        assert answer.is_success, f"{call}: {answer}"
        assert answer.output == self._truth[call], f"{call}: {answer.output}, not {self._truth[call]}"
        self.answers += 1
        self.hits += answer.is_hit

    def _check_upstream(self, sent: set[bytes]) -> None:
        """The vendor got nothing that was not sent, now or just before; and no write twice."""
        # Of a method that it does not know the simulator keeps no body.
        came = [record for record in self.vendor.sim.requests if record.operation != "unknown"]
        came = [record for record in came if record.header("dashvector-auth-token") != DIRECT]
        for record in came:
            known = sent | self._earlier
            assert record.body in known, f"the vendor got {record.target} {record.body!r}, which nobody sent"
        writes = Counter(record.body for record in came if record.operation == "upsert_doc")
        assert all(count == 1 for count in writes.values()), f"a write came twice: {writes}"
        self.forwarded += len(came)
        self._earlier = sent
        self.vendor.sim.clear()

    def summary(self) -> str:
        """The figures of the run."""
        answers = f"{self.answers} answers judged, {self.hits} of them seen to be hits"
        return f"{self.inputs} inputs, {answers}, {self.forwarded} calls at the vendor"

    def check_whole(self) -> None:
        """No fault of ours in the log, and no memory that is kept."""
        faults = [record for record in self.wire.proxy.logs if record.get("level") == "error" or "where" in record]
        assert not faults, faults[:3]
        assert b"Traceback" not in self.wire.proxy.output
        if self._rss_bytes:
            grown = self.wire.rss_bytes() - self._rss_bytes
            assert grown <= MOST_GROWTH, f"{grown / 2**20:.0f} MiB more than after {_WARM_INPUTS} inputs"


@contextlib.asynccontextmanager
async def grpc_edge() -> AsyncIterator[GrpcEdge]:
    """A proxy before a DashVector, with short waits."""
    async with (
        Vendor() as vendor,
        wire_rig(
            DASHCACHE_DASHVECTOR_URL=vendor.http_url,
            DASHCACHE_DASHVECTOR_GRPC_URL=vendor.grpc_url,
            **CALM,  # what an attacker writes voids for a moment only, so that there is a cache to attack
        ) as wire,
    ):
        edge = GrpcEdge(wire, vendor, Clients())
        try:
            await edge.prepare()
            yield edge
        finally:
            await edge.clients.close()


async def fuzz(seconds: float, seed: int) -> GrpcEdge:
    """Go on for so long; the input that failed is told by its number in the seed."""
    async with grpc_edge() as edge:
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            try:
                await edge.one_input(random.Random(f"{seed}-{edge.inputs}"))
                if edge.inputs % 500 == 0:
                    edge.check_whole()
            except (AssertionError, TimeoutError):
                print(f"input {edge.inputs} of seed {seed}", flush=True)
                raise
        edge.check_whole()
        return edge


def main() -> int:
    """From the command line."""
    parser = argparse.ArgumentParser(description="HTTP/2 frames at a running proxy's gRPC port.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    edge = asyncio.run(fuzz(options.seconds, options.seed))
    print(f"{edge.summary()}; seed {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
