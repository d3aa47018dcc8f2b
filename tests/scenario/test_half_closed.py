"""A client that sends its request and then FIN is answered; one that has gone is told apart from it, and let go."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.scenario.wire_rig import WireRig, wire_rig
from tests.support import answers
from tests.support.gate import Gate
from tests.support.raw_client import RawClient, request_bytes
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

EMBEDDINGS = "/api/v1/services/embeddings/text-embedding/text-embedding"
LINES = [(b"Authorization", b"Bearer k"), (b"Content-Type", b"application/json")]
ANSWER = (
    b'{"output":{"embeddings":[{"text_index":0,"embedding":[0.5,0.25]}]},"usage":{"total_tokens":3},"request_id":"u"}'
)
TARGETS = ["/x", EMBEDDINGS, "/v1/collections/c/docs"]
"""One request that passes, one that is kept, and one that writes."""


def question(text: str) -> bytes:
    return json.dumps(
        {"model": "text-embedding-v4", "input": {"texts": [text]}, "parameters": {"dimension": 2}}
    ).encode()


async def half_closed(rig: WireRig, target: str, body: bytes, *more: tuple[bytes, bytes]) -> RawClient:
    client = await rig.client()
    await client.send(request_bytes("POST", target, [*LINES, *more], body))
    client.half_close()
    return client


@pytest.mark.parametrize("target", TARGETS)
async def test_a_half_closed_client_gets_its_answer(rig: WireRig, target: str) -> None:
    rig.upstream.answer = answers.respond_json(ANSWER)
    for _ in range(3):  # kept from the first on; known by its bytes at last
        client = await half_closed(rig, target, question("soon"))
        response = await client.read_response(method="POST", timeout=5)
        assert (response.status, response.interim) == (200, ())
        assert b"0.25" in response.body
        assert not await client.read_until_closed(timeout=2)
        await client.close()


@pytest.mark.parametrize("target", TARGETS)
async def test_a_half_closed_client_that_has_to_wait_is_asked_whether_it_is_there(rig: WireRig, target: str) -> None:
    gate = Gate()
    rig.upstream.answer = answers.after(gate, answers.respond_json(ANSWER))
    client = await half_closed(rig, target, question("late"))
    async with asyncio.timeout(5):
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    gate.open()
    response = await client.read_response(method="POST", timeout=5)
    assert response.status == 200
    assert b"0.25" in response.body
    assert not await client.read_until_closed(timeout=2)
    await client.close()


async def test_a_half_closed_client_gets_a_stream_to_its_end(rig: WireRig) -> None:
    gate = Gate()
    rig.upstream.answer = answers.chunked(b"first", gate, b"last" * 100_000)
    client = await half_closed(rig, "/x", b"hello")
    async with asyncio.timeout(5):
        await client.reader.readuntil(b"first\r\n")
    gate.open()
    assert (await client.read_until_closed(timeout=5)).endswith(b"0\r\n\r\n")
    await client.close()


async def test_all_that_was_pipelined_before_is_answered(rig: WireRig) -> None:
    rig.upstream.answer = answers.after(0.1, answers.echo())
    client = await rig.client()
    await client.send(b"".join(request_bytes("POST", f"/{number}", body=b"x") for number in range(4)))
    client.half_close()
    for number in range(4):
        response = await client.read_response(method="POST", timeout=5)
        assert response.body.startswith(b"POST /%d " % number)
    assert not await client.read_until_closed(timeout=2)
    await client.close()


async def test_http_1_0_is_answered_without_being_asked(rig: WireRig) -> None:
    rig.upstream.answer = answers.after(0.3, answers.respond(b"fine"))
    async with await rig.client() as client:
        await client.send(b"GET /x HTTP/1.0\r\nHost: a\r\n\r\n")
        client.half_close()
        response = await client.read_response(timeout=5)
        assert (response.body, response.interim) == (b"fine", ())


@pytest.mark.parametrize("sent", [b"", b"GET /x HT", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe"])
async def test_half_a_request_is_not_waited_for(rig: WireRig, sent: bytes) -> None:
    async with await rig.client() as client:
        await client.send(sent)
        client.half_close()
        assert not await client.read_until_closed(timeout=2)
    assert not rig.upstream.requests


@pytest.mark.parametrize("reads", [True, False])
async def test_r8_a_half_closed_client_that_goes_after_all_is_let_go(rig: WireRig, reads: bool) -> None:
    rig.upstream.answer = answers.hang()
    client = await half_closed(rig, "/x", b"hello")
    await rig.upstream.wait_requests()
    if reads:
        async with asyncio.timeout(5):
            await client.reader.readuntil(b"\r\n\r\n")
        client.abort()
    else:
        await client.close()
    await rig.upstream.wait_closed(timeout=2)


async def test_nothing_is_left_of_those_that_were_answered() -> None:
    async with wire_rig(DASHCACHE_LIMITS_KEEPALIVE_S="60") as rig:
        rig.upstream.answer = answers.after(0.2, answers.respond_json(ANSWER))
        (pid,) = rig.proxy.worker_pids()
        before = event_polls(pid)
        for _ in range(2):
            clients = [await half_closed(rig, "/x", b"hello") for _ in range(20)]
            for client in clients:
                assert (await client.read_response(method="POST", timeout=5)).status == 200
                assert not await client.read_until_closed(timeout=2)
                await client.close()
        await wait_until(lambda: event_polls(pid) == before)


def event_polls(pid: int) -> int:
    """How many things like the event loop's own a process has open."""
    links = [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    return sum("eventpoll" in str(link) for link in links)
