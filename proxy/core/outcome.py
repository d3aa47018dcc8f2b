"""What happened to one request: the one source of its log line, its counters and its Cache-Status header."""

import enum
from dataclasses import dataclass, field
from typing import Protocol


class CacheState(enum.StrEnum):
    """How the request was answered; the strings are log values and metric labels."""

    HIT = "hit"
    """Every item came from a tier."""
    PARTIAL = "partial"
    """Some items came from a tier; one smaller request fetched the rest."""
    STALE = "stale"
    """Some items are past their lifetime and in grace, as the detail says; the rest came from a tier."""
    NEGATIVE = "negative"
    """The vendor's error to the very same content, from moments ago."""
    MISS = "miss"
    """Looked up, nothing usable, forwarded."""
    BYPASS = "bypass"
    """Ours to cache, but not looked up: a mode, the client's wish, or a form that cannot be keyed."""
    CLIENT_CLOSED = "client-closed"
    """Ours to cache, but its client left before anything was looked up or forwarded."""
    WRITE = "write"
    """Forwarded, and what hangs on it made stale."""
    PASS = "pass"  # noqa: S105  a state, not a password
    """Not ours to cache."""
    REFUSED = "refused"
    """Answered by the proxy itself with an error, or not at all."""


class Subject(Protocol):
    """The subject of a request that may be answered from the cache; the log chooses how much of it is written."""

    extent: tuple[str, str, str, tuple[tuple[str, ...], ...]]
    """Upstream, operation, model, scopes."""
    keys: tuple[bytes, ...]

    @property
    def asked(self) -> tuple[str, str]:
        """Method and target."""


@dataclass(slots=True)
class Outcome:
    """
    Filled in as the request goes; read once when it is over.

    Holds no text, no vector and no credential. *asked* and *planned* name what a client chose: only a part is logged.
    """

    operation: str = "other"
    upstream: str = ""
    state: CacheState = CacheState.PASS
    detail: str = ""
    """Why not looked up, why not stored, or which error; a value of PassReason, Refusal or ErrorCode."""
    items: int = 0
    hits_memory: int = 0
    hits_redis: int = 0
    forwarded: int = 0
    """Items asked of the upstream for this request."""
    coalesced: int = 0
    """Items that came, or failed to come, by another request's call: of this process or, by its entry, of another."""
    upstream_calls: int = 0
    """Zero where another request's call brought all, also one that was made for several."""
    batched: int = 0
    """Items of several requests in the one upstream request that was made for this one too; zero without."""
    upstream_status: int | None = None
    status: int = 0
    grpc_code: int | None = None
    """How a gRPC call ended for the client; ``None`` over HTTP."""
    stored: bool = False
    redis_ok: bool = True
    """False when Redis was needed and could not be asked."""
    age_s: int | None = None
    """Age of the oldest entry in the answer, seconds."""
    ttl_s: int | None = None
    """Shortest remaining lifetime in the answer, seconds; negative once it is over."""
    tokens_saved: int = 0
    """Tokens of items that another request has paid for, earlier or just now."""
    shadow_hits: int = 0
    shadow_mismatches: int = 0
    request_id: str = ""
    origins: tuple[str, ...] = ()
    """The vendor's ids of the requests that paid for what was served."""
    bytes_in: int = 0
    bytes_out: int = 0
    started_s: float = 0.0
    """Monotonic seconds."""
    redis_ms: float = 0.0
    upstream_ms: float = 0.0
    total_ms: float = 0.0
    client_gone: bool = False
    vendor_request_id: str = ""
    """The vendor's own id of the call that was made for this request."""
    asked: tuple[str, str] = ("", "")
    """Method and target of what went up, for what has no *planned*."""
    planned: Subject | None = None
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The vendor's model that was asked for, in the client's own spelling; empty when there is none."""
        return "" if self.planned is None else self.planned.extent[2]

    @property
    def hits(self) -> int:
        """Items served from a tier."""
        return self.hits_memory + self.hits_redis

    @property
    def has_asked(self) -> bool:
        """Whether the upstream was asked for this request, by itself or by another that it waited for."""
        return bool(self.forwarded or self.coalesced)

    def client_left(self) -> None:
        """The client closed its connection before it had all of its answer."""
        self.client_gone = True
        # A bypass has its reason; without one, nothing was decided yet.
        if self.state is CacheState.BYPASS and not self.detail and not self.has_asked:
            self.state = CacheState.CLIENT_CLOSED

    def forget_hits(self) -> None:
        """Nothing that was found will be in the answer."""
        self.state = CacheState.MISS
        self.hits_memory = self.hits_redis = self.tokens_saved = 0
        self.age_s = self.ttl_s = None


@dataclass(slots=True)
class Repeats:
    """More requests that ended like the one of *outcome*, but for their ids and the time they took."""

    outcome: Outcome
    quick: int = 0
    """How many took no longer than ``QUICK_MS``."""
    slow_ms: list[float] = field(default_factory=list)
    """How long each of the others took."""
    quick_ms: float = 0.0
    """How long the quick ones took together, and the longest of them."""
    quick_max_ms: float = 0.0

    @property
    def times(self) -> int:
        """How many there were."""
        return self.quick + len(self.slow_ms)

    def add(self, took_ms: float) -> None:
        """One more."""
        if took_ms > QUICK_MS:
            self.slow_ms.append(took_ms)
            return
        self.quick += 1
        self.quick_ms += took_ms
        self.quick_max_ms = max(self.quick_max_ms, took_ms)


QUICK_MS = 0.5
"""The shortest span that durations are told apart by."""
