"""
Upstream HTTP: one session per upstream, bytes as they are in both directions.

aiohttp's client is made for applications; here everything that would help one is switched off: redirects, cookies,
proxies from the environment, decompression, header lines of its own, and re-sending.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import hdrs
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict
from yarl import URL

from proxy.core import loops
from proxy.core.answer import Body
from proxy.core.errors import ClientError, ErrorCode, UpstreamError
from proxy.core.grpc_status import GrpcStatus
from proxy.core.request import HeaderLines, Request, end_to_end
from proxy.core.share import NOBODY, SHARE
from proxy.core.trouble import Trouble
from proxy.transport.connections import WANTS_FRESH, Connections
from proxy.transport.exchange import MAX_BYTES, Exchange, Received
from proxy.transport.framing import Framed, framed
from proxy.transport.slots import Slot, Slots

_SKIPPED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

WHOLE_BYTES = 65_536
"""Bodies up to here are here before a slot is taken; of others the first piece is."""

_READ_AHEAD_BYTES = 65_536
"""Of an answer that its client does not take; aiohttp keeps twice this, and as much again on its way out."""


_SWITCHING: HeaderLines = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))


class UpstreamAnswer:
    """An upstream's answer: its head, and its body as it arrives. Implements ``core.answer.Stream``."""

    def __init__(self, response: aiohttp.ClientResponse | Received) -> None:
        self._response = response
        self.status = response.status
        self.reason = response.reason or ""
        self.headers: HeaderLines = end_to_end(response.raw_headers)
        self.length = _declared_length(response)
        self.grpc_status: GrpcStatus | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body in the pieces in which it arrives. Raises UpstreamError when it breaks off."""
        try:
            async for piece in self._response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(error) from error
        finally:
            self.close()

    def at_hand(self) -> tuple[bytes, bool]:
        """What of the body has come already, and whether that is all."""
        content = self._response.content
        if content.exception() is not None:
            return b"", False
        start = content.read_nowait()
        return start, content.at_eof()

    async def read(self, limit: int, has_room: Callable[[int], bool]) -> tuple[bytes, bool]:
        """Up to *limit* bytes and a piece more, or as far as there is room, and whether that is all."""
        pieces, size = [], 0
        async for piece in _unclosed(self._response):
            pieces.append(piece)
            size += len(piece)
            if not has_room(len(piece)) or size > limit:
                return b"".join(pieces), False
        self.close()
        return b"".join(pieces), True

    def close(self) -> None:
        """Give the connection back if the body was read to its end, and end it otherwise."""
        self._response.close() if not self._response.content.is_eof() else self._response.release()


class Switched:
    """An upstream's connection after its 101, until ``close``: what comes is the other protocol's."""

    def __init__(self, response: aiohttp.ClientResponse, protocol: ResponseHandler) -> None:
        self._response = response
        self.status = response.status
        self.raw_headers: HeaderLines = response.raw_headers
        self.headers: HeaderLines = end_to_end(response.raw_headers)
        self.protocol: ResponseHandler = protocol
        """aiohttp's end of the connection, to be given a parser."""
        protocol.read_timeout = None  # silence is no fault there

    def close(self) -> None:
        """End the connection; what was written still goes out."""
        self._response.close()


class HttpTransport:
    """
    Sends requests to one upstream; *origin* is its scheme, host and port, and nothing else ever decides those.

    Each says in ``CDN-Loop`` that it went through the proxy *own_id*.
    Each takes one of the *slots* once its body is here, or flows, until its connection is free again: when the answer
    was read to its end, or closed.
    """

    def __init__(
        self,
        origin: str,
        *,
        slots: Slots,
        connect_timeout_s: float,
        read_timeout_s: float,
        keepalive_s: float,
        max_line_bytes: int,
        max_lines: int,
        own_id: bytes = b"",
    ) -> None:
        self.origin = origin
        self._added: HeaderLines = ((loops.LINE, own_id),) if own_id else ()
        self._slots = slots
        # No limit of its own: whoever waits there waits without an end, and is seen nowhere.
        connections = Connections(limit=0, keepalive_timeout=keepalive_s, use_dns_cache=True)
        # Nobody knows whether both sides read a handshake that was refused alike: each has a connection of its own.
        once = Connections(limit=0, force_close=True, use_dns_cache=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s, sock_read=read_timeout_s)
        parsing: dict[str, Any] = {
            "read_bufsize": _READ_AHEAD_BYTES,
            "max_line_size": max_line_bytes,
            "max_field_size": max_line_bytes,
            "max_headers": max_lines,
        }
        self._exchange = Exchange(origin, connections, timeout, **parsing)
        self._session = _session(connections, timeout, **parsing)
        self._handshakes = _session(once, timeout, **parsing)

    async def send(self, request: Request, body: Body | None = None) -> UpstreamAnswer:
        """
        Send *request*; its ``body`` bytes if it has them, else *body* as it arrives. Returns when the head is there.

        Raises:
            ClientError: the request cannot be written as it is.
            UpstreamError: busy, unreachable, too slow, or not HTTP; ``retryable`` when the connection ended without a
                byte.
        """
        is_upload = False
        if request.body is None and body is not None:
            _headers(request.headers)  # a head that cannot be written is refused before its body is asked for
            is_upload = not await body.begun(WHOLE_BYTES)
        taken = await self._slots.take(share=SHARE.get(NOBODY), is_again=request.is_again, is_long=is_upload)
        with _Slot(taken) as slot:
            WANTS_FRESH.set(request.is_again)
            outgoing = framed(request, body, MAX_BYTES, self._added)
            message = self._exchange.message(request, outgoing)
            response: aiohttp.ClientResponse | Received
            if message is None:
                response = await self._stream(request, outgoing, body, taken)
            else:
                response = await self._exchange.ask(message, body, is_head=request.method == hdrs.METH_HEAD)
            slot.held_by(response)
        if response.status == 101:
            response.close()
            text = "the upstream switched protocols unasked"
            raise UpstreamError(ErrorCode.UPSTREAM_PROTOCOL, text, trouble=Trouble.PROTOCOL)
        return UpstreamAnswer(response)

    async def _stream(
        self, request: Request, outgoing: Framed, body: Body | None, slot: Slot
    ) -> aiohttp.ClientResponse:
        if body is not None and isinstance(outgoing.content, bytes):
            await body.before_end()
        return await self._session.request(
            request.method,
            URL(self.origin + request.target, encoded=True),
            headers=_headers(outgoing.lines),
            data=_data(outgoing, slot),
            allow_redirects=False,
        )

    async def switched(self, request: Request) -> Switched | UpstreamAnswer:
        """
        A connection to the upstream that speaks WebSocket, asked for with *request*; or its answer, if it refuses.

        Raises:
            ClientError, UpstreamError: as ``send``.
        """
        taken = await self._slots.take(share=SHARE.get(NOBODY), is_long=True)
        with _Slot(taken) as slot:
            response = await self._handshakes.request(
                request.method,
                URL(self.origin + request.target, encoded=True),
                headers=_headers((*framed(request, None, 0, self._added).lines, *_SWITCHING)),
                allow_redirects=False,
            )
            slot.held_by(response)
        if response.status != 101:
            return UpstreamAnswer(response)
        if response.connection is None or response.connection.protocol is None:
            text = "the upstream closed the connection"
            raise UpstreamError(ErrorCode.UPSTREAM_UNREACHABLE, text, trouble=Trouble.CLOSED)
        return Switched(response, response.connection.protocol)

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(self._session.close(), self._handshakes.close())


def _session(
    connections: Connections,
    timeout: aiohttp.ClientTimeout,
    **options: Any,  # noqa: ANN401  aiohttp's
) -> aiohttp.ClientSession:
    """A session over *connections*, with everything off that would help an application."""
    session = aiohttp.ClientSession(
        connector=connections,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        raise_for_status=False,
        trust_env=False,
        skip_auto_headers=_SKIPPED,
        timeout=timeout,
        **options,
    )
    # aiohttp re-sends what it holds idempotent when a kept connection turns out to be closed, without asking
    # whether the body can be read twice, and offers no public switch (aiohttp #10790). We decide that ourselves.
    session._retry_connection = False  # noqa: SLF001
    return session


class _Slot:
    """One slot that was taken, on its way from a request to the answer's connection; given back if no answer comes."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._is_held = False

    def held_by(self, response: aiohttp.ClientResponse | Received) -> None:
        """*response* gives the slot back with its connection; one that is there whole has none any more."""
        if response.connection is not None:
            self._is_held = True
            response.connection.add_callback(self._slot.give_back)

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the slot back if no answer does; aiohttp's exceptions become ours."""
        if not self._is_held:
            self._slot.give_back()
        if isinstance(error, (aiohttp.ClientError, TimeoutError, OSError)):
            raise _translated(error) from error


def _headers(lines: HeaderLines) -> CIMultiDict[str]:
    try:
        # aiohttp's writer would drop bytes that are not UTF-8 without a word.
        return CIMultiDict([(name.decode("ascii"), value.decode("utf-8")) for name, value in lines])
    except UnicodeDecodeError as error:
        raise ClientError(ErrorCode.BAD_REQUEST, "a header value is not UTF-8") from error


def _data(outgoing: Framed, slot: Slot) -> bytes | AsyncIterator[bytes] | None:
    content = outgoing.content
    if isinstance(content, bytes):
        return content or None
    return _uploaded(content, slot)


async def _uploaded(pieces: AsyncIterator[bytes], slot: Slot) -> AsyncIterator[bytes]:
    """The *pieces* of a body; after the last one the request depends on its client no more."""
    async for piece in pieces:
        yield piece
    slot.shorten()


def _declared_length(response: aiohttp.ClientResponse | Received) -> int | None:
    if "Transfer-Encoding" in response.headers:
        return None
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isascii() and value.isdigit() else None


async def _unclosed(response: aiohttp.ClientResponse | Received) -> AsyncIterator[bytes]:
    """The pieces of a body that somebody may go on reading."""
    try:
        while piece := await response.content.readany():
            yield piece
    except asyncio.CancelledError:  # nobody will read the rest
        response.close()
        raise
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        response.close()
        raise _translated(error) from error


def _translated(error: BaseException) -> UpstreamError:
    """The one table from aiohttp's exceptions to ours; messages name no address and no header."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        text = "the upstream did not accept a connection in time"
        return UpstreamError(ErrorCode.UPSTREAM_TIMEOUT, text, 504, trouble=Trouble.CONNECT_TIMEOUT)
    if isinstance(error, (aiohttp.ServerTimeoutError, TimeoutError, asyncio.TimeoutError)):
        text = "the upstream did not answer in time"
        return UpstreamError(ErrorCode.UPSTREAM_TIMEOUT, text, 504, trouble=Trouble.TIMEOUT)
    if isinstance(error, aiohttp.ClientConnectorError):
        trouble = _unconnected(error)
        return UpstreamError(ErrorCode.UPSTREAM_UNREACHABLE, _UNCONNECTED_TEXTS[trouble], trouble=trouble)
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, OSError)):
        text = "the upstream closed the connection"
        return UpstreamError(ErrorCode.UPSTREAM_UNREACHABLE, text, retryable=True, trouble=Trouble.CLOSED)
    # ClientResponseError here means a malformed answer, not a status; ClientPayloadError a body that broke off.
    text = "the upstream's answer is not valid HTTP, or broke off"
    return UpstreamError(ErrorCode.UPSTREAM_PROTOCOL, text, trouble=Trouble.PROTOCOL)


_UNCONNECTED_TEXTS = {
    Trouble.UNKNOWN_HOST: "the upstream's name has no address",
    Trouble.REFUSED: "the upstream cannot be reached: it refuses connections",
    Trouble.TLS: "the upstream's TLS is refused: its certificate, or what it speaks",
    Trouble.UNREACHABLE: "the upstream cannot be reached",
}


def _unconnected(error: aiohttp.ClientConnectorError) -> Trouble:
    """Why there is no connection."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Trouble.UNKNOWN_HOST
    # What answers a TLS handshake by closing comes as an operating system's error, after the connection was made.
    if isinstance(error, aiohttp.ClientSSLError) or (
        error._conn_key.is_ssl  # noqa: SLF001  aiohttp shows it in no other way
        and isinstance(error.os_error, (ConnectionResetError, BrokenPipeError, ssl.SSLError))
    ):
        return Trouble.TLS
    return Trouble.REFUSED if isinstance(error.os_error, ConnectionRefusedError) else Trouble.UNREACHABLE
