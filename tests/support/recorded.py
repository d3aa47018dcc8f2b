"""What the upstream double remembers: connections and requests, byte for byte. Filled in by `raw_upstream`."""

import asyncio
from dataclasses import dataclass, field

from tests.support import wire


@dataclass(slots=True, eq=False)
class Connection:
    """One accepted connection; times are monotonic."""

    number: int
    opened_at: float
    received: bytearray = field(default_factory=bytearray)
    """Every byte that came, whether it made sense or not."""
    peer_closed_at: float | None = None
    """When the other side closed or reset it; None while it has not, or if we were first."""
    peer_closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at that moment."""
    is_open: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class RecordedRequest:
    """One request: *head* to its empty line; *raw_body* as sent, *body* without the chunks; *number* counts from 0."""

    number: int
    connection: Connection
    head: wire.Head
    raw_body: bytes
    body: bytes
    trailers: wire.Headers
    arrived_at: float
    complete: bool = True

    @property
    def method(self) -> bytes:
        """The first word of the request line."""
        return self.head.start_line.partition(b" ")[0]

    @property
    def target(self) -> bytes:
        """What stands between method and version, as sent."""
        return self.head.start_line.partition(b" ")[2].rpartition(b" ")[0]

    @property
    def raw(self) -> bytes:
        """The exact bytes."""
        return self.head.raw + self.raw_body

    @property
    def headers(self) -> wire.Headers:
        """The fields, in order, names as sent."""
        return self.head.headers

    def header(self, name: str) -> bytes | None:
        """The value of the only field called *name*; several are an error."""
        return self.head.get(name)
