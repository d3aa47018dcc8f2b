"""The gRPC edge, front and transport together over real sockets: a client, the proxy, an upstream double."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from proxy.core.answer import Answer, Body
from proxy.core.errors import ClientError, ErrorCode, ProxyError, UpstreamError
from proxy.core.found import Found
from proxy.core.grpc_status import GrpcStatus
from proxy.core.outcome import CacheState, Outcome
from proxy.core.request import Head, Request
from proxy.server.grpc.front import GrpcFront
from proxy.server.grpc.listener_close import SETTLE_S
from proxy.server.http.body import Patience
from proxy.transport.grpc import MAX_MESSAGE_BYTES, GrpcReply, GrpcTransport
from proxy.transport.slots import Slots
from tests.support.gate import Gate
from tests.support.ports import PortReservation
from tests.support.waiting import wait_until

# isort: split
import grpc
import grpc.aio

BIG = (("grpc.max_send_message_length", MAX_MESSAGE_BYTES), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES))
QUERY = "/proxima.dashvector.proto.DashVectorService/query_doc"
Handler = Callable[[bytes, Any], Awaitable[bytes]]


def slots(max_inflight: int, queue_wait_s: float = 1.0) -> Slots:
    return Slots(max_inflight=max_inflight, max_queue=1000, queue_wait_s=queue_wait_s)


async def _echo(message: bytes, context: Any) -> bytes:
    return message


@dataclass
class Upstream:
    """A gRPC server that takes any method; *handler* answers."""

    handler: Handler = _echo
    calls: list[tuple[str, tuple[tuple[str, str | bytes], ...], bytes]] = field(default_factory=list)
    deadlines: list[float | None] = field(default_factory=list)
    cancelled: int = 0
    server: Any = None

    async def start(self, port: int = 0) -> int:
        self.server = grpc.aio.server(handlers=(self,), options=BIG)
        bound: int = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()
        return bound

    def service(self, details: Any) -> Any:
        async def handle(message: bytes, context: Any) -> bytes:
            self.calls.append((details.method, tuple(map(tuple, context.invocation_metadata())), message))
            self.deadlines.append(context.time_remaining())
            try:
                return await self.handler(message, context)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

        return grpc.unary_unary_rpc_method_handler(handle)


@dataclass
class Relay:
    """In the place of ``flow``: asks the upstream, or raises *error*, and remembers."""

    transport: GrpcTransport
    error: Exception | None = None
    requests: list[Request] = field(default_factory=list)
    found: list[Found | None] = field(default_factory=list)
    ran_after: int = 0

    async def answer(self, request: Request, body: Body, outcome: Outcome, found: Found | None = None) -> Answer:
        self.requests.append(request)
        self.found.append(found)
        if self.error is not None:
            raise self.error
        reply: GrpcReply = await self.transport.send(request, body)
        outcome.state, outcome.items = CacheState.MISS, 1
        return Answer(
            reply.status, "", reply.headers, reply, reply.length, after=self._after, grpc_status=reply.grpc_status
        )

    def _after(self) -> None:
        self.ran_after += 1


@dataclass
class Known:
    """In the place of ``AtOnce``: answers the *hits*, has *found* something for others, if told to; *gate* holds it."""

    hits: frozenset[bytes] = frozenset({b"hit"})
    found: Found | None = None
    gate: Gate | None = None
    heads: list[Head] = field(default_factory=list)

    async def recalled(self, head: Head, body: bytes, outcome: Outcome) -> Answer | Found | None:
        self.heads.append(head)
        outcome.state = CacheState.BYPASS
        if self.gate is not None:
            await self.gate.wait()
        if body not in self.hits:
            return self.found
        outcome.state, outcome.items, outcome.hits_redis, outcome.ttl_s = CacheState.HIT, 1, 1, 9
        return Answer(200, "OK", ((b"Content-Type", b"application/json"), (b"X-Request-Id", b"ours")), b"kept")


@dataclass
class Observer:
    outcomes: list[Outcome] = field(default_factory=list)
    faults: list[BaseException] = field(default_factory=list)

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def background_failed(self, error: BaseException) -> None:
        self.faults.append(error)


@dataclass
class Rig:
    upstream: Upstream
    relay: Relay
    observer: Observer
    front: GrpcFront
    port: int
    channel: Any

    def call(self, message: bytes = b"m", method: str = QUERY, **options: Any) -> Any:
        return self.channel.unary_unary(method)(message, **options)

    async def failure(self, message: bytes = b"m", method: str = QUERY, **options: Any) -> Any:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(message, method, **options)
        return caught.value

    async def observed(self, count: int = 1) -> list[Outcome]:
        await wait_until(lambda: len(self.observer.outcomes) >= count, what="outcomes")
        return self.observer.outcomes


@contextlib.asynccontextmanager
async def running(
    handler: Handler = _echo,
    *,
    max_inflight: int = 300,
    queue_wait_s: float = 1.0,
    read_timeout_s: float = 20.0,
    max_streams: int = 256,
    known: Known | None = None,
) -> AsyncIterator[Rig]:
    upstream = Upstream(handler)
    target = f"127.0.0.1:{await upstream.start()}"
    transport = GrpcTransport(
        target,
        secure=False,
        slots=slots(max_inflight, queue_wait_s),
        connect_timeout_s=2.0,
        read_timeout_s=read_timeout_s,
    )
    relay, observer = Relay(transport), Observer()
    front = GrpcFront(
        flow=relay,  # type: ignore[arg-type]
        at_once=known,  # type: ignore[arg-type]
        observer=observer,
        error_lines=lambda request_id: ((b"request-id", b"ours"), (b"extra-code", b"-999")),
        max_streams=max_streams,
        patience=Patience(30),
    )
    port = await front.listen("vectors", "127.0.0.1", 0)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=BIG) as channel:
            yield Rig(upstream, relay, observer, front, port, channel)
    finally:
        await front.stop(1.0)
        await transport.close()
        await upstream.server.stop(None)
    assert front.running == 0


# --- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2_000, 20 * 1024 * 1024])
async def test_messages_pass_byte_for_byte(size: int) -> None:
    message = bytes(range(256)) * (size // 256) + b"\xff" * (size % 256)
    async with running() as rig:
        assert await rig.call(message) == message
        (outcome,) = await rig.observed()
    assert rig.upstream.calls[0][2] == message
    assert (outcome.upstream, outcome.status, outcome.bytes_in, outcome.bytes_out) == ("vectors", 200, size, size)


@pytest.mark.parametrize("method", [QUERY, "/other.Service/unheard_of", "/a/b?c#d%2f"])
async def test_any_method_passes_with_its_name(method: str) -> None:
    async with running() as rig:
        await rig.call(method=method)
    assert rig.upstream.calls[0][0] == method
    assert (rig.relay.requests[0].method, rig.relay.requests[0].target) == ("GRPC", method)


async def test_metadata_passes_upwards() -> None:
    sent = (
        ("dashvector-auth-token", "sk-1"),
        ("collection-name", "c"),
        ("twice", "1"),
        ("twice", "2"),
        ("odd", "~ !\"#$%&'()*+,/:;<=>?@[]^`{|}"),
        ("raw-bin", b"\x00\xff\x80,"),
        ("raw-bin", b""),
        ("accept-encoding", "gzip"),
    )
    async with running() as rig:
        await rig.call(metadata=sent)
    received = [line for line in rig.upstream.calls[0][1] if line[0] != "user-agent"]
    assert received == list(sent[:-1])
    assert (b"raw-bin", b"\x00\xff\x80,") in rig.relay.requests[0].headers


async def test_metadata_passes_downwards_before_and_after_the_message() -> None:
    async def handler(message: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("first", "1"), ("first", "2"), ("first-bin", b"\xfe\x00")))
        context.set_trailing_metadata((("request-id", "r"), ("last", "1"), ("last", "2"), ("last-bin", b"\x00\xff")))
        return message

    async with running(handler) as rig:
        call = rig.call()
        await call
        initial = tuple(map(tuple, await call.initial_metadata()))
        trailing = tuple(map(tuple, await call.trailing_metadata()))
    assert initial == (("first", "1"), ("first", "2"), ("first-bin", b"\xfe\x00"))
    assert trailing[:4] == (("request-id", "r"), ("last", "1"), ("last", "2"), ("last-bin", b"\x00\xff"))
    assert [name for name, _ in trailing[4:]] == ["cache-status", "x-dashcache-items"]


@pytest.mark.parametrize("code", [grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT])
async def test_trailers_in_bin_pass_but_for_those_of_the_transport(code: Any) -> None:
    """The trailer with an error's details (google.rpc.Status) begins with ``grpc-`` too."""
    applications = (("grpc-status-details-bin", b"\x08\x03\x12\xff"), ("grpc-new-bin", b"\x00"), ("x-bin", b"\xfe"))

    async def handler(message: bytes, context: Any) -> bytes:
        trailing = (*applications, ("grpc-server-stats-bin", b"1"), ("grpc-trace-bin", b"1"), ("grpc-tags-bin", b"1"))
        await context.send_initial_metadata((("grpc-initial-bin", b"\x01"),))
        if code is not grpc.StatusCode.OK:
            await context.abort(code, "no", trailing)
        context.set_trailing_metadata(trailing)
        return message

    async with running(handler) as rig:
        call = rig.call()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call
        assert await call.code() is code
        assert tuple(map(tuple, await call.initial_metadata())) == (("grpc-initial-bin", b"\x01"),)
        trailing = tuple(map(tuple, await call.trailing_metadata()))
    assert tuple(line for line in trailing if line[0].endswith("-bin")) == applications


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_an_upstreams_status_passes_unchanged(code: Any) -> None:
    async def handler(message: bytes, context: Any) -> bytes:
        await context.abort(code, "Änderung: 100 % \n gone", (("request-id", "r"), ("extra-code", "-2034")))
        return b""

    async with running(handler) as rig:
        error = await rig.failure()
        (outcome,) = await rig.observed()
    assert (error.code(), error.details()) == (code, "Änderung: 100 % \n gone")
    assert tuple(map(tuple, error.trailing_metadata()))[:2] == (("request-id", "r"), ("extra-code", "-2034"))
    assert (outcome.grpc_code, outcome.status, rig.relay.ran_after) == (
        code.value[0],
        GrpcStatus(code.value[0]).as_http,
        1,
    )
    assert outcome.state is not CacheState.REFUSED


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_a_status_without_details_and_metadata_passes_too(code: Any) -> None:
    async def handler(message: bytes, context: Any) -> bytes:
        await context.abort(code)
        return b""

    async with running(handler) as rig:
        error = await rig.failure(timeout=10)
        (outcome,) = await rig.observed()
    assert (error.code(), error.details()) == (code, "")
    assert outcome.state is not CacheState.REFUSED


async def test_initial_metadata_before_an_error_passes() -> None:
    async def handler(message: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("first", "1"),))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return b""

    async with running(handler) as rig:
        error = await rig.failure()
    assert tuple(error.initial_metadata()) == (("first", "1"),)
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "Socket closed")


async def test_two_hundred_calls_at_once() -> None:
    together = asyncio.Event()

    async def handler(message: bytes, context: Any) -> bytes:
        if len(rig.upstream.calls) == 200:
            together.set()
        await together.wait()
        return message

    async with running(handler) as rig:
        answers = await asyncio.gather(*(_awaited(rig.call(b"%d" % number)) for number in range(200)))
        await rig.observed(200)
    assert answers == [b"%d" % number for number in range(200)]
    assert rig.relay.ran_after == 200


async def test_work_for_afterwards_runs_when_the_answer_is_out() -> None:
    async with running() as rig:
        await rig.call()
        await wait_until(lambda: rig.relay.ran_after == 1)


# --- time -------------------------------------------------------------------------------------------------------------


async def test_the_clients_deadline_reaches_the_upstream() -> None:
    async with running(read_timeout_s=7.0) as rig:
        await rig.call(timeout=3)
        await rig.call()
    with_deadline, without = rig.upstream.deadlines
    assert 2 < (with_deadline or 0) < 3.2
    assert 6 < (without or 0) < 7.2
    assert rig.relay.requests[1].timeout_s is None


async def test_a_deadline_that_passes_ends_the_upstream_call() -> None:
    async with running(_never) as rig:
        error = await rig.failure(timeout=0.3)
        await wait_until(lambda: rig.upstream.cancelled == 1)
        (outcome,) = await rig.observed()
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert outcome.total_ms > 200


async def test_an_upstream_that_never_answers_is_our_deadline() -> None:
    async with running(_never, read_timeout_s=0.3) as rig:
        error = await rig.failure()
        (outcome,) = await rig.observed()
    assert (error.code(), error.details()) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "UpstreamTimeout: the upstream did not answer in time",
    )
    assert (outcome.state, outcome.detail, outcome.status) == (CacheState.REFUSED, "UpstreamTimeout", 504)


async def test_r8_a_client_that_leaves_cancels_the_upstream_call() -> None:
    async with running(_never) as rig:
        call = rig.call()
        waiting = asyncio.ensure_future(_awaited(call))
        await wait_until(lambda: rig.upstream.calls)
        call.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await wait_until(lambda: rig.upstream.cancelled == 1)
        (outcome,) = await rig.observed()
    assert outcome.client_gone
    assert rig.relay.ran_after == 0


async def test_calls_beyond_the_limit_wait_and_then_are_refused() -> None:
    async with running(_never, max_inflight=1) as rig:
        first = asyncio.ensure_future(_awaited(rig.call()))
        await wait_until(lambda: rig.upstream.calls)
        with pytest.raises(UpstreamError) as caught:
            await rig.relay.transport.send(Request("GRPC", QUERY, (), "vectors", b"", 0.2))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert (caught.value.code, caught.value.status) == (ErrorCode.UPSTREAM_BUSY, 503)
    assert len(rig.upstream.calls) == 1


async def test_a_client_with_all_the_time_in_the_world_is_told_soon_and_may_try_again() -> None:
    gate = asyncio.Event()

    async def held(message: bytes, context: Any) -> bytes:
        await gate.wait()
        return message

    async with running(held, max_inflight=1, queue_wait_s=0.05) as rig:
        first = asyncio.ensure_future(rig.call())
        await wait_until(lambda: rig.upstream.calls, what="the first call")
        error = await rig.failure(timeout=60)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details().startswith("UpstreamBusy: ")
        assert ("x-dashcache-error", "UpstreamBusy") in tuple(error.trailing_metadata())
        gate.set()
        assert await first == b"m"
        assert await rig.call() == b"m"
    assert len(rig.upstream.calls) == 2
    refused = next(outcome for outcome in rig.observer.outcomes if outcome.detail == ErrorCode.UPSTREAM_BUSY)
    assert (refused.state, refused.status) == (CacheState.REFUSED, 503)


# --- errors of ours ---------------------------------------------------------------------------------------------------


async def test_an_upstream_that_is_gone_and_comes_back() -> None:
    with contextlib.closing(PortReservation()) as reserved:
        transport = GrpcTransport(
            f"127.0.0.1:{reserved.port}", secure=False, slots=slots(9), connect_timeout_s=2.0, read_timeout_s=5.0
        )
        request = Request("GRPC", QUERY, (), "vectors", b"m")
        with pytest.raises(UpstreamError) as caught:
            await transport.send(request)
        assert (caught.value.code, caught.value.status, caught.value.retryable) == (
            ErrorCode.UPSTREAM_UNREACHABLE,
            502,
            True,
        )
    upstream = Upstream()
    await upstream.start(reserved.port)

    async def answered() -> bool:
        with contextlib.suppress(UpstreamError):
            return (await transport.send(request)).status == 200
        return False

    await wait_until(answered, timeout=5)
    await transport.close()
    await upstream.server.stop(None)


async def test_the_client_is_told_that_the_upstream_is_gone() -> None:
    async with running() as rig:
        await rig.upstream.server.stop(None)
        error = await rig.failure()
        (outcome,) = await rig.observed()
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNAVAILABLE,
        "UpstreamUnreachable: the upstream cannot be reached",
    )
    assert tuple(error.trailing_metadata()) == (
        ("request-id", "ours"),
        ("extra-code", "-999"),
        ("x-dashcache-error", "UpstreamUnreachable"),
    )
    assert (outcome.state, outcome.detail) == (CacheState.REFUSED, "UpstreamUnreachable")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ClientError(ErrorCode.BAD_REQUEST, "words"), grpc.StatusCode.INVALID_ARGUMENT),
        (ClientError(ErrorCode.NOT_IN_CACHE, "words", 504), grpc.StatusCode.DEADLINE_EXCEEDED),
        (UpstreamError(ErrorCode.UPSTREAM_PROTOCOL, "words"), grpc.StatusCode.UNAVAILABLE),
        (UpstreamError(ErrorCode.UPSTREAM_BUSY, "words", 503), grpc.StatusCode.UNAVAILABLE),
        (ProxyError(ErrorCode.INTERNAL, "words"), grpc.StatusCode.INTERNAL),
    ],
)
async def test_errors_of_ours_have_a_fitting_code(error: ProxyError, code: Any) -> None:
    async with running() as rig:
        rig.relay.error = error
        told = await rig.failure()
    assert (told.code(), told.details()) == (code, f"{error.code}: words")
    assert not rig.observer.faults


async def test_a_fault_of_ours_shows_nothing_of_itself() -> None:
    async with running() as rig:
        rig.relay.error = KeyError("sk-secret")
        told = await rig.failure()
        (outcome,) = await rig.observed()
    assert (told.code(), told.details()) == (grpc.StatusCode.INTERNAL, "ProxyError: the proxy failed")
    assert isinstance(rig.observer.faults[0], KeyError)
    assert outcome.state is CacheState.REFUSED


@pytest.mark.parametrize("count", [0, 2, 3])
async def test_a_stream_of_messages_is_refused_and_not_cut(count: int) -> None:
    async def messages() -> AsyncIterator[bytes]:
        for number in range(count):
            yield b"%d" % number

    async with running() as rig:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.channel.stream_unary(QUERY)(messages())
        (outcome,) = await rig.observed()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert (outcome.state, outcome.status, rig.upstream.calls) == (CacheState.REFUSED, 501, [])


async def test_a_message_over_the_limit_is_refused() -> None:
    async with running() as rig:
        options = (("grpc.max_send_message_length", -1),)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.port}", options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(QUERY)(bytes(MAX_MESSAGE_BYTES + 1))
        assert await rig.call() == b"m"
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(rig.upstream.calls) == 1


# --- calls that are known ---------------------------------------------------------------------------------------------


async def test_a_known_call_is_answered_without_the_flow_and_told_of() -> None:
    async with running(known=Known()) as rig:
        call = rig.call(b"hit")
        assert await call == b"kept"
        trailing = tuple(map(tuple, await call.trailing_metadata()))
        (outcome,) = await rig.observed()
        assert rig.front.running == 0
    assert trailing == (
        ("x-request-id", "ours"),
        ("cache-status", "dashcache; hit; ttl=9"),
        ("x-dashcache-items", "1/1"),
    )
    assert (outcome.state, outcome.status, outcome.grpc_code, outcome.upstream) == (CacheState.HIT, 200, 0, "vectors")
    assert (outcome.bytes_in, outcome.bytes_out) == (3, 4)
    assert outcome.total_ms > 0
    assert (rig.relay.requests, rig.relay.ran_after) == ([], 0)


async def test_what_was_found_goes_along_to_the_flow() -> None:
    known = Known(found=Found(redis_s=0.5))
    async with running(known=known) as rig:
        assert await rig.call(b"other", metadata=(("a", "b"),)) == b"other"
        await rig.observed()
    assert rig.relay.found == [known.found]
    assert rig.relay.requests[0].head is known.heads[0]
    assert (b"a", b"b") in rig.relay.requests[0].headers


async def test_calls_with_equal_metadata_have_one_head_and_others_have_another() -> None:
    known = Known()
    async with running(known=known) as rig:
        for metadata in ((("key", "a"),), (("key", "a"),), (("key", "b"),), (("key-bin", b"a"),)):
            await rig.call(b"hit", metadata=metadata)
        await rig.call(b"hit", method=QUERY + "_group_by", metadata=(("key", "a"),))
        await rig.observed(5)
    first, again, *others = known.heads
    assert first is again
    assert len({id(head) for head in known.heads}) == 1 + len(others)
    assert [head.target for head in known.heads][-2:] == [QUERY, QUERY + "_group_by"]


@pytest.mark.parametrize(("messages", "is_answered"), [((b"hit", b"more"), True), ((b"other", b"more"), False)])
async def test_a_second_message_is_refused_unless_the_first_is_answered_from_the_cache(
    messages: tuple[bytes, ...], is_answered: bool
) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    async with running(known=Known()) as rig:
        call = rig.channel.stream_unary(QUERY)(stream())
        code = await call.code()
        # A call that is answered before its client has written all: grpc.aio's client may report its own failed write.
        was_cut = is_answered and code is grpc.StatusCode.INTERNAL
        if is_answered and not was_cut:
            assert await call == b"kept"
        (outcome,) = await rig.observed()
        assert rig.relay.requests == rig.upstream.calls == []
    assert was_cut or code is (grpc.StatusCode.OK if is_answered else grpc.StatusCode.UNIMPLEMENTED)
    assert outcome.grpc_code == (grpc.StatusCode.OK if is_answered else grpc.StatusCode.UNIMPLEMENTED).value[0]
    assert outcome.state is (CacheState.HIT if is_answered else CacheState.REFUSED)


async def test_r8_a_client_that_leaves_while_redis_is_asked_is_told_of_once() -> None:
    known = Known(gate=Gate("redis"))
    async with running(known=known) as rig:
        call = rig.call(b"hit")
        waiting = asyncio.ensure_future(_awaited(call))
        await known.gate.wait_arrived()  # type: ignore[union-attr]
        call.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        (outcome,) = await rig.observed()
        assert rig.front.running == 0
        assert (outcome.client_gone, outcome.state) == (True, CacheState.CLIENT_CLOSED)
        known.gate.open()  # type: ignore[union-attr]
        assert await rig.call(b"hit") == b"kept"
        assert len(await rig.observed(2)) == 2
    assert rig.relay.requests == []


# --- ports ------------------------------------------------------------------------------------------------------------


async def test_workers_share_a_port() -> None:
    async with running() as rig:
        other = GrpcFront(flow=rig.relay, observer=rig.observer, error_lines=lambda *_: (), patience=Patience(30))  # type: ignore[arg-type]
        assert await other.listen("vectors", "127.0.0.1", rig.port) == rig.port
        await other.stop(0)


async def test_stopping_waits_for_running_calls_and_takes_no_new_ones() -> None:
    go = asyncio.Event()

    async def handler(message: bytes, context: Any) -> bytes:
        await go.wait()
        return message

    async with running(handler) as rig:
        running_call = asyncio.ensure_future(_awaited(rig.call()))
        await wait_until(lambda: rig.upstream.calls)
        stopping = asyncio.ensure_future(rig.front.stop(5.0))
        await asyncio.sleep(SETTLE_S + 0.1)
        assert (await rig.failure(b"late")).code() is grpc.StatusCode.UNAVAILABLE
        assert not stopping.done()
        go.set()
        assert await running_call == b"m"
        await stopping
        assert len(rig.observer.outcomes) == 1


async def test_stopping_ends_what_takes_too_long() -> None:
    async with running(_never) as rig:
        stuck = asyncio.ensure_future(rig.failure())
        await wait_until(lambda: rig.upstream.calls)
        await rig.front.stop(0.2)
        assert (await stuck).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert rig.observer.outcomes[0].client_gone


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_both_event_loops_carry_it(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def story() -> None:
        async with running() as rig:
            big = bytes(3_000_000)
            assert await asyncio.gather(*(_awaited(rig.call(b"%d" % n)) for n in range(50))) == [
                b"%d" % n for n in range(50)
            ]
            assert await rig.call(big) == big
            rig.upstream.handler = _never
            assert (await rig.failure(timeout=0.2)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await wait_until(lambda: rig.upstream.cancelled == 1)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


async def test_nobody_loads_grpc_who_does_not_serve_it() -> None:
    code = "import proxy.worker.build, proxy.cli, sys; sys.exit('grpc' in sys.modules)"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await child.wait() == 0


async def _awaited(call: Any) -> bytes:
    message: bytes = await call
    return message


async def _never(message: bytes, context: Any) -> bytes:
    await asyncio.sleep(60)
    return message
