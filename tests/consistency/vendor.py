"""
The vendor of these tests: the simulator in the test's own loop, whose calls wait wherever a test holds them.

Every document has a version, so that an answer tells what it knows of. `Vendor.put` changes one without any call: what
somebody does past the proxy, or what the vendor makes of a request that nobody else understands.
"""

import itertools
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from tests.support.gate import Gate
from tests.vendor_sim.dashvector_faults import DashVectorFault
from tests.vendor_sim.dashvector_model import CollectionSpec, Field, RawDoc, VectorSpec, WriteRequest
from tests.vendor_sim.dashvector_recorder import DashVectorRecord
from tests.vendor_sim.dashvector_settings import DashVectorSettings
from tests.vendor_sim.dashvector_sim import DashVectorSim
from tests.vendor_sim.dashvector_writes import upsert

Point = Literal["execute", "answer"]
"""Before an operation takes place, or between that and its answer."""

Script = Callable[[Point, DashVectorRecord], Awaitable[None]]

FIELDS = {"version": "INT", "kind": "STRING"}
STRANGER = "sk-dv-wrong"
"""A credential that the vendor refuses."""


@dataclass(slots=True)
class Held:
    """Calls that wait at one point; what is not said does not matter."""

    point: Point
    operation: str
    collection: str | None = None
    protocol: str | None = None
    token: str | None = None
    at_most: int | None = None
    """How many stay; whoever comes later passes."""
    gate: Gate = field(default_factory=Gate)

    def fits(self, point: Point, record: DashVectorRecord) -> bool:
        """Whether the call waits here."""
        return (
            point == self.point
            and record.operation == self.operation
            and self.collection in (None, record.collection)
            and self.protocol in (None, record.protocol)
            and self.token in (None, record.header("dashvector-auth-token"))
            and (self.at_most is None or self.gate.arrived < self.at_most)
        )

    async def wait_arrived(self, count: int = 1) -> None:
        """Until *count* calls have come here in all."""
        await self.gate.wait_arrived(count, 10.0)

    def release(self) -> None:
        """Let them go."""
        self.gate.open()


class Vendor:
    """A simulator with barriers; collections have names of their own, so that tests share it."""

    def __init__(self) -> None:
        self.sim = DashVectorSim()
        self._held: list[Held] = []
        self.scripts: dict[str, Script] = {}
        """By collection, what each call about it waits for."""
        self._numbers = itertools.count()
        self._run = uuid.uuid4().hex[:8]

        async def at_execute(record: DashVectorRecord) -> None:
            await self._pass("execute", record)

        async def at_answer(record: DashVectorRecord) -> None:
            await self._pass("answer", record)

        self.sim.before_execute, self.sim.before_answer = at_execute, at_answer

    async def __aenter__(self) -> Self:
        await self.sim.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.healthy()
        await self.sim.stop()

    @property
    def http_url(self) -> str:
        """Where it speaks HTTP."""
        return self.sim.http_url

    @property
    def grpc_address(self) -> str:
        """Where it speaks gRPC."""
        return self.sim.grpc_address

    @property
    def grpc_url(self) -> str:
        """The same, as the product's setting wants it."""
        return f"http://{self.grpc_address}"

    def healthy(self, **settings: Any) -> None:
        """Let everybody go and forget records and rules; the settings are the default ones but for these."""
        held, self._held = self._held, []
        for one in held:
            one.release()
        self.sim.faults.clear()
        self.sim.clear()
        self.sim.state.configure(DashVectorSettings(**settings))

    @contextmanager
    def holding(self, point: Point, operation: str, collection: str | None = None, **which: Any) -> Iterator[Held]:
        """Within the block, such calls wait until they are released."""
        held = Held(point, operation, collection, **which)
        self._held.append(held)
        try:
            yield held
        finally:
            if held in self._held:
                self._held.remove(held)
            held.release()

    def create(self, *, partitions: Sequence[str] = (), dimension: int = 2, version: int = 1) -> str:
        """A new collection in which each partition has a document ``a`` of *version*."""
        name = f"c{self._run}_{next(self._numbers)}"
        self.sim.store.create(CollectionSpec(name, {"": VectorSpec(dimension)}, fields=FIELDS))
        for partition in partitions:
            self.sim.store.create_partition(name, partition)
        for partition in ("", *partitions):
            self.put(name, version, partition=partition, dimension=dimension)
        return name

    def put(self, name: str, version: int, *, doc: str = "a", partition: str = "", dimension: int = 2) -> None:
        """The document as of *version*, past everybody."""
        fields = {"version": Field("", version), "kind": Field("", doc)}
        raw = RawDoc(doc, {"": [1.0] + [0.0] * (dimension - 1)}, fields=fields)
        upsert(self.sim.store, name, WriteRequest([raw], partition))

    def records(self, collection: str, *operations: str) -> list[DashVectorRecord]:
        """The calls about *collection* so far, of these operations or of all."""
        return [
            record
            for record in self.sim.requests
            if record.collection == collection and (not operations or record.operation in operations)
        ]

    def fail(self, **rule: Any) -> DashVectorFault:
        """Put a rule into force."""
        fault = DashVectorFault(**rule)
        self.sim.faults.add(fault)
        return fault

    async def _pass(self, point: Point, record: DashVectorRecord) -> None:
        for held in list(self._held):
            if held.fits(point, record):
                await held.gate.wait()
        if record.collection in self.scripts:
            await self.scripts[record.collection](point, record)
