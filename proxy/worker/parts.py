"""What settings mean for the parts of a worker: each function makes one part, or the figures that one wants."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from proxy.cache.redis.breaker import Guard
from proxy.cache.redis.tier import FAILURES, RedisTier, failure_kind
from proxy.control.shared_redis import incarnation
from proxy.core.grace import Windows
from proxy.core.listening import Port, shown
from proxy.core.plan import ErrorKind
from proxy.core.ports import Clock, Transport
from proxy.core.request import Request
from proxy.core.telemetry import Telemetry
from proxy.core.upstream import Upstream
from proxy.request.batching import Rules
from proxy.runtime.open_files import room_for
from proxy.runtime.tasks import Tasks
from proxy.server.http.body import Patience
from proxy.server.http.client_timers import Clients
from proxy.server.http.front import RequestObserver
from proxy.settings.model import Settings
from proxy.transport.http import HttpTransport
from proxy.transport.slots import Slots
from proxy.vendors.operations import OPERATIONS
from proxy.vendors.registry import Adapters

if TYPE_CHECKING:
    # Imported where a port or an upstream wants it: the library costs 23 MB in each worker.
    from proxy.transport.grpc import GrpcTransport

# Listeners, log, metrics, journal, and what runs beside a request.
_OTHER_FILES = 256


class Observing(RequestObserver, Telemetry, Protocol):
    """Who is told of requests, and of what belongs to none."""


def redis_tier(
    settings: Settings, url: str, secret: bytes, guard: Guard, *, observer: Observing, clock: Clock
) -> RedisTier:
    """The tier in Redis at *url*."""
    return RedisTier(
        url,
        prefix=settings.redis.key_prefix,
        deadline_s=settings.redis.deadline_ms / 1000,
        max_connections=settings.redis.max_connections,
        guard=guard,
        incarnation=incarnation(settings, secret, monotonic=clock.monotonic),
        on_rejected=observer.redis_failed,
        on_read_only=observer.redis_read_only,
        monotonic=clock.monotonic,
    )


def slots(settings: Settings, upstream: str, workers: int, observer: Observing) -> Slots:
    """What HTTP and gRPC to *upstream* share; of the pace each of the *workers* has its part."""
    limits = settings.upstream
    return Slots(
        max_inflight=limits.max_inflight,
        max_queue=limits.max_queue,
        queue_wait_s=limits.queue_wait_s,
        per_minute=limits.requests_per_minute / workers,
        on_refused=lambda reason: observer.upstream_refused(upstream, reason),
    )


def max_connections(settings: Settings) -> int:
    """As many as are allowed and as the system has room for."""
    inflight = len(settings.all_upstreams()) * settings.upstream.max_inflight
    return room_for(settings.limits.max_connections, inflight + settings.redis.max_connections + _OTHER_FILES)


def clients(settings: Settings, observer: Observing) -> Clients:
    """Who may be connected over HTTP, and how long clients may take."""
    limits = settings.limits
    return Clients(
        max_connections=max_connections(settings),
        header_wait_s=limits.header_wait_s,
        write_idle_s=limits.write_idle_s,
        on_ended=observer.connection_ended,
    )


def body_patience(settings: Settings) -> Patience:
    """How long clients may take for bodies."""
    limits = settings.limits
    return Patience(limits.body_idle_s, limits.body_wait_s, limits.body_bytes_per_s)


def transport(settings: Settings, origin: str, slots: Slots, own_id: bytes) -> HttpTransport:
    """The way to *origin* over HTTP; *own_id* is this proxy's in ``CDN-Loop``."""
    limits = settings.upstream
    return HttpTransport(
        origin,
        slots=slots,
        connect_timeout_s=limits.connect_timeout_s,
        read_timeout_s=limits.read_timeout_s,
        keepalive_s=limits.keepalive_s,
        max_line_bytes=settings.limits.header_bytes,
        max_lines=settings.limits.header_lines,
        own_id=own_id,
    )


def guard(settings: Settings, tasks: Tasks, observer: Observing, clock: Clock) -> Guard:
    """The circuit breaker before Redis."""
    return Guard(
        fail_max=settings.breaker.fail_max,
        reset_s=settings.breaker.reset_s,
        deadline_s=settings.redis.deadline_ms / 1000,
        failures=FAILURES,
        tasks=tasks,
        on_change=observer.breaker_changed,
        on_failure=lambda error: observer.redis_failed(failure_kind(error)),
        monotonic=clock.monotonic,
    )


def adapters(settings: Settings, upstreams: Sequence[Upstream], observer: Observing) -> Adapters:
    """Who plans the requests for each of *upstreams*."""
    return Adapters(
        {upstream.name: upstream.vendor for upstream in upstreams},
        ignored_headers=frozenset(name.lower().encode("ascii") for name in settings.identity.ignore_headers),
        batch_caps={model: rule.batch_cap for model, rule in settings.models.items() if rule.batch_cap},
        max_pieces=settings.batching.max_pieces if settings.batching.cut else 1,
        overfetch_topk=settings.vector.overfetch_topk,
        on_limit=observer.batch_limit_changed,
    )


def batching_rules(settings: Settings) -> Rules:
    """How misses are put together and taken apart."""
    given = settings.batching
    return Rules(given.window_ms / 1000, given.max_bytes, given.cut, given.parallel)


def grpc_transports(
    settings: Settings,
    upstreams: Sequence[Upstream],
    ports: Sequence[Port],
    slots: Mapping[str, Slots],
    own_id: bytes,
) -> "dict[str, GrpcTransport]":
    """For the upstreams that a gRPC port leads to."""
    wanted = {port.upstream for port in ports if port.protocol in ("grpc", "grpcs")}
    if not wanted:
        return {}
    from proxy.transport.grpc import GrpcTransport  # noqa: PLC0415

    limits = settings.upstream
    return {
        upstream.name: GrpcTransport(
            shown(upstream.grpc.host, upstream.grpc.port),
            secure=upstream.grpc.scheme == "https",
            slots=slots[upstream.name],
            own_id=own_id,
            connect_timeout_s=limits.connect_timeout_s,
            read_timeout_s=limits.read_timeout_s,
        )
        for upstream in upstreams
        if upstream.name in wanted and upstream.grpc is not None
    }


def way(request: Request, over_http: Mapping[str, Transport], over_grpc: Mapping[str, Transport]) -> Transport:
    """The way on for *request*: over its own protocol, to its upstream."""
    return (over_grpc if request.is_grpc else over_http)[request.upstream]


def lifetime_s(settings: Settings, operation: str, model: str) -> float:
    """An entry's lifetime: the model's, else the operation's. Raises KeyError for one that is not in the table."""
    lifetimes, rule = settings.lifetimes, settings.models.get(model)
    if rule is not None and rule.ttl_s is not None:
        return rule.ttl_s
    seconds: float = getattr(lifetimes, OPERATIONS[operation].lifetime)
    return seconds


def negative_lifetimes_s(settings: Settings) -> dict[ErrorKind, float]:
    """For how long errors of each kind are repeated."""
    rule = settings.negative
    return {
        ErrorKind.INVALID_PARAMETER: rule.invalid_parameter_s,
        ErrorKind.EMPTY_INPUT: rule.empty_input_s,
        ErrorKind.ILLEGAL_INPUT: rule.illegal_input_s,
        ErrorKind.TOO_LARGE: rule.too_large_s,
    }


def windows(settings: Settings) -> Windows:
    """When entries are served past their lifetime."""
    grace = settings.grace
    return Windows(grace.while_refresh_s, grace.if_error_s, frozenset(grace.if_error_for))


def longest_ms(settings: Settings) -> int:
    """The longest time that anything is kept."""
    lifetimes = settings.lifetimes
    of_models = [rule.ttl_s for rule in settings.models.values() if rule.ttl_s is not None]
    of_operations = [getattr(lifetimes, each.lifetime) for each in OPERATIONS.values() if each.lifetime]
    longest_s = max(*of_operations, *of_models)
    return int((longest_s * (1 + lifetimes.jitter) + windows(settings).longest_s) * 1000)
