"""How the proxy is: what ``/healthz`` and ``/readyz`` answer, and the states that ``/v1/stats`` repeats."""

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from proxy.core.listening import Port
from proxy.ops.processes.redis_link import LinkDown, RedisLink
from proxy.ops.processes.redis_watch import RedisWatch
from proxy.ops.processes.workers import Workers


class Phase(enum.StrEnum):
    """Where the supervisor is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class RedisKind(enum.StrEnum):
    """Whose Redis it is."""

    EMBEDDED = "embedded"
    CONFIGURED = "configured"
    NONE = "none"
    """None could be found: the memory tiers alone."""


@dataclass(slots=True)
class State:
    """What the supervisor knows about itself; it writes, the admin API reads."""

    phase: Phase = Phase.STARTING
    redis: RedisKind = RedisKind.NONE
    link: RedisLink | None = None
    watch: RedisWatch | None = None
    workers: Workers | None = None
    wanted: int = 0
    started_mono_s: float = field(default_factory=time.monotonic)
    listening: list[Port] = field(default_factory=list)
    admin: str = ""
    loaded_unix_s: float = 0.0
    is_reloading: bool = False
    lacking: list[Callable[[], list[str]]] = field(default_factory=list)
    """Asked for what does not work and costs no request, in words."""

    @property
    def serving(self) -> int:
        """How many workers serve."""
        return self.workers.serving if self.workers is not None else 0

    @property
    def redis_words(self) -> str:
        """Whose Redis it is, or why it cannot be used."""
        return (self.watch.trouble if self.watch is not None else "") or self.redis

    @property
    def is_ready(self) -> bool:
        """
        Whether new requests should come here.

        Redis has no say: without it every request is still answered, and taking all replicas out of service because
        one Redis is down would turn a slow hour into an outage.
        """
        return self.phase is Phase.SERVING and self.serving > 0

    def listeners(self) -> dict[str, Any]:
        """Addresses by protocol, as many as there are: a list for each of the data ports' protocols in use."""
        by_protocol: dict[str, Any] = {}
        for port in self.listening:
            by_protocol.setdefault(port.protocol, []).append(port.address)
        return {**by_protocol, "admin": self.admin}

    def worker_counts(self) -> dict[str, Any]:
        """Workers that serve, how many should, and the numbers of those that hang, if any do."""
        silent = self.workers.silent if self.workers is not None else []
        return {"serving": self.serving, "wanted": self.wanted, **({"silent": silent} if silent else {})}

    def settings(self) -> dict[str, Any]:
        """When the settings in force were read, and whether others are being put in force."""
        return {"loaded_unix_s": round(self.loaded_unix_s, 3), "reloading": self.is_reloading}

    def uptime_s(self, monotonic: Callable[[], float] = time.monotonic) -> float:
        """Seconds since the start."""
        return round(monotonic() - self.started_mono_s, 1)


async def redis_state(state: State) -> dict[str, Any]:
    """Whether a key that nobody else has can be set and read back just now, and how long that took."""
    if state.link is None:
        return {"kind": state.redis, "ok": None, "round_trip_ms": None}
    try:
        round_trip_ms = await state.link.round_trip_ms()
    except LinkDown as down:
        words = (state.watch.trouble if state.watch is not None else "") or down.words
        return {"kind": state.redis, "ok": False, "round_trip_ms": None, "error": down.kind, "why": words}
    return {"kind": state.redis, "ok": True, "round_trip_ms": round(round_trip_ms, 3)}


async def health(state: State) -> tuple[int, dict[str, Any]]:
    """
    HTTP status and body of ``/healthz``.

    ``unhealthy`` when nobody serves; ``degraded`` when Redis does not answer, a worker is missing, or something is lost
    that costs no request (``lacks`` says what): requests are still answered, so the status stays 200 and nobody
    restarts us for it.
    """
    redis = await redis_state(state)
    lacks = [text for lacking in state.lacking for text in lacking()]
    if state.serving == 0:
        verdict = "unhealthy"
    elif redis["ok"] is False or state.serving < state.wanted or lacks:
        verdict = "degraded"
    else:
        verdict = "healthy"
    body = {
        "status": verdict,
        "phase": state.phase,
        "listeners": state.listeners(),
        "redis": redis,
        "workers": state.worker_counts(),
        "settings": state.settings(),
        **({"lacks": lacks} if lacks else {}),
    }
    return (503 if verdict == "unhealthy" else 200), body
