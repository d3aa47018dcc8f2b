"""
WebSocket, bridged: the upstream's handshake first, then the client's, then bytes across both ways.

The handshake is the two ends' own: the client's key goes up, and the upstream's word on it comes down, with protocol
and extensions. Frames pass as they come, piece by piece (see ``frames``): a message is never held, and an end that does
not read makes the other one wait. The bridge speaks for itself only where an end breaks off or misbehaves, or when the
proxy ends.
"""

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import Mapping
from typing import Any, cast

from aiohttp import EMPTY_PAYLOAD, hdrs, web
from aiohttp.base_protocol import BaseProtocol

from proxy.core.answer import Answer
from proxy.core.errors import ClientError, ErrorCode, UpstreamError
from proxy.core.outcome import Outcome
from proxy.core.request import HeaderLines, Request, list_items
from proxy.core.trouble import CallEnded, Trouble, ignored
from proxy.server.http.frames import GOING_AWAY, PROTOCOL_ERROR, FrameError, Frames, goodbye
from proxy.server.http.writing import Written, head_alone
from proxy.transport.http import HttpTransport, Switched, UpstreamAnswer

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3

_CLOSING_S = 10.0
"""From the first goodbye to the end of both connections, whatever the ends do."""
_LEAVING_S = 1.0
"""The same after a goodbye of ours: closed on unread bytes, a socket is reset, and the goodbye is lost."""


class Bridge:
    """
    Bridges WebSocket requests to the upstreams in *transports*.

    To others an upgrade is not offered; the request is served as plain HTTP (RFC 9110 §7.8): what is bridged is seen
    by nobody, and so could change something unnoticed.
    """

    def __init__(self, transports: Mapping[str, HttpTransport], call_ended: CallEnded = ignored) -> None:
        self._transports = transports
        self._call_ended = call_ended
        self._open: set[_Tunnel] = set()

    def serves(self, upstream: str) -> bool:
        """Whether *upstream* is one to bridge to."""
        return upstream in self._transports

    async def run(self, raw: web.BaseRequest, request: Request, outcome: Outcome) -> web.StreamResponse | Answer:
        """
        Bridge one connection until either side closes it; or the upstream's answer, when it refuses to switch.

        Raises:
            ClientError: the client's handshake is wrong.
            UpstreamError: the upstream cannot be reached, or answers nonsense.
        """
        if not web.WebSocketResponse().can_prepare(raw):
            raise ClientError(ErrorCode.BAD_REQUEST, "this is not a valid WebSocket handshake")
        if hdrs.TRANSFER_ENCODING in raw.headers or raw.headers.get(hdrs.CONTENT_LENGTH, "0").strip("0"):
            # RFC 6455 §4.1 knows of none. Behind a head that another protocol may follow, who knows how it is read.
            raise ClientError(ErrorCode.BAD_REQUEST, "a WebSocket handshake has no body")
        outcome.upstream_calls = 1
        try:
            upstream = await self._asked(request)
        except UpstreamError as error:
            if error.trouble is not None:
                self._call_ended(request.upstream, error.trouble)
            raise
        self._call_ended(request.upstream, upstream.status)
        outcome.upstream_status = upstream.status
        if isinstance(upstream, UpstreamAnswer):
            return Answer(upstream.status, upstream.reason, upstream.headers, upstream, upstream.length)
        outcome.status = upstream.status
        try:
            await self._bridged(raw, upstream)
        finally:
            upstream.close()
        return Written(keep_alive=False)

    async def close(self) -> None:
        """Tell all clients and upstreams that the proxy goes away (RFC 6455 §7.4.1, code 1001)."""
        for tunnel in self._open:
            tunnel.say_goodbye(GOING_AWAY)
        await asyncio.gather(*(tunnel.ended() for tunnel in tuple(self._open)))

    async def _asked(self, request: Request) -> Switched | UpstreamAnswer:
        upstream = await self._transports[request.upstream].switched(request)
        if isinstance(upstream, Switched) and not _is_agreed(request, upstream):
            upstream.close()
            text = "the upstream's WebSocket handshake is wrong"
            raise UpstreamError(ErrorCode.UPSTREAM_PROTOCOL, text, trouble=Trouble.PROTOCOL)
        return upstream

    async def _bridged(self, raw: web.BaseRequest, upstream: Switched) -> None:
        switching = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
        answer = Answer(upstream.status, "Switching Protocols", upstream.headers, b"")
        await raw.writer.write(head_alone(answer, switching))
        tunnel = _Tunnel(raw.protocol, upstream.protocol, is_extended=_has(upstream.headers, b"extensions"))
        self._open.add(tunnel)
        try:
            raw.protocol.set_parser(cast("Any", tunnel.from_client))  # it has what aiohttp needs of one
            upstream.protocol.set_parser(tunnel.from_upstream, EMPTY_PAYLOAD)
            if upstream.protocol.transport is None:  # it has ended already, and tells nobody again
                tunnel.from_upstream.feed_eof()
            await tunnel.ended()
        finally:
            self._open.discard(tunnel)
            tunnel.end()


class _Way:
    """From one end to the other; what aiohttp's protocols take for a parser."""

    def __init__(self, tunnel: "_Tunnel", source: BaseProtocol, sink: BaseProtocol, frames: Frames) -> None:
        self._tunnel = tunnel
        self._source = source
        self._sink = sink
        self._waiting: asyncio.Task[None] | None = None
        self.frames = frames
        self.is_over = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Called with what has come."""
        if self.is_over:
            return False, b""
        try:
            self._write(self.frames.passing(data))
        except FrameError as error:
            (sound,) = error.args
            self._write(sound)
            self._tunnel.say_goodbye(PROTOCOL_ERROR)
        if self.frames.said_goodbye:
            self._tunnel.end_within(_CLOSING_S)
        return False, b""

    def feed_eof(self) -> None:
        """Called at the end of what comes, however it ended."""
        self.is_over = True
        self._tunnel.lost()

    def put(self, frame: bytes) -> None:
        """Send a goodbye of ours in the source's place, where one may stand."""
        if not self.frames.said_goodbye and self.frames.is_between:
            self._write(frame)
        self.frames.said_goodbye = True

    def end(self) -> None:
        """Nothing is waited for any more."""
        self.is_over = True
        if self._waiting is not None:
            self._waiting.cancel()

    def _write(self, data: bytes) -> None:
        transport = self._sink.transport
        if not data or transport is None or transport.is_closing():
            return
        transport.write(data)
        if self._sink.writing_paused and self._waiting is None:
            self._source.pause_reading()
            self._waiting = asyncio.get_running_loop().create_task(self._drained())

    async def _drained(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self._sink._drain_helper()  # noqa: SLF001  aiohttp's writers wait so; none stands here
        self._waiting = None
        self._source.resume_reading()


class _Tunnel:
    """Both ways between a *client* and an *upstream* that have switched."""

    def __init__(self, client: BaseProtocol, upstream: BaseProtocol, *, is_extended: bool) -> None:
        self._ended = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._ends_s = float("inf")
        self.from_client = _Way(self, client, upstream, Frames(is_masked=True, is_extended=is_extended))
        self.from_upstream = _Way(self, upstream, client, Frames(is_masked=False, is_extended=is_extended))

    async def ended(self) -> None:
        """Wait for it; whoever waits may be cancelled."""
        await asyncio.shield(self._ended)

    def say_goodbye(self, code: int) -> None:
        """Tell both ends, in the name of the proxy."""
        self.from_client.put(goodbye(code, is_masked=True))
        self.from_upstream.put(goodbye(code, is_masked=False))
        self.end_within(_LEAVING_S)

    def lost(self) -> None:
        """One end is gone: the other is told so, unless there was a goodbye."""
        if self.from_client.is_over and self.from_upstream.is_over:
            self.end()
        elif not self._ended.done():
            over, other = self.from_client, self.from_upstream
            if other.is_over:
                over, other = other, over
            over.put(goodbye(GOING_AWAY, is_masked=over is self.from_client))
            self.end() if other.frames.said_goodbye else self.end_within(_LEAVING_S)

    def end_within(self, seconds: float) -> None:
        """Wait so long at most for both ends to close."""
        loop = asyncio.get_running_loop()
        if self._ended.done() or loop.time() + seconds >= self._ends_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._ends_s = loop.time() + seconds
        self._timer = loop.call_later(seconds, self.end)

    def end(self) -> None:
        """It is over: both connections are to be closed."""
        if self._timer is not None:
            self._timer.cancel()
        self.from_client.end()
        self.from_upstream.end()
        if not self._ended.done():
            self._ended.set_result(None)


def _is_agreed(request: Request, upstream: Switched) -> bool:
    """Whether the upstream has switched to what the client asked for (RFC 6455 §4.1)."""
    key = request.value(b"sec-websocket-key") or b""
    accept = base64.b64encode(hashlib.sha1(key.strip() + _MAGIC, usedforsecurity=False).digest())
    said: dict[str, Any] = {
        name: [value.strip() for line, value in upstream.raw_headers if line.lower() == name.encode()]
        for name in ("upgrade", "connection", "sec-websocket-accept")
    }
    return (
        [value.lower() for value in said["upgrade"]] == [b"websocket"]
        and "upgrade" in list_items(tuple(said["connection"]))
        and said["sec-websocket-accept"] == [accept]
    )


def _has(lines: HeaderLines, name: bytes) -> bool:
    return any(line.lower() == b"sec-websocket-" + name and value.strip() for line, value in lines)
