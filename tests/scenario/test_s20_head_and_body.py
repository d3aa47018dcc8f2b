"""S20: a head and its body are framed as one, whatever way a request takes, and however early its answer comes."""

import asyncio

import pytest

from tests.scenario.wire_rig import WireRig
from tests.support import answers, wire
from tests.support.gate import Gate
from tests.support.raw_client import request_bytes
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADE = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
KEY = [(b"Sec-WebSocket-Key", b"AAAAAAAAAAAAAAAAAAAAAA=="), (b"Sec-WebSocket-Version", b"13")]
HANDSHAKE = [*UPGRADE, *KEY]
WITH_A_BODY = {
    "a length": ([(b"Content-Length", b"%d" % len(HIDDEN))], HIDDEN),
    "a length that nothing follows": ([(b"Content-Length", b"%d" % len(HIDDEN))], b""),
    "a length of many digits": ([(b"Content-Length", b"0000000005")], b"hello"),
    "chunks": ([(b"Transfer-Encoding", b"chunked")], wire.chunk(HIDDEN) + b"0\r\n\r\n"),
    "chunks without any": ([(b"Transfer-Encoding", b"chunked")], b"0\r\n\r\n"),
    "an expectation": ([(b"Content-Length", b"5"), (b"Expect", b"100-continue")], b""),
}


def handshake(lines: list[tuple[bytes, bytes]], target: bytes = b"/ws") -> bytes:
    return wire.head_bytes(b"GET %b HTTP/1.1" % target, [(b"Host", b"a"), *HANDSHAKE, *lines])


@pytest.mark.parametrize("kind", WITH_A_BODY)
async def test_s20_a_handshake_with_a_body_is_refused(rig: WireRig, kind: str) -> None:
    rig.upstream.answer = answers.respond(b"no", 401)
    lines, body = WITH_A_BODY[kind]
    async with await rig.client() as client:
        await client.send(handshake(lines) + body + HIDDEN)
        response = await client.read_response()
        assert (response.status, response.header("X-Dashcache-Error")) == (400, b"BadRequest")
        assert response.header("Connection") == b"close"
        assert not await client.read_until_closed()
    assert not rig.upstream_bytes()


@pytest.mark.parametrize("lines", [[], [(b"Content-Length", b"0")], [(b"Connection", b"Content-Length")]])
@pytest.mark.parametrize("status", [200, 302, 401, 403, 426, 500])
async def test_s20_a_refused_handshake_ends_its_connections(
    rig: WireRig, lines: list[tuple[bytes, bytes]], status: int
) -> None:
    """On both sides: whoever reads another body behind that head than the other side meant, reads nobody's request."""
    rig.upstream.answer = answers.respond(b"no", status)
    async with await rig.client() as client:
        await client.send(handshake(lines))
        response = await client.read_response()
        assert (response.status, response.body, response.header("Connection")) == (status, b"no", b"close")
        assert not await client.read_until_closed()
    await rig.upstream.wait_closed()
    async with await rig.client() as client:
        assert (await client.request("GET", "/next")).status == status
    first, second = rig.upstream.requests
    assert first.connection is not second.connection
    assert not first.raw_body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "GET"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_s20_an_answer_before_the_body_is_sent_ends_the_connection(
    rig: WireRig, method: str, framing: str
) -> None:
    """The rest of the body never comes, so whoever goes on reading would take the next request for it."""

    async def at_once(head: wire.Head, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        return False

    rig.upstream.on_head = at_once
    lines = [(b"Content-Length", b"100000")] if framing == "length" else [(b"Transfer-Encoding", b"chunked")]
    async with await rig.client() as client:
        await client.send(request_bytes(method, "/x", lines) + (HIDDEN if framing == "length" else wire.chunk(HIDDEN)))
        assert (await client.read_response(method=method)).body == b"no"
    await rig.upstream.wait_closed()
    await wait_until(lambda: rig.upstream.incomplete)
    rig.upstream.on_head = None
    async with await rig.client() as client:
        assert (await client.request("GET", "/next")).status == 200
    assert [request.target for request in rig.upstream.requests] == [b"/next"]
    assert len(rig.upstream.connections) == 2


async def test_s20_what_is_not_written_yet_ends_the_connection(rig: WireRig) -> None:
    """An upload that was declared short enough to be written at once, to an upstream that reads nothing of it."""
    gate = Gate()

    async def deaf(head: wire.Head, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await gate.wait()
        return False

    rig.upstream.on_head = deaf
    body = b"x" * 20_000_000
    async with await rig.client() as client:
        sending = asyncio.ensure_future(client.send(request_bytes("POST", "/x", body=body)))
        assert (await client.read_response(method="POST")).body == b"no"
        rig.upstream.on_head = None
        async with await rig.client() as other:
            assert (await other.request("GET", "/next")).status == 200
        gate.open()
        sending.cancel()
    first, second = rig.upstream.connections
    assert b"/next" not in first.received
    assert second.received.startswith(b"GET /next")


LATE = {
    "head": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n"),
    "head in chunks": ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "nothing new": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 26\r\n\r\n"),
    "no content": ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 26\r\n\r\n"),
}


@pytest.mark.parametrize("kind", LATE)
async def test_s20_a_body_that_comes_late_where_there_is_none_is_nobodys_answer(rig: WireRig, kind: str) -> None:
    """It arrives when the next request has been sent, and looks like its answer."""
    method, head = LATE[kind]
    gate = Gate()
    rig.upstream.answer = answers.in_turn(answers.raw(head, gate, POISON), answers.respond(b"mine"))
    async with await rig.client() as client:
        assert (await client.request(method, "/x")).body == b""
        asked = asyncio.ensure_future(client.request("GET", "/next"))
        await wait_until(lambda: b"/next" in rig.upstream_bytes())
        gate.open()
        assert (await asked).body == b"mine"


POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


@pytest.mark.parametrize("extra", [POISON, POISON[:9], b"x", b"\r\n"])
async def test_s20_an_upstream_that_speaks_unasked_is_hung_up_on(rig: WireRig, extra: bytes) -> None:
    """At once, not only when the connection is wanted again."""
    gate = Gate()
    rig.upstream.answer = answers.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", gate, extra)
    async with await rig.client() as client:
        assert (await client.request("GET", "/x")).body == b"ok"
        await gate.wait_arrived()
        gate.open()
        await rig.upstream.wait_closed()


@pytest.mark.parametrize(("extra", "status"), [(POISON, 200), (POISON[:9], 200), (b"x", 502)])
async def test_s20_bytes_in_one_piece_with_an_answers_end_end_the_connection(
    rig: WireRig, extra: bytes, status: int
) -> None:
    rig.upstream.answer = answers.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + extra)
    async with await rig.client() as client:
        response = await client.request("GET", "/x")
        assert response.status == status
        assert b"poison" not in response.body
        await rig.upstream.wait_closed()


async def test_s20_a_body_that_was_not_asked_for_ends_the_clients_connection(rig: WireRig) -> None:
    """A request that is refused by its head: the client may send its body, or its next request; who can tell?"""
    async with await rig.client() as client:
        lines = [(b"Expect", b"100-continue"), (b"Content-Length", b"%d" % len(HIDDEN))]
        lines += [(b"Connection", b"Authorization"), (b"Authorization", b"Bearer k")]
        await client.send(request_bytes("POST", "/x", lines))
        response = await client.read_response(method="POST")
        assert (response.status, response.interim, response.header("Connection")) == (400, (), b"close")
        await client.send(HIDDEN)
        assert not await client.read_until_closed()
    assert not rig.upstream.requests


async def test_s20_an_upload_that_ends_early_ends_its_connection(rig: WireRig) -> None:
    async with await rig.client() as client:
        await client.send(request_bytes("POST", "/x", [(b"Content-Length", b"100000")]) + b"part")
        await wait_until(lambda: b"part" in rig.upstream_bytes())
    await rig.upstream.wait_closed()
    async with await rig.client() as client:
        assert (await client.request("GET", "/next")).status == 200
    assert [request.target for request in rig.upstream.requests] == [b"/next"]
