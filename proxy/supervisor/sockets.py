"""
Ports held for the workers: bound by the supervisor with SO_REUSEPORT and never listened on.

So port 0 becomes one number that all workers share, and nobody else can take the port while workers are replaced.
Connections only reach sockets that listen: those of the workers' places, see ``place_sockets``.
"""

import errno
import socket
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from proxy.core.errors import ConfigError
from proxy.core.listening import Port
from proxy.settings.load import environment_names
from proxy.settings.model import Settings
from proxy.settings.types import split_address
from proxy.supervisor.port_owner import owner_of

# After a kill -9 of the supervisor its workers need a moment to see that it is gone and stop listening.
_PATIENCE_S = 3.0
_PAUSE_S = 0.05


class Reserved(NamedTuple):
    """A held port, and what holds it."""

    port: Port
    socket: socket.socket


def reserve_all(settings: Settings) -> list[Reserved]:
    """
    Hold every data port of *settings*, in their order.

    Raises:
        ConfigError: naming every port that cannot be had.
    """
    held: list[Reserved] = []
    mistakes: list[str] = []
    for listener in settings.listeners():
        host, number = split_address(listener.address)
        try:
            bound = bind(host, number, shared=True)
        except OSError as error:
            mistakes.append(cannot_listen(listener.path, listener.name, listener.address, error))
            continue
        address, real_number = bound.getsockname()[:2]
        # gRPC resolves a name to all its addresses, of which only one is held here.
        served = address if listener.protocol in ("grpc", "grpcs") else host
        held.append(Reserved(Port(listener.protocol, listener.upstream, served, real_number), bound))
    if mistakes:
        for reserved in held:
            reserved.socket.close()
        raise ConfigError(mistakes)
    return held


def cannot_listen(path: tuple[str, ...], name: str, address: str, error: OSError) -> str:
    """Which setting, by its environment name too, asks for what *error* refuses, and which process is in the way."""
    by_path = {known: variable for variable, known in environment_names().items()}
    variable = f" ({by_path[path]})" if path in by_path else ""
    why = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        why = f"{why}, by {owner_of(split_address(address)[1])}"
    return f"{name}{variable}: cannot listen on {address}: {why}"


def place_sockets(held: Sequence[Reserved]) -> list[socket.socket | None]:
    """
    What one worker, and after it its successor, accepts on: a socket for each port, bound beside the held one.

    It outlives the worker: whoever was let in by the kernel and not yet accepted by the old one is accepted by the new
    one, where closing it would have reset them. None for gRPC, whose library binds for itself. Raises OSError.
    """
    made: list[socket.socket | None] = []
    try:
        for port, bound in held:
            is_ours = port.protocol in ("http", "https")
            made.append(_joined(bound.family, bound.getsockname()) if is_ours else None)
    except OSError:
        close_all(made)
        raise
    return made


def close_all(sockets: Sequence[socket.socket | None]) -> None:
    """Close each."""
    for one in sockets:
        if one is not None:
            one.close()


def bind(host: str, port: int, *, shared: bool) -> socket.socket:
    """A socket bound to *host* and *port*; *shared*: others of ours may bind there too. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
    )[0]
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # First alone: with SO_REUSEPORT a second proxy could join a port unnoticed and take half its requests.
            bound.bind(address)
        except OSError:
            bound.close()
            if time.monotonic() >= deadline_s or port == 0:
                raise
            time.sleep(_PAUSE_S)
            continue
        if not shared:
            return bound
        return _shared(bound)


def _shared(bound: socket.socket) -> socket.socket:
    """*bound* again, with SO_REUSEPORT, which has to be set before a socket is bound."""
    family, address = bound.family, bound.getsockname()
    bound.close()
    return _joined(family, address)


def _joined(family: int, address: Any) -> socket.socket:  # noqa: ANN401  the family's own form
    again = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            again.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        again.bind(address)
    except OSError:
        again.close()
        raise
    return again
