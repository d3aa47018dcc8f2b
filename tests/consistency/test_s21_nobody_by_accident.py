"""S21: what changes nothing voids nothing, whoever sends it and whatever the vendor says of it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.consistency.calls import PROTOCOLS, Call, Clients, Protocol, grpc_form, http_form
from tests.consistency.rig import ANN, BOB, CALM, Rig, all_warm, rig, wait_request
from tests.consistency.vendor import STRANGER, Vendor
from tests.support import http2
from tests.support.fault_proxy import FaultProxy
from tests.support.raw_client import RawClient, request_bytes
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

WRITE = "upsert_doc"
WRITES = (
    *("insert_doc", "update_doc", WRITE, "delete_doc"),
    *("create_partition", "delete_partition", "create_collection", "delete_collection"),
)
SAFE_PATHS = (
    *("/v1/collections", "/v1/collections/{c}", "/v1/collections/{c}/docs", "/v1/collections/{c}/docs/upsert"),
    *("/v1/collections/{c}/query", "/v1/collections/{c}/partitions/p", "/v1/collections/{c}/docs/", "/v9", "/"),
)
Lines = list[tuple[bytes, bytes]]


def token(value: str) -> Lines:
    return [(b"dashvector-auth-token", value.encode()), (b"Content-Type", b"application/json")]


def document(name: str) -> tuple[str, str, bytes]:
    method, target, body = http_form(Call(WRITE, name, version=2))
    return method, target, json.dumps(body).encode()


@asynccontextmanager
async def nothing_voided(made: Rig, name: str) -> AsyncIterator[None]:
    """Within the block, no token is set anew; after it, everybody still has what was known."""
    reads, doors = [Call("query_doc", name), Call("stats_collection", name)], made.doors()
    await all_warm(doors, reads)
    tokens = made.redis.command("MGET", *made.names("g"))
    yield
    assert made.redis.command("MGET", *made.names("g")) == tokens
    assert all([(await door.ask(read)).is_hit for door in doors for read in reads])


@pytest.mark.parametrize("who", [ANN, STRANGER, ""])
async def test_s21_safe_methods_void_nothing(pair: Rig, who: str) -> None:
    """HEAD, OPTIONS (which browsers send before a request of another origin) and TRACE."""
    name = pair.vendor.create()
    lines = [*token(who)[0 if who else 1 :], (b"Origin", b"https://app.example")]
    async with nothing_voided(pair, name), await RawClient.connect(pair.proxy.http_url) as client:
        for path in SAFE_PATHS:
            for method in ("HEAD", "OPTIONS", "TRACE"):
                await client.request(method, path.format(c=name), lines)
        pair.vendor.fail(operation="unknown", code=-2000)
        for method in ("OPTIONS", "TRACE"):
            await client.request(method, f"/v1/collections/{name}/docs", lines)
    assert len(pair.vendor.sim.requests) >= 3 * len(SAFE_PATHS), "they pass"


RULES: list[dict[str, Any]] = [{}, {"code": -2000}, {"wrong": "disconnect"}, {"wrong": "not_json"}]
HTTP_RULES: list[dict[str, Any]] = [{"http_status": status} for status in (400, 404, 429, 500, 503)]
GRPC_RULES: list[dict[str, Any]] = [
    {"grpc_status": status} for status in ("UNAVAILABLE", "INVALID_ARGUMENT", "UNKNOWN")
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_s21_without_a_credential_nothing_is_voided(pair: Rig, protocol: Protocol) -> None:
    """Whatever the vendor answers, but that it is done; an empty token is none."""
    name = pair.vendor.create()
    nobody = pair.door(protocol, "")
    async with nothing_voided(pair, name):
        for rule in RULES + (HTTP_RULES if protocol == "http" else GRPC_RULES):
            if rule:
                pair.vendor.fail(**rule)
            for operation in WRITES:
                with contextlib.suppress(aiohttp.ClientError):
                    answer = await nobody.ask(Call(operation, name, partition="p", version=2))
                    assert not answer.is_success
            pair.vendor.sim.faults.clear()
        _, target, body = document(name)
        async with await RawClient.connect(pair.proxy.http_url) as client:
            assert (await client.post(target, body)).status == 401


CUTS: dict[str, tuple[Lines, bytes]] = {
    "nothing of its body": ([(b"Content-Length", b"500")], b""),
    "half of its body": ([(b"Content-Length", b"500")], b'{"docs": ['),
    "all but a byte": ([(b"Content-Length", b"%d")], b"%B"),
    "no chunk": ([(b"Transfer-Encoding", b"chunked")], b""),
    "half a chunk": ([(b"Transfer-Encoding", b"chunked")], b'40\r\n{"docs": ['),
    "all but the last chunk": ([(b"Transfer-Encoding", b"chunked")], b"%X\r\n%B\r\n"),
    "all but the end of the last chunk": ([(b"Transfer-Encoding", b"chunked")], b"%X\r\n%B\r\n0\r\n"),
    "a chunk of no size": ([(b"Transfer-Encoding", b"chunked")], b"%X\r\n%B\r\nzz\r\n"),
}


@pytest.mark.parametrize("how", list(CUTS))
@pytest.mark.parametrize("who", [ANN, STRANGER])
async def test_s21_a_write_that_was_not_sent_whole_voids_nothing(pair: Rig, who: str, how: str) -> None:
    """Neither before, when the vendor has accepted its sender lately, nor after; and the vendor did not do it."""
    name = pair.vendor.create()
    method, target, body = document(name)
    framing, start = CUTS[how]
    lines = [(key, value.replace(b"%d", b"%d" % (len(body) + 1))) for key, value in framing]
    start = start.replace(b"%X", b"%x" % len(body)).replace(b"%B", body)
    async with nothing_voided(pair, name):
        before = len(pair.proxy.logs)
        async with await RawClient.connect(pair.proxy.http_url) as client:
            await client.send(request_bytes(method, target, [*token(who), *lines]) + start)
            if how == "a chunk of no size":
                assert (await client.read_response(method=method)).status == 400
            client.abort()
        await wait_request(pair.proxy, before)
    assert not any(record.is_executed for record in pair.vendor.records(name, WRITE))


async def test_s21_a_body_that_stops_coming_voids_nothing(
    vendor: Vendor, clients: Clients, redis_server: RedisServer
) -> None:
    env = {**CALM, "DASHCACHE_LIMITS_BODY_IDLE_S": "0.3"}
    async with rig(vendor, clients, redis_server, env=env) as made:
        name = vendor.create()
        method, target, _ = document(name)
        async with nothing_voided(made, name), await RawClient.connect(made.proxy.http_url) as client:
            lines = [*token(ANN), (b"Content-Length", b"500")]
            await client.send(request_bytes(method, target, lines) + b'{"docs": [')
            assert (await client.read_response(method=method)).status == 408
        assert not any(record.is_executed for record in vendor.records(name, WRITE))


@pytest.mark.parametrize("who", [ANN, STRANGER])
async def test_s21_a_call_that_breaks_off_inside_its_message_voids_nothing(pair: Rig, who: str) -> None:
    name = pair.vendor.create()
    method, message, metadata = grpc_form(Call(WRITE, name, version=2))
    head = http2.grpc_head(
        method.encode(), *((key.encode(), value.encode()) for key, value in (("dashvector-auth-token", who), *metadata))
    )
    whole = http2.grpc_message(message)
    host, _, port = pair.proxy.grpc_address.rpartition(":")
    async with nothing_voided(pair, name):
        for sent in (b"", whole[:3], whole[:-1]):
            before = len(pair.proxy.logs)
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, b""))
            writer.write(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, head))
            writer.write(http2.frame(http2.DATA, 0, 1, sent))
            await writer.drain()
            await reader.read(9)
            writer.transport.abort()
            await wait_request(pair.proxy, before)
    assert not any(record.is_executed for record in pair.vendor.records(name, WRITE))


async def test_s21_a_vendor_that_cannot_be_reached_has_done_nothing(
    vendor: Vendor, clients: Clients, redis_server: RedisServer
) -> None:
    async with (
        FaultProxy(vendor.sim.http_port) as line,
        rig(vendor, clients, redis_server, dashvector_url=f"http://127.0.0.1:{line.port}") as made,
    ):
        name = vendor.create()
        async with nothing_voided(made, name):
            await line.down()
            answer = await made.door("http").ask(Call(WRITE, name, version=2))
            assert answer.status == 502
            await line.up()


@pytest.mark.parametrize("who", [ANN, BOB])
async def test_s21_the_first_step_is_taken_when_the_last_of_the_body_goes_out(pair: Rig, who: str) -> None:
    """And not before; but before the vendor can have acted on it."""
    name = pair.vendor.create()
    read = Call("query_doc", name)
    method, target, body = document(name)
    lines = [*token(who), (b"Content-Length", b"%d" % len(body))]
    await all_warm(pair.doors(), [read], version=1)
    with pair.vendor.holding("execute", WRITE, name) as held:
        async with await RawClient.connect(pair.proxy.http_url) as client:
            await client.send(request_bytes(method, target, lines) + body[:-1])
            assert all([(await door.ask(read)).is_hit for door in pair.doors()])
            await client.send(body[-1:])
            await held.wait_arrived()
            # One of two replicas: nobody asks what another has.
            assert not any([(await door.ask(read)).is_hit for door in pair.doors()[::2]])
            held.release()
            assert (await client.read_response(method=method)).status == 200
    await all_warm(pair.doors(), [read], version=2)
