"""A worker's data ports, from its settings: who answers there, for which upstream, under which certificate."""

import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxy.core.listening import Port, Tls
from proxy.flow import Flow
from proxy.server.http import DataServer, Front, HttpPort, RequestObserver
from proxy.server.intake import Intake
from proxy.settings import DEFAULT_UPSTREAM, DEFAULT_VECTOR_UPSTREAM, Settings
from proxy.vendors.choice import Choice
from proxy.vendors.errors import error_lines

if TYPE_CHECKING:
    from proxy.server.grpc import GrpcFront


async def listen(settings: Settings, front: Front, port: Port, listener: socket.socket | None = None) -> HttpPort:
    """
    One HTTP data port, shared with the other workers: the kernel spreads connections over all that listen.

    *listener* is a bound socket to accept on; by default one is made.
    """
    server = DataServer(
        front,
        _intake(settings, port),
        header_bytes=settings.limits.header_bytes,
        header_lines=settings.limits.header_lines,
        keepalive_s=settings.limits.keepalive_s,
    )
    if listener is None:
        listener = socket.socket(socket.AF_INET6 if ":" in port.host else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((port.host, port.number))
    served = HttpPort(server, drain_s=settings.limits.drain_s)
    await served.open(listener, _ssl_context(settings) if port.protocol == "https" else None)
    return served


async def listen_grpc(
    settings: Settings, flow: Flow, observer: RequestObserver, ports: Sequence[Port]
) -> "list[GrpcFront]":
    """What answers on the gRPC ports; nothing if there are none."""
    wanted = [port for port in ports if port.protocol in ("grpc", "grpcs")]
    if not wanted:
        return []
    from proxy.server.grpc import GrpcFront  # noqa: PLC0415

    front = GrpcFront(
        flow=flow, observer=observer, error_lines=error_lines, connection_s=settings.limits.grpc_connection_s
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


def _intake(settings: Settings, port: Port) -> Intake:
    upstreams = settings.all_upstreams()
    names = {name: upstream.name for upstream in upstreams for name in upstream.hosts}
    own = {port.host, "localhost", *names}
    has_vectors = settings.dashvector_url is not None
    choice = Choice(names, DEFAULT_UPSTREAM, DEFAULT_VECTOR_UPSTREAM if has_vectors else None)
    return Intake(
        upstream_of=(lambda *_: port.upstream) if port.upstream else choice,
        own_names=frozenset(own | {f"{name}:{port.number}" for name in own}),
    )
