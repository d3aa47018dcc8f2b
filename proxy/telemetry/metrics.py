"""
The counters of one worker: what an Outcome and the telemetry of the inner layers add up to.

With PROMETHEUS_MULTIPROC_DIR set before prometheus_client is first imported, the values live in files that the
supervisor adds up (``metric_files``); without it they live in this process. All children that a hit needs are made at
the start, so that a hit looks up a few dictionaries and adds.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from proxy.core.grace import StaleReason
from proxy.core.outcome import CacheState, Outcome
from proxy.core.plan import PassReason
from proxy.core.trouble import FAILS_FOR_ALL, Trouble
from proxy.telemetry import labels
from proxy.telemetry.hits import HitSum
from proxy.telemetry.models import TokensSaved
from proxy.vendors.operations import OPERATIONS

# From a memory hit (well under a millisecond) to the vendor's slow answers.
REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# What vendors take in one request, and steps up to it.
BATCH_BUCKETS = (2, 3, 5, 7, 10, 15, 20, 25)
LAG_BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)
UPSTREAM_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

_LOOKED_UP = frozenset({CacheState.HIT, CacheState.PARTIAL, CacheState.STALE, CacheState.MISS})


class Metrics:
    """Implements ``core.telemetry.Telemetry``; *upstreams* are the names that may become labels."""

    def __init__(self, upstreams: tuple[str, ...], registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._operations = (*OPERATIONS, labels.OTHER)
        self._upstreams = (*upstreams, labels.OTHER)
        self._make_request_metrics()
        self._make_upstream_metrics()
        self._make_store_metrics()
        self._make_load_metrics()

    def observe(self, outcome: Outcome) -> None:
        """Count one finished request."""
        operation = labels.known(outcome.operation, self._operations)
        key = (operation, outcome.state.value)
        self._requests[key].inc()
        self._answers[labels.answer(outcome.status)].inc()
        self._durations[key].observe(outcome.total_ms / 1000)
        if outcome.state in _LOOKED_UP:
            self._observe_items(operation, outcome)
        if outcome.upstream_calls:
            self._observe_upstream(operation, outcome)
        if outcome.state is CacheState.STALE:
            self._stale[operation, outcome.detail].inc()
        elif outcome.detail and outcome.state is not CacheState.HIT:
            self._not_cached.labels(operation, labels.known(outcome.detail, labels.REASONS)).inc()
        if outcome.detail == PassReason.SHADOW:
            self._observe_shadow(outcome)

    def add_hits(self, hits: HitSum) -> None:
        """Count several hits; the same as ``observe`` of each."""
        operation = labels.known(hits.operation, self._operations)
        key = (operation, CacheState.HIT.value)
        self._requests[key].inc(hits.requests)
        self._answers["2xx"].inc(hits.requests)
        _observe_many(self._durations[key], hits)
        for counter, count in zip(self._items[operation], (hits.hits_memory, hits.hits_redis), strict=False):
            if count:
                counter.inc(count)
        for model, tokens in hits.tokens_saved.items():
            self._tokens_saved.add(operation, model, tokens)
        self._calls_saved[operation].inc(hits.requests)

    def memory(self, entries: int, size_bytes: int) -> None:
        """What this worker's memory tier holds now."""
        self._memory_entries.set(entries)
        self._memory_bytes.set(size_bytes)

    def breaker_changed(self, old: str, new: str) -> None:  # noqa: ARG002  Telemetry's form
        """See Telemetry; half-open still keeps Redis out of the way, so only ``closed`` counts as closed."""
        self._breaker_open.set(0 if new == "closed" else 1)

    def redis_went_back(self, why: str) -> None:
        """See Telemetry."""
        self._redis_went_back[labels.known(why, self._redis_went_back)].inc()

    def redis_failed(self, kind: str) -> None:
        """See Telemetry."""
        self._redis_failures[labels.known(kind, self._redis_failures)].inc()

    def stored(self, entries: int, failed: int) -> None:
        """See Telemetry."""
        self._stored.inc(entries)
        self._store_failed.inc(failed)

    def entries_rejected(self, entries: int) -> None:
        """See Telemetry."""
        self._rejected.inc(entries)

    def refreshed(self, is_fresh: bool, outcome: Outcome) -> None:
        """See Telemetry."""
        self._refreshes["fresh" if is_fresh else "failed"].inc()
        if outcome.upstream_calls:
            self._observe_upstream(labels.known(outcome.operation, self._operations), outcome)

    def invalidated(self, told: bool) -> None:
        """See Telemetry."""
        self._invalidations["told" if told else "untold"].inc()

    def pending(self, count: int) -> None:
        """Of how many scopes this worker has to tell Redis yet that a write made them stale."""
        self._pending.set(count)

    def call_ended(self, upstream: str, end: int | Trouble) -> None:
        """See Telemetry."""
        label = end.value if isinstance(end, Trouble) else labels.known(labels.answer(end), labels.CALL_ENDS)
        self._calls[labels.known(upstream, self._upstreams), label].inc()

    def upstream_failing(self, upstream: str, cause: Trouble | None, since_unix_s: float) -> None:
        """From now on *upstream* is known not to answer, for this *cause*; ``None``: it answers."""
        for each, gauge in self._failing[labels.known(upstream, self._upstreams)].items():
            gauge.set(since_unix_s if each is cause else 0)

    def upstream_refused(self, upstream: str, reason: str) -> None:
        """See Telemetry."""
        self._upstream_refused[labels.known(upstream, self._upstreams), reason].inc()

    def upstream_load(self, upstream: str, inflight: int, waiting: int) -> None:
        """How many requests of this worker are at *upstream* now, and how many wait for their turn."""
        name = labels.known(upstream, self._upstreams)
        self._inflight.labels(name).set(inflight)
        self._queue.labels(name).set(waiting)

    def batched(self, items: int, is_right: bool) -> None:
        """See Telemetry."""
        self._batch_items.observe(items)
        if not is_right:
            self._batches_undone.inc()

    def flight_overdue(self, operation: str) -> None:
        """See Telemetry."""
        self._overdue[labels.known(operation, self._operations)].inc()

    def loop_lag(self, seconds: float) -> None:
        """By how much the event loop was late once."""
        self._loop_lag.observe(seconds)

    def connections(self, count: int) -> None:
        """How many client connections this worker has."""
        self._connections.set(count)

    def held_bytes(self, size: int) -> None:
        """How much of ``limits.held_bytes`` is taken."""
        self._held_bytes.set(size)

    def connection_ended(self, reason: str) -> None:
        """See Telemetry."""
        self._connections_ended[reason].inc()

    def background_failed(self, error: BaseException) -> None:  # noqa: ARG002  Telemetry's form
        """See Telemetry."""
        self._background_failures.inc()

    def _observe_items(self, operation: str, outcome: Outcome) -> None:
        counts = (outcome.hits_memory, outcome.hits_redis, outcome.forwarded, outcome.coalesced)
        for counter, count in zip(self._items[operation], counts, strict=True):
            if count:
                counter.inc(count)
        if outcome.tokens_saved:
            self._tokens_saved.add(operation, outcome.model, outcome.tokens_saved)
        if not outcome.upstream_calls and outcome.status < 400:
            self._calls_saved[operation].inc()

    def _observe_upstream(self, operation: str, outcome: Outcome) -> None:
        upstream = labels.known(outcome.upstream, self._upstreams)
        self._calls_made[operation].inc(outcome.upstream_calls)
        self._upstream_durations[upstream].observe(outcome.upstream_ms / 1000)

    def _observe_shadow(self, outcome: Outcome) -> None:
        self._shadow["hit"].inc(outcome.shadow_hits)
        self._shadow["mismatch"].inc(outcome.shadow_mismatches)
        self._shadow["miss"].inc(max(0, outcome.items - outcome.shadow_hits))

    def _make_request_metrics(self) -> None:
        requests = self._counter("dashcache_requests", "Requests, by how they were answered.", "operation", "state")
        items = self._counter("dashcache_items", "Items of looked-up requests, by source.", "operation", "result")
        calls = self._counter(
            "dashcache_operation_calls", "Upstream calls of an operation: made, or saved whole.", "operation", "result"
        )
        tokens = self._counter(
            "dashcache_tokens_saved", "Tokens that did not have to be paid for again.", "operation", "model"
        )
        self._tokens_saved = TokensSaved(tokens)
        durations = Histogram(
            "dashcache_request_duration_seconds",
            "From the request's head to the answer's last byte.",
            ("operation", "state"),
            buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )
        answers = self._counter("dashcache_answers", "Answers to clients, by status.", "status")
        self._answers = {status: answers.labels(status) for status in labels.ANSWERS}
        self._not_cached = self._counter(
            "dashcache_not_cached", "Requests not looked up or not stored, by reason.", "operation", "reason"
        )
        pairs = [(operation, state) for operation in self._operations for state in labels.STATES]
        stale = self._counter("dashcache_stale", "Answers with entries past their lifetime.", "operation", "reason")
        self._stale = {
            (operation, reason.value): stale.labels(operation, reason.value)
            for operation in self._operations
            for reason in StaleReason
        }
        self._requests = {pair: requests.labels(*pair) for pair in pairs}
        self._durations = {pair: durations.labels(*pair) for pair in pairs}
        self._items = {
            operation: tuple(items.labels(operation, result) for result in labels.ITEM_RESULTS)
            for operation in self._operations
        }
        self._calls_made = {operation: calls.labels(operation, "made") for operation in self._operations}
        self._calls_saved = {operation: calls.labels(operation, "saved") for operation in self._operations}
        shadow = self._counter("dashcache_shadow", "Items in shadow mode: would have hit, missed, differed.", "result")
        self._shadow = {result: shadow.labels(result) for result in ("hit", "miss", "mismatch")}

    def _make_upstream_metrics(self) -> None:
        calls = self._counter("dashcache_upstream_calls", "Calls to an upstream, by how they ended.", "upstream", "end")
        durations = Histogram(
            "dashcache_upstream_duration_seconds",
            "Time a request spent waiting for the upstream.",
            ("upstream",),
            buckets=UPSTREAM_BUCKETS,
            registry=self.registry,
        )
        self._batch_items = Histogram(
            "dashcache_batch_items",
            "Items in upstream requests that were made for several requests.",
            buckets=BATCH_BUCKETS,
            registry=self.registry,
        )
        self._batches_undone = self._counter(
            "dashcache_batches_undone", "Such upstream requests that were not answered right."
        )
        overdue = self._counter(
            "dashcache_flights_overdue",
            "Fetches that brought nothing within their lock time: others went on without them.",
            "operation",
        )
        self._overdue = {operation: overdue.labels(operation) for operation in self._operations}
        self._calls = {
            (upstream, end): calls.labels(upstream, end) for upstream in self._upstreams for end in labels.CALL_ENDS
        }
        # Of the workers that live, the word of the one that called last counts.
        failing = Gauge(
            "dashcache_upstream_failing_since_seconds",
            "Since when (Unix time) an upstream does not answer, by cause; 0: it answers.",
            ("upstream", "cause"),
            registry=self.registry,
            multiprocess_mode="livemostrecent",
        )
        self._failing = {
            upstream: {cause: failing.labels(upstream, cause.value) for cause in sorted(FAILS_FOR_ALL)}
            for upstream in self._upstreams
        }
        self._upstream_durations = {upstream: durations.labels(upstream) for upstream in self._upstreams}

    def _make_store_metrics(self) -> None:
        failures = self._counter("dashcache_redis_failures", "Failed Redis operations, by kind.", "kind")
        stores = self._counter("dashcache_stores", "Entries written to Redis, and those that could not be.", "result")
        went_back = self._counter(
            "dashcache_redis_went_back", "Times that Redis' data were found to be older than they were.", "reason"
        )
        self._redis_went_back = {reason: went_back.labels(reason) for reason in labels.REDIS_WENT_BACK}
        self._redis_failures = {kind: failures.labels(kind) for kind in labels.REDIS_FAILURES}
        self._stored, self._store_failed = stores.labels("stored"), stores.labels("failed")
        refreshes = self._counter("dashcache_refreshes", "Refreshes of stale entries in the background.", "result")
        self._refreshes = {result: refreshes.labels(result) for result in ("fresh", "failed")}
        self._rejected = self._counter(
            "dashcache_entries_rejected", "Stored entries that did not open: altered, truncated, foreign or old."
        )
        self._background_failures = self._counter(
            "dashcache_background_failures", "Background tasks that ended with an error."
        )
        invalidations = self._counter(
            "dashcache_invalidations", "Writes that made answers stale: Redis was told, or not at once.", "result"
        )
        self._invalidations = {result: invalidations.labels(result) for result in ("told", "untold")}
        self._pending = self._gauge(
            "dashcache_pending_invalidations", "Scopes made stale that Redis is not told of; none of them is read."
        )
        self._breaker_open = self._gauge(
            "dashcache_breaker_open_workers", "Workers whose breaker keeps Redis out of the way."
        )
        self._memory_entries = self._gauge("dashcache_memory_entries", "Rows in the memory tiers of all workers.")
        self._memory_bytes = self._gauge("dashcache_memory_bytes", "Bytes in the memory tiers of all workers.")

    def _make_load_metrics(self) -> None:
        refused = self._counter(
            "dashcache_upstream_refused", "Requests that got no turn at an upstream: 503.", "upstream", "reason"
        )
        self._upstream_refused = {
            (upstream, reason): refused.labels(upstream, reason)
            for upstream in self._upstreams
            for reason in labels.QUEUE_REASONS
        }
        self._inflight = self._gauge("dashcache_upstream_inflight", "Requests at an upstream now.", "upstream")
        self._queue = self._gauge("dashcache_upstream_queue", "Requests that wait for their turn.", "upstream")
        ended = self._counter(
            "dashcache_connections_ended", "Client connections refused or broken off by the proxy.", "reason"
        )
        self._connections_ended = {reason: ended.labels(reason) for reason in labels.ENDINGS}
        self._loop_lag = Histogram(
            "dashcache_loop_lag_seconds",
            "By how much the workers' event loops were late, twenty times a second.",
            buckets=LAG_BUCKETS,
            registry=self.registry,
        )
        self._connections = self._gauge("dashcache_connections", "Client connections over HTTP.")
        self._held_bytes = self._gauge("dashcache_held_bytes", "Bytes held of what is not answered yet.")

    def _counter(self, name: str, text: str, *names: str) -> Counter:
        return Counter(name, text, names, registry=self.registry)

    def _gauge(self, name: str, text: str, *names: str) -> Gauge:
        # livesum: a dead worker's tier and breaker are gone with it.
        gauge = Gauge(name, text, names, registry=self.registry, multiprocess_mode="livesum")
        if not names:
            gauge.set(0)
        return gauge


def _observe_many(histogram: Histogram, hits: HitSum) -> None:
    """What ``observe`` does, for several values at once: prometheus_client has no words for that."""
    histogram._sum.inc(hits.total_ms / 1000)  # noqa: SLF001
    for bucket, count in zip(histogram._buckets, hits.buckets, strict=True):  # noqa: SLF001
        if count:
            bucket.inc(count)
