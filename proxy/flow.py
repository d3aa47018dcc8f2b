"""
The life of one request.

Read from the top: ``Flow.answer`` decides, ``_read`` looks up, ``_fetch`` asks for the rest, ``_write`` forwards what
changes something.

::

    route known? --no--> forward untouched, streaming both ways
        | yes
    could it change anything? --yes--> make stale what hangs on it, forward once, make it stale again, answer
        | no
    headers and mode allow a key? --no--> forward untouched, with the reason on the outcome
        | yes
    body read, planned into items (one per text, one per query) --ambiguous, too large--> the same
        |
    memory tier, then one Redis round trip for all items together
        |                                        |
    all there: join, answer                  some missing: one smaller request upstream
                                                 |
                                     judge, split, join with what was there, answer, then store

What a write can make stale is read and kept under tokens (``cache.generations``) and never in memory. Redis can be gone
at any point: what it would have said is a miss. The upstream's errors go to the client as they are.
"""

import asyncio
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence

from proxy.cache.leases import Leases
from proxy.cache.redis_tier import Tokens
from proxy.cache.standings import Standings
from proxy.cache.tiers import Found, Tiers
from proxy.cache.voidable import NotTold, VoidableTier
from proxy.core.answer import Answer, Body, Stream
from proxy.core.coding import decoded, narrowed_codings
from proxy.core.entry import Entry, Row
from proxy.core.freshness import Directives, directives, jittered_ms
from proxy.core.judge import refuses
from proxy.core.key import Secret, common_digest, item_key, prefixed
from proxy.core.modes import Mode
from proxy.core.outcome import CacheState, Outcome
from proxy.core.plan import Adapter, NotStorable, Pass, PassReason, Read, Refusal, Verdict, Write
from proxy.core.plan import Scope as ScopeName
from proxy.core.ports import SYSTEM_CLOCK, Clock, Lifetime, ModeSource, PurgeSource, Routes, TransportOf, UpstreamReply
from proxy.core.relay import relayed, start_of
from proxy.core.request import Request
from proxy.core.tasks import Tasks
from proxy.errors import ClientError, ErrorCode, ProxyError, UpstreamError

# The client gets what the upstream says of it; asking once more would change nothing.
_ERRORS = (Refusal.STATUS, Refusal.VENDOR_ERROR, Refusal.CREDENTIAL)


class Flow:
    """
    Answers requests from the tiers and the upstreams; one instance per worker.

    *endpoints* names what each upstream is, whatever protocol leads to it: what a write makes stale hangs on that name.
    """

    def __init__(
        self,
        *,
        routes: Routes,
        transport_of: TransportOf,
        endpoints: Mapping[str, str],
        tiers: Tiers,
        voidable: VoidableTier,
        leases: Leases,
        standings: Standings,
        tasks: Tasks,
        modes: ModeSource,
        purges: PurgeSource,
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
        self._transport_of = transport_of
        self._endpoints = {
            upstream: common_digest(secret, (b"endpoint", name.encode())) for upstream, name in endpoints.items()
        }
        self._tiers = tiers
        self._voidable = voidable
        self._leases = leases
        self._standings = standings
        self._tasks = tasks
        self._modes = modes
        self._purges = purges
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
        adapter = self._routes(request.upstream, request.method, request.path)
        if adapter is None:
            return await self._forward(request, body, outcome)
        outcome.operation = adapter.operation_of(request.method, request.path)
        write = adapter.write_of(request.method, request.path, request.headers)
        if write is not None:
            return await self._write(request, body, outcome, write)
        outcome.state = CacheState.BYPASS
        mode = self._modes.mode(request.upstream, outcome.operation)
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
        if mode is Mode.SHADOW:
            return await self._shadow(self._job(request, plan.plain or plan, wishes, outcome))
        return await self._read(self._job(request, plan, wishes, outcome))

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
            reply = await self._send(dataclasses.replace(untouched, is_again=True), outcome, body)
        return relayed(reply, reply)

    async def _send(self, request: Request, outcome: Outcome, body: Body | None = None) -> UpstreamReply:
        """Ask the upstream; its status and its time go onto the outcome."""
        started_s = self._clock.monotonic()
        outcome.upstream_calls += 1
        try:
            reply = await self._transport_of(request).send(request, body)
        finally:
            outcome.upstream_ms += (self._clock.monotonic() - started_s) * 1000
        outcome.upstream_status = reply.status
        code = reply.grpc_status.code if reply.grpc_status is not None else None
        if outcome.state is not CacheState.WRITE and refuses(reply.status, code):  # of a write, its verdict tells
            try:
                await self._refused(request)
            except asyncio.CancelledError:
                reply.close()
                raise
        return reply

    async def _refused(self, request: Request) -> None:
        """The upstream does not accept who sent *request*: no hits, and no word before a write, until it does."""
        owner = self._owner(request, self._routes.credential(request))
        self._leases.end(owner)
        await self._standings.refused(owner)

    # --- what changes something ---------------------------------------------------------------------------------------

    async def _write(self, request: Request, body: Body, outcome: Outcome, write: Write) -> Answer:
        """Forward *write* once, as one unit with what it makes stale: a client that leaves cuts neither."""
        outcome.state = CacheState.WRITE
        unit = self._tasks.start(self._written(request, body, outcome, write), is_awaited=True)
        try:
            ended: Answer | ProxyError = await asyncio.shield(unit)
        except asyncio.CancelledError:
            unit.add_done_callback(_let_go)
            raise
        if isinstance(ended, ProxyError):
            raise ended
        return ended

    async def _written(self, request: Request, body: Body, outcome: Outcome, write: Write) -> Answer | ProxyError:
        """The unit. Our errors are returned, as an exception of a task that nobody awaits any more would be lost."""
        scopes, owner = self._scopes(request, write.scopes), self._owner(request, write.credential)

        async def forward() -> tuple[Answer, Verdict]:
            reply = await self._send(dataclasses.replace(request, body=None), outcome, body)
            text, rest = await start_of(reply, self._max_answer_bytes)
            return relayed(reply, text if rest is None else rest), self._verdict(write, reply, text)

        try:
            answer, verdict = await self._voidable.writing(
                scopes,
                forward,
                # A stranger's write must not void what others use before the upstream has said what it thinks of it.
                announce=self._leases.has(owner),
                counts=lambda ended: ended[1] not in (Verdict.REFUSED, Verdict.NO_ROUTE),
            )
        except NotTold:
            return UpstreamError(ErrorCode.NOT_INVALIDATED, "cached answers cannot be made stale just now", 503)
        except ProxyError as error:
            return error
        finally:
            outcome.redis_ok = not self._voidable.is_pending(scopes)
        if verdict is Verdict.DONE:
            self._leases.note(owner)
        elif verdict is Verdict.REFUSED:
            await self._refused(request)
        return answer

    def _verdict(self, write: Write, reply: UpstreamReply, text: bytes) -> Verdict:
        grpc_code = reply.grpc_status.code if reply.grpc_status is not None else None
        try:
            content = decoded(text, _values(reply, b"content-encoding"), self._max_answer_bytes)
        except NotStorable:
            content = b""
        return write.verdict(reply.status, grpc_code, content)

    # --- from the tiers -----------------------------------------------------------------------------------------------

    def _job(self, request: Request, plan: Read, wishes: Directives, outcome: Outcome) -> "_Job":
        """One key per item: deployment secret, purges, upstream, credential, all fields, and the item itself."""
        origin = self._transport_of(request).origin.encode()
        purges = self._purges.tokens_for(request.upstream, plan.operation, plan.model, plan.scopes)
        common = common_digest(self._secret, (*purges, origin, plan.operation.encode(), *plan.identity))
        keys = tuple(item_key(self._secret, common, item) for item in plan.items)
        outcome.items = len(keys)
        owner = self._owner(request, plan.credential)
        return _Job(request, plan, wishes, outcome, keys, owner, self._scopes(request, plan.scopes))

    def _scopes(self, request: Request, names: Sequence[ScopeName]) -> tuple[bytes, ...]:
        """Scopes as Redis may see them: shared by protocols, credentials and replicas, and telling no name."""
        endpoint = self._endpoints[request.upstream]
        return tuple(item_key(self._secret, endpoint, prefixed(part.encode() for part in name)) for name in names)

    def _owner(self, request: Request, credential: bytes) -> bytes:
        return item_key(self._secret, self._endpoints[request.upstream], prefixed((b"credential", credential)))

    async def _read(self, job: "_Job") -> Answer:
        """Look all items up at once; answer from what is there, or fetch what is missing."""
        outcome = job.outcome
        now_unix_ms = self._now_unix_ms()
        found, usable = await self._look_up(job, now_unix_ms)
        _count_hits(outcome, job.keys, usable, found.from_memory, now_unix_ms)
        missing = [at for key, at in job.first_positions.items() if key not in usable]
        if not missing:
            outcome.state = CacheState.HIT
            return self._joined(job, {key: entry.row for key, entry in usable.items()}, usable)
        if job.wishes.only_if_cached:
            raise ClientError(ErrorCode.NOT_IN_CACHE, "not in the cache, and the request forbids to ask for it", 504)
        outcome.state = CacheState.PARTIAL if outcome.hits else CacheState.MISS
        return await self._fetch(job, usable, missing)

    async def _look_up(self, job: "_Job", now_unix_ms: int) -> tuple[Found, dict[bytes, Entry]]:
        """What the tiers hold, and what of it may be served."""
        if job.scopes:
            found = await self._voidable.read(job.keys, job.scopes, job.owner)
            job.tokens, job.is_held = found.tokens, found.is_held
        else:
            found = await self._tiers.read(job.keys, job.owner)
        job.mark = self._standings.mark(job.owner, found.standing, has_entries=bool(found.entries))
        job.outcome.redis_ms, job.outcome.redis_ok = found.redis_s * 1000, found.redis_ok
        if job.mark is not None:  # the upstream has refused who asks
            return found, {}
        return found, {key: entry for key, entry in found.entries.items() if job.wishes.accept(entry, now_unix_ms)}

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
        """One request for the items at positions *missing*; its answer goes on as it is if that is what was asked."""
        outcome, is_plain = job.outcome, job.plan.plain is None
        outcome.forwarded = len(missing)
        is_whole = is_plain and len(missing) == len(job.keys)
        reply = await self._send_read(job, job.plan.narrowed(missing))
        text, rows = await self._judged(job, reply, missing)
        if rows is None:
            outcome.forget_hits()  # the answer will be the upstream's alone
            if is_whole or (is_plain and outcome.detail in _ERRORS):
                return relayed(reply, text)
            # What the client wants cannot be made of an answer that is not right: ask just as it did.
            reply.close()
            outcome.forwarded = len(job.keys)
            whole = await self._send_read(job, job.request.body or b"")
            return relayed(whole, whole)
        fresh = self._entries(job, missing, rows)
        if is_whole:
            answer = relayed(reply, text)
        else:
            kept = {key: entry.row for key, entry in usable.items()}
            answer = self._joined(job, kept | {key: entry.row for key, entry in fresh.items()}, usable)
        return self._storing(job, fresh, answer)

    async def _send_read(self, job: "_Job", content: bytes) -> UpstreamReply:
        """Send a request that changes nothing upstream, once more if a kept connection closed under it."""
        request = dataclasses.replace(job.request, headers=narrowed_codings(job.request), body=content or None)
        try:
            return await self._send(request, job.outcome)
        except UpstreamError as error:
            if not error.retryable:
                raise
            return await self._send(dataclasses.replace(request, is_again=True), job.outcome)

    async def _judged(
        self, job: "_Job", reply: UpstreamReply, positions: Sequence[int]
    ) -> tuple[bytes | Stream, tuple[Row, ...] | None]:
        """The body, read or not, to pass on as it came; and its rows, if the answer is complete and right."""
        objection = job.plan.refusal(reply.status, reply.headers)
        if objection is not None:
            job.outcome.detail = objection
            return reply, None
        text, rest = await start_of(reply, self._max_answer_bytes)
        if rest is not None:
            job.outcome.detail = Refusal.TOO_LARGE
            return rest, None
        try:
            content = decoded(text, _values(reply, b"content-encoding"), self._max_answer_bytes)
            return text, job.plan.split(content, positions)
        except NotStorable as verdict:
            job.outcome.detail = verdict.refusal
            if verdict.refusal is Refusal.CREDENTIAL:
                await self._refused(job.request)
            return text, None

    def _entries(self, job: "_Job", positions: Sequence[int], rows: Sequence[Row]) -> dict[bytes, Entry]:
        """*rows* to be kept; they are proof that the upstream has accepted the credential."""
        self._leases.note(job.owner)
        self._standings.accepted(job.owner, job.mark)
        ttl_s = self._lifetime(job.plan.operation, job.plan.model)
        now_unix_ms = self._now_unix_ms()
        generation = b"".join(job.tokens or ())
        return {
            job.keys[at]: Entry(row, now_unix_ms, jittered_ms(ttl_s, self._jitter, self._random_unit()), generation)
            for at, row in zip(positions, rows, strict=True)
        }

    def _storing(self, job: "_Job", entries: Mapping[bytes, Entry], answer: Answer) -> Answer:
        """*answer*, after which *entries* are kept, unless a write or a switch to bypass came meanwhile."""
        if job.is_held:
            job.outcome.detail = job.outcome.detail or Refusal.SETTLING
        if job.scopes and job.tokens is None:
            return answer
        job.outcome.stored = True

        def store() -> None:
            if self._modes.mode(job.request.upstream, job.plan.operation) is Mode.BYPASS:
                return
            if job.scopes:
                self._voidable.fill(entries, job.scopes, job.tokens)
            else:
                self._tiers.fill(entries)

        answer.after = store
        return answer

    # --- shadow -------------------------------------------------------------------------------------------------------

    async def _shadow(self, job: "_Job") -> Answer:
        """Forward the request as it is, count what the cache would have said, keep what came."""
        outcome = job.outcome
        _, usable = await self._look_up(job, self._now_unix_ms())
        outcome.forwarded = len(job.first_positions)
        outcome.shadow_hits = sum(key in usable for key in job.keys)
        positions = range(len(job.keys))
        reply = await self._send_read(job, job.request.body or b"")
        text, rows = await self._judged(job, reply, positions)
        answer = relayed(reply, text)
        outcome.detail = outcome.detail or PassReason.SHADOW
        if rows is None:
            return answer
        fresh = self._entries(job, positions, rows)
        outcome.shadow_mismatches = sum(
            usable[key].row.differs(entry.row) for key, entry in fresh.items() if key in usable
        )
        return self._storing(job, fresh, answer)

    def _now_unix_ms(self) -> int:
        return int(self._clock.wall() * 1000)


@dataclasses.dataclass(slots=True)
class _Job:
    """A planned read on its way, with its keys in the client's order."""

    request: Request
    plan: Read
    wishes: Directives
    outcome: Outcome
    keys: tuple[bytes, ...]
    owner: bytes
    scopes: tuple[bytes, ...]
    mark: bytes | None = None
    tokens: Tokens | None = None
    is_held: bool = False

    @property
    def first_positions(self) -> dict[bytes, int]:
        """Each distinct key with the first position that has it: a text that stands twice is asked for once."""
        positions: dict[bytes, int] = {}
        for position, key in enumerate(self.keys):
            positions.setdefault(key, position)
        return positions


def _let_go(unit: "asyncio.Task[Answer | ProxyError]") -> None:
    """Of the answer to a write whose client has gone."""
    if not unit.cancelled() and unit.exception() is None and isinstance(answer := unit.result(), Answer):
        answer.close()


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
