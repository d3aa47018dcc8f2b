"""
The admin API on its own listener, in the supervisor: health, readiness, metrics, statistics, modes, purges, reload.

Who may ask is decided in ``access``. The data port knows none of these routes: it forwards every path.
"""

import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from proxy.admin.access import Guard, Refused, document, middleware
from proxy.admin.health import State, health, redis_state, upstream_state
from proxy.admin.metric_files import MetricFiles
from proxy.admin.orders import ReloadRefusedError, mode_order, purge_order, reload_order
from proxy.admin.rates import Rates
from proxy.admin.stats import failing_since, modes_document, stats
from proxy.admin.visitors import BACKLOG, VisitedRunner, Visitors
from proxy.control.modes import ModeBook
from proxy.control.order_store import Book
from proxy.control.purges import PurgeBook, named
from proxy.control.redis_sweep import Sweep
from proxy.control.redis_watch import STRANGER
from proxy.control.share import Share
from proxy.core.modes import Rule
from proxy.settings.model import Settings
from proxy.telemetry import labels

_MAX_BODY_BYTES = 16 * 1024
_LINGER_S = 1.0


class Admin:
    """The routes; ``sweep`` is there when a Redis is, ``share`` when it may have other replicas."""

    def __init__(
        self, settings: Settings, state: State, book: ModeBook, purges: PurgeBook, metrics: MetricFiles
    ) -> None:
        self._settings = settings
        self._state = state
        self._book = book
        self._purges = purges
        self._metrics = metrics
        self._upstreams = labels.upstream_operations(settings)
        self._runner: web.AppRunner | None = None
        self.visitors = Visitors()
        self.run_token = secrets.token_urlsafe(32) if settings.listen.admin_token is not None else ""
        """For commands on this machine that can read the data folder, where the operator's token is never written."""
        self.rates = Rates(metrics.totals)
        self.reload: Callable[[], Awaitable[None]] | None = None
        self.share: Share | None = None
        self.sweep: Sweep | None = None

    def use(self, settings: Settings) -> None:
        """Go by *settings* from now on; who may ask, and where, stays."""
        self._upstreams = labels.upstream_operations(settings)

    async def start(self, bound: socket.socket) -> None:
        """Serve on *bound*, which becomes ours."""
        guard = Guard(self._settings.listen, self.run_token)
        app = web.Application(middlewares=[middleware(guard)], client_max_size=_MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics_text),
                web.get("/v1/stats", self._stats),
                web.get("/v1/workers", self._workers),
                web.get("/v1/mode", self._mode),
                web.put("/v1/mode", self._set_mode),
                web.post("/v1/purge", self._purge),
                web.post("/v1/reload", self._reload),
            ]
        )
        self._runner = VisitedRunner(
            # A switch that has begun is finished, whether or not its sender waits for the answer.
            app,
            self.visitors,
            access_log=None,
            handler_cancellation=False,
            lingering_time=_LINGER_S,
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        await web.SockSite(self._runner, bound, backlog=BACKLOG).start()

    async def close(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _request: web.Request) -> web.Response:
        totals = await self._metrics.totals()
        upstreams = {name: upstream_state(failing_since(totals, name)) for name in self._upstreams}
        status, body = await health(self._state, upstreams)
        return document(body, status)

    async def _readyz(self, _request: web.Request) -> web.Response:
        is_ready = self._state.is_ready
        return document({"ready": is_ready, "phase": self._state.phase}, 200 if is_ready else 503)

    async def _metrics_text(self, _request: web.Request) -> web.Response:
        self._metrics.modes(self._book.live, self._upstreams)  # a rule may have ended since the last change
        watch = self._state.watch
        self._metrics.redis_stranger(is_stranger=watch is not None and watch.trouble == STRANGER)
        return web.Response(body=await self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _stats(self, _request: web.Request) -> web.Response:
        redis = await redis_state(self._state)
        totals = await self._metrics.totals()
        told = stats(totals, self._state, redis, self._book.live, self._upstreams, marks=self._purges.held)
        return document({**told, "rates": self.rates.document(totals)})

    async def _workers(self, _request: web.Request) -> web.Response:
        return document(await self._state.each_worker())

    async def _mode(self, _request: web.Request) -> web.Response:
        return document(modes_document(self._book.live, self._upstreams))

    async def _set_mode(self, request: web.Request) -> web.Response:
        order = mode_order(await request.read(), self._upstreams)
        now_unix_s = time.time()
        rule = Rule(
            order.mode,
            order.upstream,
            order.operation,
            until_unix_s=None if order.for_s is None else now_unix_s + order.for_s,
            reason=order.reason,
            by=self._caller(request),
        )
        done = await self._book.switch(rule)
        return document(
            {
                "workers": {"confirmed": done.confirmed, "serving": done.workers, "unconfirmed": done.missing},
                "persisted": done.persisted,
                "replicas": await self._replicas(self._book),
                **modes_document(self._book.live, self._upstreams),
            }
        )

    def _caller(self, request: web.Request) -> str:
        """How the operator is known here: by address, and whether by the token; it names no person."""
        known = "by token" if self._settings.listen.admin_token is not None else "without token"
        return f"{request.remote or 'unknown'} {known}"

    async def _purge(self, request: web.Request) -> web.Response:
        extent = purge_order(await request.read(), self._upstreams).extent
        mark, done = await self._purges.purge(extent)
        self._metrics.purged()
        if self.sweep is not None and "all" in named(extent):
            self.sweep.start()
        return document(
            {
                "token": mark.token,
                "scope": named(extent),
                "unknown": self._state.workers.names.unknown(extent) if self._state.workers is not None else {},
                "confirmed": done.confirmed,
                "workers": done.workers,
                "unconfirmed": done.missing,
                "persisted": done.persisted,
                "replicas": await self._replicas(self._purges),
            }
        )

    async def _reload(self, request: web.Request) -> web.Response:
        reload_order(await request.read())
        if self.reload is None:
            raise Refused(409, "NotNow", ("the proxy is starting",))
        try:
            await self.reload()
        except ReloadRefusedError as refused:
            raise Refused(refused.status, refused.code, tuple(refused.mistakes)) from refused
        return document({"workers": self._state.worker_counts(), "settings": self._state.settings()})

    async def _replicas(self, book: Book[Any]) -> str:
        """Whether the other replicas are told of the orders of *book*."""
        if self.share is None:
            return "none"
        return "shared" if await self.share.synchronise(book) else "pending"
