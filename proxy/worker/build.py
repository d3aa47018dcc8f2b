"""The only place that wires everything, out of ``parts``: one worker, from settings to served ports and to nothing."""

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.cache.claims import Claims
from proxy.cache.codec import Codec
from proxy.cache.credential_status import Standings
from proxy.cache.flights import Flights
from proxy.cache.invalidation.generations import Generations, Journal
from proxy.cache.invalidation.journals import Claim, NoClaim, claim
from proxy.cache.invalidation.tier import VoidableTier
from proxy.cache.lock_times import LockTimes
from proxy.cache.memory import MemoryTier
from proxy.cache.recently_accepted import Leases
from proxy.cache.redis.breaker import Guard
from proxy.cache.redis.tier import RedisTier
from proxy.cache.tiers import Tiers
from proxy.control.channel import Question, WorkerControl
from proxy.control.purges import LivePurges
from proxy.core.held_bytes import HeldBytes
from proxy.core.key import Secret
from proxy.core.listening import Port
from proxy.core.loops import new_id
from proxy.core.ports import SYSTEM_CLOCK, Clock, ModeSource, PurgeSource
from proxy.request.ask import Asker, Upstreams
from proxy.request.batching import Batcher
from proxy.request.coalesce import Fetcher
from proxy.request.credentials import Callers
from proxy.request.flow import Flow
from proxy.request.from_memory import AtOnce
from proxy.request.grace import Grace
from proxy.request.negative import Negatives
from proxy.request.planner import Planner
from proxy.request.request_id import request_ids
from proxy.runtime.heap import give_back
from proxy.runtime.loop_lag import LoopLag
from proxy.runtime.offload import Heavy
from proxy.runtime.tasks import Tasks
from proxy.server.http.front import Front
from proxy.server.http.micro_cache import Ready
from proxy.server.http.websocket import Bridge
from proxy.settings.model import Settings
from proxy.telemetry.log_output import logger
from proxy.telemetry.observer import Observer
from proxy.transport.slots import Slots
from proxy.vendors.errors import error_body
from proxy.worker import parts
from proxy.worker.ports import DataPorts, open_all

# How long Redis may not know that answers are stale after it has come back, if no request asks before.
_TELL_EVERY_S = 1.0
# Of the requests that an upstream may have at a time, refreshes take a tenth.
_COUNTED_SHARE = 5 / 8
"""Of ``limits.held_bytes``: the rest is what the allocator takes beside bytes that come and go in pieces."""
_REFRESH_SHARE = 10


@dataclass(frozen=True, slots=True)
class Worker:
    """The long-lived parts of one worker."""

    tasks: Tasks
    redis: RedisTier | None
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
    with (
        contextlib.closing(Observer.of(settings, control.met)) as observer,
        contextlib.closing(_journal(settings, control)) as own,
    ):
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
            own_id=control.own_id,
        )
        async with wired as worker:
            _learn(own, worker.generations)
            await worker.tiers.connect()
            doors = await open_all(
                settings,
                worker.front,
                worker.flow,
                observer,
                ports,
                listeners=control.listeners,
                max_connections=parts.max_connections(settings),
            )
            lag = LoopLag(observer.loop_lag)
            control.answers[Question.STATE] = functools.partial(_state, worker, doors, lag)
            work = (_report(worker, observer), _tell(worker, own), lag.watch(), give_back())
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


def _journal(settings: Settings, control: WorkerControl) -> Claim | NoClaim:
    """The journal of this worker; a folder that cannot be written must not keep it from serving."""
    try:
        return claim(settings.data_dir, control.number, control.count)
    except OSError as error:
        logger().error("journal_not_usable", error=error.strerror, consequence="what is cached of DashVector is void")
        return NoClaim()


def _learn(own: Claim | NoClaim, generations: Generations) -> None:
    """Take up what others have not told Redis of; if that cannot be known, believe nothing of before."""
    try:
        own.learn(generations)
    except OSError as error:
        logger().error("journals_not_read", error=error.strerror, consequence="what is cached of DashVector is void")
        generations.distrust()


@contextlib.asynccontextmanager
async def built(
    settings: Settings,
    secret: bytes,
    redis_url: str | None,
    modes: ModeSource,
    observer: parts.Observing,
    *,
    purges: PurgeSource | None = None,
    ports: Sequence[Port] = (),
    journal: Journal | None = None,
    workers: int = 1,
    own_id: bytes | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> AsyncIterator[Worker]:
    """A worker's parts, wired; closed at the end."""
    own_id = own_id or new_id()
    tasks = Tasks(observer.background_failed)
    purges = purges or LivePurges()
    journal = journal or Journal(None)
    guard = parts.guard(settings, tasks, observer, clock)
    redis = parts.redis_tier(settings, redis_url, secret, guard, observer=observer, clock=clock) if redis_url else None
    keys = Secret.derive(secret)
    codec = Codec(keys, settings.limits.max_entry_bytes)
    heavy = Heavy()
    held = HeldBytes(round(settings.limits.held_bytes * _COUNTED_SHARE))
    tiers = Tiers(
        MemoryTier(settings.memory.max_bytes, settings.memory.max_age_s, clock.monotonic),
        redis,
        codec,
        tasks,
        observer,
        max_pending_stores=settings.redis.max_pending_stores,
        grace_s=parts.windows(settings).longest_s,
        heavy=heavy,
        wall=clock.wall,
    )
    doubt_s = max(settings.vector.settle_s, settings.vector.unknown_settle_s)
    generations = Generations(journal, clock.wall, doubt_ms=round(doubt_s * 1000))
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
    slots = {upstream.name: parts.slots(settings, upstream.name, workers, observer) for upstream in upstreams}
    over_http = {
        upstream.name: parts.transport(settings, upstream.origin, slots[upstream.name], own_id)
        for upstream in upstreams
    }
    over_grpc = parts.grpc_transports(settings, upstreams, ports, slots, own_id)
    routes = parts.adapters(settings, upstreams, observer)
    standings = Standings(redis, tasks, longest_ms=parts.longest_ms(settings), monotonic=clock.monotonic)
    if redis is not None:
        redis.incarnation.on_renewed += [
            observer.redis_went_back,
            lambda _: standings.redis_went_back(),
            lambda _: voidable.redis_went_back(),
        ]
    callers = Callers(
        secret=keys,
        endpoints={upstream.name: upstream.host for upstream in upstreams},
        credential_of=routes.credential,
        leases=Leases(settings.vector.auth_lease_s, clock.monotonic),
        standings=standings,
    )
    ways = Upstreams(
        lambda request: parts.way(request, over_http, over_grpc),
        callers,
        clock,
        settings.flights.deadline_s,
        observer.call_ended,
    )
    lock_times = LockTimes(settings.flights.lock_s)
    negatives = Negatives(parts.negative_lifetimes_s(settings), clock.monotonic)
    asker = Asker(
        upstreams=ways,
        callers=callers,
        tiers=tiers,
        voidable=voidable,
        modes=modes,
        lifetime=lambda operation, model: parts.lifetime_s(settings, operation, model),
        jitter=settings.lifetimes.jitter,
        max_answer_bytes=settings.limits.max_answer_bytes,
        keeps_errors=negatives.is_on,
        clock=clock,
        random_unit=random.random,
        heavy=heavy,
        held=held,
    )
    fetcher = Fetcher(
        batcher=Batcher(
            asker,
            tasks,
            rules=parts.batching_rules(settings),
            clock=clock,
            lock_times=lock_times,
            max_answer_bytes=settings.limits.max_answer_bytes,
            heavy=heavy,
            on_batch=observer.batched,
        ),
        flights=Flights(tasks, settings.flights.uncacheable_s, clock.monotonic),
        lock_times=lock_times,
        claims=Claims(redis, tasks, settings.flights.lease_s, settings.flights.uncacheable_s),
        tiers=tiers,
        voidable=voidable,
        clock=clock,
        max_answer_bytes=settings.limits.max_answer_bytes,
        on_overdue=observer.flight_overdue,
    )
    grace = Grace(
        windows=parts.windows(settings),
        fetcher=fetcher,
        tasks=tasks,
        telemetry=observer,
        wait_s=settings.grace.wait_s,
        max_refreshes=max(1, settings.upstream.max_inflight // _REFRESH_SHARE),
        monotonic=clock.monotonic,
    )
    planner = Planner(
        routes=routes, callers=callers, transport_of=ways.transport_of, purges=purges, secret=keys, heavy=heavy
    )
    request_id = request_ids()
    at_once = AtOnce(
        planner=planner,
        tiers=tiers,
        voidable=voidable,
        callers=callers,
        modes=modes,
        request_id=request_id,
        clock=clock,
        heavy=heavy,
    )
    flow = Flow(
        planner=planner,
        at_once=at_once,
        upstreams=ways,
        asker=asker,
        fetcher=fetcher,
        grace=grace,
        negatives=negatives,
        callers=callers,
        voidable=voidable,
        tasks=tasks,
        modes=modes,
        max_key_body_bytes=settings.limits.max_key_body_bytes,
        max_answer_bytes=settings.limits.max_answer_bytes,
        heavy=heavy,
        held=held,
        clock=clock,
    )
    bridged = {each.name: over_http[each.name] for each in upstreams if each.vendor == "dashscope"}
    bridge = Bridge(bridged, observer.call_ended)
    front = Front(
        flow=flow,
        at_once=at_once,
        ready=Ready(observer, request_id, clock, lambda: modes.version + purges.version + standings.version),
        bridge=bridge,
        observer=observer,
        error_body=error_body,
        clients=parts.clients(settings, observer),
        held=held,
        head_bytes=settings.limits.head_bytes,
        body_patience=parts.body_patience(settings),
        cache_status_on_pass=settings.cache_status_on_pass,
        own_id=own_id,
        clock=clock,
    )
    try:
        yield Worker(tasks, redis, tiers, voidable, grace, flow, front, bridge, guard, generations, slots)
    finally:
        front.tell_all()
        await heavy.close()
        await tiers.close()
        await asyncio.gather(*(transport.close() for transport in over_http.values()))
        await asyncio.gather(*(transport.close() for transport in over_grpc.values()))
        journal.close()


def _state(worker: Worker, doors: DataPorts, lag: LoopLag) -> dict[str, Any]:
    """How a worker does, for ``GET /v1/workers``."""
    memory = worker.tiers.memory
    return {
        "connections": worker.front.clients.count,
        "requests": worker.front.running + doors.calls_running,
        "upstream_requests": {upstream: slots.inflight for upstream, slots in worker.slots.items()},
        "memory": {"entries": memory.entries, "bytes": memory.bytes},
        "held_bytes": worker.front.held.now,
        "loop_lag_ms": round(lag.worst_s * 1000, 1),
        "breaker": worker.guard.state if worker.redis is not None else None,
    }


async def _report(worker: Worker, observer: Observer) -> None:
    """Once a second, what no single request could tell."""
    while True:
        observer.memory(worker.tiers.memory.entries, worker.tiers.memory.bytes)
        observer.pending(worker.voidable.pending)
        observer.connections(worker.front.clients.count)
        observer.held_bytes(worker.front.held.now)
        for upstream, slots in worker.slots.items():
            observer.upstream_load(upstream, slots.inflight, slots.waiting)
        await asyncio.sleep(1)


async def _tell(worker: Worker, own: Claim | NoClaim) -> None:
    """
    See whether Redis went back, and tell it what it could not be told at the time.

    Also if nobody asks any more, or who knew has ended.
    """
    while True:
        with contextlib.suppress(OSError):  # a full disk, or somebody else looks; what is left stays for later
            own.adopt(worker.generations)
        if worker.redis is not None:
            await worker.redis.look()
        await worker.voidable.tell()
        await asyncio.sleep(_TELL_EVERY_S)
