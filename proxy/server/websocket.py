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

from proxy.core.outcome import Outcome
from proxy.core.request import Request
from proxy.errors import ErrorCode, UpstreamError
from proxy.transport.http import HttpTransport

_HANDSHAKE = frozenset(
    {b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions", b"sec-websocket-protocol"}
)

Side = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class Bridge:
    """Bridges WebSocket requests to their upstreams."""

    def __init__(self, transports: Mapping[str, HttpTransport]) -> None:
        self._transports = transports
        self._open: set[web.WebSocketResponse] = set()

    async def run(self, raw: web.BaseRequest, request: Request, outcome: Outcome) -> web.StreamResponse:
        """
        Bridge one connection until either side closes it.

        Raises:
            UpstreamError: the upstream cannot be reached, or refuses the upgrade (with the upstream's status).
        """
        offered = tuple(
            name.strip() for name in raw.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",") if name.strip()
        )
        lines = tuple(line for line in request.headers if line[0].lower() not in _HANDSHAKE)
        outcome.upstream_calls = 1
        try:
            upstream = await self._transports[request.upstream].websocket(
                dataclasses.replace(request, headers=lines), offered
            )
        except aiohttp.WSServerHandshakeError as error:
            outcome.upstream_status = error.status
            raise UpstreamError(
                ErrorCode.UPSTREAM_PROTOCOL, "the upstream refused the WebSocket upgrade", error.status or 502
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamError(ErrorCode.UPSTREAM_UNREACHABLE, "the upstream cannot be reached") from error
        outcome.upstream_status = outcome.status = 101
        async with upstream:
            return await self._bridged(raw, upstream)

    async def close(self) -> None:
        """Tell all clients that the proxy goes away (RFC 6455 §7.4.1, code 1001)."""
        for client in tuple(self._open):
            await client.close(code=aiohttp.WSCloseCode.GOING_AWAY)

    async def _bridged(self, raw: web.BaseRequest, upstream: aiohttp.ClientWebSocketResponse) -> web.StreamResponse:
        chosen = (upstream.protocol,) if upstream.protocol else ()
        client = web.WebSocketResponse(
            protocols=chosen, autoping=False, autoclose=False, compress=False, max_msg_size=0
        )
        await client.prepare(raw)
        self._open.add(client)
        pumps = {
            asyncio.ensure_future(_pump(client, upstream)),
            asyncio.ensure_future(_pump(upstream, client)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(client)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        return client


async def _pump(source: Side, sink: Side) -> None:
    """Frames from *source* to *sink* until *source* closes or breaks off; its close goes across too."""
    while True:
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
            reason = (message.extra or "").encode("utf-8")
            await sink.close(code=message.data or aiohttp.WSCloseCode.OK, message=reason)
            await source.close(code=message.data or aiohttp.WSCloseCode.OK)
            return
        else:  # closed without a word, or an error: the other side learns it as "going away"
            await sink.close(code=aiohttp.WSCloseCode.GOING_AWAY)
            return
