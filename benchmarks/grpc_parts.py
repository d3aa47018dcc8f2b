"""
The processes around the proxy in ``grpc_calls``, each with an event loop of its own: upstream, bare relay, client.

All three pass bytes and know no message's form. ``python -m benchmarks.grpc_parts upstream`` and ``relay --to ADDRESS``
print their address and serve until told to stop; ``client PLAN`` measures and prints JSON.
"""

import argparse
import asyncio
import dataclasses
import os
import signal
import statistics
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read once, when the library is loaded
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import grpc.aio
import orjson
import uvloop

from tests.vendor_sim.dashvector_package import pb
from tests.vendor_sim.dashvector_proto import SERVICE

METHOD = f"/{SERVICE}/query_doc"
COUNT = "/count"
DIMENSION = 1_024
DOCUMENTS = 20
KNOWN = 20
"""Different questions that are repeated, for hits."""

_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.so_reuseport", 0))  # a connection for each channel

Call = Callable[[bytes], Awaitable[bytes]]


@dataclass(frozen=True)
class Way:
    """How the upstream is reached, and whether questions repeat."""

    name: str
    address: str
    is_repeated: bool = False


@dataclass(frozen=True)
class Plan:
    """What the client measures, and how often."""

    ways: tuple[Way, ...]
    upstream: str
    delays_ms: tuple[float, ...] = (5.0, 0.0)
    rounds: int = 4
    seconds: float = 0.6
    concurrency: int = 32
    channels: int = 4


@dataclass
class Sample:
    """One way in one round. *upstream_calls* are the upstream's own count of what *calls* led to."""

    delay_ms: float
    way: str
    p50_ms: float
    p99_ms: float
    per_s: float
    calls: int
    upstream_calls: int
    failed: int


# --- what is sent and answered ----------------------------------------------------------------------------------------


def question() -> bytes:
    """A query as the SDK's message has it: 1,024 numbers, 20 documents wanted."""
    request = pb.QueryDocRequest(topk=DOCUMENTS)
    request.vector.float_vector.values.extend(1.0 / (1 + number) for number in range(DIMENSION))
    content: bytes = request.SerializeToString()
    return content


def questions() -> Iterator[bytes]:
    """The same again and again with another first number: none was asked before."""
    template = question()
    at = template.index(struct.pack("<f", 1.0))
    for number in range(2, 2**24):  # whole numbers that float32 tells apart
        yield template[:at] + struct.pack("<f", float(number)) + template[at + 4 :]


def answer() -> bytes:
    """20 documents with four small fields."""
    response = pb.QueryDocResponse(request_id="00000000-0000-4000-8000-000000000000", message="Success")
    for number in range(DOCUMENTS):
        document = response.output.add(id=f"project-{number:05}", score=0.1 + number / 100)
        document.fields["title"].string_value = f"a marketplace {number}"
        document.fields["city"].string_value = "Berlin"
        document.fields["rate"].int_value = 50 + number
        document.fields["remote"].bool_value = number % 2 == 0
    content: bytes = response.SerializeToString()
    return content


# --- servers ----------------------------------------------------------------------------------------------------------


class _AnyMethod(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, serve: Callable[[str, bytes, Any], Awaitable[bytes]]) -> None:
        self._serve = serve

    def service(self, details: Any) -> Any:
        async def handle(message: bytes, context: Any) -> bytes:
            return await self._serve(details.method, message, context)

        return grpc.unary_unary_rpc_method_handler(handle)


async def upstream() -> None:
    """Answer everything with the same documents, after as many milliseconds as the call's metadata say."""
    content, count = answer(), 0

    async def serve(method: str, _message: bytes, context: Any) -> bytes:
        nonlocal count
        if method == COUNT:
            return str(count).encode()
        count += 1
        delay_s = float(dict(context.invocation_metadata()).get("x-delay-ms", 0)) / 1000
        if delay_s:
            await asyncio.sleep(delay_s)
        return content

    await _serve(serve)


async def relay(target: str) -> None:
    """Hand every call on and do nothing else: what any proxy on this library costs at least."""
    channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
    own = ("user-agent",)

    async def serve(method: str, message: bytes, context: Any) -> bytes:
        metadata = tuple(pair for pair in context.invocation_metadata() if pair[0] not in own)
        content: bytes = await channel.unary_unary(method)(message, metadata=metadata)
        return content

    await _serve(serve)


async def _serve(serve: Callable[[str, bytes, Any], Awaitable[bytes]]) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    server = grpc.aio.server(handlers=(_AnyMethod(serve),), options=_OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await stopped.wait()
    await server.stop(0.2)


# --- the client -------------------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    took_s: list[float] = field(default_factory=list)
    failed: int = 0


class Client:
    """Measures one plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._fresh = questions()
        self._known = [next(self._fresh) for _ in range(KNOWN)]
        self._channels = {
            way.address: [grpc.aio.insecure_channel(way.address, options=_OPTIONS) for _ in range(plan.channels)]
            for way in plan.ways
        }
        self._count = grpc.aio.insecure_channel(plan.upstream, options=_OPTIONS).unary_unary(COUNT)

    async def play(self) -> list[Sample]:
        """All rounds; the order changes with each, so that a disturbance meets everybody."""
        cases = [(delay_ms, way) for delay_ms in self._plan.delays_ms for way in self._plan.ways]
        for delay_ms, way in cases:
            await self._warm(delay_ms, way)
        shifted = (cases[number % len(cases) :] + cases[: number % len(cases)] for number in range(self._plan.rounds))
        return [await self._measured(delay_ms, way) for turn in shifted for delay_ms, way in turn]

    async def _warm(self, delay_ms: float, way: Way) -> None:
        for call in self._calls(delay_ms, way):
            for message in self._known:
                await call(message)
        await asyncio.sleep(0.1)  # until what was told is kept

    async def _measured(self, delay_ms: float, way: Way) -> Sample:
        calls, before = self._calls(delay_ms, way), int(await self._count(b""))
        alone, crowd = _Tally(), _Tally()
        await self._ask(calls[0], way, alone)
        started_s = time.perf_counter()
        lanes = [calls[lane % len(calls)] for lane in range(self._plan.concurrency)]
        await asyncio.gather(*(self._ask(call, way, crowd) for call in lanes))
        crowd_s = time.perf_counter() - started_s
        cuts = statistics.quantiles(alone.took_s, n=100)
        return Sample(
            delay_ms=delay_ms,
            way=way.name,
            p50_ms=cuts[49] * 1000,
            p99_ms=cuts[98] * 1000,
            per_s=len(crowd.took_s) / crowd_s,
            calls=len(alone.took_s) + len(crowd.took_s),
            upstream_calls=int(await self._count(b"")) - before,
            failed=alone.failed + crowd.failed,
        )

    def _calls(self, delay_ms: float, way: Way) -> list[Call]:
        metadata = (
            ("collection-name", "projects"),
            ("dashvector-auth-token", "sk-bench"),
            ("x-delay-ms", f"{delay_ms}"),
        )

        def on(channel: Any) -> Call:
            method = channel.unary_unary(METHOD)
            return lambda message: method(message, metadata=metadata, timeout=10)

        return [on(channel) for channel in self._channels[way.address]]

    async def _ask(self, call: Call, way: Way, tally: _Tally) -> None:
        """One call after the other until the time is over."""
        ends_s, asked = time.perf_counter() + self._plan.seconds, 0
        while (started_s := time.perf_counter()) < ends_s:
            message = self._known[asked % KNOWN] if way.is_repeated else next(self._fresh)
            asked += 1
            try:
                await call(message)
            except grpc.aio.AioRpcError:
                tally.failed += 1
            tally.took_s.append(time.perf_counter() - started_s)


def read_plan(text: str) -> Plan:
    """The plan that the other process wrote."""
    said: Mapping[str, Any] = orjson.loads(text)
    return Plan(**{**said, "ways": tuple(Way(**way) for way in said["ways"]), "delays_ms": tuple(said["delays_ms"])})


def main() -> None:
    """Be one of the three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("upstream", "relay", "client"))
    parser.add_argument("plan", nargs="?", default="{}")
    parser.add_argument("--to", default="")
    given = parser.parse_args()
    if given.role == "upstream":
        uvloop.run(upstream())
    elif given.role == "relay":
        uvloop.run(relay(given.to))
    else:

        async def measure() -> list[Sample]:
            return await Client(read_plan(given.plan)).play()

        print(orjson.dumps([dataclasses.asdict(sample) for sample in uvloop.run(measure())]).decode(), flush=True)


if __name__ == "__main__":
    main()
