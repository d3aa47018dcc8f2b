"""An upstream that fails: errors of ours in the vendor's shape, broken answers as broken connections, nothing twice."""

import asyncio
import json

import pytest

from tests.scenario.wire_rig import WireRig
from tests.support import answers, wire
from tests.support.raw_client import IncompleteResponseError, RawClient, RawResponse, request_bytes
from tests.support.raw_upstream import Answer
from tests.support.recorded import RecordedRequest
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NATIVE = "/api/v1/services/aigc/text-generation/generation"
COMPATIBLE = "/compatible-mode/v1/chat/completions"


def assert_ours(response: RawResponse, status: int, code: str, target: str = NATIVE) -> None:
    """An error of ours, in the shape that the vendor's SDKs read."""
    assert response.status == status
    assert response.header("Content-Type") == b"application/json"
    assert response.header("X-Dashcache-Error") == code.encode()
    document = json.loads(response.body)
    assert document["request_id"] == (response.header("X-Request-Id") or b"").decode()
    if target.startswith("/compatible"):
        assert document["error"]["code"] == code
        assert document["error"]["message"]
    else:
        assert document["code"] == code
        assert document["message"]


@pytest.mark.parametrize("target", [NATIVE, COMPATIBLE])
async def test_an_upstream_that_is_not_there(rig: WireRig, target: str) -> None:
    await rig.upstream.down()
    try:
        async with await rig.client() as client:
            response = await client.post(target, b"{}")
            assert_ours(response, 502, "UpstreamUnreachable", target)
            assert str(rig.upstream.port).encode() not in response.raw
            assert (await client.post(target, b"{}")).status == 502  # the connection goes on
    finally:
        await rig.upstream.start()


@pytest.mark.parametrize("failing", [answers.reset(), answers.close()], ids=["reset", "close"])
async def test_an_upstream_that_leaves_before_the_head(rig: WireRig, failing: Answer) -> None:
    rig.upstream.answer = failing
    async with await rig.client() as client:
        assert_ours(await client.post(NATIVE, b"{}"), 502, "UpstreamUnreachable")
        assert len(rig.upstream.requests) == 1
        assert_ours(await client.request("GET", "/x"), 502, "UpstreamUnreachable")
        assert len(rig.upstream.requests) == 3  # once more, as nothing tells a closed connection from a refusal


OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: 5\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
MALFORMED = {
    "no status line": b"hello\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n" + LENGTH + b"\r\nhello",
    "status of letters": b"HTTP/1.1 20x OK\r\n" + LENGTH + b"\r\nhello",
    "status below 100": b"HTTP/1.1 099 OK\r\n" + LENGTH + b"\r\nhello",
    "another protocol": b"ICY 200 OK\r\n" + LENGTH + b"\r\nhello",
    "another version": b"HTTP/2.0 200 OK\r\n" + LENGTH + b"\r\nhello",
    "ancient version": b"HTTP/0.9 200 OK\r\n" + LENGTH + b"\r\nhello",
    "an unasked switch": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "length and chunks": OK + LENGTH + CHUNKED + b"\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunks and length": OK + CHUNKED + LENGTH + b"\r\n5\r\nhello\r\n0\r\n\r\n",
    "two lengths": OK + LENGTH + b"Content-Length: 3\r\n\r\nhello",
    "two equal lengths": OK + LENGTH + LENGTH + b"\r\nhello",
    "list of lengths": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "signed length": OK + b"Content-Length: +5\r\n\r\nhello",
    "negative length": OK + b"Content-Length: -5\r\n\r\nhello",
    "hexadecimal length": OK + b"Content-Length: 0x5\r\n\r\nhello",
    "endless length": OK + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "unknown coding": OK + b"Transfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "coding that stays on": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "coding after chunks": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "bad chunk size": OK + CHUNKED + b"\r\nz\r\nhello\r\n0\r\n\r\n",
    "chunk longer than it says": OK + CHUNKED + b"\r\n4\r\nhello\r\n0\r\n\r\n",
    "length in a trailer": OK + CHUNKED + b"\r\n5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n",
    "blank before the colon": OK + b"Content-Length : 5\r\n\r\nhello",
    "blank in a name": OK + LENGTH + b"X Y: z\r\n\r\nhello",
    "no colon": OK + LENGTH + b"Xyz\r\n\r\nhello",
    "no name": OK + LENGTH + b": z\r\n\r\nhello",
    "signed chunk size": OK + CHUNKED + b"\r\n+5\r\nhello\r\n0\r\n\r\n",
    "prefixed chunk size": OK + CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "endless chunk size": OK + CHUNKED + b"\r\nfffffffffffffffff5\r\nhello\r\n0\r\n\r\n",
    "empty length": OK + b"Content-Length: \r\n\r\nhello",
    "underscores in a length": OK + b"Content-Length: 0_5\r\n\r\nhello",
    "quoted coding": OK + b'Transfer-Encoding: "chunked"\r\n\r\n5\r\nhello\r\n0\r\n\r\n',
    "chunks twice": OK + CHUNKED + CHUNKED + b"\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunks twice in a line": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "LF in a chunk extension": OK + CHUNKED + b"\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a line without end": OK + b"X: " + b"y" * 70_000,
    "lines without end": OK + b"X: y\r\n" * 300 + b"\r\n",
}


SPLITTING = {
    "NUL in a value": OK + LENGTH + b"X: a\0b\r\n\r\nhello",
    "bare CR in a value": OK + LENGTH + b"X: a\rSet-Cookie: b\r\n\r\nhello",
    "control in a value": OK + LENGTH + b"X: a\x1bb\r\n\r\nhello",
    "DEL in a value": OK + LENGTH + b"X: a\x7fb\r\n\r\nhello",
    "NUL in the reason": b"HTTP/1.1 200 a\0b\r\n" + LENGTH + b"\r\nhello",
    "bare CR in the reason": b"HTTP/1.1 200 a\rb\r\n" + LENGTH + b"\r\nhello",
    "NUL in a name": OK + LENGTH + b"X\0Y: a\r\n\r\nhello",
    "CR in a name": OK + LENGTH + b"X\rSet-Cookie: a\r\n\r\nhello",
}
"""What would be another line, or another answer, to somebody who reads it less strictly."""


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in MALFORMED.items()])
async def test_s4_an_answer_that_is_not_http(rig: WireRig, data: bytes) -> None:
    await assert_bad_gateway(rig, data)


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in SPLITTING.items()])
async def test_s8_an_answer_whose_lines_would_be_split(rig: WireRig, data: bytes) -> None:
    await assert_bad_gateway(rig, data)


async def test_s4_a_folded_line_of_an_answer_is_one_line(rig: WireRig) -> None:
    """RFC 9112 §5.2 lets a proxy do either: refuse it, or put blanks in the place of the fold."""
    rig.upstream.answer = answers.raw(OK + LENGTH + b"X: a\r\n Set-Cookie: b\r\n\r\nhello")
    async with await rig.client() as client:
        response = await client.post(NATIVE, b"{}")
    assert (response.header("X"), response.header("Set-Cookie"), response.body) == (b"a Set-Cookie: b", None, b"hello")


async def assert_bad_gateway(rig: WireRig, data: bytes) -> None:
    """502, and that connection is never used again."""
    rig.upstream.answer = answers.raw(data)
    async with await rig.client() as client:
        assert_ours(await client.post(NATIVE, b"{}"), 502, "UpstreamProtocolError")
        await rig.upstream.wait_closed()
        assert len(rig.upstream.requests) == 1
        rig.upstream.answer = answers.respond(b"fine")
        assert (await client.post(NATIVE, b"{}")).body == b"fine"
    assert len(rig.upstream.connections) == 2


BROKEN: dict[str, Answer] = {
    "length, closed": answers.truncated(b"x" * 1000, 400),
    "length, reset": answers.truncated(b"x" * 1000, 400, by_reset=True),
    "chunks, closed": answers.truncated_chunks(b"x" * 400),
    "chunks, reset": answers.truncated_chunks(b"x" * 400, by_reset=True),
    "within a chunk": answers.closing(answers.raw(OK + CHUNKED + b"\r\n3e8\r\n" + b"x" * 400)),
    "before the last line": answers.closing(answers.raw(OK + CHUNKED + b"\r\n190\r\n" + b"x" * 400 + b"\r\n0\r\n")),
    "large": answers.truncated(b"x" * 4_000_000, 3_000_000),
}


@pytest.mark.parametrize("broken", [pytest.param(answer, id=name) for name, answer in BROKEN.items()])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_s4_an_answer_that_breaks_off_never_looks_whole(rig: WireRig, broken: Answer, version: bytes) -> None:
    rig.upstream.answer = broken
    async with await rig.client() as client:
        await client.send(b"GET /x %b\r\nHost: a\r\n\r\n" % version)
        try:
            response = await client.read_response()
        except IncompleteResponseError as error:
            response = error.partial
        else:
            # To HTTP/1.0 a body without a length ends with the connection, so only a reset tells that it broke.
            assert version == b"HTTP/1.0"
            assert client.was_reset
        assert response.status == 200
        assert not response.body.strip(b"x")
        assert await client.read_until_closed() == b""
    assert len(rig.upstream.requests) == 1


async def test_s4_chunks_that_go_wrong_half_way_break_the_answer_off(rig: WireRig) -> None:
    gate = asyncio.Event()
    rig.upstream.answer = answers.raw(OK + CHUNKED + b"\r\n5\r\nhello\r\n", gate, b"zz\r\nHTTP/1.1 200 OK\r\n\r\n")
    async with await rig.client() as client:
        await client.send(request_bytes("GET", "/x"))
        async with asyncio.timeout(5):
            await client.reader.readuntil(b"hello\r\n")
        gate.set()
        assert await client.read_until_closed() == b""
    await rig.upstream.wait_closed()


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned", b"junk\r\n\r\n", b"x"])
@pytest.mark.parametrize("together", [True, False])
async def test_s4_bytes_nobody_asked_for_do_not_become_the_next_answer(
    rig: WireRig, extra: bytes, together: bool
) -> None:
    """An answer that is left on a kept connection must never be given to whoever uses it next."""
    written = asyncio.Event()

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + LENGTH + b"\r\nfirst" + (extra if together else b""))
        await wire.flush(writer)
        if not together:
            await asyncio.sleep(0.02)  # the proxy has put the connection back
            writer.write(extra)
            await wire.flush(writer)
        written.set()

    rig.upstream.answer = answer
    async with await rig.client() as client:
        await client.request("GET", "/x")
        await written.wait()
        rig.upstream.answer = answers.respond(b"second")
        response = await client.request("GET", "/y")
    assert (response.status, response.body) == (200, b"second")


@pytest.mark.parametrize("status", [204, 304])
async def test_s4_a_body_where_none_can_be_is_not_the_next_answer(rig: WireRig, status: int) -> None:
    line = b"HTTP/1.1 %d Odd\r\n" % status
    rig.upstream.answer = answers.raw(line + LENGTH + b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
    async with await rig.client() as client:
        first = await client.request("GET", "/x")
        assert first.status in (status, 502)
        rig.upstream.answer = answers.respond(b"second")
        assert (await client.request("GET", "/y")).body == b"second"


async def kept_then_closed(rig: WireRig, client: RawClient) -> list[RecordedRequest]:
    """A kept connection that the upstream closes on getting its second request; the requests that come after it."""
    seen: list[RecordedRequest] = []

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        seen.append(request)
        if request.connection is rig.upstream.connections[0] and len(seen) > 1:
            wire.reset(writer)
            return
        await answers.respond(b"fine")(request, writer)

    rig.upstream.answer = answer
    assert (await client.request("GET", "/first")).body == b"fine"
    return seen


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_bodiless_read_survives_a_kept_connection_that_closes(rig: WireRig, method: str) -> None:
    async with await rig.client() as client:
        seen = await kept_then_closed(rig, client)
        response = await client.request(method, "/again")
    assert response.status == 200
    assert [(request.connection.number, request.target) for request in seen] == [
        (0, b"/first"),
        (0, b"/again"),
        (1, b"/again"),
    ]


@pytest.mark.parametrize(
    ("method", "body"), [("POST", b"{}"), ("POST", None), ("PUT", b"x"), ("DELETE", None), ("GET", b"{}")]
)
async def test_what_may_change_something_is_sent_once_at_most(rig: WireRig, method: str, body: bytes | None) -> None:
    async with await rig.client() as client:
        seen = await kept_then_closed(rig, client)
        response = await client.request(method, "/again", body=body)
    assert_ours(response, 502, "UpstreamUnreachable")
    assert [request.target for request in seen] == [b"/first", b"/again"]


async def test_a_connection_that_was_closed_while_idle_costs_nobody_anything(rig: WireRig) -> None:
    async with await rig.client() as client:
        for round_ in range(10):
            assert (await client.post("/x", b"{}")).status == 200
            rig.upstream.drop_connections()
            await wait_until(lambda: rig.upstream.connections_open == 0)
            assert len(rig.upstream.requests) == round_ + 1
