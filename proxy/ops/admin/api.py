"""
The admin API on its own listener, in the supervisor: health, readiness, metrics, statistics, modes.

Who may ask is decided in ``access``. The data port knows none of these routes: it forwards every path.
"""

import socket
import time
from typing import Annotated, Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from proxy.core.jsontext import Ambiguous, parse
from proxy.core.modes import Mode, Rule
from proxy.ops.admin.access import Guard, Refused, document, middleware
from proxy.ops.admin.health import State, health, redis_state
from proxy.ops.admin.stats import modes_document, stats
from proxy.ops.switches.book import ModeBook
from proxy.ops.switches.live import EVERYTHING, MAX_REASON
from proxy.ops.switches.share import ModeShare
from proxy.ops.telemetry import labels
from proxy.ops.telemetry.metric_files import MetricFiles
from proxy.settings import Settings
from proxy.settings_conflicts import ALWAYS_FORWARDED
from proxy.vendors.dashvector import WRITE

_MAX_BODY_BYTES = 16 * 1024
_LONGEST_S = 366 * 86_400.0
_KEEPALIVE_S = 75.0


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not contain control characters")
    return text


def _known(name: str, info: ValidationInfo) -> str:
    # A switch for a name with a typing error would be accepted, and do nothing.
    allowed = (EVERYTHING, *(info.context or {}).get(info.field_name, ()))
    if name not in allowed:
        why = ALWAYS_FORWARDED if info.field_name == "operation" and name == WRITE else "unknown"
        raise ValueError(f"{why}; allowed: {', '.join(allowed)}")
    return name


Scope = Annotated[str, AfterValidator(_known)]


class ModeOrder(BaseModel):
    """The body of ``PUT /v1/mode``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    mode: Mode
    operation: Scope = EVERYTHING
    upstream: Scope = EVERYTHING
    for_s: float | None = Field(None, gt=0, le=_LONGEST_S, allow_inf_nan=False)
    reason: Annotated[str, Field(max_length=MAX_REASON), AfterValidator(_printable)] = ""


class Admin:
    """The routes; *share* is there when a Redis is."""

    def __init__(self, settings: Settings, state: State, book: ModeBook, metrics: MetricFiles) -> None:
        self._settings = settings
        self._state = state
        self._book = book
        self._metrics = metrics
        self._upstreams = labels.upstream_operations(settings)
        self._runner: web.AppRunner | None = None
        self.share: ModeShare | None = None

    async def start(self, bound: socket.socket) -> None:
        """Serve on *bound*, which becomes ours."""
        app = web.Application(middlewares=[middleware(Guard(self._settings.listen))], client_max_size=_MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics_text),
                web.get("/v1/stats", self._stats),
                web.get("/v1/mode", self._mode),
                web.put("/v1/mode", self._set_mode),
            ]
        )
        self._runner = web.AppRunner(
            # A switch that has begun is finished, whether or not its sender waits for the answer.
            app,
            access_log=None,
            handler_cancellation=False,
            keepalive_timeout=_KEEPALIVE_S,
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        await web.SockSite(self._runner, bound).start()

    async def close(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _request: web.Request) -> web.Response:
        status, body = await health(self._state)
        return document(body, status)

    async def _readyz(self, _request: web.Request) -> web.Response:
        is_ready = self._state.is_ready
        return document({"ready": is_ready, "phase": self._state.phase}, 200 if is_ready else 503)

    async def _metrics_text(self, _request: web.Request) -> web.Response:
        self._metrics.modes(self._book.live, self._upstreams)  # a rule may have ended since the last change
        return web.Response(body=await self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _stats(self, _request: web.Request) -> web.Response:
        redis = await redis_state(self._state)
        totals = await self._metrics.totals()
        return document(stats(totals, self._state, redis, self._book.live, self._upstreams))

    async def _mode(self, _request: web.Request) -> web.Response:
        return document(modes_document(self._book.live, self._upstreams))

    async def _set_mode(self, request: web.Request) -> web.Response:
        order = self._ordered(await request.read())
        now_unix_s = time.time()
        rule = Rule(
            order.mode,
            order.upstream,
            order.operation,
            until_unix_s=None if order.for_s is None else now_unix_s + order.for_s,
            reason=order.reason,
        )
        done = await self._book.switch(rule)
        shared = await self.share.synchronise() if self.share is not None else None
        return document(
            {
                "workers": {"confirmed": done.confirmed, "serving": done.workers},
                "persisted": done.persisted,
                "replicas": {None: "none", True: "shared", False: "pending"}[shared],
                **modes_document(self._book.live, self._upstreams),
            }
        )

    def _ordered(self, body: bytes) -> ModeOrder:
        """The order in *body*; Refused with every mistake."""
        known = {"operation": labels.SWITCHABLE, "upstream": self._upstreams}
        try:
            parse(body)  # two members of one name would be read differently by whoever looks at them
            return ModeOrder.model_validate_json(body, context=known)
        except Ambiguous as error:
            raise Refused(400, "BadRequest", (f"the body is not plain JSON: {error}",)) from error
        except ValidationError as invalid:
            mistakes = [_mistake(error) for error in invalid.errors(include_url=False, include_input=False)]
            raise Refused(400, "BadRequest", tuple(mistakes)) from invalid


def _mistake(error: Any) -> str:  # noqa: ANN401  pydantic's dictionary
    where = ".".join(str(part) for part in error["loc"]) or "body"
    if error["type"] == "extra_forbidden":
        return f"{where[:64]}: unknown field; allowed: {', '.join(ModeOrder.model_fields)}"
    return f"{where}: {error['msg']}"
