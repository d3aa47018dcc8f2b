"""What a look into the tiers brought."""

from dataclasses import dataclass, field

from proxy.core.entry import Entry


@dataclass(slots=True)
class Found:
    """Entries by their keys, and what else was learnt on the way; a key that is nowhere here was not there."""

    entries: dict[bytes, Entry] = field(default_factory=dict)
    from_memory: set[bytes] = field(default_factory=set)
    rejected: set[bytes] = field(default_factory=set)
    """Keys under which something stands that is no entry of ours."""
    redis_ok: bool = True
    """False when Redis was needed and could not be asked."""
    redis_s: float = 0.0
    standing: bytes | None = None
    """The standing of who asks, as far as Redis was asked and knows it."""
    tokens: tuple[bytes, ...] | None = None
    """For answers that a write can make stale: the tokens to keep new ones under; ``None``: keep nothing."""
    is_held: bool = False
    """Nothing is kept just now, because of a write."""
