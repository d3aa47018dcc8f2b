"""
The life of one request.

Read from the top: ``Flow.answer`` decides, ``_read`` looks up, ``_fetch`` asks for the rest; ``writes`` forwards what
changes something.

::

    route known? --no--> forward untouched, streaming both ways
        | yes
    could it change anything? --yes--> make stale what hangs on it, forward once, make it stale again, answer
        | no
    headers and mode allow a key? --no--> forward untouched, with the reason on the outcome
        | yes
    body read, planned into items (one per text, one per query) --ambiguous, too large--> the same
        |                                                          (``planner``; remembered for equal bytes)
    all in the memory tier? --yes--> join, answer (``at_once``)
        | no
    memory tier and one Redis round trip for all items together
        |                                        |
    all there: join, answer                  some missing, or past their lifetime
                                                 |            |
                                                 |        in grace: join, answer, refresh in the background
                                     one smaller request upstream
                                                 |                   |
              judge, split, join with what was there,            it failed: what is in grace instead
                                 answer, then store

An answer that is not right is the client's only if it was given to its own request (``shown``); otherwise that is sent.

What a write can make stale is read and kept under tokens (``cache.invalidation.generations``) and never in memory.
Redis can be gone at any point: what it would have said is a miss. The upstream's errors go to the client as they are.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence

from proxy.cache.invalidation.tier import VoidableTier
from proxy.core.answer import Answer, Body
from proxy.core.entry import Entry, Row
from proxy.core.errors import ClientError, ErrorCode, UpstreamError
from proxy.core.found import Found
from proxy.core.grace import StaleReason
from proxy.core.held_bytes import HeldBytes
from proxy.core.modes import Mode
from proxy.core.outcome import CacheState, Outcome
from proxy.core.plan import Pass, PassReason, Refusal
from proxy.core.ports import SYSTEM_CLOCK, Clock, ModeSource
from proxy.core.relay import relayed
from proxy.core.request import Request
from proxy.request.ask import Asker, Job, Landing, Upstreams, begin
from proxy.request.coalesce import Fetcher
from proxy.request.credentials import Callers
from proxy.request.from_memory import AtOnce, ours, tell_ages
from proxy.request.grace import Grace, Stale
from proxy.request.negative import Negatives
from proxy.request.planner import Planned, Planner
from proxy.request.shown import may_be_shown
from proxy.request.writes import Writer
from proxy.runtime.offload import Heavy
from proxy.runtime.tasks import Tasks


class Flow:
    """Answers requests from the tiers and the upstreams; one instance per worker."""

    def __init__(
        self,
        *,
        planner: Planner,
        at_once: AtOnce,
        upstreams: Upstreams,
        asker: Asker,
        fetcher: Fetcher,
        grace: Grace,
        negatives: Negatives,
        callers: Callers,
        voidable: VoidableTier,
        tasks: Tasks,
        modes: ModeSource,
        max_key_body_bytes: int,
        max_answer_bytes: int,
        heavy: Heavy | None = None,
        held: HeldBytes | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._planner = planner
        self.at_once = at_once
        self._upstreams = upstreams
        self._asker = asker
        self._fetcher = fetcher
        self._grace = grace
        self._negatives = negatives
        self._callers = callers
        self._writer = Writer(
            planner=planner,
            upstreams=upstreams,
            callers=callers,
            voidable=voidable,
            tasks=tasks,
            max_answer_bytes=max_answer_bytes,
            held=held or HeldBytes(sys.maxsize),
        )
        self._modes = modes
        self._heavy = heavy or Heavy()
        self._max_key_body_bytes = max_key_body_bytes
        self._clock = clock

    async def answer(self, request: Request, body: Body, outcome: Outcome, found: Found | None = None) -> Answer:
        """
        The answer to *request*; *outcome* tells afterwards how it came about.

        *found* is what the tiers said of this very request a moment ago, if they were asked before it was parsed.

        Raises:
            ClientError: the request cannot be served as it is.
            UpstreamError: no answer could be had.
        """
        route = self._planner.route(request)
        if route is None:
            return await self._forward(request, body, outcome)
        outcome.operation = route.operation
        if route.write is not None:
            return await self._writer.answer(request, body, outcome, route.write)
        outcome.state = CacheState.BYPASS
        mode = self._modes.mode(request.upstream, route.operation)
        reason = PassReason.BYPASS if mode is Mode.BYPASS else route.objection
        if reason is not None:
            return await self._forward(request, body, outcome, reason)
        content = await body.read(self._max_key_body_bytes)
        if content is None:
            return await self._forward(request, body, outcome, PassReason.BODY_TOO_LARGE)
        request = request.with_body(content)
        planned = await self._planner.plan(route, request)
        if isinstance(planned, Pass):
            if planned.read is None:
                return await self._forward(request, body, outcome, planned.reason)
            keyed = outcome.planned = await self._planner.keyed(route, request, planned.read)
            return await self._passed(_job(request, keyed, outcome), planned.reason)
        outcome.planned = planned
        if mode is Mode.SHADOW:
            plain = planned.plan.plain
            return await self._shadow(
                _job(request, planned if plain is None else await self._planner.keyed(route, request, plain), outcome)
            )
        at_once = self.at_once.answer(planned, outcome)
        if at_once is not None:
            return at_once
        answer = await self._read(_job(request, planned, outcome), found)
        if outcome.state is CacheState.HIT:
            answer.again = self.at_once.again(planned)
        return answer

    # --- straight through ---------------------------------------------------------------------------------------------

    async def _forward(
        self, request: Request, body: Body, outcome: Outcome, reason: PassReason | None = None
    ) -> Answer:
        """*request* untouched, its body streaming up and the answer's streaming down."""
        outcome.detail = reason or ""
        untouched = request if request.body is None else dataclasses.replace(request, body=None)
        try:
            reply = await self._upstreams.send(untouched, outcome, body)
        except UpstreamError as error:
            # A kept connection may close just as it is used again. Only what asks for nothing twice is sent twice.
            if not (error.retryable and request.method in ("GET", "HEAD") and body.is_empty):
                raise
            reply = await self._upstreams.send(dataclasses.replace(untouched, is_again=True), outcome, body)
        return relayed(reply, reply)

    # --- from the tiers -----------------------------------------------------------------------------------------------

    async def _read(self, job: Job, found: Found | None) -> Answer:
        """Look all items up at once, unless that is done; answer from what is there, or fetch what is missing."""
        outcome = job.outcome
        now_unix_ms = self._now_unix_ms()
        found, usable = await self._look_up(job, now_unix_ms, found)
        _count_hits(outcome, job.keys, usable, found.from_memory, now_unix_ms)
        missing = [at for key, at in job.first_positions.items() if key not in usable]
        if not missing:
            outcome.state = CacheState.HIT
            return await self._joined(job, {key: entry.row for key, entry in usable.items()}, usable)
        stale = self._grace.stand_ins(job, found.entries, missing, now_unix_ms)
        if (reason := self._grace.at_once(job, missing, stale, now_unix_ms)) is not None:
            return await self._stale(job, usable, stale, reason)
        if (known := self._negatives.look(job)) is not None:
            return known
        if job.wishes.only_if_cached:
            raise ClientError(ErrorCode.NOT_IN_CACHE, "not in the cache, and the request forbids to ask for it", 504)
        outcome.state = CacheState.PARTIAL if outcome.hits else CacheState.MISS
        return await self._fetch(job, usable, missing, stale)

    async def _stale(self, job: Job, usable: Mapping[bytes, Entry], stale: Stale, reason: StaleReason) -> Answer:
        """An answer for which *stale* entries stand in."""
        outcome, entries, now_unix_ms = job.outcome, {**usable, **stale}, self._now_unix_ms()
        outcome.state, outcome.detail = CacheState.STALE, reason
        outcome.hits_redis += sum(key in stale for key in job.keys)
        tell_ages(outcome, entries.values(), now_unix_ms)
        return await self._joined(job, {key: entry.row for key, entry in entries.items()}, entries)

    async def _look_up(
        self, job: Job, now_unix_ms: int, found: Found | None = None
    ) -> tuple[Found, dict[bytes, Entry]]:
        """What the tiers hold, and what of it may be served."""
        found, usable = await self._fetcher.look_up(job, job.keys, now_unix_ms, found)
        job.tokens, job.is_held = found.tokens, found.is_held
        job.unusable = frozenset(found.rejected | found.entries.keys() - usable.keys())
        job.outcome.redis_ms, job.outcome.redis_ok = found.redis_s * 1000, found.redis_ok
        job.mark = self._callers.mark(job.owner, found.standing, has_entries=bool(found.entries))
        if job.mark is not None:  # the upstream has refused who asks: nothing of it may be served, fresh or in grace
            job.unusable |= found.entries.keys()
            found.entries.clear()
            usable = {}
        return found, usable

    async def _joined(self, job: Job, rows: Mapping[bytes, Row], from_cache: Mapping[bytes, Entry]) -> Answer:
        """An answer of ours in the vendor's form, out of rows old and new."""
        wanted = [rows[key] for key in job.keys]
        self.at_once.sign(job.outcome, wanted, [from_cache[key] for key in job.keys if key in from_cache])
        size = sum(row.size for row in wanted)
        return ours(await self._heavy(size, job.plan.join, wanted, job.outcome.request_id), job.outcome)

    # --- from the upstream --------------------------------------------------------------------------------------------

    async def _fetch(self, job: Job, usable: Mapping[bytes, Entry], missing: Sequence[int], stale: Stale) -> Answer:
        """Have the items at positions *missing* fetched; the upstream's answer goes on as it is if that was all."""
        outcome = job.outcome
        landing = await self._grace.fetch(job, missing, stale)
        if landing is None:
            return await self._stale(job, usable, stale, StaleReason.IF_ERROR)
        outcome.detail = landing.detail
        if landing.rows is None:
            return await self._not_right(job, landing)
        self._callers.served(job.owner)
        _say_settling(job)
        if landing.answer is not None and job.is_answered_by(landing):
            answer = landing.answer
        else:
            rows = {key: entry.row for key, entry in usable.items()} | {**landing.rows}
            answer = await self._joined(job, rows, usable)
        answer.after = _keeping(landing)
        return answer

    async def _not_right(self, job: Job, landing: Landing) -> Answer:
        """The client's answer when *landing* brought no rows: the one to its own request, item for item."""
        outcome = job.outcome
        outcome.forget_hits()  # the answer will be the upstream's alone
        shown = await may_be_shown(job, landing)
        if shown is None:
            outcome.forwarded, outcome.coalesced = len(job.keys), 0
            content = job.request.body or b""
            if job.plan.plain is not None:
                whole = await self._upstreams.in_time(self._upstreams.send_read(job, content))
                return relayed(whole, whole)
            landing = await self._asker.ask(job, range(len(job.keys)), content)
            outcome.detail = landing.detail
            shown = landing.answer or Answer(502, "Bad Gateway", (), b"")
            if landing.rows is not None:
                self._callers.served(job.owner)
                shown.after = _keeping(landing)
        self._negatives.note(job, landing)
        return shown

    # --- as it is -----------------------------------------------------------------------------------------------------

    async def _shadow(self, job: Job) -> Answer:
        """Forward the request as it is, count what the cache would have said, keep what came."""
        outcome = job.outcome
        _, usable = await self._look_up(job, self._now_unix_ms())
        outcome.shadow_hits = sum(key in usable for key in job.keys)
        landing, answer = await self._whole(job)
        outcome.detail = landing.detail or PassReason.SHADOW
        outcome.shadow_mismatches = sum(
            usable[key].row.differs(row) for key, row in (landing.rows or {}).items() if key in usable
        )
        return answer

    async def _passed(self, job: Job, reason: PassReason) -> Answer:
        """Forward the request as it is, although it could be read; what comes is kept, and may teach the adapter."""
        _, answer = await self._whole(job)
        job.outcome.detail = reason
        return answer

    async def _whole(self, job: Job) -> tuple[Landing, Answer]:
        """The upstream's answer to the client's own request, which is kept if it is complete and right."""
        job.outcome.forwarded = len(job.first_positions)
        landing = await self._asker.ask(job, range(len(job.keys)), job.request.body or b"")
        answer = landing.answer or Answer(502, "Bad Gateway", (), b"")
        if landing.rows is not None:
            self._callers.served(job.owner)
            answer.after = _keeping(landing)
        return landing, answer

    def _now_unix_ms(self) -> int:
        return int(self._clock.wall() * 1000)


def _keeping(landing: Landing) -> Callable[[], None]:
    """
    Keeps what came, and holds on to no more of *landing* than that.

    The answer that has it called may be *landing*'s own. Each would have the other, and what was sent would stay until
    the collector of cycles comes, which is seldom: 80 MiB of answers to misses.
    """
    return functools.partial(begin, landing.stores)


def _say_settling(job: Job) -> None:
    if job.is_held:
        job.outcome.detail = job.outcome.detail or Refusal.SETTLING


def _job(request: Request, planned: Planned, outcome: Outcome) -> Job:
    outcome.items = len(planned.keys)
    return Job(request, planned.plan, planned.route.wishes, outcome, planned.keys, planned.owner, planned.scopes)


def _count_hits(
    outcome: Outcome, keys: Sequence[bytes], usable: Mapping[bytes, Entry], from_memory: set[bytes], now_unix_ms: int
) -> None:
    outcome.hits_memory = sum(key in from_memory for key in keys if key in usable)
    outcome.hits_redis = sum(key in usable for key in keys) - outcome.hits_memory
    if usable:
        tell_ages(outcome, usable.values(), now_unix_ms)
