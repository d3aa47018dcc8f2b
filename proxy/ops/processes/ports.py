"""
Ports held for the workers: bound by the supervisor with SO_REUSEPORT and never listened on.

So port 0 becomes one number that all workers share, and nobody else can take the port while workers are replaced.
Connections only reach sockets that listen: the workers'.
"""

import socket
import time
from dataclasses import dataclass

from proxy.errors import ConfigError
from proxy.settings import Settings, split_address

# After a kill -9 of the supervisor its workers need a moment to see that it is gone and stop listening.
_PATIENCE_S = 3.0
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Reserved:
    """A held port; *upstream* is empty for the port that serves all of them."""

    upstream: str
    host: str
    port: int
    socket: socket.socket

    @property
    def address(self) -> str:
        """``host:port`` as people write it."""
        return shown(self.host, self.port)


def shown(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reserve_all(settings: Settings) -> list[Reserved]:
    """
    Hold every data port of *settings*.

    Raises:
        ConfigError: naming every port that cannot be had.
    """
    wanted = [("", "listen.http", settings.listen.http)]
    wanted += [(rule.name, f"upstreams.{rule.name}.listen", rule.listen) for rule in settings.upstreams if rule.listen]
    held: list[Reserved] = []
    mistakes: list[str] = []
    for upstream, name, address in wanted:
        host, port = split_address(address)
        try:
            bound = bind(host, port, shared=True)
        except OSError as error:
            mistakes.append(f"{name}: cannot listen on {address}: {error.strerror or error}")
        else:
            held.append(Reserved(upstream, host, bound.getsockname()[1], bound))
    if mistakes:
        for reserved in held:
            reserved.socket.close()
        raise ConfigError(mistakes)
    return held


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
