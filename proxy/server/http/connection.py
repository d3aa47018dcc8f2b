"""One client's connection on an HTTP data port: aiohttp's, with a watch, a fast lane and our own refusals."""

import asyncio
import uuid
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import EMPTY_PAYLOAD, StreamReader, web
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from proxy.core.answer import Again
from proxy.core.found import Found
from proxy.core.held_bytes import FREE_BYTES
from proxy.server.http.body import NoRoomError
from proxy.server.http.client_timers import Watch
from proxy.server.http.fast_lane import HOLD_S, Boundary, Lane
from proxy.server.http.half_closed import HalfClosed, has_begun
from proxy.server.http.refusals import HTTP_2, ParserRefusal, refusal, words_for

if TYPE_CHECKING:
    from proxy.server.http.front import Front


class Port(Protocol):
    """The port that a connection came to."""

    open: "set[Connection]"
    lane: Lane | None

    def recall(self, message: RawRequestMessage, body: bytes) -> Again | None:
        """What answers such a request, if it is known what it means, whatever its bytes."""


class Connection(RequestHandler):
    """
    What the event loop calls. Open ``data_received`` first.

    What is held back is nobody's yet: a head that waits for its body, or a known request while Redis is asked. Whatever
    comes next, or the end of what it waits for, hands it to the parser, unless it is answered then.
    """

    __slots__ = (
        "_body",
        "_boundary",
        "_found",
        "_front",
        "_half_closed",
        "_head_bytes",
        "_head_hold",
        "_held",
        "_holding",
        "_is_free",
        "_is_refused",
        "_last",
        "_port",
        "_start",
        "body_hold",
        "has_asked",
        "watch",
    )

    def __init__(self, server: web.Server, port: Port, front: "Front", **options: Any) -> None:  # noqa: ANN401  aiohttp's options
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._port = port
        self._front = front
        self._body: StreamReader = EMPTY_PAYLOAD
        self._boundary = Boundary()
        self._is_free = True
        self._last: RawRequestMessage | _ErrInfo | None = None
        self._held = b""
        self._holding: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self._found: tuple[object, Found] | None = None  # the message that it was found for
        self._half_closed: HalfClosed | None = None
        self._start = b""  # of a head that is not whole yet, as far as it tells HTTP/2
        self._head_bytes = 0
        self._is_refused = False
        self._head_hold = front.held.hold()
        self.body_hold = front.held.hold()
        """The bytes of the request's body that have come, in aiohttp's buffer or already taken from it."""
        self.has_asked = False
        self.watch: Watch

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        line: Any = transport
        if self._front.clients.has_room(line, self._front.no_room):
            super().connection_made(transport)
            self.watch = Watch(line, self._front.clients)
            self._port.open.add(self)
            if self._task_handler is not None:
                self._task_handler.add_done_callback(self._task_ended)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the event loop, when everything that was written has left or cannot."""
        self._let_go()
        if self._half_closed is not None:
            self._half_closed.end()
        self._head_hold.end()
        self.body_hold.end()
        self._port.open.discard(self)
        self.watch.end()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Called by the event loop when the client sends no more; whether it may still want its answer."""
        transport: Any = self.transport
        is_asking = isinstance(self._holding, asyncio.Task) or (not self._is_free and self._body.is_eof())
        if transport is None or not is_asking or has_begun(self._current_request):
            return False
        if transport.get_extra_info("sslcontext") or transport.get_extra_info("socket") is None:
            return False  # over TLS both ways end at once
        self._half_closed = HalfClosed(transport, self._front.clients.resets, lambda: self._current_request)
        return True

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        """What should never be: it closes the connection at its end, but not if it stumbles over a request's head."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._front.failed(error)
            self.watch.abort()

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self.watch.wrote()
        super().resume_writing()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Called by aiohttp whenever a body was read, mostly with nothing to resume: no need to try the parser then."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def close(self) -> None:
        """Called by aiohttp when a drain begins: a head held back has come before, and its request is answered."""
        held = self._let_go()
        if held:
            self._parse(held)
        super().close()

    def hang_up(self) -> None:
        """Close after this answer without waiting for the rest of the request, which does not come."""
        self._lingering_time = 0.0

    # --- requests -----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Called by the event loop: an answer at once, a head held back, or work for the parser."""
        held = self._let_go() if self._holding is not None else b""
        lane = self._port.lane
        if lane is None or not self._may_answer_at_once():
            self._parse_apart(held, data)
            return
        request = held + data if held else data
        if self.transport is not None and self._front.give_ready((lane, request), self.transport):
            self._was_asked()
            return
        known = lane.find(request)
        if known is None and not held and lane.is_head(data):
            self._hold(data)
        elif known is not None and (self._answer_at_once(known, (lane, request)) or self._look_up(known, request)):
            return
        elif held:
            self._parse_apart(held, data)
        else:
            self._parse_first(lane, data)

    def answered(self, raw: web.BaseRequest, again: Again | None) -> None:
        """
        The answer to *raw* is written, and nothing forbids another request; *again* answers its bytes from now on.

        aiohttp's task hears of it two turns of the loop later; on a busy one the next request is here by then.
        """
        if raw._message is not self._last:  # noqa: SLF001  as below
            return  # another has come meanwhile, and its body may still be on its way
        self._is_free = True
        if self._half_closed is not None:
            self._close = True  # this was the last
        if again is None:
            return
        request, body = self._boundary.whole(raw._message)  # noqa: SLF001  tells it from a later one
        if self._port.lane is not None and request:
            self._port.lane.learn(request, len(body), again)

    def found_for(self, raw: web.BaseRequest) -> Found | None:
        """What the tiers said of *raw* a moment ago, before it was parsed."""
        found, self._found = self._found, None
        return found[1] if found is not None and found[0] is raw._message else None  # noqa: SLF001  as above

    def _parse_first(self, lane: Lane, data: bytes) -> None:
        """
        Parse *data* and, if it is one whole request whose meaning is known, answer it without a task of its own.

        aiohttp's task, if it waits for a message, is left waiting until it is clear that it has to take this one.
        """
        waiter, self._waiter = self._waiter, None
        try:
            self._parse(data)
        finally:
            self._waiter = waiter
        if self._messages:
            if self._answer_first(lane):
                self._is_free = True
                if self.body_hold.size:
                    self.body_hold.end()
                self._messages.popleft()
                if self._parser is not None:
                    self._parser.message_consumed()
            elif waiter is not None:
                waiter.set_result(None)

    def _answer_first(self, lane: Lane) -> bool:
        message = self._messages[0][0]
        request, body = self._boundary.whole(message)
        if not request or isinstance(message, _ErrInfo):
            return False
        again = self._port.recall(message, body)
        if again is None or not self._answer_at_once((again, len(body))):
            return False
        lane.learn(request, len(body), again)
        return True

    def _parse_apart(self, held: bytes, data: bytes) -> None:
        """Parse what was held back as it came, and by itself: what is wrong with *data* must not undo it."""
        if held:
            self._parse(held)
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Hand *data* to aiohttp, and see what it finds in it."""
        known = len(self._messages)
        self._feed(data)
        self._refuse_nameless(data)
        if data or len(self._messages) > known:
            self._boundary.pass_by(data, [message for message, _ in list(self._messages)[known:]])
        if len(self._messages) > known:
            if self._head_bytes:
                self._head_bytes = 0
                self._head_hold.end()
            self.has_asked = True
            self._is_free = False
            self.watch.head_ends()
            message, body = self._messages[-1]
            self._last = message
            if not isinstance(message, _ErrInfo):
                self._body = body
            elif not self._body.is_eof():
                # aiohttp reports what it could not parse as a next request, while the one before waits for its body.
                self._body.set_exception(web.RequestPayloadError("the body's framing is broken"))
            if len(data) <= FREE_BYTES and self._body.is_eof():
                return
        if data and not self._is_refused and not self._upgraded:
            self._count(data)

    def _count(self, data: bytes) -> None:
        """*data* has come: part of a body that is awaited, or of a head, or a body that is here at once."""
        if self._is_free:
            self._begin_head(data)
        elif self._body is not EMPTY_PAYLOAD and (not self._body.is_eof() or self._body._size):  # noqa: SLF001
            self._count_body()
        elif not self._messages:  # the next head, behind a request that is being answered
            self._count_head(len(data))

    def _begin_head(self, data: bytes) -> None:
        """*data* is part of a head. Behind HTTP/2's first lines the parser waits for more than some clients send."""
        if self.watch.head_begins():
            self._start = b""
        self._start = (self._start + data)[: len(HTTP_2)]
        if self._start == HTTP_2:
            self._refuse(refusal(505, "HTTP/2"))
        else:
            self._count_head(len(data))

    def _count_body(self) -> None:
        if not self.body_hold.become(self._body._size + self.body_hold.kept):  # noqa: SLF001
            self._is_refused = True
            self._close = True
            self._body.set_exception(NoRoomError())

    def _count_head(self, size: int) -> None:
        """So many bytes more of a head that is not complete; it may be too long, or there may be no room for it."""
        self._head_bytes += size
        if self._head_bytes > self._front.head_bytes:
            self._refuse(refusal(431, "too long"))
        elif not self._head_hold.add(size * _HEAD_COPIES):
            self._refuse(refusal(503, "no room"))

    def _refuse(self, error: _ErrInfo) -> None:
        """As aiohttp does with what it cannot parse: its task answers, and ends the connection."""
        self._is_refused = True
        self._head_hold.end()
        self._messages.append((error, EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _refuse_nameless(self, data: bytes) -> None:
        """
        The parser takes ``CONNECT`` with nothing behind it for a request, and aiohttp's task stumbles over that.

        HTTP/2, which the parser refuses like anything that is malformed, is told why.
        """
        if not self._messages:
            return
        message = self._messages[-1][0]  # what follows a CONNECT is not parsed
        if isinstance(message, _ErrInfo):
            if HTTP_2 in (data[: len(HTTP_2)], (self._start + data)[: len(HTTP_2)]):
                self._messages[-1] = (refusal(505, "HTTP/2"), EMPTY_PAYLOAD)
        elif not message.path:
            self._messages[-1] = (refusal(400, "no target"), EMPTY_PAYLOAD)

    def _feed(self, data: bytes) -> None:
        """Aiohttp drops what comes once it was told to close; but the body of a request that still runs is wanted."""
        if self._is_refused:  # the end is near: what still comes would only be kept
            return
        flags = self._close, self._force_close
        if not any(flags) or self.transport is None or self._body.is_eof():
            super().data_received(data)
            return
        self._close = self._force_close = False
        try:
            super().data_received(data)
        finally:
            self._close, self._force_close = flags

    def _may_answer_at_once(self) -> bool:
        """Whether a message begins here, and no other waits for its answer or is being answered."""
        return (
            self._boundary.left == 0
            and self._is_free
            and not self._messages
            and not (self._close or self._force_close or self._paused or self._front.is_draining)
        )

    def _answer_at_once(self, known: tuple[Again, int], request: tuple[Lane, bytes] | None = None) -> bool:
        if self.transport is None or not self._front.answer_at_once(*known, self.transport, request):
            return False
        self._was_asked()
        return True

    def _was_asked(self) -> None:
        """As aiohttp does it, for what it does not hear of."""
        self.has_asked = True
        self.watch.head_ends()
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout

    def _look_up(self, known: tuple[Again, int], request: bytes) -> bool:
        """Hold *request* while Redis is asked, if that may answer it."""
        if self.transport is None or not known[0].lacks_entries():
            return False
        self._held = request
        self._holding = self._loop.create_task(self._answer_soon(known, self.transport))
        self._was_asked()
        self._next_keepalive_close_time += _LONGEST_LOOK_S  # aiohttp takes the connection for idle
        return True

    async def _answer_soon(self, known: tuple[Again, int], transport: asyncio.WriteTransport) -> None:
        """In a task that is cancelled when what is held goes to somebody else."""
        is_answered, found = await self._front.answer_soon(*known, transport)
        held, self._held, self._holding = self._held, b"", None
        self._was_asked()
        if is_answered:
            if self._half_closed is not None:
                transport.close()
            return
        self._parse(held)
        if found is not None and self._messages:
            self._found = (self._messages[-1][0], found)

    def _hold(self, head: bytes) -> None:
        self._held = head
        self._holding = self._loop.call_later(HOLD_S, self._release)
        # Aiohttp takes the connection for idle until then, and must not close it under a request.
        self._next_keepalive_close_time = max(self._next_keepalive_close_time, self._loop.time() + 2 * HOLD_S)

    def _let_go(self) -> bytes:
        """What was held back."""
        if self._holding is None:
            return b""
        self._holding.cancel()
        self._holding = None
        held, self._held = self._held, b""
        return held

    def _release(self) -> None:
        """Its body has not come in time."""
        self._parse(self._let_go())

    # --- what aiohttp asks of its protocol ----------------------------------------------------------------------------

    def log_exception(self, *given: object, **named: Any) -> None:  # noqa: ANN401  as aiohttp declares it
        """Called by aiohttp, which reads on behind an answer: a body that is broken there is the client's fault."""
        if not isinstance(named.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*given, **named)

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002  aiohttp's own
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  may quote what the client sent
    ) -> web.StreamResponse:
        """Called by aiohttp for what it could not parse: 400 and close, as another request may hide behind it."""
        status, code, text = words_for(status, exc)
        answer = self._front.error_answer("/", status, code, text, str(uuid.uuid4()))
        self._front.refused_by_parser(status, code)
        return ParserRefusal(answer)


_HEAD_COPIES = 2
"""Of a head while it comes: the parser's and its lines."""

_LONGEST_LOOK_S = 60.0
"""No Redis is waited for as long, whatever the settings and however busy the loop."""
