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
from aiohttp import StreamReader, hdrs
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError, HttpVersion11, RawResponseMessage

from proxy.core.request import list_items
from proxy.transport.heads import Heads

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
"""C0 without the tab, DEL, and C1, whose NEL and CSI end a line or begin a command for whoever obeys them."""


WANTS_FRESH = contextvars.ContextVar("WANTS_FRESH", default=False)
"""Whether the request that is being sent must have a connection that was not used before."""


class Connections(aiohttp.TCPConnector):
    """
    aiohttp's pool, which never gives out a connection on which something has come since its last answer.

    Source: RFC 9112 §9.2. aiohttp looks when a connection is given back, but not when it is taken out again.
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


class _Connection(ResponseHandler):
    """aiohttp's connection, which gives sound answers only, and lets none hang."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  aiohttp's options
        super().__init__(**options)
        self._heads = Heads()
        self._poll: Any = None
        self._heard_s: float | None = None
        self._alarm: asyncio.TimerHandle | None = None

    def has_spoken(self) -> bool:
        """Whether bytes, or its end, came while it was idle: read by the loop already, or still in the kernel."""
        if self.should_close or self.transport is None or self._holds_half_a_head():
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
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._heads.are_odd(data):
            self._refuse()
        else:
            super().data_received(data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Called by aiohttp's parser for each head."""
        message, _ = data
        if _is_sound(message):
            super().feed_data(data, size)
        else:
            self._refuse()

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
