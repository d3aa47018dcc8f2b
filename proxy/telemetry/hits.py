"""
Hits above a rate, told of together: their counts are exact, and they share a log line.

A hit takes a few microseconds; a line in the log and half a dozen counters in files would cost it several times that.
What is not a plain hit, or comes below the rate, is told of by itself and at once.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.core.outcome import QUICK_MS, CacheState, Outcome, Repeats

_WINDOW_S = 0.2


@dataclass(slots=True)
class HitSum:
    """Hits of one operation at one upstream; *buckets* count them by duration, below each of *bounds* (seconds)."""

    operation: str
    upstream: str
    bounds: tuple[float, ...]
    requests: int = 0
    hits_memory: int = 0
    hits_redis: int = 0
    tokens_saved: dict[str, int] = field(default_factory=dict)
    """By model, as asked for."""
    bytes_in: int = 0
    bytes_out: int = 0
    total_ms: float = 0.0
    max_ms: float = 0.0
    buckets: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.buckets = [0] * (len(self.bounds) + 1)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self._add_alike(outcome, 1)
        self._add_time(outcome.total_ms)

    def add_repeats(self, repeats: Repeats) -> None:
        """Several more."""
        self._add_alike(repeats.outcome, repeats.times)
        self.total_ms += repeats.quick_ms
        self.max_ms = max(self.max_ms, repeats.quick_max_ms)
        self.buckets[bisect_left(self.bounds, QUICK_MS / 1000)] += repeats.quick
        for took_ms in repeats.slow_ms:
            self._add_time(took_ms)

    def _add_alike(self, outcome: Outcome, times: int) -> None:
        self.requests += times
        self.hits_memory += times * outcome.hits_memory
        self.hits_redis += times * outcome.hits_redis
        if outcome.tokens_saved:
            model = outcome.model
            self.tokens_saved[model] = self.tokens_saved.get(model, 0) + times * outcome.tokens_saved
        self.bytes_in += times * outcome.bytes_in
        self.bytes_out += times * outcome.bytes_out

    def _add_time(self, took_ms: float) -> None:
        self.total_ms += took_ms
        self.max_ms = max(self.max_ms, took_ms)
        self.buckets[bisect_left(self.bounds, took_ms / 1000)] += 1


class Hits:
    """*tell* gets what came beyond *singly* hits in a second, a few times a second, while there is any."""

    def __init__(self, *, singly: int, bounds: tuple[float, ...], tell: Callable[[HitSum], None]) -> None:
        self._each = round(singly * _WINDOW_S)
        self._left = self._each
        self._bounds = bounds
        self._tell = tell
        self._sums: dict[tuple[str, str], HitSum] = {}
        self._window: asyncio.TimerHandle | None = None

    def take(self, outcome: Outcome) -> bool:
        """Whether *outcome* will be told of with others; if not, it is to be told of by itself."""
        if outcome.state is not CacheState.HIT or outcome.has_asked or not _is_plain(outcome):
            return False
        self._begin()
        if self._left > 0:
            self._left -= 1
            return False
        self._sum_of(outcome).add(outcome)
        return True

    def add(self, repeats: Repeats) -> None:
        """Plain hits of which one was taken: they are told of with others, too."""
        self._begin()
        self._sum_of(repeats.outcome).add_repeats(repeats)

    def tell_all(self) -> None:
        """Tell of what was taken so far, and begin anew."""
        if self._window is not None:
            self._window.cancel()
            self._window = None
        self._left = self._each
        sums, self._sums = self._sums, {}
        for held in sums.values():
            self._tell(held)

    def _begin(self) -> None:
        if self._window is None:
            self._window = asyncio.get_running_loop().call_later(_WINDOW_S, self.tell_all)

    def _sum_of(self, outcome: Outcome) -> HitSum:
        kind = (outcome.operation, outcome.upstream)
        held = self._sums.get(kind)
        if held is None:
            held = self._sums[kind] = HitSum(*kind, self._bounds)
        return held


def _is_plain(outcome: Outcome) -> bool:
    return outcome.redis_ok and not outcome.detail and not outcome.client_gone and not outcome.grpc_code
