"""
Answers onto the wire, byte for byte: the head in the upstream's own lines, the body framed anew.

aiohttp's responses add lines of their own and write non-ASCII values anew, so the head is written here and the
response object that aiohttp wants back is an empty one.
"""

import socket
import struct
import time
from email.utils import formatdate
from typing import Any

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from proxy.core.answer import Answer, Stream
from proxy.core.request import HeaderLines

_BODILESS = (204, 304)


class Written(web.StreamResponse):
    """Tells aiohttp that the answer is out already, and whether the connection may go on."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._stays = keep_alive

    @property
    def keep_alive(self) -> bool:
        """Whether another request may follow on this connection."""
        return self._stays

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:  # noqa: ARG002  aiohttp's own
        """Nothing is left to do."""
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to do."""


_STAYS, _ENDS = Written(keep_alive=True), Written(keep_alive=False)
"""All there are: nothing is told in them of the answer itself."""


async def write_answer(
    raw: web.BaseRequest, answer: Answer, extra: HeaderLines, *, keep_alive: bool
) -> tuple[Written, int]:
    """
    Write *answer* with the *extra* lines; the response to return to aiohttp, and how many body bytes went out.

    A body that breaks off raises UpstreamError with the head already sent: the caller must end the connection.
    """
    if raw.protocol.writing_paused:
        await raw.writer.drain()  # aiohttp waits inside a long answer only; many short ones would pile up
    has_body = raw.method != "HEAD" and answer.status >= 200 and answer.status not in _BODILESS
    length = len(answer.body) if isinstance(answer.body, bytes) and has_body else answer.length
    is_chunked = has_body and length is None and raw.version >= HttpVersion11
    keep_alive = keep_alive and raw.keep_alive and (not has_body or length is not None or is_chunked)
    framing = _framing(answer, length, is_chunked=is_chunked)
    head = _head(answer, (*extra, *framing, *_connection(raw, keep_alive=keep_alive)))
    sent = 0
    if not has_body:
        await raw.writer.write(head)
        answer.close()
    elif isinstance(answer.body, bytes):
        await raw.writer.write(head + answer.body)
        sent = len(answer.body)
    else:
        sent = await _write_stream(raw.writer, head, answer.body, is_chunked=is_chunked)
    return _STAYS if keep_alive else _ENDS, sent


async def _write_stream(writer: AbstractStreamWriter, head: bytes, body: Stream, *, is_chunked: bool) -> int:
    """Write *head* with what there is of *body*, then the rest as it comes; how many bytes of *body* that were."""
    start, is_all = body.at_hand()
    end = b"0\r\n\r\n" if is_chunked else b""
    first = head + _piece(start, is_chunked=is_chunked) if start else head
    sent = len(start)
    await writer.write(first + end if is_all else first)
    if is_all:
        return sent
    async for piece in body:
        await writer.write(_piece(piece, is_chunked=is_chunked))
        sent += len(piece)
    if end:
        await writer.write(end)
    return sent


def _piece(content: bytes, *, is_chunked: bool) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content) if is_chunked else content


def whole(answer: Answer, extra: HeaderLines) -> tuple[bytes, bytes]:
    """Head and body of an *answer* that is at hand, with the *extra* lines, where HTTP/1.1 goes on after it."""
    body = answer.body if isinstance(answer.body, bytes) else b""
    return _head(answer, (*extra, (b"Content-Length", b"%d" % len(body)))), body


def head_alone(answer: Answer, extra: HeaderLines) -> bytes:
    """The head of an *answer* that another protocol follows, with the *extra* lines."""
    return _head(answer, extra)


def closing_bytes(answer: Answer) -> bytes:
    """A short *answer* for who has not asked yet, after which the connection ends."""
    return b"".join(whole(answer, ((b"Connection", b"close"),)))


def _head(answer: Answer, added: HeaderLines) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (answer.status, answer.reason.encode("utf-8", "surrogateescape"))]
    has_date = False
    for line in answer.headers:
        low = line[0].lower()
        if low not in _FRAMED:
            lines.append(b"%b: %b" % line)
            has_date = has_date or low == b"date"
    if not has_date:
        lines.append(_DATE.line())
    lines += [b"%b: %b" % line for line in added]
    return b"\r\n".join((*lines, b"", b""))


class _Date:
    """The line that every answer has (RFC 9110 §6.6.1), spelled once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._line = b""

    def line(self) -> bytes:
        """It, for now."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._line = b"Date: " + formatdate(second, usegmt=True).encode("ascii")
        return self._line


_DATE = _Date()
_FRAMED = frozenset({b"content-length", b"transfer-encoding"})


def _framing(answer: Answer, length: int | None, *, is_chunked: bool) -> HeaderLines:
    if is_chunked:
        return ((b"Transfer-Encoding", b"chunked"),)
    # RFC 9110 §8.6: never with 1xx or 204; with HEAD and 304 only what the upstream declared.
    if length is None or answer.status < 200 or answer.status == 204:
        return ()
    spelling = next((name for name, _ in answer.headers if name.lower() == b"content-length"), b"Content-Length")
    return ((spelling, b"%d" % length),)


def _connection(raw: web.BaseRequest, *, keep_alive: bool) -> HeaderLines:
    if not keep_alive:
        return ((b"Connection", b"close"),)
    return () if raw.version >= HttpVersion11 else ((b"Connection", b"keep-alive"),)


def abort(raw: web.BaseRequest) -> None:
    """End the connection so that nobody takes what was sent for a whole answer."""
    transport: Any = raw.transport
    if transport is not None:
        if raw.version < HttpVersion11 and (line := transport.get_extra_info("socket")) is not None:
            # There a body without a length ends with the connection: only a reset tells that it broke.
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
