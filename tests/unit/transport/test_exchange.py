"""Short requests go up without aiohttp's session: the bytes are those that it would write, and no slot is lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from proxy.core.errors import ClientError, ErrorCode, UpstreamError
from proxy.core.held_bytes import HeldBytes
from proxy.core.request import HeaderLines, Request
from proxy.transport import exchange
from proxy.transport.http import HttpTransport
from proxy.transport.slots import Slots
from tests.support import answers
from tests.support.raw_upstream import RawUpstream
from tests.support.waiting import wait_until

ROOM = HeldBytes(2**20).hold().add
PLAIN: HeaderLines = ((b"Accept", b"*/*"), (b"x-Q", b"1"), (b"X-q", b"\xc3\xa9"), (b"Cookie", b'a="b"'), (b"E", b""))
REQUESTS = {
    "a get": Request("GET", "/a/b?c=%20&d", PLAIN, "v"),
    "nothing after the question mark": Request("GET", "/a?", PLAIN, "v"),
    "two question marks": Request("GET", "/a??", PLAIN, "v"),
    "slashes and dots": Request("GET", "//a/../b//%2f", PLAIN, "v"),
    "no line": Request("HEAD", "/", (), "v"),
    "another host": Request("GET", "/", ((b"HOST", b"elsewhere"),), "v"),
    "no body where one belongs": Request("POST", "/a", PLAIN, "v"),
    "options": Request("OPTIONS", "/a", PLAIN, "v"),
    "delete": Request("DELETE", "/a", PLAIN, "v"),
    "a body of ours": Request("POST", "/a", ((b"Content-length", b"99"), *PLAIN), "v", b"{}"),
    "a body with get": Request("GET", "/a", PLAIN, "v", b"{}"),
}


class Upload:
    """A client's body that is there; implements ``core.answer.Body``."""

    is_empty = False

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.length: int | None = len(content)

    async def read(self, limit: int) -> bytes | None:
        return self.content if len(self.content) <= limit else None

    def at_hand(self, limit: int) -> bytes | None:
        return self.content if len(self.content) <= limit else None

    async def begun(self, limit: int) -> bool:
        return True

    async def pieces(self) -> AsyncIterator[bytes]:
        yield self.content

    async def before_end(self) -> None:
        pass


@contextlib.asynccontextmanager
async def going_to(upstream: RawUpstream, slots: Slots | None = None) -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(
        upstream.url,
        slots=slots or Slots(max_inflight=4, max_queue=0, queue_wait_s=1.0),
        connect_timeout_s=5,
        read_timeout_s=5,
        keepalive_s=5,
        max_line_bytes=8190,
        max_lines=128,
    )
    try:
        yield transport
    finally:
        await transport.close()


async def written(request: Request, body: Upload | None = None) -> bytes:
    """The request as it reaches an upstream, but for the port in Host."""
    async with RawUpstream(answers.respond()) as upstream, going_to(upstream) as transport:
        reply = await transport.send(request, body)
        await reply.read(10, ROOM)
        (record,) = upstream.requests
        return record.raw.replace(upstream.url.removeprefix("http://").encode(), b"UPSTREAM") + record.body


@pytest.mark.parametrize("kind", REQUESTS)
async def test_what_goes_up_is_what_the_session_would_write(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    ours = await written(REQUESTS[kind])
    monkeypatch.setattr(exchange, "MAX_BYTES", 0)
    assert ours == await written(REQUESTS[kind])


async def test_an_upload_that_is_here_goes_up_as_the_session_would_write_it(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request("PUT", "/a", ((b"content-LENGTH", b"5"), *PLAIN), "v")
    ours = await written(request, Upload(b"hello"))
    monkeypatch.setattr(exchange, "MAX_BYTES", 0)
    assert ours == await written(request, Upload(b"hello"))


async def test_an_upload_is_framed_also_where_its_length_was_taken_away() -> None:
    text = await written(Request("GET", "/a", (), "v"), Upload(b"GET /b HTTP/1.1\r\n\r\n"))
    assert b"\r\nContent-Length: 19\r\n" in text


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0b", b"\xff"])
async def test_lines_that_nobody_may_write_are_refused(value: bytes) -> None:
    async with RawUpstream(answers.respond()) as upstream, going_to(upstream) as transport:
        with pytest.raises(ClientError):
            await transport.send(Request("GET", "/a", ((b"X", value),), "v"))
        assert not upstream.connections


async def test_interim_answers_stay_here_and_a_connection_serves_again() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with RawUpstream(answers.raw(interim, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as upstream:
        async with going_to(upstream) as transport:
            for _ in range(3):
                reply = await transport.send(Request("GET", "/a", (), "v"))
                assert (reply.status, await reply.read(10, ROOM)) == (200, (b"ok", True))
        assert len(upstream.connections) == 1


async def test_an_answer_to_head_has_no_body_whatever_it_declares() -> None:
    async with RawUpstream(answers.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")) as upstream:
        async with going_to(upstream) as transport:
            for _ in range(2):
                reply = await transport.send(Request("HEAD", "/a", (), "v"))
                assert (reply.length, await reply.read(10, ROOM)) == (5, (b"", True))
        assert len(upstream.connections) == 2  # who declares a body may send it yet


@pytest.mark.parametrize(
    "line", [b"X: a\x7fb", b"X: \xc2\x9bb", b"X: \xff\x85", b"X: \xff\r\nY: \xc2\x85", b"X: \xff\r\nY: \xc2\x9b"]
)
async def test_an_answer_with_control_characters_is_refused_and_others_are_not(line: bytes) -> None:
    text = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n%b\r\n\r\n"
    async with RawUpstream(answers.raw(text % line)) as upstream, going_to(upstream) as transport:
        with pytest.raises(UpstreamError):
            await transport.send(Request("GET", "/a", (), "v"))
        # In UTF-8, and then not: bytes that would be control characters in the other reading.
        for sound in (b"X: \xd0\x85", b"X: \xd0\x85\r\nY: \xff"):
            upstream.answer = answers.raw(text % sound)
            assert (await transport.send(Request("GET", "/a", (), "v"))).status == 200


async def test_what_is_no_http_is_told_and_costs_no_slot() -> None:
    slots = Slots(max_inflight=1, max_queue=0, queue_wait_s=1.0)
    async with RawUpstream(answers.raw(b"hello\r\n\r\n")) as upstream, going_to(upstream, slots) as transport:
        for _ in range(2):
            with pytest.raises(UpstreamError) as told:
                await transport.send(Request("GET", "/a", (), "v"))
            assert told.value.code is ErrorCode.UPSTREAM_PROTOCOL
    assert slots.inflight == 0


async def test_who_leaves_before_the_head_ends_the_connection_and_gives_back_the_slot() -> None:
    slots = Slots(max_inflight=1, max_queue=0, queue_wait_s=1.0)
    async with RawUpstream(answers.hang()) as upstream, going_to(upstream, slots) as transport:
        asking = asyncio.ensure_future(transport.send(Request("GET", "/a", (), "v")))
        await wait_until(lambda: len(upstream.requests) == 1, what="the request to arrive")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert slots.inflight == 0
        await wait_until(lambda: upstream.connections_open == 0, what="the connection to end")


async def test_an_upstream_that_falls_silent_is_given_up_and_one_that_speaks_is_not() -> None:
    """Its one timer looks again for as long as something came since it was set."""
    async with RawUpstream(answers.hang()) as upstream:
        transport = HttpTransport(
            upstream.url,
            slots=Slots(max_inflight=4, max_queue=0, queue_wait_s=1.0),
            connect_timeout_s=5,
            read_timeout_s=0.3,
            keepalive_s=5,
            max_line_bytes=8190,
            max_lines=128,
        )
        with pytest.raises(UpstreamError) as told:
            await transport.send(Request("GET", "/a", (), "v"))
        assert told.value.code is ErrorCode.UPSTREAM_TIMEOUT
        upstream.answer = slow
        reply = await transport.send(Request("GET", "/a", (), "v"))
        assert await reply.read(100, ROOM) == (b"x" * 8, True)
        await transport.close()


async def slow(_request: object, writer: asyncio.StreamWriter) -> None:
    """A byte every tenth of a second, for longer than the time in which one must come."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
    for _ in range(8):
        await asyncio.sleep(0.1)
        writer.write(b"x")


HALF = b"HTTP/1.1 200 OK\r\nContent-Type: application/json"


@pytest.mark.parametrize(
    "before", [b"100 Continue", b"103 Early Hints", b"102 Processing\r\n\r\nHTTP/1.1 103 Early Hints"]
)
@pytest.mark.parametrize("after", [b"", HALF], ids=["nothing", "half a head"])
@pytest.mark.parametrize("content", [b"short", bytes(100_000)], ids=len)
async def test_an_upstream_that_falls_silent_behind_an_interim_answer_is_given_up(
    before: bytes, after: bytes, content: bytes
) -> None:
    """An interim answer is the end of one to aiohttp, which then waits for the real one without an end."""
    gone = asyncio.Event()

    async def half(_request: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 " + before + b"\r\n\r\n" + after)
        await gone.wait()

    async with RawUpstream(half) as upstream:
        transport = HttpTransport(
            upstream.url,
            slots=Slots(max_inflight=4, max_queue=0, queue_wait_s=1.0),
            connect_timeout_s=5,
            read_timeout_s=0.3,
            keepalive_s=5,
            max_line_bytes=8190,
            max_lines=128,
        )
        try:
            async with asyncio.timeout(10):
                with pytest.raises(UpstreamError) as told:
                    await transport.send(Request("POST", "/a", (), "v", content))
        finally:
            gone.set()
            await transport.close()
    assert told.value.code is ErrorCode.UPSTREAM_TIMEOUT
