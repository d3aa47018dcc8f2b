"""What the targets share: documents as a vendor could tell them apart, keys that must do so too, the store."""

import json
from collections.abc import Hashable

from proxy.cache.codec import Codec
from proxy.core.entry import Entry, Row
from proxy.core.key import Secret, common_digest, item_key
from proxy.core.plan import Read
from proxy.core.request import HeaderLines

SECRET = Secret.derive(b"secret of the fuzzing")
CODEC = Codec(SECRET, 1 << 22)
OURS = "ours-1"
HEADERS: HeaderLines = ((b"Authorization", b"Bearer sk-one"), (b"Content-Type", b"application/json"))
_MOST_KEYS = 100_000


class Spelled(str):
    """A number as it was written."""

    __slots__ = ()


def loaded(body: bytes | str) -> object:
    """*body* by the standard library's reader, numbers as they were written. Raises ValueError."""
    return json.loads(body, parse_int=Spelled, parse_float=Spelled)


def told(value: object) -> str:
    """A document as text, equal exactly for documents that nobody can tell apart; numbers by their spelling."""
    if isinstance(value, Spelled):
        return f"#{value}"
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{json.dumps(name)}:{told(member)}" for name, member in value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(told, value)) + "]"
    return json.dumps(value)


def keys_of(plan: Read) -> tuple[bytes, ...]:
    """The keys of all items, as the flow makes them."""
    common = common_digest(SECRET, (b"https://upstream", plan.operation.encode(), *plan.identity))
    return tuple(item_key(SECRET, common, item) for item in plan.items)


class Meanings:
    """
    What each key was seen to stand for, over all inputs of a run.

    Two requests that a vendor could tell apart and that share a key are found wherever they turn up.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Hashable] = {}

    def check(self, key: bytes, meaning: Hashable) -> None:
        """Raise AssertionError if *key* has stood for something else before."""
        if len(self._known) >= _MOST_KEYS:
            self._known.clear()
        known = self._known.setdefault(key, meaning)
        assert known == meaning, f"one key for two requests: {known!r} and {meaning!r}"


def stored(row: Row) -> Row:
    """*row* as it comes back from the store."""
    entry = Entry(row, 1_700_000_000_000, 3_600_000, b"g" * 16)
    sealed = CODEC.seal(b"k" * 32, entry)
    if sealed is None:
        return row
    opened = CODEC.open(b"k" * 32, sealed)
    assert opened == entry
    return opened.row
