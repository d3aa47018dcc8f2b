"""Who leaves is let go: a client that has gone takes its upstream connection with it, at once."""

import asyncio
import time

import pytest

from tests.scenario.wire_rig import WireRig
from tests.support import answers, wire
from tests.support.gate import Gate
from tests.support.raw_client import RawClient, request_bytes
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT_MOST_S = 0.25
EMBEDDINGS = "/api/v1/services/embeddings/text-embedding/text-embedding"
BATCH = b'{"model":"text-embedding-v4","input":{"texts":["a","b"]}}'


async def leave(client: RawClient, how: str) -> float:
    """Leave one way or the other; when that was."""
    at = time.monotonic()
    if how == "reset":
        client.abort()
    else:
        await client.close()
    return at


both_ways = pytest.mark.parametrize("how", ["close", "reset"])


@both_ways
@pytest.mark.parametrize("target", ["/x", EMBEDDINGS])
async def test_a_client_that_waits_for_the_head(rig: WireRig, how: str, target: str) -> None:
    rig.upstream.answer = answers.hang()
    client = await rig.client()
    fields = [(b"Authorization", b"Bearer k"), (b"Content-Type", b"application/json")]
    await client.send(request_bytes("POST", target, fields, BATCH))
    await rig.upstream.wait_requests()
    left_at = await leave(client, how)
    assert await rig.upstream.wait_closed() - left_at <= AT_MOST_S


@both_ways
async def test_a_client_in_the_middle_of_a_stream(rig: WireRig, how: str) -> None:
    gate = Gate()
    rig.upstream.answer = answers.chunked(b"first", gate)
    client = await rig.client()
    await client.send(request_bytes("GET", "/x"))
    async with asyncio.timeout(5):
        await client.reader.readuntil(b"first\r\n")
    left_at = await leave(client, how)
    assert await rig.upstream.wait_closed() - left_at <= AT_MOST_S
    gate.open()


@both_ways
async def test_a_client_in_the_middle_of_its_upload(rig: WireRig, how: str) -> None:
    client = await rig.client()
    await client.send(wire.head_bytes(b"POST /x HTTP/1.1", [(b"Host", b"a"), (b"Content-Length", b"100")]) + b"part")
    await wait_until(lambda: b"part" in rig.upstream_bytes(), what="the first piece upstream")
    left_at = await leave(client, how)
    assert await rig.upstream.wait_closed() - left_at <= AT_MOST_S
    await wait_until(lambda: rig.upstream.incomplete or rig.upstream.malformed)
    assert not rig.upstream.requests


@both_ways
async def test_a_client_whose_chunked_upload_hangs(rig: WireRig, how: str) -> None:
    """Nothing may make a cut upload look whole: the last chunk must not be sent for the client."""
    client = await rig.client()
    head = wire.head_bytes(b"POST /x HTTP/1.1", [(b"Host", b"a"), (b"Transfer-Encoding", b"chunked")])
    await client.send(head + wire.chunk(b"part"))
    await wait_until(lambda: b"part" in rig.upstream_bytes(), what="the first piece upstream")
    left_at = await leave(client, how)
    assert await rig.upstream.wait_closed() - left_at <= AT_MOST_S
    assert b"0\r\n\r\n" not in rig.upstream_bytes()
    assert not rig.upstream.requests


async def test_many_that_left_leave_nothing_behind(rig: WireRig) -> None:
    gate = Gate()
    rig.upstream.answer = answers.chunked(b"first", gate)
    for how in ("close", "reset") * 20:
        client = await rig.client()
        await client.send(request_bytes("GET", "/x"))
        async with asyncio.timeout(5):
            await client.reader.readuntil(b"first\r\n")
        await leave(client, how)
    await rig.upstream.wait_closed(40)
    assert rig.upstream.connections_open == 0
    gate.open()
    rig.upstream.answer = answers.respond(b"fine")
    async with await rig.client() as client:
        assert (await client.request("GET", "/x")).body == b"fine"
