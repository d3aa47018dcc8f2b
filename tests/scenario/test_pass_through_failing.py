"""An upstream that fails: errors of ours in the vendor's shape, broken answers as broken connections, nothing twice."""

import asyncio
import json

import pytest

from tests.scenario.wire_rig import WireRig
from tests.support import answers, wire
from tests.support.raw_client import IncompleteResponseError, RawClient, RawResponse
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


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in SPLITTING.items()])
async def test_s8_an_answer_whose_lines_would_be_split(rig: WireRig, data: bytes) -> None:
    await assert_bad_gateway(rig, data)


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
