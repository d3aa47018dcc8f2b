"""How the proxy is: what ``/healthz`` and ``/readyz`` answer, and the states that ``/v1/stats`` repeats."""

import enum
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxy.control.channel import Question, Reply
from proxy.control.redis_link import LinkDown, RedisLink
from proxy.control.redis_watch import RedisWatch
from proxy.core.listening import Port
from proxy.core.trouble import WORDS, Trouble
from proxy.telemetry.names import Names


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


class Team(Protocol):
    """The workers, as far as the admin API asks for them."""

    names: Names

    @property
    def serving(self) -> int:
        """How many serve."""

    @property
    def silent(self) -> list[int]:
        """The numbers of those that hang."""

    async def ask(self, question: Question) -> Sequence[Reply]:
        """The answers of those that serve."""


@dataclass(slots=True)
class State:
    """What the supervisor knows about itself; it writes, the admin API reads."""

    phase: Phase = Phase.STARTING
    redis: RedisKind = RedisKind.NONE
    link: RedisLink | None = None
    watch: RedisWatch | None = None
    workers: Team | None = None
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

    async def each_worker(self) -> dict[str, Any]:
        """How each worker does, as far as it answers within a second."""
        replies = await self.workers.ask(Question.STATE) if self.workers is not None else ()
        told = [
            {
                "worker": reply.worker,
                "pid": reply.pid,
                "age_s": round(reply.age_s, 1),
                "answers": reply.document is not None,
                **(reply.document or {}),
            }
            for reply in replies
        ]
        return {"wanted": self.wanted, "workers": told}

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


def upstream_state(failing_since_unix_s: Mapping[str, float]) -> dict[str, Any]:
    """How an upstream does that fails for these causes since then, as of the last call to it; with none it is ok."""
    if not failing_since_unix_s:
        return {"state": "ok", "cause": None, "since_unix_s": None}
    cause, since_unix_s = max(failing_since_unix_s.items(), key=lambda item: item[1])
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since_unix_s))
    return {"state": f"{WORDS[Trouble(cause)]} since {since}", "cause": cause, "since_unix_s": since_unix_s}


async def health(state: State, upstreams: Mapping[str, dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """
    HTTP status and body of ``/healthz``; *upstreams* have their ``upstream_state``.

    ``unhealthy`` when nobody serves; ``degraded`` when Redis or an upstream does not answer, a worker is missing, or
    something is lost that costs no request (``lacks`` says what): what can be is still answered, so the status stays
    200 and nobody restarts us for it.
    """
    redis = await redis_state(state)
    lacks = [text for lacking in state.lacking for text in lacking()]
    if state.serving == 0:
        verdict = "unhealthy"
    elif (
        redis["ok"] is False
        or state.serving < state.wanted
        or any(upstream["cause"] for upstream in upstreams.values())
        or lacks
    ):
        verdict = "degraded"
    else:
        verdict = "healthy"
    body = {
        "status": verdict,
        "phase": state.phase,
        "listeners": state.listeners(),
        "redis": redis,
        "upstreams": dict(upstreams),
        "workers": state.worker_counts(),
        "settings": state.settings(),
        **({"lacks": lacks} if lacks else {}),
    }
    return (503 if verdict == "unhealthy" else 200), body
