"""Bodies stream in both directions, piece by piece, within bounded memory; barriers instead of waiting and hoping."""

import asyncio
import gzip
import os

import pytest

from tests.scenario.wire_rig import WireRig
from tests.support import answers, wire
from tests.support.gate import Gate
from tests.support.raw_client import RawClient, request_bytes
from tests.support.recorded import RecordedRequest
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 2**20
SSE = b"/api/v1/services/aigc/text-generation/generation"


async def read_until(client: RawClient, end: bytes) -> bytes:
    async with asyncio.timeout(5):
        return await client.reader.readuntil(end)


class Turns:
    """A script that goes on only when the test says so; it stands still after each step."""

    def __init__(self) -> None:
        self._go = asyncio.Semaphore(0)

    async def wait(self) -> None:
        await self._go.acquire()

    def next(self) -> None:
        self._go.release()


async def test_the_head_is_not_held_back_until_the_first_body_byte(rig: WireRig) -> None:
    gate = Gate()
    rig.upstream.answer = answers.chunked(gate, b"late", headers=[(b"Content-Type", b"text/event-stream")])
    async with await rig.client() as client:
        await client.send(request_bytes("GET", "/x"))
        head = await read_until(client, b"\r\n\r\n")
        await gate.wait_arrived()
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        gate.open()
        assert await read_until(client, b"0\r\n\r\n") == b"4\r\nlate\r\n0\r\n\r\n"


@pytest.mark.parametrize("framing", ["chunked", "length", "until close"])
async def test_each_piece_is_seen_before_the_next_is_sent(rig: WireRig, framing: str) -> None:
    turns = Turns()
    pieces = [b'id:%d\nevent:result\ndata:{"output":{"text":"%d"}}\n\n' % (i, i) for i in range(5)]
    steps = [step for piece in pieces for step in (turns, piece)]
    if framing == "chunked":
        rig.upstream.answer = answers.chunked(*steps)
    elif framing == "length":
        head = wire.head_bytes(b"HTTP/1.1 200 OK", [(b"Content-Length", b"%d" % len(b"".join(pieces)))])
        rig.upstream.answer = answers.raw(head, *steps)
    else:
        rig.upstream.answer = answers.until_close(*steps)
    async with await rig.client() as client:
        await client.send(request_bytes("POST", SSE, [(b"X-DashScope-SSE", b"enable")], b"{}"))
        await read_until(client, b"\r\n\r\n")
        for piece in pieces:
            turns.next()
            expected = piece if framing == "length" else wire.chunk(piece)
            async with asyncio.timeout(5):
                assert await client.reader.readexactly(len(expected)) == expected


async def test_an_upload_streams_and_may_be_answered_while_it_lasts(rig: WireRig) -> None:
    rig.upstream.answer = answers.echo()
    async with await rig.client() as client:
        await client.send(wire.head_bytes(b"POST /x HTTP/1.1", [(b"Host", b"a"), (b"Transfer-Encoding", b"chunked")]))
        sent = b""
        for piece in (b"one", b"two", b"three"):
            await client.send(wire.chunk(piece))
            sent += piece
            await wait_until(lambda end=piece: end in rig.upstream_bytes(), what=lambda end=piece: f"{end!r} upstream")
        assert not rig.upstream.requests
        await client.send(b"0\r\n\r\n")
        response = await client.read_response(method="POST")
    assert response.status == 200
    assert rig.only_request().body == sent


async def test_an_early_answer_reaches_a_client_that_is_still_sending(rig: WireRig) -> None:
    body = b'{"code":"InvalidApiKey","message":"no","request_id":"r"}'

    held = Gate("unread upload")

    async def refuse(head: wire.Head, writer: asyncio.StreamWriter) -> bool:
        # Not closed at once: with bytes unread that would be a reset, which may overtake the answer.
        writer.write(wire.head_bytes(b"HTTP/1.1 401 Unauthorized", [(b"Content-Length", b"%d" % len(body))]) + body)
        await held.wait()
        return True

    rig.upstream.on_head = refuse
    async with await rig.client() as client:
        head = [(b"Host", b"a"), (b"Content-Length", b"%d" % (8 * MIB))]
        await client.send(wire.head_bytes(b"POST /x HTTP/1.1", head) + bytes(MIB))
        response = await client.read_response(method="POST")
        held.open()
    assert (response.status, response.body) == (401, body)


async def test_coded_bodies_stay_coded_in_both_directions(rig: WireRig) -> None:
    up, down = gzip.compress(b"question " * 1000), gzip.compress(b"answer " * 1000)
    rig.upstream.answer = answers.respond(down, headers=[(b"Content-Encoding", b"gzip")])
    async with await rig.client() as client:
        response = await client.request(
            "POST", "/x", [(b"Content-Encoding", b"gzip"), (b"Accept-Encoding", b"br;q=0.5, gzip")], up
        )
    request = rig.only_request()
    assert (request.body, request.header("Content-Encoding")) == (up, b"gzip")
    assert request.header("Accept-Encoding") == b"br;q=0.5, gzip"
    assert (response.body, response.header("Content-Encoding")) == (down, b"gzip")
    assert response.header("Content-Length") == b"%d" % len(down)


async def test_what_only_claims_to_be_coded_is_passed_too(rig: WireRig) -> None:
    rig.upstream.answer = answers.respond(b"not gzip", headers=[(b"Content-Encoding", b"gzip")])
    async with await rig.client() as client:
        response = await client.request("POST", "/x", [(b"Content-Encoding", b"gzip")], b"neither")
    assert (rig.only_request().body, response.body) == (b"neither", b"not gzip")


async def settled(rig: WireRig) -> None:
    """Buffers and code paths are there, so that what grows from now on is growth."""
    rig.upstream.answer = answers.respond(bytes(MIB))
    async with await rig.client() as client:
        for _ in range(3):
            await client.request("POST", "/x", body=bytes(MIB))
    await rig.renew()
    rig.forget_peak()


async def test_a_large_upload_does_not_gather_in_memory(rig: WireRig) -> None:
    await settled(rig)
    before = rig.rss_bytes()
    block, blocks = os.urandom(MIB), 96
    held = Gate("upload")

    async def drain(head: wire.Head, writer: asyncio.StreamWriter) -> bool:
        """Let the body wait a while, then swallow it without keeping it."""
        await held.wait()
        return False

    rig.upstream.on_head = drain
    async with await rig.client() as client:
        head = [(b"Host", b"a"), (b"Content-Length", b"%d" % (blocks * MIB))]
        await client.send(wire.head_bytes(b"POST /x HTTP/1.1", head))

        async def send_all() -> None:
            for _ in range(blocks):
                await client.send(block)

        sending = asyncio.ensure_future(send_all())
        await held.wait_arrived()
        held.open()
        await sending
        assert (await client.read_response(method="POST", timeout=30)).status == 200
    assert rig.only_request().body == block * blocks
    assert rig.rss_bytes(peak=True) - before <= 16 * MIB


async def test_a_slow_reader_holds_the_upstream_back(rig: WireRig) -> None:
    await settled(rig)
    before = rig.rss_bytes()
    written = 0
    block, blocks = os.urandom(MIB), 64

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(wire.head_bytes(b"HTTP/1.1 200 OK", [(b"Content-Length", b"%d" % (blocks * MIB))]))
        for _ in range(blocks):
            writer.write(block)
            await writer.drain()
            written += 1

    rig.upstream.answer = answer
    async with await RawClient.connect(rig.proxy.http_port, read_buffer=65536) as client:
        await client.send(request_bytes("GET", "/x"))
        seen = -1
        while seen != written:  # until the upstream gets no further: everything between is full
            seen = written
            await asyncio.sleep(0.2)
        assert written < blocks / 2
        assert rig.rss_bytes(peak=True) - before <= 16 * MIB
        response = await client.read_response(timeout=30)
    assert response.body == block * blocks
    assert rig.rss_bytes(peak=True) - before <= 16 * MIB


async def test_an_upload_nobody_reads_holds_the_client_back(rig: WireRig) -> None:
    await settled(rig)
    before = rig.rss_bytes()
    held = Gate("upload")
    sent = 0

    async def hold(head: wire.Head, writer: asyncio.StreamWriter) -> bool:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await held.wait()
        return True

    async def send_all(client: RawClient) -> None:
        nonlocal sent
        for _ in range(64):
            await client.send(bytes(MIB))
            sent += 1

    rig.upstream.on_head = hold
    async with await rig.client() as client:
        head = [(b"Host", b"a"), (b"Content-Length", b"%d" % (64 * MIB))]
        await client.send(wire.head_bytes(b"POST /x HTTP/1.1", head))
        sending = asyncio.ensure_future(send_all(client))
        await held.wait_arrived()
        seen = -1
        while seen != sent:
            seen = sent
            await asyncio.sleep(0.2)
        assert sent < 32
        assert rig.rss_bytes(peak=True) - before <= 16 * MIB
        sending.cancel()
        held.open()
        client.abort()
