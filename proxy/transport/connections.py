"""
Connections to an upstream: what they take for an answer, and when one must not be used again.

aiohttp parses answers leniently; whoever reads them behind us may read them otherwise, so what is not sound is
refused here. On a kept connection answers belong to requests by their order alone: what an upstream says unasked
(a gateway's 408 to an idle connection, an answer sent twice) would become the answer to whoever comes next.
"""

import asyncio
import contextvars
import functools
import re
import select
from typing import Any

import aiohttp
from aiohttp import EMPTY_PAYLOAD, StreamReader, hdrs
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError, HttpVersion11, RawResponseMessage

from proxy.core.request import list_items
from proxy.transport.heads import Heads

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
"""C0 without the tab, DEL, and C1, whose NEL and CSI end a line or begin a command for whoever obeys them."""


INTERIM, SWITCHES = range(100, 200), 101
"""Another head follows on each of these (RFC 9110 §15.2), but behind the second comes another protocol."""

WANTS_FRESH = contextvars.ContextVar("WANTS_FRESH", default=False)
"""Whether the request that is being sent must have a connection that was not used before."""


class Connections(aiohttp.TCPConnector):
    """
    aiohttp's pool, which keeps no connection with unread or unwritten bytes, nor gives one out.

    Source: RFC 9112 §9.2. aiohttp looks when a connection is given back, but not when it is taken out again; and not
    at what is still to be written, nor at what has come behind the end of an answer and is no whole head yet.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  aiohttp's options
        super().__init__(**options)
        self._factory: Any = functools.partial(_Connection, loop=self._loop)

    async def _get(self, *arguments: Any) -> Any:  # noqa: ANN401  aiohttp's own, which has no public form
        if WANTS_FRESH.get():
            return None
        while (connection := await super()._get(*arguments)) is not None:
            protocol: Any = connection.protocol
            if protocol is not None and not protocol.has_spoken():
                return connection
            connection.close()
        return None

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:  # noqa: ANN401  as above
        super()._release(key, protocol, should_close=should_close or not protocol.may_rest())


class _Connection(ResponseHandler):
    """aiohttp's connection, which gives sound answers only, lets none hang, and ends when it is spoken to at rest."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  aiohttp's options
        super().__init__(**options)
        self._heads = Heads()
        self._poll: Any = None
        self._heard_s: float | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._is_parsing = False
        self._is_resting = False
        self._is_interim = False  # the last head that came: another has to follow

    def may_rest(self) -> bool:
        """
        Whether another request may follow: its answer is over, and nothing is left to be read or written.

        No other place decides that. Until there is another request, whatever comes ends the connection.
        """
        self._is_resting = True
        transport: Any = self.transport
        if self.should_close or transport is None or transport.get_write_buffer_size():
            return False
        # Within the parser nobody knows what follows; ``data_received`` looks when it has come back.
        return self._is_parsing or not self._holds_half_a_head()

    def has_spoken(self) -> bool:
        """Whether bytes, or its end, came while it was idle: read by the loop already, or still in the kernel."""
        if self.should_close or self.transport is None:
            return True
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(self._poll.poll(0))

    def _holds_half_a_head(self) -> bool:
        """Whether more came in one read with the end of the last answer; each request begins with a new parser."""
        try:
            return self._parser is None or self._parser.feed_eof() is not None
        except (ValueError, aiohttp.ClientError, HttpProcessingError):
            return True

    # aiohttp sets and cancels a timer for every read. Here one looks, when it is due, how long ago the last read was.

    def _reschedule_timeout(self) -> None:
        if not self._read_timeout:
            self._heard_s = None
            return
        self._heard_s = self._loop.time()
        if self._alarm is None:
            self._alarm = self._loop.call_later(self._read_timeout, self._look)

    def _drop_timeout(self) -> None:
        self._heard_s = None

    def _look(self) -> None:
        self._alarm = None
        if self._heard_s is None or not self._read_timeout:
            return
        left_s = self._heard_s + self._read_timeout - self._loop.time()
        if left_s > 0:
            self._alarm = self._loop.call_later(left_s, self._look)
        else:
            self._on_read_timeout()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Called by aiohttp's reader after every piece that is taken, also where nothing was ever paused."""
        if self._reading_paused or self._buffer_paused or self._tail:
            super().resume_reading(resume_parser)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the event loop."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        super().connection_lost(exc)

    def set_response_params(self, **options: Any) -> None:  # noqa: ANN401  aiohttp's options
        """Called by aiohttp for each request, before its answer."""
        self._heads = Heads()
        self._is_resting = self._is_interim = False
        if self._tail:  # it was said before anything was asked, so another answer may follow
            self.force_close()
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if (self._is_resting and data) or self._heads.are_odd(data):
            self._refuse()
            return
        self._is_parsing = True
        try:
            super().data_received(data)
        finally:
            self._is_parsing = False
        if self._is_interim:  # aiohttp takes it for the end of the answer, and would wait for the real one for ever
            self._reschedule_timeout()
        if self._is_resting and self.transport is not None and self._holds_half_a_head():
            self._refuse()

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Called by aiohttp's parser for each head."""
        message, payload = data
        if not _is_sound(message):
            self._refuse()
            return
        self._is_interim = message.code in INTERIM and message.code != SWITCHES
        if payload is EMPTY_PAYLOAD and _declares_a_body(message):
            self.force_close()  # there should be none (HEAD, 204, 304), but who declares one may send it
        super().feed_data(data, size)

    def _refuse(self) -> None:
        if self.transport is not None:
            self.transport.close()
        self.set_exception(HttpProcessingError(code=400, message="not everybody would read this alike"))

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Called by aiohttp when the connection is of no use any more."""
        payload = self._payload
        super().set_exception(exc, *cause)
        # aiohttp tells those who wait for a head; whoever reads a body whose chunks went wrong would wait for ever.
        if isinstance(exc, HttpProcessingError) and payload is not None and not payload.is_eof():
            payload.set_exception(aiohttp.ClientPayloadError("the body is malformed"))


def _is_sound(message: RawResponseMessage) -> bool:
    """Whether a head can be passed on as it is (RFC 9112 §2 to §6, RFC 9110 §5.5)."""
    lines = message.raw_headers
    return (
        message.code >= 100
        and message.version.major == 1
        and _is_framed_soundly(message)
        and all(_is_token(name) for name, _ in lines)
        and not _have_control((message.reason.encode("utf-8", "surrogateescape"), *(value for _, value in lines)))
    )


@functools.lru_cache(maxsize=512)
def _is_token(name: bytes) -> bool:
    return _TOKEN.fullmatch(name) is not None


def _is_framed_soundly(message: RawResponseMessage) -> bool:
    """Whether Transfer-Encoding is absent, or says in HTTP/1.1 that there are chunks and nothing else (§6.1)."""
    if hdrs.TRANSFER_ENCODING not in message.headers:
        return not message.chunked
    values = tuple(value for name, value in message.raw_headers if name.lower() == b"transfer-encoding")
    return message.chunked and list_items(values) == ("chunked",) and message.version >= HttpVersion11


def _declares_a_body(message: RawResponseMessage) -> bool:
    return message.chunked or message.headers.get(hdrs.CONTENT_LENGTH, "0").strip("0") != ""


def _have_control(texts: tuple[bytes, ...]) -> bool:
    """Whether one of *texts* holds control characters; each is read as UTF-8 if it is that, else byte by byte."""
    try:
        return _CONTROL.search(b" ".join(texts).decode("utf-8")) is not None  # all are, if all together are
    except UnicodeDecodeError:
        return any(_CONTROL.search(_characters(text)) for text in texts)


def _characters(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")
