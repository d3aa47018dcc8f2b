"""
How items are looked up in the tiers, and who asks the upstream for those that no tier holds.

::

    missing items
        |-- on their way for another request of this process --> wait for that
        `-- the rest: a trip, in a task of its own
                |-- claimed by another process --> wait for its entry
                `-- the rest: one smaller request (``ask``), or as ``batching`` has it
                |
            right: whoever waits has the rows; the trip ends when they are kept
            not right: who set it off gets the upstream's answer as it is;
                       who waited asks anew, once together, then gets the same failure;
                       if it was no failure but cannot be shared, each on its own
            nothing within its lock time: who set it off waits on, what it claimed is given up;
                       who waited asks anew, once together, then each on its own, and keeps nothing

Open ``Fetcher.fetch`` first, then ``_trip``.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from proxy.cache.claims import Claim, Claims
from proxy.cache.flights import Flights, Land, Trip
from proxy.cache.invalidation.tier import VoidableTier
from proxy.cache.lock_times import LockTimes
from proxy.cache.tiers import Tiers
from proxy.core.entry import Entry, Row
from proxy.core.found import Found
from proxy.core.ports import Clock
from proxy.request.ask import Job, Landing
from proxy.request.batching import Batcher, shared

_ATTEMPTS = 2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.1


class Fetcher:
    """Looks items up, and has those fetched that are missing."""

    def __init__(
        self,
        *,
        batcher: Batcher,
        flights: Flights[Landing],
        lock_times: LockTimes,
        claims: Claims,
        tiers: Tiers,
        voidable: VoidableTier,
        clock: Clock,
        max_answer_bytes: int,
        on_overdue: Callable[[str], None] = lambda _operation: None,
    ) -> None:
        self._batcher = batcher
        self._flights = flights
        self._lock_times = lock_times
        self._claims = claims
        self._tiers = tiers
        self._voidable = voidable
        self._clock = clock
        self._max_answer_bytes = max_answer_bytes
        self._on_overdue = on_overdue

    async def look_up(
        self, job: Job, keys: Sequence[bytes], now_unix_ms: int, found: Found | None = None
    ) -> tuple[Found, dict[bytes, Entry]]:
        """What the tiers hold under *keys*, and what of it may be served; one Redis round trip, or what was *found*."""
        if found is None and job.scopes:
            found = await self._voidable.read(keys, job.scopes, job.owner)
        elif found is None:
            found = await self._tiers.read(keys, job.owner)
        return found, {key: entry for key, entry in found.entries.items() if job.wishes.accept(entry, now_unix_ms)}

    async def fetch(self, job: Job, missing: Sequence[int]) -> Landing:
        """
        The rows at positions *missing*; or the upstream's answer that says why there are none.

        Raises:
            ProxyError: no answer could be had.
        """
        rows: dict[bytes, Row] = {}
        came: list[Landing] = []
        left, may_wait, attempt, is_late = list(missing), job.may_wait, 0, False
        while left:
            attempt += 1
            others = self._carrying(job, left) if may_wait else {}
            mine = [at for at in left if at not in others]
            job.outcome.forwarded += len(mine)
            own = self._set_off(job, mine, is_alone=attempt > 1 and not may_wait, keeps=not is_late) if mine else None
            landed = await _landings(own, others.values())
            if own is not None:
                landing = landed[own]
                if landing.error is not None:
                    raise landing.error.with_traceback(None)  # several may raise it
                if landing.is_nothing:
                    job.outcome.forwarded -= len(mine)
                    may_wait = False
                    continue
                if landing.rows is None or len(mine) == len(missing):
                    return landing
                rows.update(landing.rows)
            came += landed.values()
            late = [at for at, trip in others.items() if trip not in landed]
            left = self._collect(job, {at: landed[trip] for at, trip in others.items() if trip in landed}, rows)
            failed = [landed[others[at]] for at in left]
            is_late = bool(late) and attempt >= _ATTEMPTS
            may_wait = may_wait and not is_late and all(landing.is_shareable for landing in failed)
            if failed and may_wait and attempt >= _ATTEMPTS:
                job.outcome.coalesced += len(left)
                return self._shared(failed[0])
            left += late
        return Landing(rows=rows, stores=tuple(store for landing in came for store in landing.stores))

    # --- in this process ----------------------------------------------------------------------------------------------

    def _carrying(self, job: Job, positions: Iterable[int]) -> dict[int, Trip[Landing]]:
        """Those of *positions* that are on their way already."""
        flights = {at: job.flight(at) for at in positions}
        trips = self._flights.carrying(flights.values())
        carried = {at: trips[flight] for at, flight in flights.items() if flight in trips}
        # What has come may be what was found, and of no use: then it has to be replaced.
        return {at: trip for at, trip in carried.items() if not (trip.has_landed and job.keys[at] in job.unusable)}

    def _collect(self, job: Job, landed: Mapping[int, Landing], rows: dict[bytes, Row]) -> list[int]:
        """Put into *rows* what *landed* brought from others; the positions for which it brought nothing."""
        brought = {job.keys[at]: landing.rows[job.keys[at]] for at, landing in landed.items() if landing.rows}
        rows.update(brought)
        _count_coalesced(job, brought)
        return [at for at in landed if job.keys[at] not in brought]

    def _shared(self, failed: Landing) -> Landing:
        """The end of a trip that failed, for one more of those who waited for it."""
        if failed.error is not None:
            raise failed.error.with_traceback(None)  # or it would grow with everybody who raises it
        return shared(failed, self._max_answer_bytes)

    # --- a trip -------------------------------------------------------------------------------------------------------

    def _set_off(self, job: Job, positions: Sequence[int], *, is_alone: bool, keeps: bool) -> Trip[Landing]:
        can_share = job.can_share and not is_alone
        carried = self._flights.free(job.flight(at) for at in positions) if can_share else frozenset()
        # Its time is not one client's any more: each waits as long as it likes, and the last one ends it.
        request = job.request
        if request.timeout_s is not None:
            request = dataclasses.replace(request, timeout_s=None)
        # What is marked goes on its own: with others, it would only have them asked for again.
        job = dataclasses.replace(job, request=request, may_batch=len(carried) == len(positions), keeps=keeps)
        claims = _Claimed(self._claims, carried if job.may_wait and job.outcome.redis_ok else ())

        def overdue() -> None:
            claims.end()
            if carried:
                self._on_overdue(job.plan.operation)

        def relieve(landing: Landing) -> Landing | None:
            """The rows alone: an answer is for who asked for it."""
            rows = landing.rows or {}
            return Landing(rows=rows) if job.may_wait and all(job.keys[at] in rows for at in positions) else None

        return self._flights.set_off(
            carried,
            lambda land: self._trip(job, positions, claims, land),
            self._lock_times.lock_s(job.latency_group),
            overdue=overdue,
            relieve=relieve,
        )

    async def _trip(self, job: Job, positions: Sequence[int], claims: "_Claimed", land: Land[Landing]) -> None:
        """Bring the rows at *positions*, land, and give up what was claimed when they are kept."""
        try:
            landing = await self._brought(job, positions, claims)
            land(landing, landing.rows is not None)
            await landing.kept()
        finally:
            claims.release()

    async def _brought(self, job: Job, positions: Sequence[int], claims: "_Claimed") -> Landing:
        """
        Ask for what is ours, then wait for what others fetch; what they do not bring is ours then, and so on.

        In this order, and with nothing held while waiting: two who wait for each other would wait for ever.
        """
        began_s = self._clock.monotonic()
        ours, others = await claims.take(job, positions, is_first=True)
        job.outcome.redis_ms += (self._clock.monotonic() - began_s) * 1000
        if claims.alone:
            return self._nothing(claims)
        landing = await self._asked(job, ours)
        while others and landing.rows is not None:
            landing.store()
            await landing.kept()
            claims.release()
            rows, ours, others = await self._awaited(job, others, claims, began_s + self._claims.patience_s)
            _count_coalesced(job, rows)
            job.outcome.forwarded -= len(rows)
            if claims.alone and not landing.rows and not rows:
                return self._nothing(claims)
            more = await self._asked(job, ours)
            if more.rows is None:
                return more
            landing = Landing(rows={**landing.rows, **rows, **more.rows}, stores=more.stores)
        return landing

    def _nothing(self, claims: "_Claimed") -> Landing:
        """Nobody is to wait for what another process could not keep: not even for us."""
        self._flights.mark(claims.alone)
        return Landing()

    async def _awaited(
        self, job: Job, positions: Sequence[int], claims: "_Claimed", ends_s: float
    ) -> tuple[dict[bytes, Row], list[int], list[int]]:
        """Wait for news: the rows that have come, the positions that are ours after all, those still to wait for."""
        pause_s = _FIRST_PAUSE_S
        while True:
            ours, others = await claims.take(job, positions, is_first=False)
            # After the claim: its holder gives it up when the entry is there.
            _, usable = await self.look_up(job, [job.keys[at] for at in positions], int(self._clock.wall() * 1000))
            is_over = self._clock.monotonic() >= ends_s
            if ours or usable or is_over:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        ours = [at for at in ours if job.keys[at] not in usable]
        others = [at for at in others if job.keys[at] not in usable]
        rows = {key: entry.row for key, entry in usable.items()}
        return (rows, sorted(ours + others), []) if is_over else (rows, ours, others)

    async def _asked(self, job: Job, positions: Sequence[int]) -> Landing:
        """What the upstream says. Our errors are part of the landing, as several may have to raise them."""
        if not positions:
            return Landing(rows={})
        began_s = self._clock.monotonic()
        landing = await self._batcher.ask(job, positions)
        if landing.rows is not None:
            self._lock_times.note(job.latency_group, self._clock.monotonic() - began_s)
        if landing.rows is None and not landing.is_shareable:
            flights = [job.flight(at) for at in landing.positions]
            self._flights.mark(flights)
            self._claims.mark(flights)
        return landing


class _Claimed:
    """What one trip has claimed; it may claim *claimable*, and whatever else it asks for is nobody's business."""

    def __init__(self, claims: Claims, claimable: Collection[bytes]) -> None:
        self._claims = claims
        self._claimable = claimable
        self._held: set[bytes] = set()
        self._is_over = False
        self.alone: set[bytes] = set()
        """What everybody is to ask for on its own; ours, but not held."""

    async def take(self, job: Job, positions: Sequence[int], *, is_first: bool) -> tuple[list[int], list[int]]:
        """
        Those of *positions* that are ours to ask for, and those that another process fetches or has fetched.

        The *first* time the entries are looked for as well: one may have come since they were looked up.
        """
        claimable = () if self._is_over else self._claimable
        wanted = {at: flight for at in positions if (flight := job.flight(at)) in claimable}
        # What hangs on tokens, or could not be used, may be there and count no more.
        is_new = is_first and not job.scopes
        entries = [job.keys[at] if is_new and job.keys[at] not in job.unusable else None for at in wanted]
        answers = dict(zip(wanted, await self._claims.take(list(wanted.values()), entries), strict=True))
        self._held.update(wanted[at] for at, claim in answers.items() if claim is Claim.OURS)
        self.alone.update(wanted[at] for at, claim in answers.items() if claim is Claim.ALONE)
        others = [at for at in wanted if answers[at] in (Claim.HELD, Claim.THERE)]
        return [at for at in positions if at not in others], others

    def release(self) -> None:
        """Give up all."""
        held, self._held = self._held, set()
        self._claims.release(held)

    def end(self) -> None:
        """The trip is overdue: nobody is to wait for it, here or elsewhere, nor does it wait for anybody."""
        self._is_over = True
        self.release()


async def _landings(own: Trip[Landing] | None, others: Iterable[Trip[Landing]]) -> dict[Trip[Landing], Landing]:
    """
    Return each result that came in time; none of the others if *own* brought no rows, as its end is the client's then.

    A client that asked on its own account waits for that as long as it takes. A client that leaves gets off all.
    """
    trips = list(dict.fromkeys([*([own] if own is not None else []), *others]))
    landed: dict[Trip[Landing], Landing] = {}
    for trip in trips:
        trip.board()
    try:
        for trip in trips:
            landing = await (trip.landed() if trip is own else trip.landed_in_time())
            if landing is None:
                continue
            landed[trip] = landing
            if trip is own and landing.rows is None:
                break
    except BaseException:
        if own is not None:
            own.when_landed(Landing.close)  # who set it off would have been the only one to read that answer
        raise
    else:
        return landed
    finally:
        for trip in trips:
            trip.leave()


def _count_coalesced(job: Job, rows: Mapping[bytes, Row]) -> None:
    """Of *rows* that another request had paid for."""
    job.outcome.coalesced += len(rows)
    job.outcome.tokens_saved += sum(dict(row.usage).get("total_tokens", 0) for row in rows.values())
