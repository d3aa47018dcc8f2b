"""The plain request that every part of the proxy looks at, and the few header rules that need no vendor."""

import functools
from collections.abc import Set as AbstractSet
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


GRPC = "GRPC"
"""What stands for HTTP's method in gRPC calls; their target is the method's full name, their lines the metadata."""


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
    if all(_stays(name) for name, _ in headers):
        return headers
    names = [name.lower() for name, _ in headers]
    dropped: AbstractSet[bytes] = HOP_BY_HOP
    if b"connection" in names:
        values = [line[1] for line, name in zip(headers, names, strict=True) if name == b"connection"]
        named = {token.strip().lower() for value in values for token in value.split(b",")}
        dropped = HOP_BY_HOP | (named - _NEVER_NAMED)
    return tuple(
        line
        for line, name in zip(headers, names, strict=True)
        if name not in dropped and not name.startswith(_HOP_BY_HOP_PREFIX)
    )


@functools.lru_cache(maxsize=512)
def _stays(name: bytes) -> bool:
    """Whether a line of that *name* may go on, as long as no Connection line is among the others."""
    low = name.lower()
    return low not in HOP_BY_HOP and not low.startswith(_HOP_BY_HOP_PREFIX)


def list_items(values: tuple[bytes, ...]) -> tuple[str, ...]:
    """The comma-separated members of header *values*, lower case, without blanks (RFC 9110 §5.6.1)."""
    joined = b",".join(values).decode("latin-1")
    return tuple(item for part in joined.split(",") if (item := part.strip().lower()))
