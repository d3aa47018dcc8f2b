"""The place that wires everything, with ``data_ports``: one worker, from settings to served ports and to nothing."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from proxy.ask import Asker, Upstreams
from proxy.batching import Batcher, Rules
from proxy.cache.claims import Claims
from proxy.cache.codec import Codec
from proxy.cache.flights import Flights
from proxy.cache.generations import Generations, Journal
from proxy.cache.guard import Guard
from proxy.cache.journals import Claim, claim
from proxy.cache.leases import Leases
from proxy.cache.memory import MemoryTier
from proxy.cache.redis_tier import FAILURES, RedisTier, failure_kind
from proxy.cache.standings import Standings
from proxy.cache.tiers import Tiers
from proxy.cache.voidable import VoidableTier
from proxy.callers import Callers
from proxy.core.grace import Windows
from proxy.core.heavy import Heavy
from proxy.core.key import Secret
from proxy.core.listening import Port, shown
from proxy.core.plan import ErrorKind
from proxy.core.ports import SYSTEM_CLOCK, Clock, ModeSource, PurgeSource, Transport
from proxy.core.purges import NO_MARKS
from proxy.core.request import Request
from proxy.core.tasks import Tasks
from proxy.core.telemetry import Telemetry
from proxy.core.upstream import Upstream
from proxy.data_ports import open_all
from proxy.fetch import Fetcher
from proxy.flow import Flow
from proxy.grace import Grace
from proxy.negative import Negatives
from proxy.ops.processes.channel import WorkerControl
from proxy.ops.processes.open_files import room_for
from proxy.ops.telemetry.log import Observer
from proxy.ops.telemetry.loop_lag import watch_loop
from proxy.server.http import Front, RequestObserver
from proxy.server.watch import Clients
from proxy.server.websocket import Bridge
from proxy.settings import Settings
from proxy.transport.http import HttpTransport
from proxy.transport.slots import Slots
from proxy.vendors import dashvector
from proxy.vendors.errors import error_body
from proxy.vendors.registry import Adapters

if TYPE_CHECKING:
    # Imported where a port or an upstream wants it: the library costs 23 MB in each worker.
    from proxy.transport.grpc import GrpcTransport

# How long Redis may not know that answers are stale after it has come back, if no request asks before.
_TELL_EVERY_S = 1.0
# Of the requests that an upstream may have at a time, refreshes take a tenth.
_REFRESH_SHARE = 10
# Listeners, log, metrics, journal, and what runs beside a request.
_OTHER_FILES = 256


class Observing(RequestObserver, Telemetry, Protocol):
    """Who is told of requests, and of what belongs to none."""


@dataclass(frozen=True, slots=True)
class Worker:
    """The long-lived parts of one worker."""

    tasks: Tasks
    tiers: Tiers
    voidable: VoidableTier
    grace: Grace
    flow: Flow
    front: Front
    bridge: Bridge
    guard: Guard
    generations: Generations
    slots: Mapping[str, Slots]
    """By upstream."""


async def serve_worker(
    settings: Settings, ports: Sequence[Port], secret: bytes, redis_url: str | None, control: WorkerControl
) -> None:
    """Serve *ports* until told to drain, then end what is running and let go of everything."""
    observer = Observer.of(settings)
    with contextlib.closing(claim(settings.data_dir, control.number, control.count)) as own:
        wired = built(
            settings,
            secret,
            redis_url,
            control.modes,
            observer,
            purges=control.purges,
            ports=ports,
            journal=own.journal,
            workers=control.count,
        )
        async with wired as worker:
            own.learn(worker.generations)
            doors = await open_all(
                settings,
                worker.front,
                worker.flow,
                observer,
                ports,
                listeners=control.listeners,
                max_connections=_max_connections(settings),
            )
            work = (_report(worker, observer), _tell(worker, own), watch_loop(observer.loop_lag))
            chores = [worker.tasks.start(chore) for chore in work]
            await control.ready()
            await control.wait_last_call()
            worker.front.is_draining = True
            await control.wait_drain()
            ends_s = asyncio.get_running_loop().time() + control.linger_s + control.drain_s
            await doors.give_up(worker.bridge, worker.tasks, control)
            await worker.grace.close()  # nobody is left who could begin another refresh
            for chore in chores:
                chore.cancel()
            # What nobody waits for any more: stores, and writes whose clients have gone.
            left_s = ends_s - asyncio.get_running_loop().time()
            await worker.tasks.wait_done(max(left_s, settings.redis.deadline_ms / 1000 + 1))


@contextlib.asynccontextmanager
async def built(
    settings: Settings,
    secret: bytes,
    redis_url: str | None,
    modes: ModeSource,
    observer: Observing,
    *,
    purges: PurgeSource = NO_MARKS,
    ports: Sequence[Port] = (),
    journal: Journal | None = None,
    workers: int = 1,
    clock: Clock = SYSTEM_CLOCK,
) -> AsyncIterator[Worker]:
    """A worker's parts, wired; closed at the end."""
    tasks = Tasks(observer.background_failed)
    journal = journal or Journal(None)
    guard = _guard(settings, tasks, observer, clock)
    redis = _redis_tier(settings, redis_url, guard, observer.redis_failed) if redis_url else None
    keys = Secret.derive(secret)
    codec = Codec(keys, settings.limits.max_entry_bytes)
    heavy = Heavy()
    tiers = Tiers(
        MemoryTier(settings.memory.max_bytes, settings.memory.max_age_s, clock.monotonic),
        redis,
        codec,
        tasks,
        observer,
        max_pending_stores=settings.redis.max_pending_stores,
        grace_s=_windows(settings).longest_s,
        heavy=heavy,
        wall=clock.wall,
    )
    generations = Generations(journal, clock.wall)
    voidable = VoidableTier(
        redis,
        codec,
        generations,
        tasks,
        observer,
        settle_s=settings.vector.settle_s,
        is_strict=settings.vector.strict_writes,
        max_pending_stores=settings.redis.max_pending_stores,
        heavy=heavy,
    )
    upstreams = settings.all_upstreams()
    slots = {upstream.name: _slots(settings, upstream.name, workers, observer) for upstream in upstreams}
    over_http = {upstream.name: _transport(settings, upstream.origin, slots[upstream.name]) for upstream in upstreams}
    over_grpc = _grpc_transports(settings, upstreams, ports, slots)
    routes = _adapters(settings, upstreams)
    callers = Callers(
        secret=keys,
        endpoints={upstream.name: upstream.host for upstream in upstreams},
        credential_of=routes.credential,
        leases=Leases(settings.vector.auth_lease_s, clock.monotonic),
        standings=Standings(redis, tasks, longest_ms=_longest_ms(settings), monotonic=clock.monotonic),
    )
    ways = Upstreams(lambda request: _way(request, over_http, over_grpc), callers, clock)
    negatives = Negatives(_negative_lifetimes_s(settings), clock.monotonic)
    asker = Asker(
        upstreams=ways,
        callers=callers,
        tiers=tiers,
        voidable=voidable,
        modes=modes,
        lifetime=lambda operation, model: _lifetime_s(settings, operation, model),
        jitter=settings.lifetimes.jitter,
        max_answer_bytes=settings.limits.max_answer_bytes,
        keeps_errors=negatives.is_on,
        clock=clock,
        random_unit=random.random,
        heavy=heavy,
    )
    fetcher = Fetcher(
        batcher=Batcher(
            asker,
            tasks,
            rules=_batching_rules(settings),
            clock=clock,
            max_answer_bytes=settings.limits.max_answer_bytes,
            heavy=heavy,
            on_batch=observer.batched,
        ),
        flights=Flights(tasks, settings.flights.uncacheable_s, clock.monotonic),
        claims=Claims(redis, tasks, settings.flights.lease_s, settings.flights.uncacheable_s),
        tiers=tiers,
        voidable=voidable,
        clock=clock,
        max_answer_bytes=settings.limits.max_answer_bytes,
    )
    grace = Grace(
        windows=_windows(settings),
        fetcher=fetcher,
        tasks=tasks,
        telemetry=observer,
        wait_s=settings.grace.wait_s,
        max_refreshes=max(1, settings.upstream.max_inflight // _REFRESH_SHARE),
        monotonic=clock.monotonic,
    )
    flow = Flow(
        routes=routes,
        upstreams=ways,
        asker=asker,
        fetcher=fetcher,
        grace=grace,
        negatives=negatives,
        callers=callers,
        voidable=voidable,
        tasks=tasks,
        modes=modes,
        purges=purges,
        secret=keys,
        max_key_body_bytes=settings.limits.max_key_body_bytes,
        max_answer_bytes=settings.limits.max_answer_bytes,
        request_id=lambda: str(uuid.uuid4()),
        heavy=heavy,
        clock=clock,
    )
    bridge = Bridge({each.name: over_http[each.name] for each in upstreams if each.vendor == "dashscope"})
    front = Front(
        flow=flow,
        bridge=bridge,
        observer=observer,
        error_body=error_body,
        clients=_clients(settings, observer),
        body_idle_s=settings.limits.body_idle_s,
        cache_status_on_pass=settings.cache_status_on_pass,
        clock=clock,
    )
    try:
        yield Worker(tasks, tiers, voidable, grace, flow, front, bridge, guard, generations, slots)
    finally:
        await heavy.close()
        await tiers.close()
        await asyncio.gather(*(transport.close() for transport in over_http.values()))
        await asyncio.gather(*(transport.close() for transport in over_grpc.values()))
        journal.close()


def _redis_tier(settings: Settings, url: str, guard: Guard, on_rejected: Callable[[str], None]) -> RedisTier:
    return RedisTier(
        url,
        prefix=settings.redis.key_prefix,
        deadline_s=settings.redis.deadline_ms / 1000,
        max_connections=settings.redis.max_connections,
        guard=guard,
        on_rejected=on_rejected,
    )


def _slots(settings: Settings, upstream: str, workers: int, observer: Observing) -> Slots:
    """What HTTP and gRPC to *upstream* share; of the pace each of the *workers* has its part."""
    limits = settings.upstream
    return Slots(
        max_inflight=limits.max_inflight,
        max_queue=limits.max_queue,
        queue_wait_s=limits.queue_wait_s,
        per_minute=limits.requests_per_minute / workers,
        on_refused=lambda reason: observer.upstream_refused(upstream, reason),
    )


def _max_connections(settings: Settings) -> int:
    """As many as are allowed and as the system has room for."""
    inflight = len(settings.all_upstreams()) * settings.upstream.max_inflight
    return room_for(settings.limits.max_connections, inflight + settings.redis.max_connections + _OTHER_FILES)


def _clients(settings: Settings, observer: Observing) -> Clients:
    limits = settings.limits
    return Clients(
        max_connections=_max_connections(settings),
        header_wait_s=limits.header_wait_s,
        write_idle_s=limits.write_idle_s,
        on_ended=observer.connection_ended,
    )


def _transport(settings: Settings, origin: str, slots: Slots) -> HttpTransport:
    limits = settings.upstream
    return HttpTransport(
        origin,
        slots=slots,
        connect_timeout_s=limits.connect_timeout_s,
        read_timeout_s=limits.read_timeout_s,
        keepalive_s=limits.keepalive_s,
        max_line_bytes=settings.limits.header_bytes,
        max_lines=settings.limits.header_lines,
    )


def _guard(settings: Settings, tasks: Tasks, observer: Observing, clock: Clock) -> Guard:
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


def _adapters(settings: Settings, upstreams: Sequence[Upstream]) -> Adapters:
    return Adapters(
        {upstream.name: upstream.vendor for upstream in upstreams},
        ignored_headers=frozenset(name.lower().encode("ascii") for name in settings.identity.ignore_headers),
        batch_caps={model: rule.batch_cap for model, rule in settings.models.items() if rule.batch_cap},
        max_pieces=settings.batching.max_pieces if settings.batching.cut else 1,
        overfetch_topk=settings.vector.overfetch_topk,
    )


def _batching_rules(settings: Settings) -> Rules:
    given = settings.batching
    return Rules(given.window_ms / 1000, given.max_bytes, given.cut, given.parallel)


def _grpc_transports(
    settings: Settings, upstreams: Sequence[Upstream], ports: Sequence[Port], slots: Mapping[str, Slots]
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
            connect_timeout_s=limits.connect_timeout_s,
            read_timeout_s=limits.read_timeout_s,
        )
        for upstream in upstreams
        if upstream.name in wanted and upstream.grpc is not None
    }


def _way(request: Request, over_http: Mapping[str, Transport], over_grpc: Mapping[str, Transport]) -> Transport:
    return (over_grpc if request.is_grpc else over_http)[request.upstream]


def _lifetime_s(settings: Settings, operation: str, model: str) -> float:
    lifetimes, rule = settings.lifetimes, settings.models.get(model)
    if rule is not None and rule.ttl_s is not None:
        return rule.ttl_s
    by_operation = {dashvector.QUERY: lifetimes.vector_query_s, dashvector.STATS: lifetimes.vector_stats_s}
    return by_operation.get(operation, lifetimes.embedding_s)


def _negative_lifetimes_s(settings: Settings) -> dict[ErrorKind, float]:
    rule = settings.negative
    return {
        ErrorKind.INVALID_PARAMETER: rule.invalid_parameter_s,
        ErrorKind.EMPTY_INPUT: rule.empty_input_s,
        ErrorKind.ILLEGAL_INPUT: rule.illegal_input_s,
        ErrorKind.TOO_LARGE: rule.too_large_s,
    }


def _windows(settings: Settings) -> Windows:
    grace = settings.grace
    return Windows(grace.while_refresh_s, grace.if_error_s, frozenset(grace.if_error_for))


def _longest_ms(settings: Settings) -> int:
    """The longest time that anything is kept."""
    lifetimes = settings.lifetimes
    of_models = [rule.ttl_s for rule in settings.models.values() if rule.ttl_s is not None]
    longest_s = max(lifetimes.embedding_s, lifetimes.vector_query_s, lifetimes.vector_stats_s, *of_models)
    return int((longest_s * (1 + lifetimes.jitter) + _windows(settings).longest_s) * 1000)


async def _report(worker: Worker, observer: Observer) -> None:
    """Once a second, what no single request could tell."""
    while True:
        observer.memory(worker.tiers.memory.entries, worker.tiers.memory.bytes)
        observer.pending(worker.voidable.pending)
        observer.connections(worker.front.clients.count)
        for upstream, slots in worker.slots.items():
            observer.upstream_load(upstream, slots.inflight, slots.waiting)
        await asyncio.sleep(1)


async def _tell(worker: Worker, own: Claim) -> None:
    """Tell Redis what it could not be told at the time, also if nobody asks any more, or who knew has ended."""
    while True:
        with contextlib.suppress(OSError):  # a full disk, or somebody else looks; what is left stays for later
            own.adopt(worker.generations)
        await worker.voidable.tell()
        await asyncio.sleep(_TELL_EVERY_S)
