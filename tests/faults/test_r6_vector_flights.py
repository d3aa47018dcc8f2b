"""Vector queries share a flight only under equal tokens: what began before a write serves nobody who came after it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from proxy.vendors.dashvector._pb import wire
from tests.faults.observed import settings
from tests.support import answers
from tests.support.gate import Gate
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import ask
from tests.support.raw_upstream import RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

# isort: split
import grpc
import grpc.aio

SERVICE = "/proxima.dashvector.proto.DashVectorService/"
LINES = ((b"dashvector-auth-token", b"sk-flight"), (b"Content-Type", b"application/json"))
METADATA = (("dashvector-auth-token", "sk-flight"), ("collection-name", "abc"))
QUERY = b'{"vector":[0.1,0.2],"topk":1}'


@dataclass
class Vendor:
    """A collection with one document, whose id is the number of writes; queries see it as it is when they come."""

    gate: Gate = field(default_factory=lambda: Gate("query"))
    writes: int = 0
    queries: int = 0
    cancelled: int = 0
    time_left_s: float = 0.0
    """What the last gRPC query's deadline left, when it came."""

    async def query(self) -> str:
        """The document's id; held at the gate after it was read."""
        seen, self.queries = str(self.writes), self.queries + 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return seen

    async def http(self, request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        """The script for ``RawUpstream``."""
        if request.target.endswith(b"/query"):
            document = {
                "code": 0,
                "request_id": "r",
                "message": "",
                "output": [{"id": await self.query(), "score": 1.0}],
            }
        else:
            self.writes += 1
            document = {"code": 0, "request_id": "r", "message": "", "output": []}
        await answers.respond_json(json.dumps(document).encode())(request, writer)

    def service(self, details: Any) -> Any:
        """The same over gRPC: has the form of ``grpc.GenericRpcHandler``."""

        async def handle(_message: bytes, context: Any) -> bytes:
            if details.method.endswith("query_doc"):
                self.time_left_s = context.time_remaining()
                return wire.bytes_field(1, b"r") + wire.bytes_field(
                    4, wire.bytes_field(1, (await self.query()).encode())
                )
            self.writes += 1
            return wire.bytes_field(1, b"r")

        return grpc.unary_unary_rpc_method_handler(handle)


@dataclass
class Rig:
    """A vendor, a proxy, and one protocol's way through it; *query* returns the document's id and Cache-Status."""

    vendor: Vendor
    query: Callable[..., Awaitable[tuple[str, str]]]
    write: Callable[[], Awaitable[None]]

    @contextlib.asynccontextmanager
    async def asking(self, count: int) -> AsyncIterator["list[asyncio.Future[tuple[str, str]]]"]:
        """So many queries on their way."""
        queries = [asyncio.ensure_future(self.query()) for _ in range(count)]
        try:
            yield queries
        finally:
            for query in queries:
                query.cancel()
            await asyncio.gather(*queries, return_exceptions=True)


@contextlib.asynccontextmanager
async def over_http(redis: RedisServer, **changes: object) -> AsyncIterator[Rig]:
    vendor = Vendor()
    env = settings(redis_deadline_ms=3000, flights_lock_s=60, vector_settle_s=0, **changes)
    async with (
        RawUpstream(vendor.http) as upstream,
        ProxyProcess(dashvector_url=upstream.url, redis_url=redis.url, env=env) as proxy,
    ):

        async def query(*extra: tuple[bytes, bytes]) -> tuple[str, str]:
            response = await ask(proxy.http_port, "POST", "/v1/collections/abc/query", (*LINES, *extra), QUERY)
            assert response.status == 200
            (document,) = json.loads(response.body)["output"]
            return document["id"], (response.header("Cache-Status") or b"").decode()

        async def write() -> None:
            body = b'{"docs":[{"id":"1","vector":[0.1,0.2]}]}'
            response = await ask(proxy.http_port, "POST", "/v1/collections/abc/docs/upsert", LINES, body)
            assert json.loads(response.body)["code"] == 0

        yield Rig(vendor, query, write)


@contextlib.asynccontextmanager
async def over_grpc(redis: RedisServer, **changes: object) -> AsyncIterator[Rig]:
    vendor = Vendor()
    server: Any = grpc.aio.server(handlers=(vendor,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    env = settings(redis_deadline_ms=3000, flights_lock_s=60, vector_settle_s=0, **changes)
    address = f"http://127.0.0.1:{port}"
    async with (
        ProxyProcess(dashvector_url=address, dashvector_grpc_url=address, redis_url=redis.url, env=env) as proxy,
        grpc.aio.insecure_channel(proxy.grpc_address) as channel,
    ):
        query_doc, upsert = channel.unary_unary(SERVICE + "query_doc"), channel.unary_unary(SERVICE + "upsert_doc")

        async def query(*extra: tuple[str, str], timeout_s: float = 30.0) -> tuple[str, str]:
            call = query_doc(
                wire.bytes_field(1, wire.bytes_field(2, b"\x01\x02")), metadata=(*METADATA, *extra), timeout=timeout_s
            )
            output = wire.one(wire.fields(await call), 4, wire.BYTES)
            assert output is not None
            found = wire.one(wire.fields(output.data), 1, wire.BYTES)
            assert found is not None
            return found.data.decode(), str(dict(await call.trailing_metadata()).get("cache-status", ""))

        async def write() -> None:
            await upsert(b"", metadata=METADATA, timeout=30.0)

        try:
            yield Rig(vendor, query, write)
        finally:
            vendor.gate.open()
            await server.stop(0.5)


RIGS = {"http": over_http, "grpc": over_grpc}
both = pytest.mark.parametrize("protocol", RIGS)


@both
async def test_queries_at_once_are_one_call(redis_server: RedisServer, protocol: str) -> None:
    async with RIGS[protocol](redis_server) as rig, rig.asking(50) as queries:
        await rig.vendor.gate.wait_arrived()
        rig.vendor.gate.open()
        answers_ = [await query for query in queries]
        assert {found for found, _ in answers_} == {"0"}
        assert rig.vendor.queries == 1
        assert sum("collapsed" in status or "hit" in status for _, status in answers_) == 49
        assert any("collapsed" in status for _, status in answers_)


@both
async def test_a_query_from_before_a_write_serves_nobody_after_it(redis_server: RedisServer, protocol: str) -> None:
    async with RIGS[protocol](redis_server) as rig, contextlib.AsyncExitStack() as stack:
        before = await stack.enter_async_context(rig.asking(3))
        await rig.vendor.gate.wait_arrived()
        after = []
        for number in range(1, 6):
            await rig.write()
            arrived = rig.vendor.gate.arrived
            # What is on its way will not do for any of them, and what they set off will not do after the next write.
            after += [(number, query) for query in await stack.enter_async_context(rig.asking(2))]
            await rig.vendor.gate.wait_arrived(arrived + 1)
        rig.vendor.gate.open()
        assert {(await query)[0] for query in before} == {"0"}
        for number, query in after:
            assert int((await query)[0]) >= number
        assert (await rig.query())[0] == "5"


@both
async def test_the_first_asker_may_leave(redis_server: RedisServer, protocol: str) -> None:
    async with RIGS[protocol](redis_server) as rig, rig.asking(1) as first, rig.asking(5) as others:
        await rig.vendor.gate.wait_arrived()
        first[0].cancel()
        rig.vendor.gate.open()
        assert {(await query)[0] for query in others} == {"0"}
        assert rig.vendor.queries <= 2, "two, if it had left before the others came"


async def test_the_first_ones_deadline_is_not_everybodys(redis_server: RedisServer) -> None:
    async with over_grpc(redis_server) as rig:
        hurried = asyncio.ensure_future(rig.query(timeout_s=1.5))
        await rig.vendor.gate.wait_arrived()
        assert rig.vendor.time_left_s > 60
        async with rig.asking(3) as patient:
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await hurried
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            rig.vendor.gate.open()
            assert {(await query)[0] for query in patient} == {"0"}
        assert (rig.vendor.queries, rig.vendor.cancelled) == (1, 0)


async def test_when_the_last_deadline_is_over_the_upstream_is_let_go(redis_server: RedisServer) -> None:
    async with over_grpc(redis_server) as rig:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await rig.query(timeout_s=0.3)
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await wait_until(lambda: rig.vendor.cancelled == 1, what="the end of the call")
