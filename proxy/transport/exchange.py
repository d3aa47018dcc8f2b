"""
One request with a short body over aiohttp's connection, without aiohttp's client around it.

The session (``aiohttp.ClientSession``) serves applications, and what it does for each request takes longer than the
rest of the way through this proxy. Of aiohttp there remain the pool, TLS, names' addresses and the parser, with all
that ``connections`` adds to them; the head is written here. What streams up still goes through the session, as an
answer may come while it does.
"""

import asyncio
from typing import Any

import aiohttp
from aiohttp import StreamReader, hdrs
from aiohttp.http import HttpProcessingError, RawResponseMessage
from yarl import URL

from proxy.core.answer import Body
from proxy.core.errors import ClientError, ErrorCode, UpstreamError
from proxy.core.request import HeaderLines, Request
from proxy.core.trouble import Trouble
from proxy.transport.connections import INTERIM, SWITCHES, Connections
from proxy.transport.framing import Framed

MAX_BYTES = 48 * 1024
"""Of a head and a body that are written at once: what an idle connection takes without being full (64 KiB)."""


class Received:
    """
    An answer's head, with its body on the way; has the part of ``aiohttp.ClientResponse`` that is needed here.

    Its ``connection`` goes back to the pool by itself when the body is there.
    """

    __slots__ = ("connection", "content", "headers", "raw_headers", "reason", "status")

    def __init__(self, message: RawResponseMessage, content: StreamReader, connection: Any) -> None:  # noqa: ANN401
        self.status = message.code
        self.reason = message.reason
        self.headers = message.headers
        self.raw_headers = message.raw_headers
        self.content = content
        self.connection: Any = connection
        content.on_eof(self.release)

    def release(self) -> None:
        """Give the connection back; nothing happens if it is back."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.release()

    def close(self) -> None:
        """End the connection, and whoever waits for the rest of the body."""
        connection, self.connection = self.connection, None
        if connection is not None:
            self.content.set_exception(aiohttp.ClientConnectionError("Connection closed"))
            connection.close()


class Exchange:
    """Asks one upstream at *origin* over *connections*; *parsing* are aiohttp's options for reading answers."""

    def __init__(
        self,
        origin: str,
        connections: Connections,
        timeout: aiohttp.ClientTimeout,
        **parsing: Any,  # noqa: ANN401
    ) -> None:
        url = URL(origin)
        self._connections = connections
        self._timeout = timeout
        self._parsing = {
            "read_until_eof": True,
            "auto_decompress": False,
            "read_timeout": timeout.sock_read,
            "timeout_ceil_threshold": timeout.ceil_threshold,
            **parsing,
        }
        # All that the pool wants to know of a request is where it goes, and whether over TLS.
        self._where = aiohttp.ClientRequest(hdrs.METH_GET, url)
        self._host = f"Host: {url.host_port_subcomponent}\r\n".encode("ascii")

    def message(self, request: Request, framed: Framed) -> bytes | None:
        """
        The bytes of *request*, which is delimited as *framed*; ``None`` when it is long, or not here yet.

        Raises:
            ClientError: it cannot be written as it is.
        """
        content = framed.content
        if not isinstance(content, bytes) or len(content) > MAX_BYTES:
            return None
        message = _head(request, framed.lines, self._host) + content
        return message if len(message) <= MAX_BYTES else None

    async def ask(self, message: bytes, body: Body | None = None, *, is_head: bool) -> Received:
        """
        Send *message*, which holds all of *body*, and wait for the head of its answer.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError: as the session does.
            UpstreamError: what came is not HTTP.
        """
        try:
            connection = await self._connections.connect(self._where, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError("no connection in time") from error
        try:
            protocol: Any = connection.protocol
            if body is not None:
                await body.before_end()
            protocol.set_response_params(skip_payload=is_head, **self._parsing)
            _write(protocol.transport, message)
            protocol.start_timeout()
            while True:
                head, content = await protocol.read()
                if head.code not in INTERIM or head.code == SWITCHES:
                    return Received(head, content, connection)
        except HttpProcessingError as error:
            connection.close()
            text = "the upstream's answer is not valid HTTP"
            raise UpstreamError(ErrorCode.UPSTREAM_PROTOCOL, text, trouble=Trouble.PROTOCOL) from error
        except BaseException:
            connection.close()
            raise


def _write(transport: asyncio.WriteTransport | None, message: bytes) -> None:
    if transport is None or transport.is_closing():
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
    transport.write(message)


def _head(request: Request, lines: HeaderLines, host: bytes) -> bytes:
    target = request.target
    if target.find("?") == len(target) - 1:
        target = target[:-1]  # the session cannot write it, and both must ask for the same
    start = f"{request.method} {target} HTTP/1.1\r\n".encode("utf-8", "surrogateescape")
    head = b"".join((start, host, *[b"%b: %b\r\n" % line for line in lines]))
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ClientError(ErrorCode.BAD_REQUEST, "a header value is not UTF-8") from error
    if not head.count(b"\r") == head.count(b"\n") == len(lines) + 2 or b"\0" in head:
        raise ClientError(ErrorCode.BAD_REQUEST, "a header line holds control characters")
    return head + b"\r\n"
