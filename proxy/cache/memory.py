"""The nearest tier: entries inside one worker, bounded in bytes, each for a short time only."""

from collections.abc import Callable, Iterable

from cachetools import TLRUCache

from proxy.core.entry import Entry


class MemoryTier:
    """
    Least recently used entries up to *max_bytes*, none longer than *max_age_s* since Redis last confirmed it.

    The age limit is the most by which this tier can serve what Redis may no longer serve (purged, flushed, evicted).
    *monotonic* gives seconds; wall clock steps do not move anything here.
    """

    def __init__(self, max_bytes: int, max_age_s: float, monotonic: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._entries: TLRUCache[bytes, tuple[Entry, float], float] = TLRUCache(
            max(1, max_bytes),
            ttu=lambda _key, held, _now: held[1],
            timer=monotonic,
            getsizeof=lambda held: held[0].row.size,
        )
        self._monotonic = monotonic

    def get(self, key: bytes) -> Entry | None:
        """The entry under *key*, if it is held and its time here is not over."""
        held = self._entries.get(key) if self._max_bytes else None
        return held[0] if held is not None else None

    def all_of(self, keys: Iterable[bytes]) -> list[Entry] | None:
        """The entries under *keys*, in order, if all are held."""
        if not self._max_bytes:
            return None
        try:
            return [self._entries[key][0] for key in keys]
        except KeyError:
            return None

    def left_s(self, keys: Iterable[bytes]) -> float:
        """For how long all of *keys* may still be held."""
        return min([self._entries[key][1] for key in keys]) - self._monotonic()

    def put(self, key: bytes, entry: Entry, remaining_ms: int) -> None:
        """Hold *entry* for its *remaining_ms*, at most for the tier's age limit; too large ones are not held."""
        if not self._max_bytes:  # switched off
            return
        hold_s = min(remaining_ms / 1000, self._max_age_s)
        if hold_s > 0 and entry.row.size <= self._max_bytes:
            self._entries[key] = (entry, self._monotonic() + hold_s)
        else:
            self._entries.pop(key, None)  # what *entry* replaces is not held on to either

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    @property
    def entries(self) -> int:
        """How many entries are held."""
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Bytes held, as the bound counts them."""
        return int(self._entries.currsize)
