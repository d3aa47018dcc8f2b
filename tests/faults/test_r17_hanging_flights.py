"""R17: one request that the upstream never answers, all else well: others who ask the same are served all the same."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import pytest

from tests.faults.flock import flock
from tests.faults.test_r6_vector_flights import METADATA, SERVICE
from tests.scenario.telling import NATIVE, bearer, heard, native, telling, told
from tests.support import answers
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient
from tests.support.raw_upstream import RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

# isort: split
import grpc
import grpc.aio

from proxy.vendors.dashvector._pb import wire

SECRET = "one secret for all replicas"
LINES = bearer("sk-hang")
BODY = native("the text that everybody asks for")

Ask = Callable[[int], Awaitable[bool]]
"""Ask the replica of this number; whether the answer is right. Raises TimeoutError after the client's deadline."""


@dataclass(frozen=True)
class Pace:
    """How clients come, and what the proxy is told; times in seconds."""

    lock_s: float
    deadline_s: float
    every_s: float
    clients: int


QUICK = Pace(lock_s=1.0, deadline_s=5.0, every_s=0.1, clients=30)
FULL = Pace(lock_s=5.0, deadline_s=10.0, every_s=1.0, clients=60)


@dataclass
class Vendor:
    """Never answers the first request that is worth caching, and all others at once."""

    asked: int = 0

    async def http(self, request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        """The script for ``RawUpstream``."""
        self.asked += 1
        await (answers.hang() if self.asked == 1 else telling())(request, writer)

    def service(self, details: grpc.HandlerCallDetails) -> object:
        """The same over gRPC: has the form of ``grpc.GenericRpcHandler``."""
        del details

        async def handle(_message: bytes, _context: object) -> bytes:
            self.asked += 1
            if self.asked == 1:
                await asyncio.Event().wait()
            return wire.bytes_field(1, b"r") + wire.bytes_field(4, wire.bytes_field(1, b"document"))

        return grpc.unary_unary_rpc_method_handler(handle)


def env(pace: Pace) -> dict[str, str]:
    # No Redis is slow here, but this machine may be.
    return {"DASHCACHE_FLIGHTS_LOCK_S": str(pace.lock_s), "DASHCACHE_REDIS_DEADLINE_MS": "3000"}


@contextlib.asynccontextmanager
async def embeddings(redis: RedisServer, replicas: int, pace: Pace) -> AsyncIterator[tuple[Vendor, Ask]]:
    vendor = Vendor()
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(RawUpstream(vendor.http))
        proxies = [
            await stack.enter_async_context(
                ProxyProcess(dashscope_url=upstream.url, redis_url=redis.url, key_secret=SECRET, env=env(pace))
            )
            for _ in range(replicas)
        ]

        async def ask(number: int) -> bool:
            client = await RawClient.connect(proxies[number].http_port)
            try:
                response = await client.request("POST", NATIVE, LINES, BODY, timeout=pace.deadline_s)
            finally:
                client.abort()
            return response.status == 200 and heard(response) == told(NATIVE, LINES, BODY)

        yield vendor, ask


@contextlib.asynccontextmanager
async def vector_queries(redis: RedisServer, replicas: int, pace: Pace) -> AsyncIterator[tuple[Vendor, Ask]]:
    vendor = Vendor()
    server = grpc.aio.server(handlers=(vendor,))
    address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, 0.5)
        calls = []
        for _ in range(replicas):
            proxy = await stack.enter_async_context(
                ProxyProcess(
                    dashvector_url=address,
                    dashvector_grpc_url=address,
                    redis_url=redis.url,
                    key_secret=SECRET,
                    env=env(pace),
                )
            )
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(proxy.grpc_address))
            calls.append(channel.unary_unary(SERVICE + "query_doc"))
        message = wire.bytes_field(1, wire.bytes_field(2, b"\x01\x02"))

        async def ask(number: int) -> bool:
            try:
                answer = await calls[number](message, metadata=METADATA, timeout=pace.deadline_s)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise TimeoutError from error
                raise
            output = wire.one(wire.fields(answer), 4, wire.BYTES)
            return output is not None and output.data == wire.bytes_field(1, b"document")

        yield vendor, ask


@dataclass(frozen=True)
class Client:
    """How one client fared: ``None`` if it gave up."""

    is_right: bool | None
    took_s: float


async def come(ask: Ask, replicas: int, pace: Pace) -> Sequence[Client]:
    """One client after the other, whether earlier ones are served or not."""
    began_s = time.monotonic()

    async def client(number: int) -> Client:
        await asyncio.sleep(max(0.0, began_s + number * pace.every_s - time.monotonic()))
        came_s = time.monotonic()
        try:
            is_right: bool | None = await ask(number % replicas)
        except TimeoutError:
            is_right = None
        return Client(is_right, time.monotonic() - came_s)

    return await asyncio.gather(*(client(number) for number in range(pace.clients)))


RIGS = {"http": embeddings, "grpc": vector_queries}
both = pytest.mark.parametrize("protocol", RIGS)
one_and_two = pytest.mark.parametrize("replicas", [1, 2])


async def check(redis: RedisServer, protocol: str, replicas: int, pace: Pace) -> str:
    async with RIGS[protocol](redis, replicas, pace) as (vendor, ask):
        clients = await come(ask, replicas, pace)
        failed = [client for client in clients if client.is_right is None]
        assert all(client.is_right for client in clients if client not in failed), "and what came is right"
        # Straight at the vendor one call fails: the one that is not answered.
        assert len(failed) <= 1 + 2, [round(client.took_s, 2) for client in clients]
        assert vendor.asked <= 1 + 2 * replicas
        served = max(client.took_s for client in clients if client.is_right)
        return (
            f"{protocol}, {replicas} replica(s): {len(failed)} of {len(clients)} clients failed, "
            f"{vendor.asked} calls, the longest wait of the others {served:.1f} s at `lock_s` {pace.lock_s:g}"
        )


@pytest.mark.parametrize(
    ("protocol", "replicas"),
    [
        ("http", 2),
        ("grpc", 1),
        *(pytest.param(*way, marks=pytest.mark.slow) for way in (("http", 1), ("grpc", 2))),
    ],
)
async def test_r17_a_request_that_hangs_is_one_clients_trouble(
    redis_server: RedisServer, protocol: str, replicas: int, record_property: Callable[[str, object], None]
) -> None:
    record_property("figure", await check(redis_server, protocol, replicas, QUICK))


@pytest.mark.slow
@pytest.mark.timeout(180)
@both
@one_and_two
async def test_r17_in_full(
    redis_server: RedisServer, protocol: str, replicas: int, record_property: Callable[[str, object], None]
) -> None:
    record_property("figure", await check(redis_server, protocol, replicas, FULL))


async def test_r17_what_hangs_is_given_up(redis_server: RedisServer) -> None:
    """Long before ``upstream.read_timeout_s``, which is for what only passes."""
    async with (
        RawUpstream(answers.hang()) as upstream,
        ProxyProcess(
            dashscope_url=upstream.url,
            redis_url=redis_server.url,
            env={"DASHCACHE_FLIGHTS_DEADLINE_S": "0.5", "DASHCACHE_REDIS_DEADLINE_MS": "3000"},
        ) as proxy,
    ):
        async with await RawClient.connect(proxy.http_port) as client:
            response = await client.request("POST", NATIVE, LINES, BODY, timeout=20)
        assert (response.status, response.header("X-Dashcache-Error")) == (504, b"UpstreamTimeout")
        assert json.loads(response.body)["code"]
        (asked,) = upstream.requests
        await wait_until(lambda: asked.connection.peer_closed_at, what="the end of the upstream's connection")


async def test_r17_a_crowd_that_goes_alone_is_bounded_by_slots(redis_server: RedisServer) -> None:
    """Nothing is ever answered: a crowd of followers must not become a crowd of calls."""
    slots, crowd = 10, 60
    settings = {
        "DASHCACHE_FLIGHTS_LOCK_S": "0.6",
        "DASHCACHE_UPSTREAM_MAX_INFLIGHT": str(slots),
        "DASHCACHE_UPSTREAM_QUEUE_WAIT_S": "0.2",
        "DASHCACHE_REDIS_DEADLINE_MS": "3000",
    }
    async with (
        RawUpstream(answers.hang()) as upstream,
        ProxyProcess(dashscope_url=upstream.url, redis_url=redis_server.url, env=settings) as proxy,
        flock(crowd, proxy.http_port) as clients,
    ):
        await clients.send([BODY] * crowd)
        reading = [asyncio.ensure_future(client.read_response(method="POST", timeout=30)) for client in clients.clients]
        await wait_until(lambda: sum(task.done() for task in reading) == crowd - slots, 20, "503 for the others")
        assert {task.result().status for task in reading if task.done()} == {503}
        assert len(upstream.requests) == slots
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
