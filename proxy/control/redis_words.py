"""The trouble with Redis, told to a person: in its own words where it has some, and never with a password."""

import os
import socket
import ssl
from collections.abc import Iterator

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

_MOST = 160
# redis-py takes the code off the text, and makes a class of it.
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (NoPermissionError, "NOPERM"),
    (ReadOnlyError, "READONLY"),
    (OutOfMemoryError, "OOM"),
)


def redis_words(error: BaseException) -> str:
    """A sentence that begins with ``refused`` (Redis, or what is in its place, says no) or ``unreachable``."""
    if isinstance(error, BusyLoadingError):
        return "unreachable: LOADING, it reads its data"
    if isinstance(error, AuthenticationError):
        text = _printable(error)
        return f"refused: {'NOAUTH' if 'required' in text.lower() else 'WRONGPASS'} {text}"
    if isinstance(error, InvalidResponse):
        return "refused: what listens there does not answer as Redis does"
    if isinstance(error, ResponseError):
        code = next((code for kind, code in _CODES if isinstance(error, kind)), "ERR")
        return f"refused: {code} {_printable(error)}"
    return f"unreachable: {_why_unreachable(error)}"


def _why_unreachable(error: BaseException) -> str:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {cause.reason or 'no handshake'}"
        if isinstance(cause, socket.gaierror):
            return "unknown host"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower()
    return "no answer in time" if isinstance(error, TimeoutError) else "connection broken"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


def _printable(error: BaseException) -> str:
    return "".join(char if char.isprintable() else "?" for char in str(error))[:_MOST]
