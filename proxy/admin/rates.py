"""The rates of the last minute and hour beside the totals: from samples of the totals, kept by the supervisor."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from proxy.admin.metric_files import Totals

EVERY_S = 10.0
"""Adding up the workers' files costs milliseconds, so samples are seldom; the minute is right to these seconds."""

SPANS_S = {"last_minute": 60.0, "last_hour": 3_600.0}
_MOST_SAMPLES = round(max(SPANS_S.values()) / EVERY_S) + 1
_LEAST_S = 1.0  # the first request of all is no rate of thousands in a second

_WHOLE = {"dashcache_requests_total": "requests", "dashcache_tokens_saved_total": "tokens_saved"}
"""By sample name: figures that are sums over all other labels."""

_FIGURES: dict[tuple[str, str], str] = {
    ("dashcache_items_total", "memory"): "hits",
    ("dashcache_items_total", "redis"): "hits",
    ("dashcache_items_total", "forwarded"): "misses",
    ("dashcache_items_total", "coalesced"): "misses",
    ("dashcache_operation_calls_total", "made"): "calls",
    ("dashcache_operation_calls_total", "saved"): "calls_saved",
}
"""By sample name and result."""

Figures = dict[tuple[str, str], float]
"""Counts by operation and figure."""


class Rates:
    """
    Counts the last minute and the last hour; *totals* are the counters of all workers since the start.

    Only growth is counted. Totals that fall (a worker's file was lost) make no rate negative, and hide nothing that
    came before or after.
    """

    def __init__(
        self, totals: Callable[[], Awaitable[Totals]], monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._totals = totals
        self._monotonic_s = monotonic_s
        self._last: Figures = {}
        self._samples: deque[tuple[float, Figures]] = deque([(monotonic_s(), {})], maxlen=_MOST_SAMPLES)
        """Moments, and what had grown until then; nothing had been counted at the first."""

    async def run(self) -> None:
        """Take samples until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            self.sample(await self._totals())

    def sample(self, totals: Totals) -> None:
        """Keep what *totals* have grown to; the oldest sample beyond an hour goes."""
        figures = _figures(totals)
        self._samples.append((self._monotonic_s(), self._grown(figures)))
        self._last = figures

    def document(self, totals: Totals) -> dict[str, Any]:
        """The rates until now, by span and operation; ``over_s`` is shorter than the span when we are younger."""
        now_s, grown = self._monotonic_s(), self._grown(_figures(totals))
        return {name: self._span(now_s, grown, span_s) for name, span_s in SPANS_S.items()}

    def _grown(self, figures: Figures) -> Figures:
        _, before = self._samples[-1]
        return {
            key: before.get(key, 0.0) + max(0.0, figures.get(key, 0.0) - self._last.get(key, 0.0))
            for key in before.keys() | figures.keys()
        }

    def _span(self, now_s: float, grown: Figures, span_s: float) -> dict[str, Any]:
        then_s, before = min(self._samples, key=lambda sample: abs(now_s - span_s - sample[0]))
        over_s = max(_LEAST_S, now_s - then_s)
        counts = {key: count - before.get(key, 0.0) for key, count in grown.items()}
        operations = sorted({operation for operation, _ in counts})
        return {"over_s": round(over_s), "operations": {name: _rate(counts, name, over_s) for name in operations}}


def _rate(counts: Figures, operation: str, over_s: float) -> dict[str, Any]:
    per_s = {
        name: round(counts.get((operation, name), 0.0) / over_s, 3)
        for name in ("requests", "hits", "misses", "calls", "calls_saved", "tokens_saved")
    }
    hits, misses = (counts.get((operation, name), 0.0) for name in ("hits", "misses"))
    looked_up = hits + misses
    return {
        **{f"{name}_per_s": value for name, value in per_s.items()},
        "hit_ratio": round(hits / looked_up, 4) if looked_up else None,
    }


def _figures(totals: Totals) -> Figures:
    figures: Figures = {}
    for (name, given), value in totals.items():
        figure = _WHOLE.get(name) or _FIGURES.get((name, dict(given).get("result", "")))
        if figure is not None:
            key = (dict(given)["operation"], figure)
            figures[key] = figures.get(key, 0.0) + value
    return figures
