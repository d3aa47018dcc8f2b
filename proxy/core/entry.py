"""What is kept for one item: its share of the vendor's answer, and when it was stored."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """
    One item's share of a vendor's answer, all text as the vendor wrote it.

    ``envelope`` is the answer around its rows, ``skeleton`` the row around its vector; the vendor's adapter puts marks
    where rows, vector, position, usage and request id go, and is the only one to read them. ``vector`` is the JSON text
    of the vector, empty for rows without one. ``usage`` is this row's share of the request's counters; ``origin`` the
    vendor's id of the request that was paid for.
    """

    envelope: bytes
    skeleton: bytes
    vector: bytes
    usage: tuple[tuple[str, int], ...]
    origin: str

    def differs(self, other: "Row") -> bool:
        """Whether *other* says something else; the text around a vector tells of its request, not of the item."""
        return self.vector != other.vector or (not self.vector and self.envelope != other.envelope)

    @property
    def total_tokens(self) -> int:
        """This row's share of what the vendor counts as tokens."""
        for name, share in self.usage:
            if name == "total_tokens":
                return share
        return 0

    @property
    def size(self) -> int:
        """Bytes this row costs in memory, nearly: its texts and the objects around them."""
        return len(self.envelope) + len(self.skeleton) + len(self.vector) + 400


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A row with its time of storing (Unix milliseconds) and its lifetime (milliseconds).

    ``generation`` is the tokens under which it was kept, for answers that a write can make stale.
    """

    row: Row
    stored_unix_ms: int
    ttl_ms: int
    generation: bytes = b""

    def age_ms(self, now_unix_ms: int) -> int:
        """Milliseconds since storing; never negative, as the writer's clock may be ahead of the reader's."""
        age_ms = now_unix_ms - self.stored_unix_ms
        return max(0, age_ms)  # a fifth of the time of max()

    def remaining_ms(self, now_unix_ms: int) -> int:
        """
        Milliseconds until the entry stops being fresh, at most its lifetime; zero or less once it is stale.

        Source: RFC 9111 §4.2; the lifetime is the operator's, per model.
        """
        return self.ttl_ms - self.age_ms(now_unix_ms)
