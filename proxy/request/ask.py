"""
One request to an upstream for some items: sent, judged, split into rows, and what is right on its way into the tiers.

``Asker.ask`` makes a ``Landing`` of a ``Job``. Who asks, and who waits for whom, is ``fetch``'s business.
"""

import asyncio
import dataclasses
import functools
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Self, TypeVar

from proxy.cache.invalidation.tier import VoidableTier
from proxy.cache.lock_times import LatencyGroup
from proxy.cache.redis.tier import Tokens
from proxy.cache.tiers import Tiers
from proxy.core.answer import Answer, Body, Stream
from proxy.core.coding import narrowed_codings
from proxy.core.entry import Entry, Row
from proxy.core.errors import ErrorCode, ProxyError, UpstreamError
from proxy.core.freshness import Directives, jittered_ms
from proxy.core.held_bytes import HeldBytes, Hold
from proxy.core.judge import refuses
from proxy.core.modes import Mode
from proxy.core.outcome import CacheState, Outcome
from proxy.core.plan import NotStorable, Read, Refusal
from proxy.core.ports import Clock, Lifetime, ModeSource, TransportOf, UpstreamReply
from proxy.core.relay import content_of, relayed, start_of
from proxy.core.request import HeaderLines, Request
from proxy.core.share import ADDRESS, SHARE, Share
from proxy.core.trouble import CallEnded, ignored
from proxy.request.credentials import Callers
from proxy.request.watched import Watched
from proxy.runtime.offload import LARGE_BYTES, Heavy

Result = TypeVar("Result")

# What of a failure is read to hand it to several; a longer one is its first reader's alone.
_MAX_SHARED_BYTES = 1 << 20
_MAX_REFUSAL_BYTES = 1 << 16
_BAD_REQUEST = 400
_STORE_AT_LATEST_S = 0.05
_MANY_CODED_BYTES = LARGE_BYTES // 4
"""Numbers in a coding grow up to four times; nobody knows what is in it before."""

_ID_LINES = frozenset({b"x-request-id", b"request-id"})


@dataclasses.dataclass(slots=True)
class Job:
    """A planned read on its way, with its keys in the client's order."""

    request: Request
    plan: Read
    wishes: Directives
    outcome: Outcome
    keys: tuple[bytes, ...]
    owner: bytes
    """Whose answer it will be, as a keyed hash."""
    scopes: tuple[bytes, ...]
    mark: bytes | None = None
    """The upstream has refused its owner, as far as was known before it was asked; see ``cache.credential_status``."""
    tokens: Tokens | None = None
    is_held: bool = False
    unusable: frozenset[bytes] = frozenset()
    """Keys under which there is something that does not serve this request."""
    may_batch: bool = False
    """Whether what is missing may be asked for together with what others miss."""
    keeps: bool = True
    """Whether what comes for it is kept; not where many ask for the same side by side."""

    @property
    def first_positions(self) -> dict[bytes, int]:
        """Each distinct key with the first position that has it: a text that stands twice is asked for once."""
        positions: dict[bytes, int] = {}
        for position, key in enumerate(self.keys):
            positions.setdefault(key, position)
        return positions

    @property
    def can_share(self) -> bool:
        """Whether its answer may serve others too; not if nobody could tell whether it is older than a write."""
        return not self.scopes or self.tokens is not None

    @property
    def may_wait(self) -> bool:
        """Whether an answer that is on its way already will do."""
        return self.can_share and not self.wishes.no_cache and self.mark is None

    def is_answered_by(self, landing: "Landing") -> bool:
        """
        Whether the upstream's answer in *landing* was given to this very request: item for item, and nothing beside.

        Whatever it says, of any position, is then said of this client's items.
        """
        return self.plan.plain is None and landing.asked == self.keys

    @property
    def latency_group(self) -> LatencyGroup:
        """Whose answers take about as long."""
        return self.request.upstream, self.plan.operation, self.request.is_grpc

    def flight(self, position: int) -> bytes:
        """Under what others may wait for the item: its key, and the tokens that tell of writes."""
        return self.keys[position] + b"".join(self.tokens or ())


class Store:
    """
    What came, on its way into the tiers: once, when it is called.

    *put* does it, and calls what it is given when that is over.
    """

    def __init__(self, put: Callable[[Callable[[], None]], None]) -> None:
        self._put = put
        self._is_begun = False
        self._over = asyncio.Event()

    def __call__(self) -> None:
        """Begin, unless somebody has; to be called when the client has its answer."""
        if self._is_begun:
            return
        self._is_begun = True
        try:
            self._put(self._over.set)
        except BaseException:
            self._over.set()
            raise

    async def over(self) -> None:
        """Wait until it is over; it begins by itself soon, as whoever was to call it may have gone."""
        timer = asyncio.get_running_loop().call_later(_STORE_AT_LATEST_S, self)
        try:
            await self._over.wait()
        finally:
            timer.cancel()


def begin(stores: Iterable[Store]) -> None:
    """Begin all of them that nobody has begun."""
    for store in stores:
        store()


@dataclasses.dataclass(frozen=True, slots=True)
class Landing:
    """
    What came of a request for some items, or of several.

    ``rows`` is ``None`` when the answer was not complete and right, for the reason ``detail``, or when there was none,
    for ``error``. ``answer`` is the upstream's own, to what was asked at ``positions``; ``None`` when the rows came in
    several. ``asked`` has the keys of what stood in that request, in its order. ``stores`` keep what came.
    """

    positions: Sequence[int] = ()
    answer: Answer | None = None
    rows: Mapping[bytes, Row] | None = None
    detail: str = ""
    error: ProxyError | None = None
    stores: tuple[Store, ...] = ()
    asked: tuple[bytes, ...] = ()

    @property
    def is_shareable(self) -> bool:
        """Whether a failure may be handed to everybody who waited: it says nothing of one request in particular."""
        return self.error is not None or (
            self.answer is not None and self.answer.status >= 500 and isinstance(self.answer.body, bytes)
        )

    @property
    def is_nothing(self) -> bool:
        """Whether the upstream was not even asked: everybody is to do that on its own."""
        return self.rows is None and self.answer is None and self.error is None

    def store(self) -> None:
        """Keep what came; calling it again does nothing."""
        begin(self.stores)

    async def kept(self) -> None:
        """Wait until what came is where others look for it."""
        for store in self.stores:
            await store.over()

    async def read_whole(self) -> Self:
        """The same with its answer's body at hand, or without the answer; the upstream's connection is free then."""
        answer = self.answer
        if answer is None or isinstance(answer.body, bytes):
            return self
        body = bytearray()
        try:
            async for piece in answer.body:
                body += piece
                if len(body) > _MAX_REFUSAL_BYTES:
                    return dataclasses.replace(self, answer=None)
        except ProxyError:
            return dataclasses.replace(self, answer=None)
        finally:
            answer.close()
        return dataclasses.replace(self, answer=dataclasses.replace(answer, body=bytes(body)))

    def close(self) -> None:
        """Let go of an answer that nobody will read."""
        if self.answer is not None:
            self.answer.close()


def _id_of(lines: HeaderLines) -> str:
    """The vendor's id of a call, by the lines of its answer: DashScope's header, DashVector's metadata."""
    for name, value in lines:
        if name.lower() in _ID_LINES:
            return value.decode("ascii", "replace")
    return ""


class Upstreams:
    """Sends requests on, and notes whom an upstream refuses; a read has *deadline_s* for all of its answer."""

    def __init__(
        self,
        transport_of: TransportOf,
        callers: Callers,
        clock: Clock,
        deadline_s: float,
        call_ended: CallEnded = ignored,
    ) -> None:
        self.transport_of = transport_of
        self._call_ended = call_ended
        self._callers = callers
        self._clock = clock
        self._deadline_s = deadline_s

    async def send(
        self, request: Request, outcome: Outcome, body: Body | None = None, owner: bytes | None = None
    ) -> UpstreamReply:
        """Ask the upstream, for *owner* if that is known already; status and time go onto the outcome."""
        started_s = self._clock.monotonic()
        outcome.upstream_calls += 1
        outcome.asked = (request.method, request.target)
        SHARE.set(Share(ADDRESS.get(), self._callers.known(request, owner)))
        try:
            reply = await self.transport_of(request).send(request, body)
        except UpstreamError as error:
            if error.code is ErrorCode.UPSTREAM_BUSY:
                outcome.upstream_calls -= 1  # refused by us: it was not called
            if error.trouble is not None:
                self._call_ended(request.upstream, error.trouble)
            raise
        finally:
            outcome.upstream_ms += (self._clock.monotonic() - started_s) * 1000
        outcome.upstream_status = reply.status if reply.grpc_status is None else reply.grpc_status.as_http
        outcome.vendor_request_id = _id_of(reply.headers)
        watched = Watched(reply, outcome.upstream_status, functools.partial(self._call_ended, request.upstream))
        code = reply.grpc_status.code if reply.grpc_status is not None else None
        if outcome.state is not CacheState.WRITE and refuses(reply.status, code):  # of a write, its verdict tells
            try:
                await self._callers.refused(request)
            except asyncio.CancelledError:
                watched.close()
                raise
        return watched

    async def in_time(self, reading: Awaitable[Result]) -> Result:
        """
        The result of *reading*, whose time is bounded: an upstream may say nothing, or an answer never end.

        Raises:
            UpstreamError: it was too slow; and what *reading* raises.
        """
        try:
            async with asyncio.timeout(self._deadline_s):
                return await reading
        except TimeoutError as error:
            raise UpstreamError(ErrorCode.UPSTREAM_TIMEOUT, "the upstream did not answer in time", 504) from error

    async def send_read(self, job: Job, content: bytes) -> UpstreamReply:
        """Send a request that changes nothing upstream, once more if a kept connection closed under it."""
        request = dataclasses.replace(job.request, headers=narrowed_codings(job.request), body=content or None)
        try:
            return await self.send(request, job.outcome, owner=job.owner)
        except UpstreamError as error:
            if not error.retryable:
                raise
            return await self.send(dataclasses.replace(request, is_again=True), job.outcome, owner=job.owner)


class Asker:
    """Asks upstreams for items, and keeps what is right; *keeps_errors*: somebody wants to read what is wrong, too."""

    def __init__(
        self,
        *,
        upstreams: Upstreams,
        callers: Callers,
        tiers: Tiers,
        voidable: VoidableTier,
        modes: ModeSource,
        lifetime: Lifetime,
        jitter: float,
        max_answer_bytes: int,
        keeps_errors: bool,
        clock: Clock,
        random_unit: Callable[[], float],
        heavy: Heavy | None = None,
        held: HeldBytes | None = None,
    ) -> None:
        self._upstreams = upstreams
        self._callers = callers
        self._tiers = tiers
        self._voidable = voidable
        self._modes = modes
        self._lifetime = lifetime
        self._jitter = jitter
        self._max_answer_bytes = max_answer_bytes
        self._keeps_errors = keeps_errors
        self._heavy = heavy or Heavy()
        self._held = held or HeldBytes(sys.maxsize)
        self._clock = clock
        self._random_unit = random_unit

    async def ask(self, job: Job, positions: Sequence[int], content: bytes) -> Landing:
        """
        Ask with the body *content* for the items at *positions*.

        Raises:
            ProxyError: no answer could be had.
        """
        hold = self._held.hold()
        try:
            reply, body, rows, detail = await self._upstreams.in_time(self._answered(job, positions, content, hold))
        finally:
            hold.end()
        answer, asked = relayed(reply, body), tuple(job.keys[at] for at in positions)
        trial = job.plan.trial
        if rows is None:
            if trial is not None and reply.status == _BAD_REQUEST:
                trial.refused(len(positions))
            return Landing(positions, answer, detail=detail, asked=asked)
        if trial is not None:
            trial.taken(len(positions))
        self._callers.accepted(job.owner, job.mark)
        entries = self._entries(job, positions, rows)
        stores = (self._store(job, entries),) if job.can_share and job.keeps else ()
        job.outcome.stored = job.outcome.stored or bool(stores)
        came = {key: entry.row for key, entry in entries.items()}
        return Landing(positions, answer, came, stores=stores, asked=asked)

    async def _answered(
        self, job: Job, positions: Sequence[int], content: bytes, hold: Hold
    ) -> tuple[UpstreamReply, bytes | Stream, tuple[Row, ...] | None, str]:
        """The reply, and what it was judged to be."""
        reply = await self._upstreams.send_read(job, content)
        try:
            return reply, *await self._judged(job, reply, positions, hold)
        except BaseException:
            reply.close()
            raise

    async def _judged(
        self, job: Job, reply: UpstreamReply, positions: Sequence[int], hold: Hold
    ) -> tuple[bytes | Stream, tuple[Row, ...] | None, str]:
        """The body, read or not, to pass on as it came; its rows if the answer is complete and right; or why not."""
        objection = job.plan.refusal(reply.status, reply.headers)
        if objection is not None and reply.status < 500 and not (self._keeps_errors and reply.status == _BAD_REQUEST):
            return reply, None, objection
        text, rest = await start_of(reply, _MAX_SHARED_BYTES if objection else self._max_answer_bytes, hold)
        if objection is not None or rest is not None:
            return text if rest is None else rest, None, objection or Refusal.TOO_LARGE
        try:
            return text, await self._rows(job, reply, text, positions), ""
        except NotStorable as verdict:
            if verdict.refusal is Refusal.CREDENTIAL:
                await self._callers.refused(job.request)
            return text, None, verdict.refusal

    async def _rows(self, job: Job, reply: UpstreamReply, text: bytes, positions: Sequence[int]) -> tuple[Row, ...]:
        """The rows in *text*, decoded and split beside the loop if that takes long. Raises NotStorable."""
        limit = self._max_answer_bytes
        if len(text) >= _MANY_CODED_BYTES and any(name.lower() == b"content-encoding" for name, _ in reply.headers):
            return await self._heavy(LARGE_BYTES, lambda: job.plan.split(content_of(reply, text, limit), positions))
        content = content_of(reply, text, limit)
        return await self._heavy(job.plan.answer_weight(content), job.plan.split, content, positions)

    def _entries(self, job: Job, positions: Sequence[int], rows: Sequence[Row]) -> dict[bytes, Entry]:
        ttl_s = self._lifetime(job.plan.operation, job.plan.model)
        now_unix_ms = int(self._clock.wall() * 1000)
        generation = b"".join(job.tokens or ())
        return {
            job.keys[at]: Entry(row, now_unix_ms, jittered_ms(ttl_s, self._jitter, self._random_unit()), generation)
            for at, row in zip(positions, rows, strict=True)
        }

    def _store(self, job: Job, entries: Mapping[bytes, Entry]) -> Store:
        """Keeps *entries*, unless a write or a switch to bypass came meanwhile."""

        def put(done: Callable[[], None]) -> None:
            if self._modes.mode(job.request.upstream, job.plan.operation) is Mode.BYPASS:
                done()
            elif job.scopes:
                self._voidable.fill(entries, job.scopes, job.tokens, done)
            else:
                self._tiers.fill(entries, done)

        return Store(put)
