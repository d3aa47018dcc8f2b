"""The only place that wires everything: one worker, from settings to served ports and back to nothing."""

import asyncio
import contextlib
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import http_parser, web

from proxy.cache.codec import Codec
from proxy.cache.guard import Guard
from proxy.cache.memory import MemoryTier
from proxy.cache.redis_tier import FAILURES, RedisTier, failure_kind
from proxy.cache.tiers import Tiers
from proxy.core.key import Secret
from proxy.core.ports import SYSTEM_CLOCK, Clock, ModeSource
from proxy.core.tasks import Tasks
from proxy.core.telemetry import Telemetry
from proxy.flow import Flow
from proxy.ops.processes.channel import WorkerControl
from proxy.ops.telemetry.log import Observer
from proxy.server.http import DataServer, Front, RequestObserver
from proxy.server.intake import Intake
from proxy.server.websocket import Bridge
from proxy.settings import Settings
from proxy.transport.http import HttpTransport
from proxy.vendors.errors import error_body
from proxy.vendors.registry import adapter_for, dashscope_adapters


class Observing(RequestObserver, Telemetry, Protocol):
    """Who is told of requests, and of what belongs to none."""


Port = tuple[str, str, int]
"""Upstream name (empty: chosen by Host), host, port."""


@dataclass(frozen=True, slots=True)
class Worker:
    """The long-lived parts of one worker."""

    tasks: Tasks
    tiers: Tiers
    flow: Flow
    front: Front
    bridge: Bridge
    guard: Guard


async def serve_worker(
    settings: Settings, ports: Sequence[Port], secret: bytes, redis_url: str | None, control: WorkerControl
) -> None:
    """Serve *ports* until told to drain, then end what is running and let go of everything."""
    _require_c_parser()
    observer = Observer.of(settings)
    async with built(settings, secret, redis_url, control.modes, observer) as worker:
        runners = [await listen(settings, worker.front, port) for port in ports]
        gauge = worker.tasks.start(_report_memory(worker, observer))
        await control.ready()
        await control.wait_drain()
        gauge.cancel()
        worker.front.is_draining = True
        await worker.bridge.close()
        await asyncio.gather(*(runner.cleanup() for runner in runners))
        await worker.tasks.wait_done(settings.redis.deadline_ms / 1000 + 1)


@contextlib.asynccontextmanager
async def built(
    settings: Settings,
    secret: bytes,
    redis_url: str | None,
    modes: ModeSource,
    observer: Observing,
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> AsyncIterator[Worker]:
    """A worker's parts, wired; closed at the end."""
    tasks = Tasks(observer.background_failed)
    keys = Secret.derive(secret)
    guard = Guard(
        fail_max=settings.breaker.fail_max,
        reset_s=settings.breaker.reset_s,
        deadline_s=settings.redis.deadline_ms / 1000,
        failures=FAILURES,
        tasks=tasks,
        on_change=observer.breaker_changed,
        on_failure=lambda error: observer.redis_failed(failure_kind(error)),
        monotonic=clock.monotonic,
    )
    tiers = Tiers(
        MemoryTier(settings.memory.max_bytes, settings.memory.max_age_s, clock.monotonic),
        _redis_tier(settings, redis_url, guard, observer.redis_failed) if redis_url else None,
        Codec(keys, settings.limits.max_entry_bytes),
        tasks,
        observer,
        max_pending_stores=settings.redis.max_pending_stores,
        wall=clock.wall,
    )
    transports = {upstream.name: _transport(settings, upstream.origin) for upstream in settings.all_upstreams()}
    adapters = dashscope_adapters(
        frozenset(name.lower().encode("ascii") for name in settings.identity.ignore_headers),
        {model: rule.batch_cap for model, rule in settings.models.items() if rule.batch_cap},
    )
    flow = Flow(
        routes=lambda method, path: adapter_for(adapters, method, path),
        transports=transports,
        tiers=tiers,
        modes=modes,
        secret=keys,
        lifetime=lambda _operation, model: _lifetime_s(settings, model),
        jitter=settings.lifetimes.jitter,
        max_key_body_bytes=settings.limits.max_key_body_bytes,
        max_answer_bytes=settings.limits.max_answer_bytes,
        request_id=lambda: str(uuid.uuid4()),
        clock=clock,
    )
    bridge = Bridge(transports)
    front = Front(
        flow=flow,
        bridge=bridge,
        observer=observer,
        error_body=error_body,
        cache_status_on_pass=settings.cache_status_on_pass,
        clock=clock,
    )
    try:
        yield Worker(tasks, tiers, flow, front, bridge, guard)
    finally:
        await tiers.close()
        for transport in transports.values():
            await transport.close()


def _require_c_parser() -> None:
    """
    Refuse to serve with aiohttp's pure-Python parser.

    It reads about a dozen malformed requests otherwise than the C parser, and hangs on two.
    """
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise RuntimeError("aiohttp runs without its C parser; unset AIOHTTP_NO_EXTENSIONS or install a wheel")


def _redis_tier(settings: Settings, url: str, guard: Guard, on_rejected: Callable[[str], None]) -> RedisTier:
    return RedisTier(
        url,
        prefix=settings.redis.key_prefix,
        deadline_s=settings.redis.deadline_ms / 1000,
        max_connections=settings.redis.max_connections,
        guard=guard,
        on_rejected=on_rejected,
    )


def _transport(settings: Settings, origin: str) -> HttpTransport:
    limits = settings.upstream
    return HttpTransport(
        origin,
        max_inflight=limits.max_inflight,
        connect_timeout_s=limits.connect_timeout_s,
        read_timeout_s=limits.read_timeout_s,
        keepalive_s=limits.keepalive_s,
        max_line_bytes=settings.limits.header_bytes,
        max_lines=settings.limits.header_lines,
    )


def _lifetime_s(settings: Settings, model: str) -> float:
    rule = settings.models.get(model)
    return rule.ttl_s if rule is not None and rule.ttl_s is not None else settings.lifetimes.embedding_s


async def listen(settings: Settings, front: Front, port: Port) -> web.ServerRunner:
    """One data port, shared with the other workers: the kernel spreads connections over all that listen."""
    upstream, host, number = port
    server = DataServer(
        front,
        _intake(settings, upstream, host, number),
        header_bytes=settings.limits.header_bytes,
        header_lines=settings.limits.header_lines,
        keepalive_s=settings.limits.keepalive_s,
    )
    runner = web.ServerRunner(server, shutdown_timeout=settings.limits.drain_s)
    await runner.setup()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, number))
    await web.SockSite(runner, listener, backlog=1024).start()
    return runner


def _intake(settings: Settings, upstream: str, host: str, number: int) -> Intake:
    upstreams = settings.all_upstreams()
    names = {name.lower() for rule in upstreams for name in rule.hosts}
    own = {host, "localhost", *names}
    return Intake(
        default_upstream=upstream or "dashscope",
        upstream_of_host={} if upstream else {name.lower(): rule.name for rule in upstreams for name in rule.hosts},
        own_names=frozenset(own | {f"{name}:{number}" for name in own}),
    )


async def _report_memory(worker: Worker, observer: Observer) -> None:
    """Once a second, what no single request could tell."""
    while True:
        observer.memory(worker.tiers.memory.entries, worker.tiers.memory.bytes)
        await asyncio.sleep(1)
