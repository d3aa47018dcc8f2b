"""Faults that repeat are logged now and then, with how often: whoever causes them must not fill a disk with our log."""

import time
from collections.abc import Callable, Hashable

_PERIOD_S = 10.0
_MOST_KINDS = 256


class Throttle:
    """One line per kind of fault and *period_s*."""

    def __init__(self, period_s: float = _PERIOD_S, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._period_s = period_s
        self._monotonic = monotonic
        self._known: dict[Hashable, tuple[float, int]] = {}

    def passes(self, kind: Hashable) -> int | None:
        """None: not now. Otherwise how many faults of this *kind* were kept back since the last that passed."""
        now_s = self._monotonic()
        last_s, held_back = self._known.get(kind, (-self._period_s, 0))
        if now_s - last_s < self._period_s:
            self._known[kind] = (last_s, held_back + 1)
            return None
        if len(self._known) >= _MOST_KINDS:
            self._known.clear()
        self._known[kind] = (now_s, 0)
        return held_back
