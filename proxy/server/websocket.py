"""
WebSocket, bridged for real: a connection to the upstream first, then one to the client, frames across both ways.

Frames keep their kind (text, binary, ping, pong), order and content; a close keeps its code and reason. Compression and
masking are each connection's own.
"""

import asyncio
import dataclasses
from collections.abc import Mapping

import aiohttp
from aiohttp import WSMsgType, hdrs, web

from proxy.core.answer import Answer
from proxy.core.outcome import Outcome
from proxy.core.request import Request
from proxy.core.trouble import CallEnded, ignored
from proxy.errors import ClientError, ErrorCode, UpstreamError
from proxy.transport.http import HttpTransport, UpstreamAnswer, handshake_lines

_HANDSHAKE = frozenset(
    {b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions", b"sec-websocket-protocol"}
)

Side = web.WebSocketResponse | aiohttp.ClientWebSocketResponse

_NEVER_SENT = (1004, 1005, 1006, 1015)
"""Close codes that no frame may carry (RFC 6455 §7.4.1)."""
_CODES_END = 5000
"""There is no code from here on (RFC 6455 §7.4.2)."""


class Bridge:
    """
    Bridges WebSocket requests to the upstreams in *transports*.

    To others an upgrade is not offered; the request is served as plain HTTP (RFC 9110 §7.8): what is bridged is seen
    by nobody, and so could change something unnoticed.
    """

    def __init__(self, transports: Mapping[str, HttpTransport], call_ended: CallEnded = ignored) -> None:
        self._transports = transports
        self._call_ended = call_ended
        self._open: set[tuple[Side, Side]] = set()

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
        offered = tuple(
            name.strip() for name in raw.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",") if name.strip()
        )
        lines = tuple(line for line in request.headers if line[0].lower() not in _HANDSHAKE)
        outcome.upstream_calls = 1
        try:
            upstream = await self._transports[request.upstream].websocket(
                dataclasses.replace(request, headers=lines), offered
            )
        except UpstreamError as error:
            if error.trouble is not None:
                self._call_ended(request.upstream, error.trouble)
            raise
        self._call_ended(request.upstream, upstream.status if isinstance(upstream, UpstreamAnswer) else 101)
        if isinstance(upstream, UpstreamAnswer):
            outcome.upstream_status = upstream.status
            return Answer(upstream.status, upstream.reason, upstream.headers, upstream, upstream.length)
        outcome.upstream_status = outcome.status = 101
        try:
            return await self._bridged(raw, upstream)
        finally:
            await upstream.close(code=aiohttp.WSCloseCode.GOING_AWAY)

    async def close(self) -> None:
        """Tell all clients and upstreams that the proxy goes away (RFC 6455 §7.4.1, code 1001)."""
        await asyncio.gather(
            *(side.close(code=aiohttp.WSCloseCode.GOING_AWAY) for pair in tuple(self._open) for side in pair)
        )

    async def _bridged(self, raw: web.BaseRequest, upstream: aiohttp.ClientWebSocketResponse) -> web.StreamResponse:
        chosen = (upstream.protocol,) if upstream.protocol else ()
        client = web.WebSocketResponse(
            protocols=chosen, autoping=False, autoclose=False, compress=False, max_msg_size=0
        )
        for name, value in handshake_lines(upstream):
            client.headers.add(name.decode("ascii"), value.decode("utf-8", "replace"))
        await client.prepare(raw)
        pair = (client, upstream)
        self._open.add(pair)
        pumps = {asyncio.ensure_future(_pump(client, upstream)), asyncio.ensure_future(_pump(upstream, client))}
        try:
            # Both end when either side closes: the pump that sees it closes the other side, under the other pump.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self._open.discard(pair)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        return client


async def _pump(source: Side, sink: Side) -> None:
    """Frames from *source* to *sink* until *source* closes or breaks off; its close goes across too."""
    while not source.closed:  # by the other pump, which sees to both sides
        message = await source.receive()
        if message.type is WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await sink.send_bytes(message.data)
        elif message.type is WSMsgType.PING:
            await sink.ping(message.data)
        elif message.type is WSMsgType.PONG:
            await sink.pong(message.data)
        elif message.type is WSMsgType.CLOSE:
            code = message.data or aiohttp.WSCloseCode.OK
            if code in _NEVER_SENT or code >= _CODES_END:  # aiohttp lets it in; handed on, it would be our fault
                code = aiohttp.WSCloseCode.PROTOCOL_ERROR
            # The other side first: when the client's connection has ended, aiohttp cancels all this.
            await sink.close(code=code, message=(message.extra or "").encode("utf-8"))
            await source.close(code=code)
            return
        elif message.type is WSMsgType.CLOSING:  # the same, while this pump was waiting
            return
        else:  # closed without a word, or an error: the other side learns it as "going away"
            await sink.close(code=aiohttp.WSCloseCode.GOING_AWAY)
            return
