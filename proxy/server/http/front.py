"""
What answers requests on the HTTP data ports: ``flow`` in the middle, ``wire`` out.

It decides nothing about caching; it owns one Outcome per request, which the observer gets when the last byte is out,
however the request ended. ``Front.handle`` is the way of every request; ``give_ready``, ``answer_at_once`` and
``answer_soon`` are the short ones of those that a connection knows already.
"""

import asyncio
import uuid
from collections.abc import Callable
from typing import Protocol

from aiohttp import web

from proxy.core.answer import Again, Answer
from proxy.core.cache_status import cache_status, header_lines
from proxy.core.errors import ClientError, ErrorCode, LoopError, ProxyError
from proxy.core.found import Found
from proxy.core.held_bytes import HeldBytes
from proxy.core.outcome import CacheState, Outcome, Repeats
from proxy.core.ports import SYSTEM_CLOCK, Clock
from proxy.core.request import Head, HeaderLines
from proxy.core.share import ADDRESS
from proxy.request.flow import Flow
from proxy.request.from_memory import AtOnce
from proxy.server.http.admission import Intake, wants_websocket
from proxy.server.http.body import IncomingBody, Patience
from proxy.server.http.client_timers import Clients
from proxy.server.http.connection import Connection
from proxy.server.http.micro_cache import Ready
from proxy.server.http.websocket import Bridge
from proxy.server.http.writing import Written, abort, closing_bytes, whole, write_answer

ErrorBody = Callable[[str, str, str, str], bytes]
"""Path, code, message and request id to a body in the vendor's shape."""


class RequestObserver(Protocol):
    """Who is told of each finished request."""

    def observe(self, outcome: Outcome) -> None:
        """Must not raise and must not wait."""

    def observe_repeats(self, repeats: Repeats) -> None:
        """Told of several at once; as above."""

    def background_failed(self, error: BaseException) -> None:
        """Told of a fault of ours; must not raise and must not wait."""

    def came_back(self, upstream: str) -> None:
        """Told of a request to *upstream* that went in a circle; as above."""


class Front:
    """What answers requests on every data port of a worker."""

    def __init__(
        self,
        *,
        flow: Flow,
        at_once: AtOnce,
        ready: Ready,
        bridge: Bridge,
        observer: RequestObserver,
        error_body: ErrorBody,
        clients: Clients,
        held: HeldBytes,
        head_bytes: int = 262_144,
        body_patience: Patience,
        cache_status_on_pass: bool = False,
        own_id: bytes = b"",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._flow = flow
        self._at_once = at_once
        self._ready = ready
        self._bridge = bridge
        self._observer = observer
        self._error_body = error_body
        self.clients = clients
        self.own_id = own_id
        self.held = held
        self.head_bytes = head_bytes
        self.body_patience = body_patience
        self._cache_status_on_pass = cache_status_on_pass
        self._clock = clock
        self.is_draining = False
        self.running = 0

    async def handle(self, raw: web.BaseRequest, intake: Intake) -> web.StreamResponse:
        """One request from its head to the last byte of its answer."""
        outcome = Outcome(started_s=self._clock.monotonic())
        hold = raw.protocol.body_hold if isinstance(raw.protocol, Connection) else self.held.hold()
        body = IncomingBody(raw, self.body_patience, hold)
        self.running += 1
        try:
            return await self._answered(raw, intake, body, outcome)
        except asyncio.CancelledError:
            outcome.client_left()
            raise
        except ConnectionError:
            outcome.client_left()
            return _broken_off(raw)  # aiohttp would take the error for a fault of the handler's
        finally:
            self.running -= 1
            body.end()
            if outcome.client_gone and isinstance(raw.protocol, Connection) and raw.protocol.watch.gave_up:
                outcome.detail = raw.protocol.watch.gave_up
            outcome.bytes_in = body.received_bytes
            outcome.total_ms = (self._clock.monotonic() - outcome.started_s) * 1000
            self._observer.observe(outcome)

    async def _answered(
        self, raw: web.BaseRequest, intake: Intake, body: IncomingBody, outcome: Outcome
    ) -> web.StreamResponse:
        try:
            return await self._served(raw, intake, body, outcome)
        except ProxyError as error:
            return await self._refused(raw, body, outcome, error)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001  a fault of ours: the client learns that much and no more
            self._observer.background_failed(error)
            return await self._refused(raw, body, outcome, ProxyError(ErrorCode.INTERNAL, "the proxy failed"))

    async def _served(
        self, raw: web.BaseRequest, intake: Intake, body: IncomingBody, outcome: Outcome
    ) -> web.StreamResponse:
        if raw.method == "OPTIONS" and raw.raw_path == "*":
            answer = Answer(204, "No Content", ((b"Allow", b"*"),), b"")  # about this server, not about a resource
            return await self._write(raw, answer, outcome)
        request = intake.request(raw)
        outcome.upstream = request.upstream
        may_stay = True
        ADDRESS.set(raw.remote or "")
        if wants_websocket(raw) and self._bridge.serves(request.upstream):
            outcome.operation = "websocket"
            bridged = await self._bridge.run(raw, request, outcome)
            if isinstance(bridged, web.StreamResponse):
                return bridged
            answer, may_stay = bridged, False  # a client may have sent frames already
        else:
            found = raw.protocol.found_for(raw) if isinstance(raw.protocol, Connection) else None
            if found is not None:
                outcome.started_s -= found.redis_s
            answer = await self._flow.answer(request, body, outcome, found)
        body.is_answered = True
        try:
            return await self._write(raw, answer, outcome, may_stay=may_stay and not body.is_withheld)
        finally:
            answer.close()

    async def _write(self, raw: web.BaseRequest, answer: Answer, outcome: Outcome, *, may_stay: bool = True) -> Written:
        outcome.status = answer.status
        try:
            written, outcome.bytes_out = await write_answer(
                raw, answer, self._own_lines(outcome), keep_alive=may_stay and not self.is_draining
            )
        finally:
            answer.after()  # what was paid for is kept, also when the client has gone meanwhile
        return _answered(raw, written, answer.again)

    def recall(self, head: Head, body: bytes) -> Again | None:
        """See ``AtOnce.recall``."""
        return self._at_once.recall(head, body)

    def give_ready(self, request: object, transport: asyncio.WriteTransport) -> bool:
        """Whether an answer to exactly this *request* was ready, and is given."""
        try:
            return self._ready.give(request, transport)
        except Exception as error:  # noqa: BLE001  as below
            self._observer.background_failed(error)
            return False

    def answer_at_once(
        self, again: Again, bytes_in: int, transport: asyncio.WriteTransport, request: object = None
    ) -> bool:
        """
        Whether *again* has answered a request with so many bytes of body, as ``handle`` would have.

        *request* is all that makes it what it is, if it may come again.
        """
        try:
            if self._ready.give(again, transport):
                if request is not None:
                    self._ready.know(request, again)
                return True
            outcome = Outcome(started_s=self._clock.monotonic())
            answer = again(outcome)
        except Exception as error:  # noqa: BLE001  a fault of ours must not end the connection: it is tried the long way
            self._observer.background_failed(error)
            return False
        if answer is None:
            return False
        self._ready.keep(again, self._write_at_once(answer, bytes_in, outcome, transport), outcome)
        return True

    async def answer_soon(
        self, again: Again, bytes_in: int, transport: asyncio.WriteTransport
    ) -> tuple[bool, Found | None]:
        """
        The same after a look into Redis; and what was found, for an answer on the long way.

        Writes as its last step: who has cancelled it knows that nothing was written.
        """
        outcome = Outcome(started_s=self._clock.monotonic())
        try:
            came = await again.look_up(outcome)
        except asyncio.CancelledError:
            if transport.is_closing():  # nobody else tells of it
                outcome.state, outcome.client_gone = CacheState.CLIENT_CLOSED, True
                self._finished(outcome, bytes_in, 0)
            raise
        except Exception as error:  # noqa: BLE001  as above
            self._observer.background_failed(error)
            return False, None
        if isinstance(came, Found):
            return False, came
        if came is None or self.is_draining:  # since it was asked: the answer has to say that it is the last
            return False, None
        try:
            self._write_at_once(came, bytes_in, outcome, transport)
        except Exception as error:  # noqa: BLE001  nobody knows what the client has got
            self._observer.background_failed(error)
            transport.abort()
        return True, None

    def _write_at_once(
        self, answer: Answer, bytes_in: int, outcome: Outcome, transport: asyncio.WriteTransport
    ) -> bytes:
        """What was written."""
        outcome.status = answer.status
        head, content = whole(answer, self._own_lines(outcome))
        data = head + content
        transport.write(data)
        self._finished(outcome, bytes_in, len(content))
        return data

    def _finished(self, outcome: Outcome, bytes_in: int, bytes_out: int) -> None:
        outcome.bytes_in, outcome.bytes_out = bytes_in, bytes_out
        outcome.total_ms = (self._clock.monotonic() - outcome.started_s) * 1000
        self._observer.observe(outcome)

    def failed(self, error: BaseException) -> None:
        """Tell of a fault of ours that ends a connection."""
        self._observer.background_failed(error)

    def tell_all(self) -> None:
        """Tell the observer of what it was not told yet."""
        self._ready.tell_all()

    def _own_lines(self, outcome: Outcome) -> HeaderLines:
        if self._cache_status_on_pass and outcome.state is CacheState.PASS:
            return ((b"Cache-Status", b"dashcache; fwd=bypass; detail=not-cached"),)
        if self._cache_status_on_pass and outcome.state is CacheState.WRITE:
            return ((b"Cache-Status", cache_status(outcome).encode("ascii")),)
        return header_lines(outcome)

    async def _refused(
        self, raw: web.BaseRequest, body: IncomingBody, outcome: Outcome, error: ProxyError
    ) -> web.StreamResponse:
        """Our own error in the vendor's shape."""
        if outcome.status:
            # The head is out, so the only honest end is a broken connection.
            outcome.detail = error.code
            return _broken_off(raw)
        if body.fault is not None:
            error = body.fault  # others only report that the body did not come
        if error.code is ErrorCode.REQUEST_TIMEOUT and isinstance(raw.protocol, Connection):
            raw.protocol.hang_up()
        outcome.state, outcome.detail = CacheState.REFUSED, error.code
        if isinstance(error, LoopError):
            outcome.upstream = error.upstream
            self._observer.came_back(error.upstream)
        outcome.request_id = str(uuid.uuid4())  # the same in the answer and in the log
        answer = self.error_answer(raw.raw_path, error.status, error.code, error.message, outcome.request_id)
        # After a refused request nobody knows where the next one would begin.
        keep_alive = not (isinstance(error, ClientError) or body.is_withheld or self.is_draining)
        outcome.status = error.status
        written, outcome.bytes_out = await write_answer(raw, answer, (), keep_alive=keep_alive)
        return _answered(raw, written)

    def error_answer(self, path: str, status: int, code: str, message: str, request_id: str) -> Answer:
        """An error of ours, marked as ours."""
        headers: HeaderLines = (
            (b"Content-Type", b"application/json"),
            (b"X-Request-Id", request_id.encode("ascii")),
            (b"X-Dashcache-Error", code.encode("ascii")),
        )
        if status == 503:  # each of ours passes by itself
            headers = (*headers, (b"Retry-After", b"1"))
        return Answer(status, _REASONS.get(status, "Error"), headers, self._error_body(path, code, message, request_id))

    def no_room(self) -> bytes:
        """What a client is told that is one too many, before it has said anything."""
        code, text = ErrorCode.TOO_MANY_CONNECTIONS, "the proxy has too many connections; try again"
        return closing_bytes(self.error_answer("/", 503, code, text, str(uuid.uuid4())))

    def refused_by_parser(self, status: int, code: str) -> None:
        """Count a request that never became one."""
        self._observer.observe(Outcome(state=CacheState.REFUSED, detail=code, status=status))


def _answered(raw: web.BaseRequest, written: Written, again: Again | None = None) -> Written:
    """*written*, and its connection knows that another request may come."""
    if written.keep_alive and isinstance(raw.protocol, Connection):
        raw.protocol.answered(raw, again)
    return written


def _broken_off(raw: web.BaseRequest) -> Written:
    abort(raw)
    return Written(keep_alive=False)


_REASONS = {
    400: "Bad Request",
    405: "Method Not Allowed",
    408: "Request Timeout",
    417: "Expectation Failed",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
    508: "Loop Detected",
}
