"""The plain request that every part of the proxy looks at, and the few header rules that need no vendor."""

import functools
from collections.abc import Collection
from dataclasses import dataclass

HeaderLines = tuple[tuple[bytes, bytes], ...]
"""Header lines in the order of the wire; names as the client spelled them."""

# RFC 9110 §7.6.1, and the fields that connections of old times knew. Expect is answered by our own server.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"expect",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

_HOP_BY_HOP_PREFIX = b"proxy-"
"""What is said to a proxy, or by one: authentication (RFC 9110 §11.7) and the connections of HTTP/1.0."""

_NEVER_NAMED = frozenset({b"cache-control", b"set-cookie", b"vary"})
"""
What may forbid to keep an answer. RFC 9110 §7.6.1: a field for all recipients must not be a connection option; if one
of these went away with its connection, the answer would look as if everybody might have it.
"""

_LINE_BYTES = 150
"""A tuple and two bytes objects."""

GRPC = "GRPC"
"""What stands for HTTP's method in gRPC calls; their target is the method's full name, their lines the metadata."""


class Head:
    """
    What of a request's head decides what it means: one object for all requests that came to a port with the same.

    ``meaning`` is the planner's to fill in, so that it need not look up what the door has looked up already.
    """

    __slots__ = ("ending", "meaning", "target", "upstream")

    def __init__(self, target: str, upstream: str, ending: Collection[bytes]) -> None:
        self.target = target
        self.upstream = upstream
        self.ending = ending
        """Names (lower case) of the lines that are not passed on."""
        self.meaning: object = None

    def request(self, method: str, lines: HeaderLines) -> "Request":
        """The request with this head, whose lines are *lines*."""
        ending = self.ending
        passed = tuple([line for line in lines if line[0].lower() not in ending]) if ending else lines
        return Request(method, self.target, passed, self.upstream, head=self)


@dataclass(frozen=True, slots=True)
class Request:
    """
    One client request as it will be forwarded: hop-by-hop lines are already gone.

    ``target`` is the request target byte for byte (origin form); ``upstream`` the name of the configured upstream.
    ``body`` is the whole body, or ``None`` while nobody has asked for it.
    ``timeout_s`` is the time the client still gives, if its protocol tells (gRPC); no part of any key. ``is_again``:
    it is sent a second time, and has waited for its turn at the upstream already.
    """

    method: str
    target: str
    headers: HeaderLines
    upstream: str
    body: bytes | None = None
    timeout_s: float | None = None
    is_again: bool = False
    """A kept connection closed under it: this time it goes over one of its own, as the next may be closing too."""
    head: Head | None = None
    """What the door knows of its head."""

    def with_body(self, body: bytes) -> "Request":
        """The same request, its *body* read whole; much cheaper than ``dataclasses.replace``."""
        given = (self.method, self.target, self.headers, self.upstream)
        return Request(*given, body, self.timeout_s, self.is_again, self.head)

    @property
    def is_grpc(self) -> bool:
        """Whether it came as a gRPC call and has to go on as one."""
        return self.method == GRPC

    @property
    def path(self) -> str:
        """The target up to its query; over gRPC, which has none, all of it."""
        return self.target if self.is_grpc else self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """The target after its first question mark; empty when there is none."""
        return self.target.partition("?")[2]

    def values(self, name: bytes) -> tuple[bytes, ...]:
        """All values of the header *name* (lower case), in the order of the wire."""
        return tuple(value for line, value in self.headers if line.lower() == name)

    def value(self, name: bytes) -> bytes | None:
        """The only or first value of the header *name* (lower case)."""
        return next(iter(self.values(name)), None)


def end_to_end(headers: HeaderLines) -> HeaderLines:
    """
    *headers* without hop-by-hop lines and without those that a Connection line names and may name.

    Source: RFC 9110 §7.6.1. Used in both directions, so that keys are made of what is really sent.
    """
    if all(len(name) <= _USUAL_BYTES and _stays(name) for name, _ in headers):
        return headers
    ending = ending_here(headers)
    return tuple([line for line in headers if line[0].lower() not in ending])


def ending_here(headers: HeaderLines) -> Collection[bytes]:
    """The names (lower case) of lines that are not passed on where *headers* are among the lines."""
    names = {name.lower() for name, _ in headers}
    said = b",".join([value for name, value in headers if name.lower() == b"connection"])
    named = {token.strip().lower() for token in said.split(b",")} - _NEVER_NAMED
    return named.union(filter(_is_hop_by_hop, names))


def _is_hop_by_hop(name: bytes) -> bool:
    return name in HOP_BY_HOP or name.startswith(_HOP_BY_HOP_PREFIX)


_USUAL_BYTES = 64
"""Names up to here are remembered."""


@functools.lru_cache(maxsize=512)
def _stays(name: bytes) -> bool:
    """Whether a line of that *name* may go on, as long as no Connection line is among the others."""
    return not _is_hop_by_hop(name.lower())


def held_bytes(headers: HeaderLines) -> int:
    """Bytes that *headers* take in memory, about: many short lines take several times what they say."""
    return sum([len(name) + len(value) + _LINE_BYTES for name, value in headers])


def list_items(values: tuple[bytes, ...]) -> tuple[str, ...]:
    """The comma-separated members of header *values*, lower case, without blanks (RFC 9110 §5.6.1)."""
    joined = b",".join(values).decode("latin-1")
    return tuple(item for part in joined.split(",") if (item := part.strip().lower()))
