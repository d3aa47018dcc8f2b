"""
The client that shows what really came: it writes bytes and reads exactly one HTTP/1.1 answer at a time off the socket.

Used by tests of what goes over the wire. It can stop half-way, hold its reading back, leave politely or not.
"""

# ruff: noqa: ASYNC109 (see waiting)

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.support import wire

DEFAULT_TIMEOUT_S = 45.0


@dataclass(frozen=True, slots=True)
class RawResponse:
    """
    One answer, byte for byte.

    *raw_body* is the body as sent, *body* without the chunks; *pieces* are monotonic time and data of each chunk, or
    without chunks of each read. *interim* are heads of 1xx answers before it. *fault*: why it is not complete.
    """

    head: wire.Head
    head_at: float
    raw_body: bytes
    body: bytes
    pieces: tuple[tuple[float, bytes], ...]
    trailers: wire.Headers
    interim: tuple[wire.Head, ...]
    fault: str | None = None

    @property
    def status_line(self) -> bytes:
        """The first line, without its end."""
        return self.head.start_line

    @property
    def status(self) -> int:
        """The number in it."""
        return wire.status_of(self.head)

    @property
    def headers(self) -> wire.Headers:
        """The fields, in order, names as sent."""
        return self.head.headers

    def header(self, name: str) -> bytes | None:
        """The value of the only field called *name*; several are an error."""
        return self.head.get(name)

    @property
    def raw(self) -> bytes:
        """The exact bytes, less interim answers."""
        return self.head.raw + self.raw_body


class IncompleteResponseError(wire.WireError):
    """The connection ended, or the bytes went wrong, inside an answer; *partial* is what there is of it."""

    def __init__(self, partial: RawResponse) -> None:
        super().__init__(f"{partial.fault}; {partial.status_line!r} and {len(partial.raw_body)} bytes of body came")
        self.partial = partial


def request_bytes(
    method: str, target: str | bytes, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes | None = None
) -> bytes:
    """A request for `RawClient.send`: Host if there is none, Content-Length if there is a body, else as given."""
    names = {name.lower() for name, _ in headers}
    fields = [*([] if b"host" in names else [(b"Host", b"proxy.test")]), *headers]
    if body is not None and not names & {b"content-length", b"transfer-encoding"}:
        fields.append((b"Content-Length", b"%d" % len(body)))
    path = target if isinstance(target, bytes) else target.encode()
    return wire.head_bytes(b"%b %b HTTP/1.1" % (method.encode(), path), fields) + (body or b"")


class RawClient:
    """One connection. Made by `connect`, closed by `close`, `abort` or the end of `async with`."""

    def __init__(self, reader: wire.PatientReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, where: str | int, *, read_buffer: int = wire.STREAM_LIMIT) -> Self:
        """Connect to a port of loopback or to the host and port of a URL. A small *read_buffer* makes a slow reader."""
        url = urlsplit(f"http://127.0.0.1:{where}" if isinstance(where, int) else where)
        loop = asyncio.get_running_loop()
        reader = wire.PatientReader(limit=read_buffer)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, url.hostname or "127.0.0.1", url.port or 80)
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def send(self, data: bytes) -> None:
        """Write these bytes: a request, several, or part of one."""
        self.writer.write(data)
        await self.writer.drain()

    async def request(
        self,
        method: str,
        target: str | bytes,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> RawResponse:
        """Send one request and read its answer."""
        await self.send(request_bytes(method, target, headers, body))
        return await self.read_response(method=method, timeout=timeout)

    async def post(self, target: str, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> RawResponse:
        """POST JSON, as the vendors' clients do."""
        return await self.request("POST", target, [(b"Content-Type", b"application/json"), *headers], body)

    async def read_response(self, *, method: str = "GET", timeout: float = DEFAULT_TIMEOUT_S) -> RawResponse:
        """
        Read the answer to one *method* request; later bytes stay unread.

        Raises IncompleteResponseError when it breaks off, ConnectionError when nothing came, TimeoutError.
        """
        async with asyncio.timeout(timeout):
            interim: list[wire.Head] = []
            while True:
                head = await wire.read_head(self.reader)
                if head is None:
                    raise ConnectionResetError(f"no answer: {self.reader.broken or 'the connection was closed'}")
                if wire.status_of(head) >= 200:
                    return await self._read_rest(head, method.encode(), tuple(interim))
                interim.append(head)

    async def _read_rest(self, head: wire.Head, method: bytes, interim: tuple[wire.Head, ...]) -> RawResponse:
        head_at, body, fault = time.monotonic(), wire.Body(), None
        try:
            await wire.read_body(self.reader, wire.response_framing(head, method), body)
        except wire.WireError as error:
            fault = f"{error} ({self.reader.broken})" if self.reader.broken else str(error)
        response = RawResponse(
            head, head_at, bytes(body.raw), bytes(body.data), tuple(body.pieces), body.trailers, interim, fault
        )
        if fault is not None:
            raise IncompleteResponseError(response)
        return response

    async def read_until_closed(self, timeout: float = DEFAULT_TIMEOUT_S) -> bytes:
        """Everything until the other side ends the connection, whichever way."""
        found = b""
        async with asyncio.timeout(timeout):
            while data := await self.reader.read(65536):
                found += data
        return found

    @property
    def was_reset(self) -> bool:
        """Whether the connection broke, rather than ended; known once everything has been read."""
        return self.reader.broken is not None

    def half_close(self) -> None:
        """Say that nothing more will be sent (FIN), and go on reading."""
        self.writer.write_eof()

    def abort(self) -> None:
        """Leave with a RST, at once."""
        wire.reset(self.writer)

    async def close(self) -> None:
        """Leave politely."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):  # it may be gone already
            await self.writer.wait_closed()


async def ask(
    where: str | int, method: str, target: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes | None = None
) -> RawResponse:
    """One request on a connection of its own."""
    async with await RawClient.connect(where) as client:
        return await client.request(method, target, headers, body)
