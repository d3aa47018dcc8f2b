"""Upstreams that are this proxy, as far as names and addresses tell; ``core.loops`` finds the others in use."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator

from proxy.core.listening import shown
from proxy.settings.model import Settings
from proxy.settings.types import overlap, split_address

_RESOLVING_S = 2.0

AddressesOf = Callable[[str], frozenset[str]]


def circles(settings: Settings, addresses_of: AddressesOf | None = None) -> Iterator[str]:
    """A warning for each upstream that leads to a listener of *settings*, its name looked up by *addresses_of*."""
    looked_up: dict[str, frozenset[str]] = {}
    for upstream in settings.all_upstreams():
        endpoints = {end for end in (upstream, upstream.grpc) if end is not None}
        for listener, end in itertools.product(settings.listeners(), endpoints):
            if split_address(listener.address)[1] != end.port:
                continue
            if end.host not in looked_up:
                looked_up[end.host] = (addresses_of or _addresses_of)(end.host)
            if any(_is_here(listener.address, address, end.port) for address in looked_up[end.host]):
                where = f"{shown(end.host, end.port)} is {listener.name} ({listener.address})"
                yield f"{upstream.name} leads back to this proxy: {where}; its requests will be answered with 508"


def _is_here(listening: str, address: str, port: int) -> bool:
    return overlap(listening, shown(address, port)) and _is_ours(address)


def _is_ours(address: str) -> bool:
    """Whether this machine has the *address*: then, and only then, a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _addresses_of(host: str) -> frozenset[str]:
    """The addresses of *host*, by the system's hosts file and DNS; none if that takes long."""
    found: set[str] = set()

    def look_up() -> None:
        try:
            found.update(str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except OSError:
            return  # nobody knows the name, so it leads nowhere

    looking = threading.Thread(target=look_up, daemon=True)
    looking.start()
    looking.join(_RESOLVING_S)
    return frozenset(found)
