"""
The life of one request. Read from the top: ``Flow.answer`` decides, ``_read`` looks up, ``_fetch`` asks for the rest.

::

    route known? --no--> forward untouched, streaming both ways
        | yes
    headers and mode allow a key? --no--> the same, with the reason on the outcome
        | yes
    body read, planned into items (one per text) --ambiguous, too large--> the same
        |
    memory tier, then one Redis round trip for all items together
        |                                        |
    all there: join, answer                  some missing: one smaller request upstream
                                                 |
                                     judge, split, join with what was there, answer, then store

Redis can be gone at any point: what it would have said is a miss. The upstream's errors go to the client as they are.
"""

import dataclasses
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from proxy.cache.tiers import Found, Tiers
from proxy.core.answer import Answer, Body, Stream
from proxy.core.coding import decoded, narrowed_codings
from proxy.core.entry import Entry, Row
from proxy.core.freshness import Directives, directives, jittered_ms
from proxy.core.judge import refusal
from proxy.core.key import Secret, common_digest, item_key
from proxy.core.modes import Mode
from proxy.core.outcome import CacheState, Outcome
from proxy.core.plan import Adapter, NotStorable, Pass, PassReason, Read, Refusal
from proxy.core.ports import SYSTEM_CLOCK, Clock, Lifetime, ModeSource, Routes, Transport, UpstreamReply
from proxy.core.request import Request
from proxy.errors import ClientError, ErrorCode, UpstreamError


class Flow:
    """Answers requests from the tiers and the upstreams; one instance per worker."""

    def __init__(
        self,
        *,
        routes: Routes,
        transports: Mapping[str, Transport],
        tiers: Tiers,
        modes: ModeSource,
        secret: Secret,
        lifetime: Lifetime,
        jitter: float,
        max_key_body_bytes: int,
        max_answer_bytes: int,
        request_id: Callable[[], str],
        clock: Clock = SYSTEM_CLOCK,
        random_unit: Callable[[], float] = random.random,
    ) -> None:
        self._routes = routes
        self._transports = transports
        self._tiers = tiers
        self._modes = modes
        self._secret = secret
        self._lifetime = lifetime
        self._jitter = jitter
        self._max_key_body_bytes = max_key_body_bytes
        self._max_answer_bytes = max_answer_bytes
        self._request_id = request_id
        self._clock = clock
        self._random_unit = random_unit

    async def answer(self, request: Request, body: Body, outcome: Outcome) -> Answer:
        """
        The answer to *request*; *outcome* tells afterwards how it came about.

        Raises:
            ClientError: the request cannot be served as it is.
            UpstreamError: no answer could be had.
        """
        adapter = self._routes(request.method, request.path)
        if adapter is None:
            return await self._forward(request, body, outcome)
        outcome.operation, outcome.state = adapter.operation, CacheState.BYPASS
        mode = self._modes.mode(request.upstream, adapter.operation)
        wishes = directives(request)
        reason = _reason_to_pass(adapter, request, mode, wishes)
        if reason is not None:
            return await self._forward(request, body, outcome, reason)
        content = await body.read(self._max_key_body_bytes)
        if content is None:
            return await self._forward(request, body, outcome, PassReason.BODY_TOO_LARGE)
        request = dataclasses.replace(request, body=content)
        plan = adapter.plan(request)
        if isinstance(plan, Pass):
            return await self._forward(request, body, outcome, plan.reason)
        return await self._read(_Job(request, plan, wishes, outcome, self._keys(request, plan)), mode)

    # --- straight through ---------------------------------------------------------------------------------------------

    async def _forward(
        self, request: Request, body: Body, outcome: Outcome, reason: PassReason | None = None
    ) -> Answer:
        """*request* untouched, its body streaming up and the answer's streaming down."""
        outcome.detail = reason or ""
        untouched = dataclasses.replace(request, body=None)
        try:
            reply = await self._send(untouched, outcome, body)
        except UpstreamError as error:
            # A kept connection may close just as it is used again. Only what asks for nothing twice is sent twice.
            if not (error.retryable and request.method in ("GET", "HEAD") and body.is_empty):
                raise
            reply = await self._send(untouched, outcome, body)
        return _relayed(reply, reply)

    async def _send(self, request: Request, outcome: Outcome, body: Body | None = None) -> UpstreamReply:
        """Ask the upstream; its status and its time go onto the outcome."""
        started_s = self._clock.monotonic()
        outcome.upstream_calls += 1
        try:
            reply = await self._transports[request.upstream].send(request, body)
        finally:
            outcome.upstream_ms += (self._clock.monotonic() - started_s) * 1000
        outcome.upstream_status = reply.status
        return reply

    # --- from the tiers -----------------------------------------------------------------------------------------------

    def _keys(self, request: Request, plan: Read) -> tuple[bytes, ...]:
        """One key per item: deployment secret, upstream, credential, operation, all fields, and the item itself."""
        origin = self._transports[request.upstream].origin.encode()
        common = common_digest(self._secret, (origin, plan.operation.encode(), *plan.identity))
        return tuple(item_key(self._secret, common, item) for item in plan.items)

    async def _read(self, job: "_Job", mode: Mode) -> Answer:
        """Look all items up at once; answer from what is there, or fetch what is missing."""
        outcome = job.outcome
        outcome.items = len(job.keys)
        found = Found() if job.wishes.no_cache else await self._tiers.read(job.keys)
        outcome.redis_ms, outcome.redis_ok = found.redis_s * 1000, found.redis_ok
        now_unix_ms = self._now_unix_ms()
        usable = {key: entry for key, entry in found.entries.items() if job.wishes.accept(entry, now_unix_ms)}
        if mode is Mode.SHADOW:
            return await self._shadowed(job, usable)
        _count_hits(outcome, job.keys, usable, found.from_memory, now_unix_ms)
        missing = [at for key, at in job.first_positions.items() if key not in usable]
        if not missing:
            outcome.state = CacheState.HIT
            return self._joined(job, {key: entry.row for key, entry in usable.items()}, usable)
        if job.wishes.only_if_cached:
            raise ClientError(ErrorCode.NOT_IN_CACHE, "not in the cache, and the request forbids to ask for it", 504)
        outcome.state = CacheState.PARTIAL if outcome.hits else CacheState.MISS
        return await self._fetch(job, usable, missing)

    def _joined(self, job: "_Job", rows: Mapping[bytes, Row], from_cache: Mapping[bytes, Entry]) -> Answer:
        """An answer of ours in the vendor's form, out of rows old and new."""
        outcome = job.outcome
        outcome.request_id = self._request_id()
        outcome.origins = tuple(dict.fromkeys(entry.row.origin for entry in from_cache.values() if entry.row.origin))
        outcome.tokens_saved = sum(
            dict(from_cache[key].row.usage).get("total_tokens", 0) for key in job.keys if key in from_cache
        )
        text = job.plan.join([rows[key] for key in job.keys], outcome.request_id)
        headers = ((b"Content-Type", b"application/json"), (b"X-Request-Id", outcome.request_id.encode("ascii")))
        return Answer(200, "OK", headers, text)

    # --- from the upstream --------------------------------------------------------------------------------------------

    async def _fetch(self, job: "_Job", usable: Mapping[bytes, Entry], missing: Sequence[int]) -> Answer:
        """One request for the items at positions *missing*; its answer as it is when those were all, else joined."""
        outcome = job.outcome
        outcome.forwarded = len(missing)
        reply = await self._send_read(job, job.plan.narrowed(missing))
        text, rows = await self._judged(job, reply, missing)
        if rows is None:
            if len(missing) == len(job.keys) or outcome.detail in (Refusal.STATUS, Refusal.VENDOR_ERROR):
                return _relayed(reply, text)
            # What the cache holds cannot be completed by an answer that is not right: ask for the whole.
            reply.close()
            whole = await self._send_read(job, job.request.body or b"")
            return _relayed(whole, whole)
        fresh = self._entries(job, missing, rows)
        outcome.stored = True
        if len(missing) == len(job.keys):
            answer = _relayed(reply, text)
        else:
            kept = {key: entry.row for key, entry in usable.items()}
            answer = self._joined(job, kept | {key: entry.row for key, entry in fresh.items()}, usable)
        answer.after = lambda: self._store(job, fresh)
        return answer

    async def _send_read(self, job: "_Job", content: bytes) -> UpstreamReply:
        """Send a request that changes nothing upstream, once more if a kept connection closed under it."""
        request = dataclasses.replace(job.request, headers=narrowed_codings(job.request), body=content)
        try:
            return await self._send(request, job.outcome)
        except UpstreamError as error:
            if not error.retryable:
                raise
            return await self._send(request, job.outcome)

    async def _judged(
        self, job: "_Job", reply: UpstreamReply, positions: Sequence[int]
    ) -> tuple[bytes | Stream, tuple[Row, ...] | None]:
        """The body, read or not, to pass on as it came; and its rows, if the answer is complete and right."""
        objection = refusal(reply.status, reply.headers)
        if objection is not None:
            job.outcome.detail = objection
            return reply, None
        text, is_whole = await reply.read(self._max_answer_bytes)
        if not is_whole:
            job.outcome.detail = Refusal.TOO_LARGE
            return _Resumed(text, reply), None
        try:
            content = decoded(text, _values(reply, b"content-encoding"), self._max_answer_bytes)
            return text, job.plan.split(content, positions)
        except NotStorable as verdict:
            job.outcome.detail = verdict.refusal
            return text, None

    def _entries(self, job: "_Job", positions: Sequence[int], rows: Sequence[Row]) -> dict[bytes, Entry]:
        ttl_s = self._lifetime(job.plan.operation, job.plan.model)
        now_unix_ms = self._now_unix_ms()
        return {
            job.keys[at]: Entry(row, now_unix_ms, jittered_ms(ttl_s, self._jitter, self._random_unit()))
            for at, row in zip(positions, rows, strict=True)
        }

    def _store(self, job: "_Job", entries: Mapping[bytes, Entry]) -> None:
        """Keep *entries*, unless somebody switched to bypass while they were on their way."""
        if self._modes.mode(job.request.upstream, job.plan.operation) is not Mode.BYPASS:
            self._tiers.fill(entries)

    # --- shadow -------------------------------------------------------------------------------------------------------

    async def _shadowed(self, job: "_Job", usable: Mapping[bytes, Entry]) -> Answer:
        """Forward the request as it is, count what the cache would have said, keep what came."""
        outcome = job.outcome
        outcome.detail = PassReason.SHADOW
        outcome.forwarded = len(job.first_positions)
        outcome.shadow_hits = sum(key in usable for key in job.keys)
        positions = range(len(job.keys))
        reply = await self._send_read(job, job.request.body or b"")
        text, rows = await self._judged(job, reply, positions)
        answer = _relayed(reply, text)
        if rows is not None:
            fresh = self._entries(job, positions, rows)
            outcome.detail = PassReason.SHADOW
            outcome.shadow_mismatches = sum(
                usable[key].row.vector != entry.row.vector for key, entry in fresh.items() if key in usable
            )
            answer.after = lambda: self._store(job, fresh)
        return answer

    def _now_unix_ms(self) -> int:
        return int(self._clock.wall() * 1000)


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """A planned request on its way, with its keys in the client's order."""

    request: Request
    plan: Read
    wishes: Directives
    outcome: Outcome
    keys: tuple[bytes, ...]

    @property
    def first_positions(self) -> dict[bytes, int]:
        """Each distinct key with the first position that has it: a text that stands twice is asked for once."""
        positions: dict[bytes, int] = {}
        for position, key in enumerate(self.keys):
            positions.setdefault(key, position)
        return positions


class _Resumed:
    """A body of which some was read already; implements ``core.answer.Stream``."""

    def __init__(self, start: bytes, reply: UpstreamReply) -> None:
        self._start = start
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """What was read, then what still comes."""
        yield self._start
        async for piece in self._reply:
            yield piece

    def close(self) -> None:
        """Let go of the upstream."""
        self._reply.close()


def _relayed(reply: UpstreamReply, body: bytes | Stream) -> Answer:
    """The upstream's answer as it is; *body* is its body, read already or not."""
    length = reply.length if not isinstance(body, bytes) else len(body)
    return Answer(reply.status, reply.reason, reply.headers, body, length, grpc_status=reply.grpc_status)


def _reason_to_pass(adapter: Adapter, request: Request, mode: Mode, wishes: Directives) -> PassReason | None:
    """Why a request of ours is not looked up, as far as it can be told before its body is read."""
    if mode is Mode.BYPASS:
        return PassReason.BYPASS
    if wishes.no_store:
        return PassReason.NO_STORE
    return adapter.precheck(request)


def _count_hits(
    outcome: Outcome, keys: Sequence[bytes], usable: Mapping[bytes, Entry], from_memory: set[bytes], now_unix_ms: int
) -> None:
    outcome.hits_memory = sum(key in from_memory for key in keys if key in usable)
    outcome.hits_redis = sum(key in usable for key in keys) - outcome.hits_memory
    if usable:
        outcome.age_s = max(entry.age_ms(now_unix_ms) for entry in usable.values()) // 1000
        outcome.ttl_s = min(entry.remaining_ms(now_unix_ms) for entry in usable.values()) // 1000


def _values(reply: UpstreamReply, name: bytes) -> tuple[bytes, ...]:
    return tuple(value for line, value in reply.headers if line.lower() == name)
