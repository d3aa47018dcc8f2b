"""A worker's data ports, from settings to their end: who answers, under which certificate, how they are given up."""

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from proxy.core.listening import Port, Tls
from proxy.request.flow import Flow
from proxy.runtime.tasks import Tasks
from proxy.server.grpc.listener_close import until
from proxy.server.http.admission import Intake
from proxy.server.http.fast_lane import Lane
from proxy.server.http.front import Front, RequestObserver
from proxy.server.http.port import DataServer, HttpPort
from proxy.server.http.websocket import Bridge
from proxy.settings.model import DEFAULT_UPSTREAM, DEFAULT_VECTOR_UPSTREAM, Settings
from proxy.vendors.choice import Choice
from proxy.vendors.errors import error_lines
from proxy.vendors.headers import decisive
from proxy.vendors.registry import IDENTITY

if TYPE_CHECKING:
    from proxy.server.grpc.front import GrpcFront


_HANDSHAKE_S = 1.0
"""For TLS handshakes under way on connections that are accepted, but not yet known, when a port is given up."""

_WEBSOCKET_SHARE = 0.9
"""Of the time for draining; the rest is for the closing handshake."""


class Ending(Protocol):
    """How a worker is to end; ``control.channel.WorkerControl`` has the words for it."""

    drain_s: float
    linger_s: float
    is_replaced: bool
    is_hastened: bool


@dataclass(frozen=True, slots=True)
class DataPorts:
    """The open ports of one worker."""

    served: "Sequence[HttpPort]"
    calls: "Sequence[GrpcFront]"

    @property
    def calls_running(self) -> int:
        """How many gRPC calls are being answered."""
        return sum(front.running for front in self.calls)

    async def give_up(self, bridge: Bridge, tasks: Tasks, ending: Ending) -> None:
        """Close the ports without losing who is in them, and let what runs end."""
        linger_s, drain_s = ending.linger_s, ending.drain_s
        over = [tasks.start(front.stop(drain_s, linger_s, lambda: ending.is_hastened)) for front in self.calls]
        await asyncio.gather(*(port.close(is_shared=ending.is_replaced) for port in self.served))
        # A WebSocket has no end of its own: at a stop it is told at once, at a reload it may go on as long as anything.
        patience_s = drain_s * _WEBSOCKET_SHARE if ending.is_replaced else 0.0
        telling = tasks.start(_say_goodbye(bridge, ending, linger_s + patience_s))
        await asyncio.sleep(min(linger_s, _HANDSHAKE_S))
        await until(lambda: ending.is_hastened or not any(port.connections for port in self.served), linger_s)
        await asyncio.gather(*(port.end(drain_s) for port in self.served), *over)
        telling.cancel()


async def _say_goodbye(bridge: Bridge, ending: Ending, after_s: float) -> None:
    await until(lambda: ending.is_hastened, after_s)
    await bridge.close()


async def open_all(
    settings: Settings,
    front: Front,
    flow: Flow,
    observer: RequestObserver,
    ports: Sequence[Port],
    *,
    listeners: Mapping[Port, socket.socket],
    max_connections: int,
) -> DataPorts:
    """
    Accept on every one of *ports*; *listeners* are bound sockets for some of them.

    *max_connections* is for each gRPC port; those over HTTP are *front*'s to count.
    """
    served = [
        await listen(settings, front, port, listeners.get(port)) for port in ports if port.protocol in ("http", "https")
    ]
    return DataPorts(
        served, await _listen_grpc(settings, front, flow, observer, ports, max_connections=max_connections)
    )


async def listen(settings: Settings, front: Front, port: Port, listener: socket.socket | None = None) -> HttpPort:
    """
    One HTTP data port, shared with the other workers: the kernel spreads connections over all that listen.

    *listener* is a bound socket to accept on; by default one is made.
    """
    server = DataServer(
        front,
        _intake(settings, port, front.own_id),
        header_bytes=settings.limits.header_bytes,
        header_lines=settings.limits.header_lines,
        keepalive_s=settings.limits.keepalive_s,
        lane=Lane() if settings.memory.fast_lane else None,
    )
    if listener is None:
        listener = socket.socket(socket.AF_INET6 if ":" in port.host else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((port.host, port.number))
    served = HttpPort(server, drain_s=settings.limits.drain_s)
    await served.open(listener, _ssl_context(settings) if port.protocol == "https" else None)
    return served


async def _listen_grpc(
    settings: Settings,
    http: Front,
    flow: Flow,
    observer: RequestObserver,
    ports: Sequence[Port],
    *,
    max_connections: int,
) -> "list[GrpcFront]":
    """What answers on the gRPC ports; nothing if there are none."""
    wanted = [port for port in ports if port.protocol in ("grpc", "grpcs")]
    if not wanted:
        return []
    from proxy.server.grpc.front import GrpcFront  # noqa: PLC0415

    front = GrpcFront(
        flow=flow,
        at_once=flow.at_once if settings.memory.fast_lane else None,
        observer=observer,
        error_lines=error_lines,
        max_connections=max_connections,
        idle_s=settings.limits.keepalive_s,
        connection_s=settings.limits.grpc_connection_s,
        own_id=http.own_id,
        held=http.held,
        patience=http.body_patience,
    )
    for port in wanted:
        await front.listen(port.upstream, port.host, port.number, _tls(settings) if port.protocol == "grpcs" else None)
    return [front]


def _tls(settings: Settings) -> Tls:
    """The certificate; the settings are refused if a port wants one and there is none."""
    certificate, key = settings.listen.certificate, settings.listen.key
    if certificate is None or key is None:
        raise RuntimeError("a TLS port without a certificate")
    return Tls(certificate, key)


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    tls = _tls(settings)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _intake(settings: Settings, port: Port, own_id: bytes) -> Intake:
    upstreams = settings.all_upstreams()
    names = {name: upstream.name for upstream in upstreams for name in upstream.hosts}
    own = {port.host, "localhost", *names}
    has_vectors = settings.dashvector_url is not None
    choice = Choice(names, DEFAULT_UPSTREAM, DEFAULT_VECTOR_UPSTREAM if has_vectors else None)
    return Intake(
        upstream_of=(lambda *_: port.upstream) if port.upstream else choice,
        own_names=frozenset(own | {f"{name}:{port.number}" for name in own}),
        decisive=decisive,
        identity=frozenset(name.decode("ascii") for name in IDENTITY),
        own_id=own_id,
    )
