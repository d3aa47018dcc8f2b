"""The gRPC edge against peers that no library plays: hostile clients, broken upstreams, TLS. HTTP/2 frames by hand."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proxy.core.answer import Answer, Body
from proxy.core.errors import ErrorCode, UpstreamError
from proxy.core.found import Found
from proxy.core.grpc_status import GrpcStatus
from proxy.core.outcome import Outcome
from proxy.core.request import HeaderLines, Request
from proxy.server.grpc.front import GrpcFront, Tls
from proxy.server.http.body import Patience
from proxy.transport.grpc import GrpcReply, GrpcTransport
from proxy.transport.slots import Slots
from tests.support.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RESET,
    SETTINGS,
    block,
    frame,
    grpc_head,
    grpc_message,
)
from tests.support.waiting import wait_until

# isort: split
import grpc
import grpc.aio

MESSAGE = grpc_message(b"m")

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def slots() -> Slots:
    return Slots(max_inflight=10, max_queue=100, queue_wait_s=1.0)


def request(path: bytes, *lines: tuple[bytes, bytes], stream: int = 1) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, grpc_head(path, *lines)) + frame(DATA, END_STREAM, stream, MESSAGE)


class Echo:
    """In the place of ``flow``."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.go = asyncio.Event()
        self.go.set()
        self.trailing: HeaderLines = ()

    async def answer(self, request: Request, body: Body, outcome: Outcome, found: Found | None = None) -> Answer:
        self.requests.append(request)
        await self.go.wait()
        return Answer(200, "", self.trailing, request.body or b"")


class Observer:
    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.faults: list[BaseException] = []

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def background_failed(self, error: BaseException) -> None:
        self.faults.append(error)


@contextlib.asynccontextmanager
async def front(tls: Tls | None = None, **options: Any) -> AsyncIterator[tuple[Echo, Observer, int]]:
    echo, observer = Echo(), Observer()
    served = GrpcFront(flow=echo, observer=observer, error_lines=lambda *_: (), patience=Patience(30), **options)  # type: ignore[arg-type]
    port = await served.listen("vectors", "127.0.0.1", 0, tls)
    try:
        yield echo, observer, port
    finally:
        await served.stop(0.5)


@contextlib.asynccontextmanager
async def client(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(PREFACE + frame(SETTINGS, 0, 0, b""))
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)  # for the socket to be closed


async def until(reader: asyncio.StreamReader, wanted: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(5):
        while wanted not in seen:
            piece = await reader.read(65536)
            if not piece:
                break
            seen += piece
    return seen


async def call(port: int, message: bytes = b"m", **options: Any) -> bytes:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer: bytes = await channel.unary_unary("/a/b")(message, **options)
    return answer


# --- clients ----------------------------------------------------------------------------------------------------------


class Crowd:
    """Clients that call all the time, each over a connection of its own; none of their calls may fail."""

    def __init__(self, port: int, clients: int = 8) -> None:
        self._port = port
        self._clients = clients
        self._is_over = False
        self.answered = 0

    async def _calls(self) -> None:
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{self._port}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            method = channel.unary_unary("/a/b")
            while not self._is_over:
                assert await method(b"m", timeout=10) == b"m"
                self.answered += 1

    @contextlib.asynccontextmanager
    async def calling(self) -> AsyncIterator["Crowd"]:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._calls())
            await self.more(self._clients)
            yield self
            await self.more(self._clients)
            self._is_over = True

    async def more(self, calls: int) -> None:
        """Wait until so many more are answered."""
        wanted = self.answered + calls
        await wait_until(lambda: self.answered >= wanted, what="calls of others")


async def test_s15_a_name_that_is_not_text_ends_no_call_but_its_own() -> None:
    """Neither those that run, nor those that begin at the same moment, on whatever connection."""
    async with front() as (echo, observer, port), Crowd(port).calling() as crowd:
        echo.go.clear()
        running = asyncio.ensure_future(call(port, b"before"))
        await wait_until(lambda: any(each.body == b"before" for each in echo.requests))
        echo.go.set()
        for stream in range(1, 41, 2):
            async with client(port) as (reader, writer):
                writer.write(request(b"/a\xff/b", stream=stream) + request(b"/a/b", stream=stream + 2))
                seen = await until(reader, b"grpc-status\x010")
            assert b"grpc-status\x011" in seen  # CANCELLED
            await crowd.more(4)
        assert await running == b"before"
    refused = [each for each in observer.outcomes if each.detail == ErrorCode.BAD_REQUEST]
    assert len(refused) == 20
    assert not observer.faults


ODD_HEADS: dict[str, bytes] = {
    "name of a continuation byte": grpc_head(b"/\x80"),
    "name half a character": grpc_head(b"/a/\xc3"),
    "name a surrogate": grpc_head(b"/\xed\xa0\x80"),
    "name a NUL": grpc_head(b"/a\0/b"),
    "name empty": grpc_head(b""),
    "name without a slash": grpc_head(b"*"),
    "name very long": grpc_head(b"/" + b"a" * 60_000),
    "name missing": block((b":method", b"POST"), (b":scheme", b"http"), (b"te", b"trailers")),
    "name twice": grpc_head(b"/a/b", (b":path", b"/a\xff")),
    "authority not text": block(
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/b"), (b":authority", b"\xff\xfe"),
        (b"te", b"trailers"), (b"content-type", b"application/grpc"),
    ),
    "host not text": grpc_head(b"/a/b", (b"host", b"\xff")),
    "agent not text": grpc_head(b"/a/b", (b"user-agent", b"\xff")),
    "key not text": grpc_head(b"/a/b", (b"\xff\xfe", b"v")),
    "key upper case": grpc_head(b"/a/b", (b"X-Upper", b"v")),
    "key empty": grpc_head(b"/a/b", (b"", b"v")),
    "value not text": grpc_head(b"/a/b", (b"x", b"\xff")),
    "binary not base64": grpc_head(b"/a/b", (b"x-bin", b"!!!not base64!!!")),
    "binary cut short": grpc_head(b"/a/b", (b"x-bin", b"A")),
    "timeout odd": grpc_head(b"/a/b", (b"grpc-timeout", b"\xff9Z")),
    "encoding unknown": grpc_head(b"/a/b", (b"grpc-encoding", b"\xff")),
    "trace not text": grpc_head(b"/a/b", (b"grpc-trace-bin", b"\xff"), (b"traceparent", b"\xff")),
    "type not gRPC": block(
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/b"), (b"content-type", b"text/\xff"),
    ),
    "method GET": block((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/a/b"), (b"te", b"trailers")),
    "method not text": block((b":method", b"\xff"), (b":scheme", b"http"), (b":path", b"/a/b"), (b"te", b"trailers")),
    "scheme not text": block((b":method", b"POST"), (b":scheme", b"\xff"), (b":path", b"/a/b"), (b"te", b"trailers")),
    "block cut short": grpc_head(b"/a/b")[:-3],
    "block of noise": bytes(range(256)),
    "index out of the table": b"\xff\xff\xff\xff\x7f",
}  # fmt: skip


@pytest.mark.parametrize("head", [pytest.param(head, id=name) for name, head in ODD_HEADS.items()])
async def test_s15_an_odd_head_ends_no_call_but_its_own(head: bytes) -> None:
    async with front() as (_, observer, port), Crowd(port, clients=2).calling() as crowd:
        for _ in range(5):
            async with client(port) as (_, writer):
                pieces = [head[at : at + 16_000] for at in range(0, len(head), 16_000)] or [b""]
                last = len(pieces) - 1
                for at, piece in enumerate(pieces):
                    writer.write(frame(CONTINUATION if at else HEADERS, END_HEADERS if at == last else 0, 1, piece))
                writer.write(frame(DATA, END_STREAM, 1, MESSAGE))
                await crowd.more(4)
    assert not observer.faults


@pytest.mark.parametrize("name", [b"\xff\xfe", "é".encode(), b"a b", b"a/b", b"(a)-bin"])
async def test_a_metadata_name_that_grpc_has_not_is_refused(name: bytes) -> None:
    async with front() as (echo, observer, port), client(port) as (_, writer):
        writer.write(request(b"/a/b", (name, b"v")))
        await wait_until(lambda: observer.outcomes, what="the call to be told of")
    assert (observer.outcomes[0].status, observer.outcomes[0].detail) == (400, ErrorCode.BAD_REQUEST)
    assert not echo.requests
    assert not observer.faults


@pytest.mark.parametrize("value", [b"\xe9", b"a\x7f", "é".encode(), b"a\tb"])
async def test_a_metadata_value_that_cannot_be_passed_on_is_refused(value: bytes) -> None:
    async with front() as (echo, observer, port), client(port) as (reader, writer):
        writer.write(request(b"/a/b", (b"dashvector-auth-token", value)))
        seen = await until(reader, b"grpc-status")
        await wait_until(lambda: observer.outcomes)
    assert b"grpc-status\x013" in seen
    assert observer.outcomes[0].status == 400
    assert not echo.requests


async def test_lines_of_an_answer_that_grpc_cannot_carry_are_left_out() -> None:
    async with front() as (echo, _, port):
        echo.trailing = ((b"Content-Type", b"application/json"), (b"X-Note", b"caf\xe9"), (b"X-Request-Id", b"1"))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            answering = channel.unary_unary("/a/b")(b"m")
            assert await answering == b"m"
            assert tuple(await answering.trailing_metadata()) == (("x-request-id", "1"),)


@pytest.mark.parametrize(("interval_s", "is_tolerated"), [(0.02, True), (10.0, False)])
async def test_pings_between_calls_are_permitted_at_the_agreed_pace(interval_s: float, is_tolerated: bool) -> None:
    async with front(min_ping_interval_s=interval_s) as (_, _, port), client(port) as (reader, writer):
        seen = asyncio.ensure_future(until(reader, b"too_many_pings" if not is_tolerated else b"grpc-status\x010"))
        for number in range(8):
            writer.write(frame(PING, 0, 0, b"%08d" % number))
            await asyncio.sleep(0.05)
        if is_tolerated:
            writer.write(request(b"/a/b"))
        assert (b"too_many_pings" in await seen) is not is_tolerated


async def test_streams_are_bounded() -> None:
    async with front(max_streams=7) as (_, _, port), client(port) as (reader, _):
        seen = await until(reader, b"\x00\x03\x00\x00\x00\x07")  # SETTINGS_MAX_CONCURRENT_STREAMS
    assert b"\x00\x03\x00\x00\x00\x07" in seen


async def test_half_a_message_and_a_closed_connection_leave_nothing() -> None:
    async with front() as (echo, observer, port):
        async with client(port) as (_, writer):
            writer.write(request(b"/a/b")[:-3])
            await writer.drain()
        assert await call(port) == b"m"
        await wait_until(lambda: observer.outcomes)
    assert len(echo.requests) == 1


async def test_r8_a_client_that_closes_its_connection_cancels() -> None:
    async with front() as (echo, observer, port):
        echo.go.clear()
        async with client(port) as (_, writer):
            writer.write(request(b"/a/b"))
            await wait_until(lambda: echo.requests)
        await wait_until(lambda: observer.outcomes)
    assert observer.outcomes[0].client_gone


# --- upstreams --------------------------------------------------------------------------------------------------------


def to_port(port: int) -> GrpcTransport:
    return GrpcTransport(f"127.0.0.1:{port}", secure=False, slots=slots(), connect_timeout_s=1.0, read_timeout_s=5.0)


@contextlib.asynccontextmanager
async def upstream(peer: Peer) -> AsyncIterator[GrpcTransport]:
    connections: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await peer(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    transport = to_port(server.sockets[0].getsockname()[1])
    try:
        yield transport
    finally:
        await transport.close()
        server.close()
        await asyncio.sleep(0.02)  # for a connection that was just accepted to have its task
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections)
        await asyncio.sleep(0)  # for the sockets to be closed


def after_the_call(reply: bytes) -> Peer:
    """An upstream that answers the first call with *reply* and closes."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(SETTINGS, 0, 0, b""))
        seen = b""
        while MESSAGE not in seen:
            seen += await reader.read(65536) or b"\xff" + MESSAGE
        writer.write(reply)
        await writer.drain()
        await asyncio.sleep(0.05)

    return peer


async def sent(transport: GrpcTransport, timeout_s: float | None = None) -> GrpcReply:
    return await transport.send(Request("GRPC", "/a/b", (), "vectors", b"m", timeout_s))


def ended(*lines: tuple[bytes, bytes]) -> Peer:
    """An upstream that answers with nothing but these trailers."""
    return after_the_call(frame(HEADERS, END_HEADERS | END_STREAM, 1, block(*lines)))


OK = (b":status", b"200")
GRPC = (b"content-type", b"application/grpc")


@pytest.mark.parametrize(
    ("reply", "is_retryable"),
    [
        (b"", False),
        (frame(RESET, 0, 1, b"\0\0\0\x07"), True),
        (frame(GOAWAY, 0, 0, b"\0\0\0\x01" + b"\0\0\0\0"), False),
        (frame(HEADERS, END_HEADERS, 1, block(OK, GRPC)) + frame(DATA, 0, 1, MESSAGE[:3]), False),
    ],
    ids=["closed", "refused", "going-away", "half-answer"],
)
async def test_a_call_that_may_have_been_executed_is_not_retryable(reply: bytes, is_retryable: bool) -> None:
    async with upstream(after_the_call(reply)) as transport:
        with pytest.raises(UpstreamError) as caught:
            await sent(transport)
    assert caught.value.code is ErrorCode.UPSTREAM_UNREACHABLE
    assert caught.value.retryable is is_retryable


async def test_a_write_is_sent_once_whatever_happens() -> None:
    calls = 0

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        await after_the_call(frame(RESET, 0, 1, b"\0\0\0\x07"))(reader, writer)
        calls += 1
        await asyncio.sleep(0.5)

    async with upstream(peer) as transport:
        with pytest.raises(UpstreamError):
            await sent(transport)
        await asyncio.sleep(0.3)
    assert calls == 1


async def test_an_ok_without_a_message_is_no_answer() -> None:
    async with upstream(ended(OK, GRPC, (b"grpc-status", b"0"))) as transport:
        with pytest.raises(UpstreamError) as caught:
            await sent(transport)
    assert caught.value.code is ErrorCode.UPSTREAM_PROTOCOL


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((OK, GRPC, (b"grpc-status", b"14"), (b"grpc-message", b"off%20duty")), GrpcStatus(14, "off duty")),
        ((OK, GRPC, (b"grpc-status", b"17"), (b"grpc-message", b"new")), GrpcStatus(2, "new")),
        (((b":status", b"502"), (b"content-type", b"text/html")), None),
    ],
    ids=["unavailable", "unknown-number", "a gateway's HTTP error"],
)
async def test_what_an_upstream_says_is_passed_on(lines: Any, status: GrpcStatus | None) -> None:
    async with upstream(ended(*lines)) as transport:
        reply = await sent(transport)
    assert reply.status == 502
    assert reply.grpc_status is not None
    if status is not None:
        assert reply.grpc_status == status
    else:
        assert reply.grpc_status.code == 14


async def test_an_answer_over_the_limit_is_no_answer() -> None:
    huge = b"\0" + (200 * 1024 * 1024).to_bytes(4, "big")
    head = frame(HEADERS, END_HEADERS, 1, block(OK, GRPC)) + frame(DATA, 0, 1, huge)
    async with upstream(after_the_call(head)) as transport:
        with pytest.raises(UpstreamError) as caught:
            await sent(transport)
    assert caught.value.code is ErrorCode.UPSTREAM_PROTOCOL


async def test_an_upstream_that_does_not_shake_hands_is_left_after_the_connect_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, and nobody says a word
        transport = to_port(silent.getsockname()[1])
        with pytest.raises(UpstreamError) as caught:
            async with asyncio.timeout(4):
                await sent(transport)
        await transport.close()
    assert caught.value.retryable


async def test_replies_read_like_any_other() -> None:
    reply = GrpcReply(b"message", (), GrpcStatus())
    assert await reply.read(1, lambda _: True) == (b"message", True)
    assert [piece async for piece in reply] == [b"message"]
    assert (reply.status, reply.length) == (200, 7)
    reply.close()


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    """A certificate for 127.0.0.1 that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy.local")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = Tls(tmp_path / "certificate.pem", tmp_path / "key.pem")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


async def test_tls_at_both_ends(tls: Tls) -> None:
    async with front(tls) as (_, _, port):
        roots = tls.certificate.read_bytes()
        limits = {"slots": slots(), "connect_timeout_s": 2.0, "read_timeout_s": 5.0}
        trusting = GrpcTransport(f"127.0.0.1:{port}", secure=True, roots=roots, **limits)  # type: ignore[arg-type]
        wary = GrpcTransport(f"127.0.0.1:{port}", secure=True, **limits)  # type: ignore[arg-type]
        assert [piece async for piece in await sent(trusting)] == [b"m"]
        with pytest.raises(UpstreamError) as caught:
            await sent(wary)
        assert trusting.origin == f"grpcs://127.0.0.1:{port}"
        await trusting.close()
        await wary.close()
    assert caught.value.code is ErrorCode.UPSTREAM_UNREACHABLE
