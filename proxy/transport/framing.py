"""
How a request is delimited on its way up: the one place that says how long a body is, made of the body that is sent.

The client's word about its body is not believed here, whether that came through, was named away, or is missing: an
upstream that reads one byte more or less than was written takes what follows for a request of its own.
"""

from collections.abc import AsyncIterator
from typing import NamedTuple

from proxy.core.answer import Body
from proxy.core.request import HeaderLines, Request

_NO_LENGTH = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class WrongLengthError(Exception):
    """A body that is longer or shorter than was declared: nobody may go on reading behind it."""


class Framed(NamedTuple):
    """
    A request's lines without Host, those that delimit its body among them, and that body.

    *content* is all of the body, or its pieces. Pieces come in chunks unless Content-Length is among the *lines*; then
    they are as many bytes as it says, or reading them raises WrongLengthError.
    """

    lines: HeaderLines
    content: bytes | AsyncIterator[bytes]


def framed(request: Request, body: Body | None, at_once_bytes: int, added: HeaderLines = ()) -> Framed:
    """
    *request* with the bytes it has, else with *body*: whole if it is here and not longer than *at_once_bytes*.

    The lines that we have *added* come last. Of lines whose names differ in case only, all get the first's spelling.
    """
    content = _content(request, body, at_once_bytes)
    if isinstance(content, bytes):
        return Framed(_lines(request, len(content), added, is_optional=request.method in _NO_LENGTH), content)
    return Framed(_lines(request, None if body is None else body.length, added, is_optional=True), content)


def _content(request: Request, body: Body | None, at_once_bytes: int) -> bytes | AsyncIterator[bytes]:
    if request.body is not None:
        return request.body
    if body is None or body.is_empty:
        return b""
    here = body.at_hand(at_once_bytes)
    if here is not None:
        return here
    return body.pieces() if body.length is None else _exactly(body.pieces(), body.length)


def _lines(request: Request, length: int | None, added: HeaderLines, *, is_optional: bool) -> HeaderLines:
    """A *length* of ``None`` is not told; one of zero is not either where *is_optional*, unless the client told it."""
    lines: list[tuple[bytes, bytes]] = []
    spellings: dict[bytes, bytes] = {}
    wanted = None if length is None else b"%d" % length
    for name, value in request.headers:
        low = name.lower()
        if low not in _FRAMING:
            if low != b"host":
                lines.append((spellings.setdefault(low, name), value))
        elif wanted is not None and low == b"content-length" and request.body is None:
            lines.append((name, wanted))
            wanted = None
    if wanted is not None and (length or not is_optional or request.body is not None):
        lines.append((b"Content-Length", wanted))
    lines += [(spellings.get(name.lower(), name), value) for name, value in added]
    return tuple(lines)


async def _exactly(pieces: AsyncIterator[bytes], length: int) -> AsyncIterator[bytes]:
    left = length
    async for piece in pieces:
        left -= len(piece)
        if left < 0:
            break
        yield piece
    if left:
        raise WrongLengthError
