"""
Answers out of memory, made without waiting for anybody: what ``flow`` tries first, and what repeated requests get.

``AtOnce.answer`` looks at all that may have changed since the request was planned: lifetimes, refused credentials;
``_Again`` and ``AtOnce.recalled``, which answer by a plan that is remembered, also at modes and purges. What they may
ask beside memory is Redis, once; whatever takes more is ``flow``'s.
"""

import weakref
from collections.abc import Callable, Collection, Sequence

from proxy.cache.invalidation.tier import VoidableTier
from proxy.cache.tiers import Tiers
from proxy.core.answer import Again, Answer
from proxy.core.entry import Entry, Row
from proxy.core.found import Found
from proxy.core.freshness import NONE
from proxy.core.modes import Mode
from proxy.core.outcome import CacheState, Outcome
from proxy.core.ports import Clock, ModeSource
from proxy.core.request import Head
from proxy.request.credentials import Callers
from proxy.request.planner import Planned, Planner
from proxy.runtime.offload import LARGE_BYTES, Heavy


class AtOnce:
    """One per worker; *request_id* makes an id for an answer of ours."""

    def __init__(
        self,
        *,
        planner: Planner,
        tiers: Tiers,
        voidable: VoidableTier,
        callers: Callers,
        modes: ModeSource,
        request_id: Callable[[], str],
        clock: Clock,
        heavy: Heavy | None = None,
    ) -> None:
        self.planner = planner
        self.tiers = tiers
        self.memory = tiers.memory
        self._voidable = voidable
        self.mark = callers.mark
        self.modes = modes
        self.clock = clock
        self._request_id = request_id
        self._heavy = heavy or Heavy()

    def answer(self, planned: Planned, outcome: Outcome) -> Answer | None:
        """The answer, if memory holds all of it; ``None``, with *outcome* as it was, if it does not."""
        entries = None if planned.scopes else self.memory.all_of(planned.keys)
        if entries is None or sum([len(entry.row.vector) for entry in entries]) >= LARGE_BYTES:
            return None
        if not self._may_be_given(planned, entries, None, outcome):
            return None
        outcome.hits_memory = len(entries)
        outcome.planned = planned
        rows = [entry.row for entry in entries]
        answer = ours(planned.plan.join(rows, outcome.request_id), outcome)
        answer.again = self.again(planned)
        return answer

    async def look_up(self, planned: Planned, outcome: Outcome) -> Answer | Found:
        """The same out of all tiers, if *planned* hangs on no writes; what was found, if that is not enough."""
        return await self._made_of(await self.tiers.read(planned.keys, planned.owner), planned, outcome)

    async def recalled(self, head: Head, body: bytes, outcome: Outcome) -> Answer | Found | None:
        """
        The answer to a read with this *head* and *body* that hangs on writes, if its plan is remembered.

        What was found, if that is not enough; ``None``: nothing was, and it has to go the whole way.
        """
        planned = self.planner.recall(head, body)
        if planned is None or not planned.scopes or not self.is_on(planned):
            return None
        outcome.operation, outcome.state = planned.route.operation, CacheState.BYPASS  # while nothing is known
        found = await self._voidable.read(planned.keys, planned.scopes, planned.owner)
        return await self._made_of(found, planned, outcome) if self.is_on(planned) else None

    async def _made_of(self, found: Found, planned: Planned, outcome: Outcome) -> Answer | Found:
        """An answer out of what was *found*, or that itself."""
        outcome.planned = planned
        entries = [found.entries[key] for key in planned.keys if key in found.entries]
        if len(entries) < len(planned.keys) or not self._may_be_given(planned, entries, found.standing, outcome):
            return found
        outcome.hits_memory = sum([key in found.from_memory for key in planned.keys])
        outcome.hits_redis = len(entries) - outcome.hits_memory
        outcome.redis_ms = found.redis_s * 1000
        rows = [entry.row for entry in entries]
        text = await self._heavy(sum([row.size for row in rows]), planned.plan.join, rows, outcome.request_id)
        return ours(text, outcome)

    def again(self, planned: Planned) -> Again | None:
        """What may answer next time what was answered from the tiers this time; one for each *planned*."""
        again = planned.again() if planned.again is not None else None
        if again is None and not planned.scopes:
            again = _Again(self, planned)
            planned.again = weakref.ref(again)
        return again

    def recall(self, head: Head, body: bytes) -> Again | None:
        """What may answer a request with this *head* and *body*, if its plan is remembered."""
        planned = self.planner.recall(head, body)
        return None if planned is None else self.again(planned)

    def sign(self, outcome: Outcome, rows: Sequence[Row], from_cache: Collection[Entry]) -> None:
        """Give an answer made of *rows* an id, and tell whose they were and what it saves."""
        outcome.request_id = self._request_id()
        outcome.origins = tuple(dict.fromkeys([row.origin for row in rows if row.origin]))
        outcome.tokens_saved += sum([entry.row.total_tokens for entry in from_cache])

    def is_on(self, planned: Planned) -> bool:
        """Whether nothing was switched or purged since *planned* was keyed, that would forbid to look it up."""
        route = planned.route
        is_on = self.modes.mode(route.upstream, route.operation) is Mode.ON
        return is_on and self.planner.is_current(planned)

    def now_unix_ms(self) -> int:
        """The wall clock."""
        return int(self.clock.wall() * 1000)

    def _may_be_given(
        self, planned: Planned, entries: Sequence[Entry], standing: bytes | None, outcome: Outcome
    ) -> bool:
        """Whether *entries* may be the answer to *planned*; then *outcome* tells of it."""
        now_unix_ms = self.now_unix_ms()
        accept = planned.route.wishes.accept
        for entry in entries:
            if not accept(entry, now_unix_ms):
                return False
        if self.mark(planned.owner, standing, has_entries=True) is not None:
            return False
        outcome.state = CacheState.HIT
        outcome.items = len(entries)
        tell_ages(outcome, entries, now_unix_ms)
        self.sign(outcome, [entry.row for entry in entries], entries)
        return True


class _Again:
    """See ``core.answer.Again``."""

    __slots__ = ("__weakref__", "at_once", "planned")

    def __init__(self, at_once: AtOnce, planned: Planned) -> None:
        self.at_once = at_once
        self.planned = planned

    def __call__(self, outcome: Outcome) -> Answer | None:
        """Another answer."""
        route = self.planned.route
        if not self._is_on():
            return None
        outcome.upstream, outcome.operation = route.upstream, route.operation
        return self.at_once.answer(self.planned, outcome)

    def lacks_entries(self) -> bool:
        """Whether Redis could have what memory has not."""
        parts = self.at_once
        return self._is_on() and parts.tiers.has_redis and parts.memory.all_of(self.planned.keys) is None

    async def look_up(self, outcome: Outcome) -> Answer | Found | None:
        """The same with what Redis holds."""
        outcome.upstream, outcome.operation = self.planned.route.upstream, self.planned.route.operation
        came = await self.at_once.look_up(self.planned, outcome)
        return came if self._is_on() else None

    def same_until_unix_s(self) -> float:
        """When its lines or its entries will be others."""
        entries = self.at_once.memory.all_of(self.planned.keys)
        if not entries or self.planned.route.wishes is not NONE:
            return 0.0
        now_unix_ms = self.at_once.now_unix_ms()
        ages_ms = [entry.age_ms(now_unix_ms) for entry in entries]
        left_ms = min([entry.ttl_ms - age_ms for entry, age_ms in zip(entries, ages_ms, strict=True)])
        # Date, Age and ttl count whole seconds, each from a moment of its own.
        same_ms = min(1000 - now_unix_ms % 1000, 1000 - max(ages_ms) % 1000, left_ms % 1000)
        return min(
            (now_unix_ms + same_ms) / 1000,
            self.at_once.memory.left_s(self.planned.keys) + now_unix_ms / 1000,
            self.at_once.modes.same_until_unix_s,
        )

    def _is_on(self) -> bool:
        return self.at_once.is_on(self.planned)


def ours(text: bytes, outcome: Outcome) -> Answer:
    """An answer of ours in the vendor's form."""
    headers = ((b"Content-Type", b"application/json"), (b"X-Request-Id", outcome.request_id.encode("ascii")))
    return Answer(200, "OK", headers, text)


def tell_ages(outcome: Outcome, entries: Collection[Entry], now_unix_ms: int) -> None:
    """The age of the oldest of *entries*, and what is left of the one that ends first."""
    ages_ms = [entry.age_ms(now_unix_ms) for entry in entries]
    outcome.age_s = max(ages_ms) // 1000
    outcome.ttl_s = min([entry.ttl_ms - age_ms for entry, age_ms in zip(entries, ages_ms, strict=True)]) // 1000
