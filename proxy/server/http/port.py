"""
The data port, HTTP: aiohttp's parser in, ``front`` behind it; every path is forwarded.

One ``DataServer`` per data port, one ``Connection`` per client; ``HttpPort`` opens and ends them.
"""

import asyncio
import socket
import ssl
from typing import Any

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from proxy.core.answer import Again
from proxy.server.grpc.listener_close import SETTLE_S, let_nobody_in, until
from proxy.server.http.admission import Intake
from proxy.server.http.connection import Connection
from proxy.server.http.fast_lane import Lane
from proxy.server.http.front import Front


class DataServer(web.Server):
    """aiohttp's low-level server, set up for a proxy: nothing decoded, nothing added, a leaving client cancels."""

    def __init__(
        self,
        front: Front,
        intake: Intake,
        *,
        header_bytes: int,
        header_lines: int,
        keepalive_s: float,
        lane: Lane | None = None,
    ) -> None:
        async def handle(raw: web.BaseRequest) -> web.StreamResponse:
            return await front.handle(raw, intake)

        super().__init__(handle, handler_cancellation=True)
        self.open: set[Connection] = set()
        self.lane = lane
        self._intake = intake
        self._front = front
        self._protocol_options: dict[str, Any] = {
            "auto_decompress": False,
            "keepalive_timeout": keepalive_s,
            "max_line_size": header_bytes,
            "max_field_size": header_bytes,
            "max_headers": header_lines,
            "access_log": None,
        }

    def recall(self, message: RawRequestMessage, body: bytes) -> Again | None:
        """What may answer such a request at once: if its head is known, and what flow made of one with this body."""
        head = self._intake.recall(message)
        return None if head is None else self._front.recall(head, body)

    @property
    def has_all_asked(self) -> bool:
        """Whether every connection has brought a request by now."""
        return all(connection.has_asked for connection in self.open)

    def break_off(self) -> None:
        """End every connection as it is, and with it the request that runs on it."""
        for connection in tuple(self.open):
            connection.watch.abort()

    def __call__(self) -> RequestHandler:
        """One connection."""
        return Connection(self, self, self._front, **self._protocol_options)


class HttpPort(web.ServerRunner):
    """A data port of one worker, until ``close`` and then ``end``; or ``cleanup``, which takes no care."""

    __slots__ = ("_data_server", "_listener")

    def __init__(self, server: DataServer, *, drain_s: float) -> None:
        super().__init__(server, shutdown_timeout=drain_s)
        self._data_server = server
        self._listener: socket.socket | None = None

    async def open(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        """Accept on *listener*, which is bound."""
        await self.setup()
        await web.SockSite(self, listener, backlog=_BACKLOG, ssl_context=context).start()
        self._listener = listener

    async def close(self, *, is_shared: bool) -> None:
        """Accept no more; *is_shared*: others go on with the same socket, so nobody is lost who is not yet accepted."""
        if not is_shared and self._listener is not None:
            let_nobody_in(self._listener)
            await asyncio.sleep(SETTLE_S)
        for site in self.sites:
            await site.stop()

    @property
    def connections(self) -> int:
        """How many are open; TLS counts when the handshake is over."""
        return len(self._data_server.open)

    async def end(self, within_s: float) -> None:
        """Close idle connections; let running requests end, for at most *within_s* seconds, and their answers leave."""
        # aiohttp waits for a handler twice as long as it is told, or for ever, and not at all for bytes to leave.
        breaking = asyncio.get_running_loop().call_later(within_s, self._data_server.break_off)
        try:
            # Who came in last has yet to say what it wants: to be closed then looks like a server that does not work.
            await until(lambda: self._data_server.has_all_asked, min(within_s, _FIRST_REQUEST_S))
            await self.cleanup()
            await until(lambda: not self._data_server.open, within_s)
        finally:
            breaking.cancel()


_BACKLOG = 1024
_FIRST_REQUEST_S = 1.0
