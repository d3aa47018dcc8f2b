"""Content codings of answers: what we ask for, and how it is undone (RFC 9110 §8.4)."""

import re
import zlib

from proxy.core.plan import NotStorable, Refusal
from proxy.core.request import HeaderLines, Request, list_items

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_ALWAYS_BYTES = 2**20
_MOST_GROWTH = 16
"""Numbers in text grow two to four times; what grows a thousand times was made to fill memory."""
_ACCEPTED_GZIP = re.compile(r"gzip\s*(;(?!\s*q\s*=\s*0(\.0*)?\s*$).*)?")  # any weight but zero


def narrowed_codings(request: Request) -> HeaderLines:
    """
    The header lines of *request* with an Accept-Encoding that names only what we can undo.

    An answer in another coding could be passed on but not kept; the client loses nothing but a few bytes on the wire.
    """
    accepts_gzip = any(map(_ACCEPTED_GZIP.fullmatch, list_items(request.values(b"accept-encoding"))))
    lines = tuple(line for line in request.headers if line[0].lower() != b"accept-encoding")
    return (*lines, (b"Accept-Encoding", b"gzip" if accepts_gzip else b"identity"))


def decoded(body: bytes, content_encoding: tuple[bytes, ...], limit: int) -> bytes:
    """
    *body* without its coding, at most *limit* bytes, and no bomb.

    Raises:
        NotStorable: a coding that we did not ask for, a broken stream, or more bytes than that.
    """
    codings = [coding for coding in list_items(content_encoding) if coding != "identity"]
    if not codings:
        return body
    if len(codings) > 1 or codings[0] not in ("gzip", "x-gzip", "deflate"):
        raise NotStorable(Refusal.CONTENT_CODING)
    limit = min(limit, max(_ALWAYS_BYTES, len(body) * _MOST_GROWTH))
    expander = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        text = expander.decompress(body, limit + 1)
    except zlib.error as error:
        raise NotStorable(Refusal.CONTENT_CODING) from error
    if len(text) > limit:
        raise NotStorable(Refusal.TOO_LARGE)
    if not expander.eof or expander.unused_data:
        raise NotStorable(Refusal.CONTENT_CODING)
    return text
