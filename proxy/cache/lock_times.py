"""
How long others wait for a request that is on its way: its lock time, a multiple of what its like took lately.

nginx has one number for this (``proxy_cache_lock_timeout``). What is slow for a vector query is quick for a batch of
long texts, so here it is learnt per upstream, operation and protocol, within the bounds that a setting gives.
"""

from collections import deque

LatencyGroup = tuple[str, str, bool]
"""Upstream, operation, and whether over gRPC."""

_KEPT = 64
_ENOUGH = 8
"""With fewer latencies nothing is concluded from them."""
_TIMES = 3
_LEAST_S = 1.5
"""Below it, a lost packet, or a second in line for a slot, would look like a flight that hangs."""


class LockTimes:
    """
    The lock times of one worker.

    Nobody waits longer than *longest_s* seconds for others altogether, and that is for two of them, one after the
    other: so each lock time is at most half of that.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s / 2
        self._latencies_s: dict[LatencyGroup, deque[float]] = {}
        self._lock_s: dict[LatencyGroup, float] = {}

    def lock_s(self, group: LatencyGroup) -> float:
        """For a request of *group* that begins now; the longest there is while little is known of its like."""
        return self._lock_s.get(group, self._longest_s)

    def note(self, group: LatencyGroup, latency_s: float) -> None:
        """A request of *group* has brought what was asked for after *latency_s* seconds."""
        lately = self._latencies_s.setdefault(group, deque(maxlen=_KEPT))
        lately.append(latency_s)
        if len(lately) >= _ENOUGH:
            # The second largest of 64 is about the 98th percentile: one that hung and came says nothing of the others.
            usual_s = sorted(lately)[-2]
            self._lock_s[group] = min(self._longest_s, max(_LEAST_S, _TIMES * usual_s))
