"""
The data port, gRPC: messages in as bytes, ``flow`` in the middle, messages out as bytes; every method is forwarded.

One ``GrpcFront`` per worker, one port per upstream: the library does not tell the name under which it was called
(``:authority``). Calls of one message each way are carried, which is all that the vendor has. A client that sends none,
or a second one behind one that has to be forwarded, is told UNIMPLEMENTED; one that keeps its side open then waits
until its deadline. Behind the message of a known call that the cache answers nobody looks: to wait for the end of a
client's messages is a fifth of what the library does for a call.
"""

import asyncio
import functools
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from proxy.core.answer import Answer, nothing
from proxy.core.cache_status import header_lines
from proxy.core.errors import ClientError, ErrorCode, LoopError, ProxyError, no_room
from proxy.core.grpc_status import GrpcStatus
from proxy.core.held_bytes import HeldBytes, Hold
from proxy.core.listening import Tls
from proxy.core.outcome import CacheState, Outcome
from proxy.core.ports import SYSTEM_CLOCK, Clock
from proxy.core.request import GRPC, HeaderLines, Request
from proxy.core.share import ADDRESS
from proxy.request.flow import Flow
from proxy.request.from_memory import AtOnce
from proxy.runtime.tasks import Tasks
from proxy.server.grpc.admission import GrpcIntake, address_of
from proxy.server.grpc.listener_close import SETTLE_S, connected_to, let_nobody_in, listening_on, take_away, until
from proxy.server.grpc.server import GrpcServer
from proxy.server.grpc.unfinished import Unfinished
from proxy.server.http.body import Patience
from proxy.server.http.front import RequestObserver
from proxy.transport.grpc import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES, Metadata, Options, metadata_of

# isort: split
import grpc
import grpc.aio

ErrorLines = Callable[[str], HeaderLines]
"""Request id of an error of ours to trailing metadata in the vendor's shape."""


class GrpcFront:
    """
    What answers calls on every gRPC port of a worker.

    Each port takes *max_connections*, with *max_streams* calls at a time in each, and closes one on which there was no
    call for *idle_s* seconds.
    """

    def __init__(
        self,
        *,
        flow: Flow,
        at_once: AtOnce | None = None,
        observer: RequestObserver,
        error_lines: ErrorLines,
        max_connections: int = 10_000,
        idle_s: float = 75.0,
        max_streams: int = 256,
        min_ping_interval_s: float = 10.0,
        connection_s: float = 30.0,
        own_id: bytes = b"",
        held: HeldBytes | None = None,
        patience: Patience,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._flow = flow
        self._own_id = own_id
        self._at_once = at_once
        self._observer = observer
        self._error_lines = error_lines
        self._options = _options(max_connections, idle_s, max_streams, min_ping_interval_s, connection_s)
        self._held = held or HeldBytes(sys.maxsize)
        self._unfinished = Unfinished(self._held, patience)
        self._clock = clock
        self._tasks = Tasks(observer.background_failed)
        self._ports: list[_Port] = []
        self.running = 0

    async def listen(self, upstream: str, host: str, number: int, tls: Tls | None = None) -> int:
        """Serve *upstream* on one port, shared with the other workers; the port's number (0 lets the kernel choose)."""
        credentials = None if tls is None else _credentials(tls)
        server = GrpcServer(
            _AnyMethod(self, upstream, self._own_id),
            self._options,
            tasks=self._tasks,
            on_unreadable=lambda: self._unreadable(upstream),
            on_failed=self._observer.background_failed,
        )
        bound = await server.open(f"{_bracketed(host)}:{number}", credentials)
        self._ports.append(_Port(host, bound, server))
        return bound

    async def stop(
        self, grace_s: float, linger_s: float = 0.0, is_hastened: Callable[[], bool] = lambda: False
    ) -> None:
        """
        Take no new connections, then no new calls; give running ones *grace_s* seconds, then cancel them.

        The library cancels a call that crosses its goodbye. At the end of a process nobody should call any more; where
        others go on in its place, connections are left for *linger_s* to end by their age, which breaks no call.
        """
        ports, self._ports = self._ports, []
        addresses = {(port.host, port.number) for port in ports}
        listeners = listening_on(addresses)
        for listener in listeners:
            let_nobody_in(listener.copy)
        await asyncio.sleep(SETTLE_S)
        for listener in listeners:
            take_away(listener)
        await until(lambda: is_hastened() or connected_to(addresses) == 0, linger_s, _LOOK_S)
        await asyncio.gather(*(port.server.stop(grace_s) for port in ports))
        await self._tasks.wait_done(grace_s)

    async def handle(self, intake: GrpcIntake, details: Any, context: Any) -> bytes:  # noqa: ANN401  see ``service``
        """One call from its metadata to its last byte; *context* is a ``grpc.aio.ServicerContext``."""
        call = _Call(Outcome(upstream=intake.upstream, started_s=self._clock.monotonic()), self._held.hold())
        self.running += 1
        try:
            try:
                ending = await self._served(intake, details, context, call)
            except ProxyError as error:
                ending = self._refusal(error, call.outcome)
            except Exception as error:  # noqa: BLE001  a fault of ours: the client learns that much and no more
                self._observer.background_failed(error)
                ending = self._refusal(ProxyError(ErrorCode.INTERNAL, "the proxy failed"), call.outcome)
            return await _write(context, ending)
        except (asyncio.CancelledError, grpc.aio.InternalError):
            call.outcome.client_left()
            raise
        finally:
            if not call.is_awaited:
                self._finished(call)

    async def _served(self, intake: GrpcIntake, details: Any, context: Any, call: "_Call") -> "_Ending":  # noqa: ANN401
        head, lines = intake.head(details.method, details.invocation_metadata)
        message, outcome = await self._unfinished.message(context), call.outcome
        if message is None:
            raise _no_streams()
        outcome.bytes_in = len(message)
        if not call.hold.add(len(message)):
            raise no_room()
        found = None if self._at_once is None else await self._at_once.recalled(head, message, outcome)
        if isinstance(found, Answer):
            return _ending(found, outcome, await _content(found))
        # The library calls this when the answer is out, or when there will be none. A hit leaves nothing to do then,
        # and goes without: what the library keeps for it is a circle that only the collector takes apart.
        context.add_done_callback(lambda _context: self._finished(call))
        call.is_awaited = True
        if await self._unfinished.message(context) is not None:
            raise _no_streams()
        ADDRESS.set(address_of(context.peer()))
        request = Request(GRPC, head.target, lines, head.upstream, message, context.time_remaining(), head=head)
        answer = await self._flow.answer(request, _Message(message), outcome, found)
        call.after = answer.after
        return _ending(answer, outcome, await _content(answer))

    def _refusal(self, error: ProxyError, outcome: Outcome) -> "_Ending":
        """Our own error in the vendor's shape, marked as ours."""
        outcome.state, outcome.detail, outcome.status = CacheState.REFUSED, error.code, error.status
        if isinstance(error, LoopError):
            self._observer.came_back(error.upstream)
        outcome.request_id, outcome.grpc_code = str(uuid.uuid4()), _code(error)
        lines = (*self._error_lines(outcome.request_id), (b"x-dashcache-error", error.code.encode("ascii")))
        return _Ending(b"", GrpcStatus(_code(error), f"{error.code}: {error.message}"), metadata_of(lines))

    def _unreadable(self, upstream: str) -> None:
        """Tell of a call whose name is not UTF-8; the library has cancelled it."""
        outcome = Outcome(upstream=upstream, state=CacheState.REFUSED, detail=ErrorCode.BAD_REQUEST, status=400)
        outcome.grpc_code = grpc.StatusCode.CANCELLED.value[0]
        self._observer.observe(outcome)

    def _finished(self, call: "_Call") -> None:
        outcome = call.outcome
        self.running -= 1
        call.hold.end()
        try:
            call.after()  # what was paid for is kept, also when the client has gone meanwhile
        except Exception as error:  # noqa: BLE001  the library would log and forget it
            self._observer.background_failed(error)
        outcome.total_ms = (self._clock.monotonic() - outcome.started_s) * 1000
        self._observer.observe(outcome)


@dataclass(frozen=True, slots=True)
class _Port:
    """Where a server listens."""

    host: str
    number: int
    server: GrpcServer


@dataclass(slots=True)
class _Call:
    """What is to be told of a call, and to be done when it is over."""

    outcome: Outcome
    hold: Hold
    after: Callable[[], None] = nothing
    is_awaited: bool = False
    """Whether the library tells when it is over; if not, it is when the handler ends."""


@dataclass(frozen=True, slots=True)
class _Ending:
    """What the client is told: a message if the status is OK, and trailing metadata."""

    content: bytes
    status: GrpcStatus
    trailing: Metadata


def _ending(answer: Answer, outcome: Outcome, content: bytes) -> _Ending:
    """*answer* with its whole *content*; *outcome* tells of it."""
    status = answer.grpc_status or GrpcStatus()
    outcome.status, outcome.grpc_code, outcome.bytes_out = status.as_http, status.code, len(content)
    return _Ending(content, status, (*metadata_of(answer.headers), *_own_metadata(header_lines(outcome))))


class _Message:
    """A call's message; implements ``core.answer.Body``."""

    is_empty = False

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.length: int | None = len(content)

    async def read(self, limit: int) -> bytes | None:
        """The message, or ``None`` when it is longer than *limit*."""
        return self._content if len(self._content) <= limit else None

    def at_hand(self, limit: int) -> bytes | None:
        """The message."""
        return self._content if len(self._content) <= limit else None

    async def begun(self, limit: int) -> bool:  # noqa: ARG002  it is here already
        """All of it."""
        return True

    async def pieces(self) -> AsyncIterator[bytes]:
        """The message in one piece."""
        yield self._content

    async def before_end(self) -> None:
        """Nothing to do."""


class _AnyMethod:
    """
    Finds a handler for every method; has the form of ``grpc.GenericRpcHandler``.

    The handler is one for streams of messages, of which it takes one: a handler for single messages would not notice a
    second one, and the library lets a call without any wait until its deadline, and tells nobody.
    """

    def __init__(self, front: GrpcFront, upstream: str, own_id: bytes) -> None:
        self._front = front
        self._intake = GrpcIntake(upstream, own_id)

    def service(self, details: Any) -> Any:  # noqa: ANN401  grpc.HandlerCallDetails to grpc.RpcMethodHandler
        """A handler that knows the method's name."""

        async def handle(_messages: Any, context: Any) -> bytes:  # noqa: ANN401
            return await self._front.handle(self._intake, details, context)

        return grpc.stream_unary_rpc_method_handler(handle)


_LOOK_S = 0.25
_PING_EVERY_MS, _PING_ANSWER_MS = 60_000, 20_000


def _no_streams() -> ClientError:
    return ClientError(ErrorCode.NOT_IMPLEMENTED, "calls of one message each way are carried, and no streams", 501)


async def _content(answer: Answer) -> bytes:
    if isinstance(answer.body, bytes):
        return answer.body
    try:
        return b"".join([piece async for piece in answer.body])
    finally:
        answer.close()


_own_metadata = functools.lru_cache(maxsize=512)(metadata_of)
"""Of our own lines, which hits within a second share."""


async def _write(context: Any, ending: _Ending) -> bytes:  # noqa: ANN401
    """Hand *ending* to the library; a call that did not go well ends here, by its exception."""
    if ending.status.initial:
        await context.send_initial_metadata(metadata_of(ending.status.initial))
    if ending.status.code:
        code = _STATUSES.get(ending.status.code, grpc.StatusCode.UNKNOWN)
        await context.abort(code, ending.status.details, ending.trailing)
    context.set_trailing_metadata(ending.trailing)
    return ending.content


# grpcio 1.85 takes the number 16 for an unknown code, but not the name.
_STATUSES = {code.value[0]: code for code in grpc.StatusCode}
# google.rpc.Code, https://github.com/grpc/grpc/blob/master/doc/statuscodes.md
_INVALID_ARGUMENT, _DEADLINE_EXCEEDED, _RESOURCE_EXHAUSTED, _FAILED_PRECONDITION = 3, 4, 8, 9
_UNIMPLEMENTED, _INTERNAL, _UNAVAILABLE = 12, 13, 14
_CODES = {
    408: _DEADLINE_EXCEEDED,
    500: _INTERNAL,
    501: _UNIMPLEMENTED,
    502: _UNAVAILABLE,
    503: _UNAVAILABLE,
    504: _DEADLINE_EXCEEDED,
    508: _FAILED_PRECONDITION,
}


def _code(error: ProxyError) -> int:
    if error.code is ErrorCode.TOO_MUCH_HELD:
        return _RESOURCE_EXHAUSTED
    return _CODES.get(error.status, _INVALID_ARGUMENT)


def _options(
    max_connections: int, idle_s: float, max_streams: int, min_ping_interval_s: float, connection_s: float
) -> Options:
    return (
        ("grpc.so_reuseport", 1),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        # Of each port. One more is closed without a word, which a client takes for a server that is not there.
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.max_connection_idle_ms", max(1, int(idle_s * 1000))),
        # Who is gone, or does not read at all, does not answer pings either.
        ("grpc.keepalive_time_ms", _PING_EVERY_MS),
        ("grpc.keepalive_timeout_ms", _PING_ANSWER_MS),
        ("grpc.max_concurrent_streams", max_streams),
        ("grpc.max_connection_age_ms", int(connection_s * 1000)),
        # The vendor's SDK pings each minute. Left alone, the library hangs up on a client that does so between calls.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(min_ping_interval_s * 1000)),
    )


def _credentials(tls: Tls) -> Any:  # noqa: ANN401  grpc.ServerCredentials
    return grpc.ssl_server_credentials(((tls.key.read_bytes(), tls.certificate.read_bytes()),))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
