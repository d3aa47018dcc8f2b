"""
What the serving side tells of itself: every Outcome and every piece of telemetry becomes counters and log lines.

One line per request (above a rate, one for several hits), one per change of the breaker, one per failure in the
background; never a text, a vector, a header or a key.
"""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from proxy.core.grpc_status import name_of
from proxy.core.outcome import CacheState, Outcome, Repeats
from proxy.core.trouble import Trouble
from proxy.settings.model import Settings
from proxy.telemetry import asked, labels, metric_space
from proxy.telemetry.hits import Hits, HitSum
from proxy.telemetry.log_output import error_fields, logger
from proxy.telemetry.log_throttle import Throttle
from proxy.telemetry.metrics import REQUEST_BUCKETS, Metrics
from proxy.telemetry.names import Name, Names
from proxy.telemetry.upstream_watch import UpstreamWatch

# The vendor's id can be any text; only what looks like an id is written down.
_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")

_CIRCLES_EVERY_S = 10.0


class Observer:
    """Implements ``core.telemetry.Telemetry``; ``observe`` takes each finished request. Never raises, never waits."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        log_requests: bool,
        hits_singly: int = 100,
        hosts: Mapping[str, str] | None = None,
        met: Callable[[Name], None] = lambda _: None,
    ) -> None:
        self._metrics = metrics
        self._log_requests = log_requests
        self._hits = Hits(singly=hits_singly, bounds=REQUEST_BUCKETS, tell=self._tell_hits)
        self._journal_faults = Throttle()
        self._circles, self._tells_circles_s = 0, 0.0
        self._log = logger().bind()  # bound once: the proxy that structlog hands out binds on every call
        self._watch = UpstreamWatch(self._log, hosts or {}, metrics.upstream_failing)
        self._names = Names(met)

    @classmethod
    def of(cls, settings: Settings, met: Callable[[Name], None] = lambda _: None) -> Self:
        """The observer of a worker, *met* as in ``Names``; the log is configured, and the folder for metrics is set."""
        metric_space.install()
        return cls(
            Metrics(labels.upstream_names(settings)),
            log_requests=settings.log.requests,
            hits_singly=settings.log.hits_singly,
            hosts={upstream.name: upstream.authority for upstream in settings.all_upstreams()},
            met=met,
        )

    def observe(self, outcome: Outcome) -> None:
        """Count *outcome* and write its line; of many hits in a moment, some are told of together."""
        if self._hits.take(outcome):
            return
        self._names.note(outcome)
        self._metrics.observe(outcome)
        if self._log_requests:
            self._log.info("request", **request_fields(outcome))

    def observe_repeats(self, repeats: Repeats) -> None:
        """Count hits that came above a rate, and tell of them with others."""
        self._hits.add(repeats)

    def close(self) -> None:
        """Tell of what is not told yet."""
        self._hits.tell_all()

    def _tell_hits(self, hits: HitSum) -> None:
        self._metrics.add_hits(hits)
        if self._log_requests:
            self._log.info("hits", **hit_fields(hits))

    def memory(self, entries: int, size_bytes: int) -> None:
        """What this worker's memory tier holds now; to be told from time to time."""
        self._metrics.memory(entries, size_bytes)

    def breaker_changed(self, old: str, new: str) -> None:
        """See Telemetry."""
        self._metrics.breaker_changed(old, new)
        # A trial that fails every two seconds is no news.
        if new == "open" and old != "half-open":
            self._log.warning("redis_breaker_open", before=old)
        elif new == "closed":
            self._log.info("redis_breaker_closed", before=old)

    def redis_failed(self, kind: str) -> None:
        """See Telemetry; counted only: the breaker's line says it once."""
        self._metrics.redis_failed(kind)

    def redis_read_only(self, is_so: bool) -> None:
        """See Telemetry."""
        if is_so:
            self._log.warning("redis_read_only", consequence="hits go on, nothing is kept; its name is looked up anew")
        else:
            self._log.info("redis_takes_writes")

    def redis_went_back(self, why: str) -> None:
        """See Telemetry."""
        if why:
            self._metrics.redis_went_back(why)
            consequence = "no vector answer of before counts, and each credential is asked of the vendor once"
            self._log.warning("redis_went_back", reason=why, consequence=consequence)
        else:
            self._log.info("redis_went_back", reason="told by another process")

    def stored(self, entries: int, failed: int) -> None:
        """See Telemetry."""
        self._metrics.stored(entries, failed)

    def entries_rejected(self, entries: int) -> None:
        """See Telemetry."""
        self._metrics.entries_rejected(entries)

    def refreshed(self, is_fresh: bool, outcome: Outcome) -> None:
        """See Telemetry; counted only: no request waits for it."""
        self._metrics.refreshed(is_fresh, outcome)

    def invalidated(self, told: bool) -> None:
        """See Telemetry; counted only: a breaker's line says that Redis is away, the gauge how much waits for it."""
        self._metrics.invalidated(told)

    def pending(self, count: int) -> None:
        """This worker has so many scopes that a write made stale and that Redis is not told of yet."""
        self._metrics.pending(count)

    def call_ended(self, upstream: str, end: int | Trouble) -> None:
        """See Telemetry; each is counted, and what concerns an operator is logged once a minute."""
        self._metrics.call_ended(upstream, end)
        self._watch.ended(upstream, end)

    def upstream_refused(self, upstream: str, reason: str) -> None:
        """See Telemetry; counted only: the request has its line."""
        self._metrics.upstream_refused(upstream, reason)

    def upstream_load(self, upstream: str, inflight: int, waiting: int) -> None:
        """This worker has so many requests at *upstream*, and so many that wait for their turn."""
        self._metrics.upstream_load(upstream, inflight, waiting)

    def batched(self, items: int, is_right: bool) -> None:
        """See Telemetry; counted only: each of the requests has its line."""
        self._metrics.batched(items, is_right)

    def batch_limit_changed(self, upstream: str, model: str, before: int, now: int) -> None:
        """See Telemetry."""
        if now > before:
            event, consequence = "batch_limit_learned", "batches of so many are cached; batch_cap can say so for good"
        else:
            event, consequence = "batch_limit_taken_back", "the vendor refused a batch; larger ones are passed again"
        names = {"upstream": upstream, "model": asked.name(model)}
        self._log.warning(event, **names, before=before, now=now, consequence=consequence)

    def flight_overdue(self, operation: str) -> None:
        """See Telemetry; counted only: a vendor that is slow makes many."""
        self._metrics.flight_overdue(operation)

    def loop_lag(self, seconds: float) -> None:
        """See Metrics."""
        self._metrics.loop_lag(seconds)

    def connections(self, count: int) -> None:
        """This worker has so many client connections over HTTP."""
        self._metrics.connections(count)

    def held_bytes(self, size: int) -> None:
        """This worker holds so many bytes of what is not answered yet."""
        self._metrics.held_bytes(size)

    def connection_ended(self, reason: str) -> None:
        """See Telemetry; counted only: how many there are is for strangers to choose."""
        self._metrics.connection_ended(reason)

    def came_back(self, upstream: str) -> None:
        """See RequestObserver; a circle brings as many as there are requests, so it is told of now and then."""
        self._circles += 1
        now_s = time.monotonic()
        if now_s >= self._tells_circles_s:
            self._tells_circles_s = now_s + _CIRCLES_EVERY_S
            hint = "requests to this upstream come back to this proxy: look at its URL, at DNS and at the hosts file"
            self._log.error("upstream_is_a_circle", upstream=upstream, requests=self._circles, hint=hint)
            self._circles = 0

    def journal_failed(self, error: OSError) -> None:
        """See Telemetry; on a full disk each write has one."""
        self._metrics.background_failed(error)
        held_back = self._journal_faults.passes(error.errno)
        if held_back is not None:
            self._log.error(
                "journal_not_written",
                file=error.filename or "",
                error=error.strerror or type(error).__name__,
                times=held_back + 1,
                consequence="writes go on; if this worker is killed before Redis is told, their old answers stay",
            )

    def background_failed(self, error: BaseException) -> None:
        """See Telemetry."""
        self._metrics.background_failed(error)
        self._log.error("background_failed", **error_fields(error))


def hit_fields(hits: HitSum) -> dict[str, Any]:
    """The fields of the one line of several hits; names as in ``request_fields``, times the longest and the mean."""
    return {
        "operation": hits.operation,
        "upstream": hits.upstream,
        "state": CacheState.HIT.value,
        "requests": hits.requests,
        "hits_memory": hits.hits_memory,
        "hits_redis": hits.hits_redis,
        "mean_ms": round(hits.total_ms / hits.requests, 3),
        "max_ms": round(hits.max_ms, 3),
        "bytes_in": hits.bytes_in,
        "bytes_out": hits.bytes_out,
    }


def request_fields(outcome: Outcome) -> dict[str, Any]:
    """The fields of a request's one line."""
    return {
        "operation": outcome.operation,
        **asked.request_fields(outcome),
        "upstream": outcome.upstream,
        "state": outcome.state.value,
        "detail": outcome.detail,
        "status": outcome.status,
        "grpc_code": outcome.grpc_code,
        "grpc_status": name_of(outcome.grpc_code),
        "items": outcome.items,
        "hits_memory": outcome.hits_memory,
        "hits_redis": outcome.hits_redis,
        "forwarded": outcome.forwarded,
        "coalesced": outcome.coalesced,
        "upstream_calls": outcome.upstream_calls,
        "batched": outcome.batched,
        "upstream_status": outcome.upstream_status,
        "stored": outcome.stored,
        "redis_ok": outcome.redis_ok,
        "client_gone": outcome.client_gone,
        "total_ms": round(outcome.total_ms, 3),
        "redis_ms": round(outcome.redis_ms, 3),
        "upstream_ms": round(outcome.upstream_ms, 3),
        "bytes_in": outcome.bytes_in,
        "bytes_out": outcome.bytes_out,
        "request_id": _id(outcome.request_id),
        "vendor_request_id": _id(outcome.vendor_request_id),
    }


def _id(text: str) -> str:
    return text if _REQUEST_ID.fullmatch(text) else ""
