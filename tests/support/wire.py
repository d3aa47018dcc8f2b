"""
HTTP/1.1 as bytes: heads, framing and bodies, read strictly and kept as sent. Used by `raw_upstream` and `raw_client`.

No HTTP library, so that a test sees the wire and not what a library makes of it. Anything that RFC 9112 does not allow
here is an error: a double that is lenient would hide a proxy that is wrong.
"""

import asyncio
import enum
import re
import socket
import struct
import time
from dataclasses import dataclass, field

Headers = tuple[tuple[bytes, bytes], ...]

# For asyncio's streams: heads and chunks far beyond any limit under test must still fit.
STREAM_LIMIT = 64 * 1024 * 1024

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]+)[ \t]*(;.*)?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*(.*?)[ \t]*", re.DOTALL)


class WireError(Exception):
    """These bytes are not HTTP/1.1, or they end too early."""


class Framing(enum.Enum):
    """How a body says where it ends (RFC 9112 §6.3)."""

    NONE = enum.auto()
    LENGTH = enum.auto()
    CHUNKED = enum.auto()
    UNTIL_CLOSE = enum.auto()


@dataclass(frozen=True, slots=True)
class Head:
    """A start line and its fields; *raw* includes the empty line at the end."""

    raw: bytes
    start_line: bytes
    headers: Headers

    def all(self, name: bytes | str) -> list[bytes]:
        """The values of every field called *name*, in order."""
        wanted = (name.encode() if isinstance(name, str) else name).lower()
        return [value for key, value in self.headers if key.lower() == wanted]

    def get(self, name: bytes | str) -> bytes | None:
        """The value of the only field called *name*; None without one, an error with several."""
        values = self.all(name)
        if len(values) > 1:
            raise WireError(f"{len(values)} fields {name!r}")
        return values[0] if values else None


@dataclass(slots=True)
class Body:
    """A body as it arrived, added to while it is read."""

    raw: bytearray = field(default_factory=bytearray)
    data: bytearray = field(default_factory=bytearray)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    """Monotonic time and data of each chunk, or without chunks of each read from the socket."""
    trailers: Headers = ()

    def add(self, raw: bytes, data: bytes) -> None:
        """Append what was read now."""
        self.raw += raw
        self.data += data
        if data:
            self.pieces.append((time.monotonic(), data))


def parse_head(raw: bytes) -> Head:
    """Split a complete head, empty line included."""
    if not raw.endswith(b"\r\n\r\n"):
        raise WireError(f"not a head: {raw[-40:]!r}")
    start_line, *lines = raw[:-4].split(b"\r\n")
    return Head(raw, start_line, tuple(_parse_field(line) for line in lines))


def _parse_field(line: bytes) -> tuple[bytes, bytes]:
    match = _FIELD.fullmatch(line)
    if not match or re.search(rb"[\r\n\0]", line):
        raise WireError(f"not a field: {line!r}")
    return match.group(1), match.group(2)


class PatientReader(asyncio.StreamReader):
    """Gives out all that had come before a reset, and then simply ends; asyncio's own drops it and raises."""

    broken: Exception | None = None
    """What broke the connection, if anything did."""

    def set_exception(self, exc: Exception) -> None:
        """Called by the protocol when the connection breaks."""
        self.broken = exc
        self.feed_eof()


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """Read one head; None when the stream ends before its first byte."""
    try:
        return parse_head(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise WireError(f"the stream ended inside a head: {error.partial!r}") from error


def request_framing(head: Head) -> tuple[Framing, int]:
    """How the body of a request is delimited, and its length if that is told."""
    framing = _stated_framing(head)
    return (Framing.NONE, 0) if framing is None else framing


def response_framing(head: Head, method: bytes) -> tuple[Framing, int]:
    """How the body of the answer to a *method* request is delimited, and its length if that is told."""
    status = status_of(head)
    if method == b"HEAD" or status < 200 or status in {204, 304}:
        return Framing.NONE, 0
    framing = _stated_framing(head)
    return (Framing.UNTIL_CLOSE, 0) if framing is None else framing


def _stated_framing(head: Head) -> tuple[Framing, int] | None:
    coding, length = head.get(b"Transfer-Encoding"), head.get(b"Content-Length")
    if coding is not None and length is not None:
        raise WireError("both Transfer-Encoding and Content-Length")
    if coding is not None:
        if coding.lower() != b"chunked":
            raise WireError(f"Transfer-Encoding: {coding!r}")
        return Framing.CHUNKED, 0
    if length is not None:
        if not re.fullmatch(rb"[0-9]+", length):
            raise WireError(f"Content-Length: {length!r}")
        return Framing.LENGTH, int(length)
    return None


def status_of(head: Head) -> int:
    """The status of an answer."""
    match = re.fullmatch(rb"HTTP/1\.[01] ([1-9][0-9][0-9])( .*)?", head.start_line)
    if not match:
        raise WireError(f"not a status line: {head.start_line!r}")
    return int(match.group(1))


def closes(head: Head) -> bool:
    """Whether the sender of *head* says that the connection ends after this message."""
    words = [word.strip().lower() for value in head.all(b"Connection") for word in value.split(b",")]
    if b"HTTP/1.0" in head.start_line:
        return b"keep-alive" not in words
    return b"close" in words


async def read_body(reader: asyncio.StreamReader, framing: tuple[Framing, int], body: Body) -> None:
    """Read a body into *body*, which holds what had come so far when this raises."""
    kind, length = framing
    if kind is Framing.LENGTH:
        while length:
            data = await reader.read(min(length, 65536))
            if not data:
                raise WireError(f"the stream ended {length} bytes before the end of the body")
            length -= len(data)
            body.add(data, data)
    elif kind is Framing.UNTIL_CLOSE:
        while data := await reader.read(65536):
            body.add(data, data)
    elif kind is Framing.CHUNKED:
        while await _read_chunk(reader, body):
            pass
        body.trailers = await _read_trailers(reader, body)


async def _read_chunk(reader: asyncio.StreamReader, body: Body) -> bool:
    """Read one chunk; False when it was the last one, which is empty."""
    line = await _read_line(reader, body)
    match = _CHUNK_SIZE.fullmatch(line)
    if not match:
        raise WireError(f"not a chunk size: {line!r}")
    size = int(match.group(1), 16)
    if size == 0:
        return False
    try:
        data = await reader.readexactly(size + 2)
    except asyncio.IncompleteReadError as error:
        body.add(error.partial, error.partial[:size])
        raise WireError(f"the stream ended inside a chunk of {size} bytes") from error
    body.add(data, data[:size])
    if not data.endswith(b"\r\n"):
        raise WireError(f"a chunk of {size} bytes does not end where it should")
    return True


async def _read_trailers(reader: asyncio.StreamReader, body: Body) -> Headers:
    found = []
    while line := await _read_line(reader, body):
        found.append(_parse_field(line))
    return tuple(found)


async def _read_line(reader: asyncio.StreamReader, body: Body) -> bytes:
    try:
        line = await reader.readuntil(b"\r\n")
    except asyncio.IncompleteReadError as error:
        body.raw += error.partial
        raise WireError("the stream ended inside a chunked body") from error
    body.raw += line
    return line[:-2]


def chunk(data: bytes) -> bytes:
    """*data* as one chunk; empty *data* would be the last one, so it becomes nothing."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def head_bytes(start_line: bytes, headers: Headers | list[tuple[bytes, bytes]]) -> bytes:
    """A head as it goes over the wire; nothing is checked or added, so that tests can send what is wrong."""
    return start_line + b"\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in headers) + b"\r\n"


def reset(writer: asyncio.StreamWriter) -> None:
    """Break the connection with a RST (on a Unix socket: just at once), dropping what has not been sent yet."""
    line: socket.socket | None = writer.get_extra_info("socket")
    if line is not None and line.family != socket.AF_UNIX and not writer.is_closing():
        # Lingering for zero seconds is how TCP is told to reset.
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def flush(writer: asyncio.StreamWriter) -> None:
    """Wait until the kernel has everything; drain alone is content with most of it, and a reset drops the rest."""
    writer.transport.set_write_buffer_limits(high=0)
    await writer.drain()
