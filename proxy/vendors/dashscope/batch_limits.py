"""
How many texts a batch may have to be answered from the cache: as listed, or as the vendor has shown since.

A batch over its model's limit is passed. If the vendor answers it completely all the same, its limit has been raised,
and without a word of it such batches would never be cached again. If it later refuses a size it once took, the listed
limit holds again, and the next batch is passed.

What has been learned decides about plans only. No request is ever made larger because of it, so that a vendor that
goes back to its old limit refuses nothing but what clients themselves have asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from proxy.vendors.models import BATCH_CAPS, LARGEST_CAP

MOST_TIMES = 4
"""
A limit is learned up to so many times the listed one.

A batch is held, split and answered as a whole, so this keeps the work of one request within a small factor of what it
was measured with; vendors have raised limits by less. Where there is more, an operator can say so (``batch_cap``).
"""
MOST_TEXTS = 2_048
"""The most texts that any vendor of this form of API takes in one request."""
_MOST_MODELS = 256
"""Names of models that are not listed are clients' words."""

Told = Callable[[str, str, int, int], None]
"""Told of an upstream, a model, its limit of before and the one from now on."""


class BatchLimits:
    """
    The limits of one worker for one dialect; *caps* are an operator's, up to *max_pieces* times as many are planned.

    *on_change* is told once of a model that its limit was learned, and once that it was taken back.
    """

    def __init__(
        self,
        caps: Mapping[str, int] | None = None,
        max_pieces: int = 1,
        on_change: Told = lambda _upstream, _model, _before, _now: None,
    ) -> None:
        self._caps = {**BATCH_CAPS, **(caps or {})}
        self._max_pieces = max_pieces
        self._on_change = on_change
        self._learned: dict[tuple[str, str], int] = {}
        """By upstream and model; zero once it was taken back."""
        self._taken_back: set[tuple[str, str]] = set()

    def cap(self, model: str) -> int:
        """How many texts the vendor is listed to take in one request; zero for a model that is not listed."""
        return self._caps.get(model, 0)

    def listed(self, model: str) -> int:
        """How many texts are planned without a trial."""
        return self.cap(model) * self._max_pieces or LARGEST_CAP

    def trial(self, upstream: str, model: str, texts: int) -> "Trial | None":
        """The learner for a batch of so many *texts*; ``None`` for more than may be learned."""
        return Trial(self, upstream, model) if texts <= min(self.listed(model) * MOST_TIMES, MOST_TEXTS) else None

    def known(self, upstream: str, model: str) -> int:
        """The largest batch over the listed limit that the vendor has taken; zero if it has taken none."""
        return self._learned.get((upstream, model), 0)

    def raised(self, upstream: str, model: str, texts: int) -> None:
        """The vendor has answered so many *texts*."""
        name, before = (upstream, model), self.known(upstream, model)
        if texts <= max(before, self.listed(model)):
            return
        is_new = name not in self._learned
        if is_new and len(self._learned) >= _MOST_MODELS:
            return
        self._learned[name] = texts
        if is_new:
            self._on_change(upstream, model, self.listed(model), texts)

    def lowered(self, upstream: str, model: str, texts: int) -> None:
        """The vendor has refused a request for so many *texts*; a refusal of fewer than are listed says nothing."""
        name, before = (upstream, model), self.known(upstream, model)
        if not before or texts <= self.listed(model):
            return
        self._learned[name] = 0
        if name not in self._taken_back:
            self._taken_back.add(name)
            self._on_change(upstream, model, before, self.listed(model))


@dataclass(frozen=True, slots=True)
class Trial:
    """Implements ``core.plan.Trial``."""

    limits: BatchLimits
    upstream: str
    model: str

    def is_known(self, texts: int) -> bool:
        """Whether the vendor has taken so many before."""
        return texts <= self.limits.known(self.upstream, self.model)

    def taken(self, items: int) -> None:
        """See ``core.plan.Trial``."""
        self.limits.raised(self.upstream, self.model, items)

    def refused(self, items: int) -> None:
        """See ``core.plan.Trial``."""
        self.limits.lowered(self.upstream, self.model, items)
