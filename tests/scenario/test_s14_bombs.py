"""S14: bombs do not go off. Coded bytes pass unopened, splinters and endless heads fill no memory."""

import asyncio
import contextlib
import functools
import gzip
import re
import zlib

import pytest

from tests.scenario.wire_rig import WireRig
from tests.support import answers, wire
from tests.support.raw_client import IncompleteResponseError
from tests.support.recorded import RecordedRequest
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 2**20
EMBEDDINGS = "/api/v1/services/embeddings/text-embedding/text-embedding"
KEYED = [(b"Host", b"a"), (b"Authorization", b"Bearer k"), (b"Content-Type", b"application/json")]
QUESTION = b'{"model":"text-embedding-v4","input":{"texts":["%b"]}}'
GZIPPED = [(b"Content-Encoding", b"gzip"), (b"Content-Type", b"application/json")]


@functools.cache
def bomb() -> bytes:
    """300 MiB of blanks in 300 KB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(b" " * MIB) for _ in range(300)) + packer.flush()


async def settled(rig: WireRig) -> int:
    """What is resident once buffers and code paths are there."""
    await asyncio.to_thread(bomb)
    rig.upstream.answer = answers.respond(bytes(MIB))
    async with await rig.client() as client:
        for number in range(3):
            await client.request("POST", "/x", body=bytes(MIB))
            await client.request("POST", EMBEDDINGS, KEYED, QUESTION % (b"warm %d" % number))
    await rig.renew()
    rig.forget_peak()
    return rig.rss_bytes()


def grown(rig: WireRig, before: int) -> float:
    growth = (rig.rss_bytes(peak=True) - before) / MIB
    print(f"{growth:.1f} MiB more")
    return growth


@pytest.mark.parametrize("target", ["/x", EMBEDDINGS])
async def test_s14_a_bomb_in_a_request_passes_unopened(rig: WireRig, target: str) -> None:
    before = await settled(rig)
    rig.upstream.answer = answers.respond(b"fine")
    async with await rig.client() as client:
        response = await client.request("POST", target, [*KEYED, (b"Content-Encoding", b"gzip")], bomb(), timeout=30)
    assert response.body == b"fine"
    assert rig.only_request().body == bomb()
    assert grown(rig, before) <= 16


@pytest.mark.parametrize("target", ["/x", EMBEDDINGS])
async def test_s14_a_bomb_in_an_answer_passes_unopened_and_is_not_kept(rig: WireRig, target: str) -> None:
    before = await settled(rig)
    rig.upstream.answer = answers.respond(bomb(), headers=GZIPPED)
    async with await rig.client() as client:
        for count in (1, 2):
            fields = [*KEYED, (b"Accept-Encoding", b"gzip")]
            response = await client.request("POST", target, fields, QUESTION % b"bomb", timeout=30)
            assert response.body == bomb()
            assert len(rig.upstream.requests) == count
    assert grown(rig, before) <= 16


@pytest.mark.parametrize("target", ["/x", EMBEDDINGS])
async def test_s14_a_million_chunks_of_one_byte_in_a_request(rig: WireRig, target: str) -> None:
    before = await settled(rig)
    question = QUESTION % (b"a" * MIB)
    rig.upstream.answer = answers.respond(b"fine")
    head = wire.head_bytes(b"POST " + target.encode() + b" HTTP/1.1", [*KEYED, (b"Transfer-Encoding", b"chunked")])
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in question) + b"0\r\n\r\n"
    async with await rig.client() as client:
        await client.send(head + chunks)
        assert (await client.read_response(method="POST", timeout=45)).body == b"fine"
    assert rig.only_request().body == question
    assert grown(rig, before) <= 16


@pytest.mark.parametrize("target", ["/x", EMBEDDINGS])
async def test_s14_a_million_chunks_of_one_byte_in_an_answer(rig: WireRig, target: str) -> None:
    before = await settled(rig)
    body = b" " * MIB
    splinters = b"1\r\n \r\n" * 4096

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.head_bytes(b"HTTP/1.1 200 OK", [(b"Transfer-Encoding", b"chunked")]))
        for _ in range(MIB // 4096):
            writer.write(splinters)
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    rig.upstream.answer = answer
    async with await rig.client() as client:
        response = await client.request("POST", target, KEYED, QUESTION % b"splinters", timeout=45)
    assert response.body == body
    assert grown(rig, before) <= 16


@pytest.mark.parametrize("target", [b"/x", EMBEDDINGS.encode()])
async def test_s14_endless_trailers_of_a_request_are_refused(rig: WireRig, target: bytes) -> None:
    before = await settled(rig)
    head = wire.head_bytes(b"POST " + target + b" HTTP/1.1", [*KEYED, (b"Transfer-Encoding", b"chunked")])
    async with await rig.client() as client:
        await client.send(head + b"1\r\n{\r\n0\r\n")
        reading = asyncio.ensure_future(client.read_until_closed())
        with contextlib.suppress(ConnectionError):
            while not reading.done():
                await client.send(b"X-Trailer: " + b"y" * 1000 + b"\r\n")
                await client.send(b"X-Trailer: z\r\n" * 1000)
        # Whoever goes on sending may be reset before it has read the word.
        assert re.match(rb"HTTP/1.1 4(00|31) |$", await reading)
    assert not rig.upstream.requests
    assert grown(rig, before) <= 16


async def test_s14_endless_trailers_of_an_answer_end_its_connection(rig: WireRig) -> None:
    before = await settled(rig)

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.head_bytes(b"HTTP/1.1 200 OK", [(b"Transfer-Encoding", b"chunked")]) + b"1\r\n.\r\n0\r\n")
        while not writer.is_closing():
            writer.write(b"X-Trailer: z\r\n" * 1000)
            await writer.drain()

    rig.upstream.answer = answer
    async with await rig.client() as client:
        with contextlib.suppress(IncompleteResponseError):  # its head was through before
            assert (await client.request("GET", "/x")).status == 502
    await wait_until(lambda: rig.upstream.connections_open == 0, what="the upstream's connection to end")
    assert grown(rig, before) <= 16


async def test_s14_more_lines_than_are_allowed_are_refused_and_as_many_as_are_pass(rig: WireRig) -> None:
    many = [(b"X-%d" % number, b"v") for number in range(200)]  # more than a library's usual 128
    async with await rig.client() as client:
        assert (await client.request("GET", "/x", many)).status == 200
    rig.forget()
    before = await settled(rig)
    for _ in range(50):
        async with await rig.client() as client:
            await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n" + b"X-More: v\r\n" * 20_000)
            response = await client.read_response()
            assert response.status == 431
    assert not rig.upstream.requests
    assert grown(rig, before) <= 16


async def test_s14_small_gzip_is_opened_and_kept(rig: WireRig) -> None:
    """The other side of it: what the vendor really sends is."""
    content = (
        b'{"output":{"embeddings":[{"text_index":0,"embedding":[%b]}]},"usage":{"total_tokens":1},"request_id":"r"}'
    )
    body = gzip.compress(content % b",".join(b"0.%d" % number for number in range(1, 1025)))
    rig.upstream.answer = answers.respond(body, headers=GZIPPED)
    async with await rig.client() as client:
        for _ in range(2):
            response = await client.request(
                "POST", EMBEDDINGS, [*KEYED, (b"Accept-Encoding", b"gzip")], QUESTION % b"s"
            )
            assert response.status == 200
    assert len(rig.upstream.requests) == 1
