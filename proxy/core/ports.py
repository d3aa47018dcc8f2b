"""What ``flow`` needs of the outside, as Protocols: vendors, upstreams, modes, clocks."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from proxy.core.answer import Body
from proxy.core.grpc_status import GrpcStatus
from proxy.core.modes import Mode
from proxy.core.plan import Adapter, Scope
from proxy.core.request import HeaderLines, Request


class UpstreamReply(Protocol):
    """An upstream's answer: head known, body still arriving. Usable as ``core.answer.Stream``."""

    status: int
    reason: str
    headers: HeaderLines
    """End-to-end lines."""
    length: int | None
    grpc_status: GrpcStatus | None
    """How a gRPC call ended; ``None`` over HTTP."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The body, or the rest of it. Raises UpstreamError when it breaks off."""

    def at_hand(self) -> tuple[bytes, bool]:
        """See ``core.answer.Stream``."""

    async def read(self, limit: int, has_room: Callable[[int], bool]) -> tuple[bytes, bool]:
        """
        The body up to about *limit* bytes, and whether that is all; the rest can still be iterated.

        *has_room* is told the size of each piece; where it says no, that piece is the last.
        """

    def close(self) -> None:
        """Let go of the connection."""


class Transport(Protocol):
    """The way to one upstream."""

    @property
    def origin(self) -> str:
        """Scheme, host and port; part of every key, as the same path on two hosts can mean two models."""

    async def send(self, request: Request, body: Body | None = None) -> UpstreamReply:
        """Send *request*, streaming *body* if the request holds no bytes of its own. Raises UpstreamError."""


class ModeSource(Protocol):
    """Which mode holds now."""

    @property
    def version(self) -> int:
        """Another number after each switch; what ends by itself does so at ``same_until_unix_s``."""

    @property
    def same_until_unix_s(self) -> float:
        """When the next switch ends by itself."""

    def mode(self, upstream: str, operation: str) -> Mode:
        """The mode of *operation* at *upstream*."""


class PurgeSource(Protocol):
    """Which purges a key has to know of."""

    @property
    def version(self) -> int:
        """Another number after each purge."""

    def tokens_for(self, upstream: str, operation: str, model: str, scopes: Sequence[Scope]) -> tuple[bytes, ...]:
        """Parts of the key of such a request, new ones after each purge that covers it; none without a purge."""


class Lifetime(Protocol):
    """How long a kind of entry lives."""

    def __call__(self, operation: str, model: str) -> float:
        """Seconds."""


class Routes(Protocol):
    """Which adapter wants a request, and who sends it."""

    def __call__(self, upstream: str, method: str, path: str) -> Adapter | None:
        """The adapter; ``None`` for what only passes through."""

    def credential(self, request: Request) -> bytes:
        """Who is asking, as a part of a key: the same for every request of that caller, cached or not."""

    def decisive(self, lines: HeaderLines) -> HeaderLines:
        """Those of *lines* that decide what a request means; requests that differ in others only mean the same."""


TransportOf = Callable[[Request], Transport]
"""The way on for a request: over its own protocol, to its upstream."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Two clocks that may disagree: *monotonic* for waiting and measuring, *wall* (Unix seconds) for what is stored."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


SYSTEM_CLOCK = Clock()
