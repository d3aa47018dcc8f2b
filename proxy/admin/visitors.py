"""
The admin listener's connections: one request each, in a limited time, and never too many for the supervisor.

Half a request costs its sender nothing, and anybody who reaches the port can open many. So when there are too many, the
oldest that has not asked yet, of the address that has the most of these, makes room for the newcomer: a probe, which
asks at once, is always let in.
"""

import asyncio
from collections import Counter
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

MOST = 100
"""Connections at a time."""

_ASK_S = 5.0
"""For a whole request, from the first moment of its connection."""
_TAKE_S = 30.0
"""For its answer to be taken."""
# So many are accepted in one go, before any of them is counted.
BACKLOG = 32


class Visitors:
    """All connections; at most *most*, of which each has *ask_s* seconds to ask."""

    def __init__(self, most: int = MOST, ask_s: float = _ASK_S, take_s: float = _TAKE_S) -> None:
        self.most = most
        self.ask_s = ask_s
        self.take_s = take_s
        self._all: dict[Visitor, None] = {}
        """In the order in which they came."""

    def __len__(self) -> int:
        return len(self._all)

    def come(self, visitor: "Visitor") -> None:
        """Let *visitor* in, and another one out if there are too many."""
        self._all[visitor] = None
        if len(self._all) <= self.most:
            return
        # Only who has not asked: an order that is being carried out is answered.
        silent = [other for other in self._all if not other.has_asked]
        counts = Counter(other.address for other in silent)
        most = max(counts.values())
        out = next(other for other in silent if counts[other.address] == most)
        out.abort()
        del self._all[out]

    def go(self, visitor: "Visitor") -> None:
        """*visitor* has left."""
        self._all.pop(visitor, None)


class Visitor(RequestHandler):
    """One connection."""

    __slots__ = ("_timer", "_visitors", "address", "has_asked")

    def __init__(self, server: web.Server, visitors: Visitors, **options: Any) -> None:  # noqa: ANN401  aiohttp's options
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._visitors = visitors
        self._timer: asyncio.TimerHandle | None = None
        self.address = ""
        self.has_asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        self._limit(self._visitors.ask_s)
        self._visitors.come(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the event loop."""
        self._limit(None)
        self._visitors.go(self)
        super().connection_lost(exc)

    def asked(self) -> None:
        """Its request is there whole; how long it takes to carry it out is ours to answer for."""
        self.has_asked = True
        self._limit(None)

    def answered(self) -> None:
        """Its answer is on its way."""
        self._limit(self._visitors.take_s)

    def abort(self) -> None:
        """End it as it is."""
        if self.transport is not None:
            self.transport.abort()

    def _limit(self, within_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if within_s is None else asyncio.get_running_loop().call_later(within_s, self.abort)


class VisitedRunner(web.AppRunner):
    """aiohttp's runner of an application, with visitors for connections."""

    __slots__ = ("_visitors",)

    def __init__(self, app: web.Application, visitors: Visitors, **options: Any) -> None:  # noqa: ANN401  aiohttp's options
        super().__init__(app, **options)
        self._visitors = visitors

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made, self._visitors)


class _Server(web.Server):
    """*made*, but for what stands for a connection."""

    def __init__(self, made: web.Server, visitors: Visitors) -> None:
        options = made._kwargs  # noqa: SLF001  there is no other way to them
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            **options,
        )
        self._visitors = visitors

    def __call__(self) -> RequestHandler:
        """One connection."""
        return Visitor(self, self._visitors, **self._kwargs)
