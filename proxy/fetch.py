"""
How items are looked up in the tiers, and how those that no tier holds are had from the upstream.

::

    missing items
        |-- on their way for another request of this process --> wait for that
        `-- the rest: in a task of its own
                |-- claimed by another process --> wait for its entry
                `-- the rest: one smaller request
                |
            judge, split into rows; keep them; whoever waits has them
                |
            not right: who set it off gets the upstream's answer as it is;
                       who waited asks anew, once together, then gets the same

Open ``Fetcher.fetch`` first.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence

from proxy.cache.claims import Claim, Claims
from proxy.cache.flights import Flights, Trip
from proxy.cache.redis_tier import Tokens
from proxy.cache.tiers import Found, Tiers
from proxy.cache.voidable import VoidableTier
from proxy.core.answer import Answer, Body, Stream, nothing
from proxy.core.coding import narrowed_codings
from proxy.core.entry import Entry, Row
from proxy.core.freshness import Directives, jittered_ms
from proxy.core.modes import Mode
from proxy.core.outcome import Outcome
from proxy.core.plan import NotStorable, Read, Refusal
from proxy.core.ports import Clock, Lifetime, ModeSource, TransportOf, UpstreamReply
from proxy.core.relay import content_of, relayed, start_of
from proxy.core.request import Request
from proxy.errors import ProxyError, UpstreamError

_MAX_SHARED_BYTES = 1 << 20
_STORE_AT_LATEST_S = 0.05
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.1
_ATTEMPTS = 2


@dataclasses.dataclass(slots=True)
class Job:
    """A planned read on its way, with its keys in the client's order."""

    request: Request
    plan: Read
    wishes: Directives
    outcome: Outcome
    keys: tuple[bytes, ...]
    scopes: tuple[bytes, ...]
    tokens: Tokens | None = None
    is_held: bool = False
    unusable: frozenset[bytes] = frozenset()
    """Keys under which there is something that does not serve this request."""

    @property
    def first_positions(self) -> dict[bytes, int]:
        """Each distinct key with the first position that has it: a text that stands twice is asked for once."""
        positions: dict[bytes, int] = {}
        for position, key in enumerate(self.keys):
            positions.setdefault(key, position)
        return positions

    @property
    def can_share(self) -> bool:
        """Whether an answer on its way may serve this request too; not if it could be older than a write."""
        return not self.scopes or self.tokens is not None

    def flight(self, position: int) -> bytes:
        """Under what others may wait for the item: its key, and the tokens that tell of writes."""
        return self.keys[position] + b"".join(self.tokens or ())


@dataclasses.dataclass(frozen=True, slots=True)
class Landing:
    """
    What came of a request for some items.

    ``rows`` is ``None`` when the answer was not complete and right, for the reason ``detail``. ``answer`` is the
    upstream's own; ``None`` when the rows came in several. ``store`` keeps what came; calling it again does nothing.
    """

    answer: Answer | None = None
    rows: Mapping[bytes, Row] | None = None
    detail: str = ""
    error: ProxyError | None = None
    store: Callable[[], None] = nothing

    @property
    def is_shareable(self) -> bool:
        """Whether a failure may be handed to everybody who waited: it says nothing of one request in particular."""
        return self.error is not None or (
            self.answer is not None and self.answer.status >= 500 and isinstance(self.answer.body, bytes)
        )


class Upstreams:
    """Sends requests on."""

    def __init__(self, transport_of: TransportOf, clock: Clock) -> None:
        self.transport_of = transport_of
        self._clock = clock

    async def send(self, request: Request, outcome: Outcome, body: Body | None = None) -> UpstreamReply:
        """Ask the upstream; its status and its time go onto the outcome."""
        started_s = self._clock.monotonic()
        outcome.upstream_calls += 1
        try:
            reply = await self.transport_of(request).send(request, body)
        finally:
            outcome.upstream_ms += (self._clock.monotonic() - started_s) * 1000
        outcome.upstream_status = reply.status
        return reply

    async def send_read(self, job: Job, content: bytes) -> UpstreamReply:
        """Send a request that changes nothing upstream, once more if a kept connection closed under it."""
        request = dataclasses.replace(job.request, headers=narrowed_codings(job.request), body=content or None)
        try:
            return await self.send(request, job.outcome)
        except UpstreamError as error:
            if not error.retryable:
                raise
            return await self.send(request, job.outcome)


class Fetcher:
    """Asks upstreams for items, and keeps what comes."""

    def __init__(
        self,
        *,
        upstreams: Upstreams,
        flights: Flights[Landing],
        tiers: Tiers,
        voidable: VoidableTier,
        claims: Claims,
        modes: ModeSource,
        lifetime: Lifetime,
        jitter: float,
        max_answer_bytes: int,
        clock: Clock,
        random_unit: Callable[[], float],
    ) -> None:
        self._upstreams = upstreams
        self._flights = flights
        self._tiers = tiers
        self._voidable = voidable
        self._claims = claims
        self._modes = modes
        self._lifetime = lifetime
        self._jitter = jitter
        self._max_answer_bytes = max_answer_bytes
        self._clock = clock
        self._random_unit = random_unit

    async def look_up(self, job: Job, keys: Sequence[bytes], now_unix_ms: int) -> tuple[Found, dict[bytes, Entry]]:
        """What the tiers hold under *keys*, and what of it may be served; one Redis round trip."""
        if job.scopes:
            found = await self._voidable.read(keys, job.scopes)
        else:
            found = await self._tiers.read(keys)
        return found, {key: entry for key, entry in found.entries.items() if job.wishes.accept(entry, now_unix_ms)}

    async def fetch(self, job: Job, missing: Sequence[int]) -> Landing:
        """
        The rows at positions *missing*; or the upstream's answer that says why there are none.

        Raises:
            ProxyError: no answer could be had.
        """
        rows: dict[bytes, Row] = {}
        left, attempt = list(missing), 0
        while True:
            attempt += 1
            trips = self._carrying(job, left)
            mine = [at for at in left if at not in trips]
            job.outcome.forwarded += len(mine)
            own = self._set_off(job, mine) if mine else None
            landed = await _wait(own, set(trips.values()))
            if own is not None:
                landing = landed[own]
                if landing.error is not None:
                    raise landing.error
                if landing.rows is None or len(mine) == len(missing):
                    return landing
                rows.update(landing.rows)
            came = {at: landed[trip].rows for at, trip in trips.items()}
            rows.update({job.keys[at]: found[job.keys[at]] for at, found in came.items() if found is not None})
            left = [at for at, found in came.items() if found is None]
            job.outcome.coalesced += len(came) - len(left)
            if not left:
                return Landing(rows=rows, store=landed[own].store if own is not None else nothing)
            failed = landed[trips[left[0]]]
            if attempt >= _ATTEMPTS and failed.is_shareable:
                return _shared(failed)

    def _carrying(self, job: Job, positions: Sequence[int]) -> dict[int, Trip[Landing]]:
        """Those of *positions* that are on their way already."""
        if job.wishes.no_cache or not job.can_share:
            return {}
        trips = self._flights.carrying(job.flight(at) for at in positions)
        return {at: trips[flight] for at in positions if (flight := job.flight(at)) in trips}

    def _set_off(self, job: Job, positions: Sequence[int]) -> Trip[Landing]:
        flights = [job.flight(at) for at in positions] if job.can_share else []
        return self._flights.set_off(flights, self._trip(job, positions))

    async def _trip(self, job: Job, positions: Sequence[int]) -> Landing:
        """What came of it, our errors included: several may have to raise them."""
        try:
            return await self._travelled(job, positions)
        except BaseException:
            self._claims.release(job.flight(at) for at in positions)
            raise

    async def _travelled(self, job: Job, positions: Sequence[int]) -> Landing:
        """What others fetch is waited for while the rest is asked for; what they did not bring is asked for then."""
        ours, others = await self._claim(job, positions)
        if not others:
            return await self._asked(job, ours)
        first, (rows, left) = await asyncio.gather(self._asked(job, ours), self._awaited(job, others))
        second = await self._asked(job, left if first.rows is not None else ())
        failed = next((landing for landing in (first, second) if landing.rows is None), None)
        if failed is not None:
            return failed

        def store() -> None:
            first.store()
            second.store()

        return Landing(rows={**rows, **(first.rows or {}), **(second.rows or {})}, store=store)

    async def _claim(self, job: Job, positions: Sequence[int]) -> tuple[list[int], list[int]]:
        """Those of *positions* that we are to ask for, and those that another process fetches or has fetched."""
        if job.wishes.no_cache or not job.can_share:
            return list(positions), []
        # What hangs on tokens, or could not be used, may be there and count no more.
        entries = [None if job.scopes or job.keys[at] in job.unusable else job.keys[at] for at in positions]
        claims = await self._claims.take([job.flight(at) for at in positions], entries)
        pairs = list(zip(positions, claims, strict=True))
        return [at for at, claim in pairs if claim is Claim.OURS], [
            at for at, claim in pairs if claim is not Claim.OURS
        ]

    async def _awaited(self, job: Job, positions: Sequence[int]) -> tuple[dict[bytes, Row], list[int]]:
        """The rows that other processes bring; and the positions that we have to ask for after all."""
        rows: dict[bytes, Row] = {}
        ours: list[int] = []
        left, pause_s = list(positions), _FIRST_PAUSE_S
        while left:
            _, usable = await self.look_up(job, [job.keys[at] for at in left], int(self._clock.wall() * 1000))
            rows.update({key: entry.row for key, entry in usable.items()})
            left = [at for at in left if job.keys[at] not in usable]
            # Without a look at entries: what is there and cannot be used is ours to replace.
            claims = await self._claims.take([job.flight(at) for at in left], [None] * len(left)) if left else []
            ours += [at for at, claim in zip(left, claims, strict=True) if claim is Claim.OURS]
            left = [at for at, claim in zip(left, claims, strict=True) if claim is not Claim.OURS]
            if left:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        return rows, await self._not_yet_there(job, ours, rows)

    async def _not_yet_there(self, job: Job, positions: list[int], rows: dict[bytes, Row]) -> list[int]:
        """*positions*, less those whose entry came between our last look and our claim."""
        if not positions:
            return []
        _, usable = await self.look_up(job, [job.keys[at] for at in positions], int(self._clock.wall() * 1000))
        rows.update({key: entry.row for key, entry in usable.items()})
        self._claims.release(job.flight(at) for at in positions if job.keys[at] in usable)
        return [at for at in positions if job.keys[at] not in usable]

    async def _asked(self, job: Job, positions: Sequence[int]) -> Landing:
        """Ask for what we have claimed. Our errors are part of the landing, as several may have to raise them."""
        if not positions:
            return Landing(rows={})
        landing = Landing()
        try:
            landing = await self.ask(job, positions, job.plan.narrowed(positions))
        except ProxyError as error:
            landing = Landing(error=error)
        finally:
            if landing.store is nothing:  # otherwise when the entries are there
                self._claims.release(job.flight(at) for at in positions)
        return landing

    async def ask(self, job: Job, positions: Sequence[int], content: bytes) -> Landing:
        """Ask with the body *content* for the items at *positions*. Raises ProxyError."""
        reply = await self._upstreams.send_read(job, content)
        try:
            body, rows, detail = await self._judged(job, reply, positions)
        except BaseException:
            reply.close()
            raise
        answer = relayed(reply, body)
        if rows is None:
            landing = Landing(answer, detail=detail)
            if not landing.is_shareable:
                self._flights.mark(job.flight(at) for at in positions)
            return landing
        entries = self._entries(job, positions, rows)
        store = self._storing(job, entries)
        return Landing(answer, {key: entry.row for key, entry in entries.items()}, detail, store=store)

    async def _judged(
        self, job: Job, reply: UpstreamReply, positions: Sequence[int]
    ) -> tuple[bytes | Stream, tuple[Row, ...] | None, str]:
        """The body, read or not, to pass on as it came; its rows if the answer is complete and right; or why not."""
        objection = job.plan.refusal(reply.status, reply.headers)
        if objection is not None and reply.status < 500:
            return reply, None, objection
        text, rest = await start_of(reply, _MAX_SHARED_BYTES if objection else self._max_answer_bytes)
        if objection is not None or rest is not None:
            return text if rest is None else rest, None, objection or Refusal.TOO_LARGE
        try:
            return text, job.plan.split(content_of(reply, text, self._max_answer_bytes), positions), ""
        except NotStorable as verdict:
            return text, None, verdict.refusal

    def _entries(self, job: Job, positions: Sequence[int], rows: Sequence[Row]) -> dict[bytes, Entry]:
        ttl_s = self._lifetime(job.plan.operation, job.plan.model)
        now_unix_ms = int(self._clock.wall() * 1000)
        generation = b"".join(job.tokens or ())
        return {
            job.keys[at]: Entry(row, now_unix_ms, jittered_ms(ttl_s, self._jitter, self._random_unit()), generation)
            for at, row in zip(positions, rows, strict=True)
        }

    def _storing(self, job: Job, entries: Mapping[bytes, Entry]) -> Callable[[], None]:
        """
        Keeps *entries* once, unless a write or a switch to bypass came meanwhile.

        To be called when the client has its answer; if nobody does, as nobody waits any more, it happens by itself.
        """
        if job.scopes and job.tokens is None:
            return nothing
        job.outcome.stored = True
        is_done = False
        flights = [job.flight(at) for at, key in enumerate(job.keys) if key in entries]

        def release() -> None:
            self._claims.release(flights)

        def store() -> None:
            nonlocal is_done
            if is_done:
                return
            is_done = True
            if self._modes.mode(job.request.upstream, job.plan.operation) is Mode.BYPASS:
                release()
            elif job.scopes:
                self._voidable.fill(entries, job.scopes, job.tokens, release)
            else:
                self._tiers.fill(entries, release)

        asyncio.get_running_loop().call_later(_STORE_AT_LATEST_S, store)
        return store


async def _wait(own: Trip[Landing] | None, others: set[Trip[Landing]]) -> dict[Trip[Landing] | None, Landing]:
    """What came of each; a client that leaves gets off all of them."""
    trips = [trip for trip in (own, *others) if trip is not None]
    for trip in trips:
        trip.board()
    try:
        return {trip: await trip.landed() for trip in trips}
    except asyncio.CancelledError:
        if own is not None:
            own.when_landed(_let_go)
        raise
    finally:
        for trip in trips:
            trip.leave()


def _let_go(landing: Landing) -> None:
    """Of an answer that only who set the trip off would have read."""
    if landing.answer is not None:
        landing.answer.close()


def _shared(failed: Landing) -> Landing:
    """The end of a trip that failed, for one more of those who waited for it."""
    if failed.error is not None:
        raise failed.error
    return dataclasses.replace(failed, answer=None if failed.answer is None else dataclasses.replace(failed.answer))
