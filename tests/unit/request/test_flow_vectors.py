"""The life of requests whose answers can become stale: reads under tokens, over-fetch, writes as one unit (C1, C7)."""

import asyncio
import dataclasses
import gc
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from proxy.cache.claims import Claims
from proxy.cache.codec import Codec
from proxy.cache.credential_status import Standings
from proxy.cache.flights import Flights
from proxy.cache.invalidation.generations import Generations, Journal
from proxy.cache.invalidation.tier import VoidableTier
from proxy.cache.lock_times import LockTimes
from proxy.cache.memory import MemoryTier
from proxy.cache.recently_accepted import Leases
from proxy.cache.tiers import Tiers
from proxy.control.purges import LivePurges
from proxy.core.answer import Answer
from proxy.core.cache_status import header_lines
from proxy.core.errors import ErrorCode, UpstreamError
from proxy.core.found import Found
from proxy.core.grace import Windows
from proxy.core.grpc_status import GrpcStatus
from proxy.core.held_bytes import HeldBytes
from proxy.core.key import Secret
from proxy.core.modes import Mode
from proxy.core.outcome import CacheState, Outcome
from proxy.core.ports import Clock
from proxy.core.purges import Mark, Marks
from proxy.core.request import GRPC, Head, Request
from proxy.request.ask import Asker, Upstreams
from proxy.request.batching import Batcher, Rules
from proxy.request.coalesce import Fetcher
from proxy.request.credentials import Callers
from proxy.request.flow import Flow
from proxy.request.from_memory import AtOnce
from proxy.request.grace import Grace
from proxy.request.negative import Negatives
from proxy.request.planner import Planner
from proxy.runtime.tasks import Tasks
from proxy.server.http.body import Patience
from proxy.server.http.front import Front
from proxy.vendors.dashvector.over_grpc import SERVICE
from proxy.vendors.registry import Adapters
from tests.support.clock import FakeClock
from tests.support.gate import Gate
from tests.support.guarded_store import GuardedRedis, Store

SECRET = Secret.derive(b"deployment")
LINES = ((b"dashvector-auth-token", b"sk-one"), (b"Content-Type", b"application/json"))
JSON = ((b"Content-Type", b"application/json"), (b"Content-Length", b"7"))
ONE = "/v1/collections/abc"
MAX_ANSWER = 10_000
BATCHING = Rules(window_s=0.01, max_bytes=10_000, cuts=True, parallel=2)  # must not touch a query


def documents(count: int, *, code: int = 0, ranked: bool = True) -> bytes:
    """An answer to a query."""
    scores = range(count) if ranked else itertools.islice(itertools.cycle((2, 1)), count)
    output = [{"id": f"{at}", "score": score} for at, score in enumerate(scores)]
    return json.dumps({"code": code, "request_id": "vendor-1", "message": "", "output": output}).encode()


def query(topk: int = 2, vector: float = 0.5) -> bytes:
    return json.dumps({"vector": [vector, 0.5], "topk": topk}).encode()


class Content:
    """A client's body."""

    def __init__(self, content: bytes | None) -> None:
        self._content = content or b""
        self.length = len(self._content)
        self.is_empty = content is None

    async def read(self, limit: int) -> bytes | None:
        return self._content if len(self._content) <= limit else None

    async def pieces(self) -> AsyncIterator[bytes]:
        yield self._content

    async def before_end(self) -> None:
        pass


@dataclasses.dataclass
class Reply:
    """An upstream's answer; *gate* holds its body."""

    content: bytes = b'{"code":0,"request_id":"vendor-0"}'
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = JSON
    grpc_status: GrpcStatus | None = None
    gate: Gate | None = None
    error: Exception | None = None
    reason: str = "OK"
    length: int | None = None
    is_closed: bool = False

    async def read(self, limit: int, has_room: Callable[[int], bool]) -> tuple[bytes, bool]:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.content[:limit], len(self.content) <= limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.content[MAX_ANSWER:] if len(self.content) > MAX_ANSWER else self.content

    def close(self) -> None:
        self.is_closed = True


class Upstream:
    """Answers in turn, the last for ever; *gate* holds what is sent."""

    origin = "https://vectors.test"

    def __init__(self) -> None:
        self.replies: list[Reply | Exception] = [Reply()]
        self.sent: list[Request] = []
        self.gate: Gate | None = None

    async def send(self, request: Request, body: Any = None) -> Reply:
        if request.body is None and body is not None and not body.is_empty:
            request = dataclasses.replace(request, body=b"".join([piece async for piece in body.pieces()]))
        elif body is not None:
            await body.before_end()
        self.sent.append(request)
        if self.gate is not None:
            await self.gate.wait()
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply


class Quiet:
    """Telemetry and modes."""

    def __init__(self) -> None:
        self.now = Mode.ON

    def mode(self, upstream: str, operation: str) -> Mode:
        return self.now

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_arguments, **_named: None


class Rig:
    """A flow before one DashVector, over an exact Redis in memory."""

    def __init__(self, *, overfetch: int = 0, strict: bool = False, redis: bool = True) -> None:
        self.store, self.clock, self.upstream, self.quiet = Store(), FakeClock(), Upstream(), Quiet()
        self.redis, self.faults = GuardedRedis(self.store), list[BaseException]()
        self.tasks = Tasks(self.faults.append)
        self.leases = Leases(60.0, self.clock.monotonic)
        self.voidable = VoidableTier(
            self.redis if redis else None,  # type: ignore[arg-type]
            Codec(SECRET, 1 << 20),
            Generations(Journal(None), self.clock.wall),
            self.tasks,
            self.quiet,  # type: ignore[arg-type]
            settle_s=2.0,
            is_strict=strict,
            max_pending_stores=10,
        )
        ids = itertools.count()
        clock = Clock(self.clock.monotonic, self.clock.wall)
        no_memory, no_codec = MemoryTier(0, 0.0, self.clock.monotonic), cast(Any, None)
        tiers = Tiers(no_memory, None, no_codec, self.tasks, self.quiet, max_pending_stores=0)  # type: ignore[arg-type]
        routes = Adapters({"vectors": "dashvector"}, overfetch_topk=overfetch)
        callers = Callers(
            secret=SECRET,
            endpoints={"vectors": "vectors.test"},
            credential_of=routes.credential,
            leases=self.leases,
            standings=Standings(None, self.tasks, longest_ms=3_600_000, monotonic=self.clock.monotonic),
        )
        upstreams = Upstreams(lambda _: self.upstream, callers, clock, 100.0)  # type: ignore[arg-type,return-value]
        asker = Asker(
            upstreams=upstreams,
            callers=callers,
            tiers=tiers,
            voidable=self.voidable,
            modes=self.quiet,
            lifetime=lambda operation, model: 3_600.0,
            jitter=0.1,
            max_answer_bytes=MAX_ANSWER,
            keeps_errors=False,
            clock=clock,
            random_unit=lambda: 0.5,
        )
        fetcher = Fetcher(
            batcher=Batcher(
                asker, self.tasks, rules=BATCHING, clock=clock, lock_times=LockTimes(100.0), max_answer_bytes=MAX_ANSWER
            ),
            flights=Flights(self.tasks, 10.0, self.clock.monotonic),
            lock_times=LockTimes(100.0),
            claims=Claims(None, self.tasks, 2.0, 10.0),
            tiers=tiers,
            voidable=self.voidable,
            clock=clock,
            max_answer_bytes=MAX_ANSWER,
        )
        grace = Grace(
            windows=Windows(60.0, 60.0),  # which nothing here is in
            fetcher=fetcher,
            tasks=self.tasks,
            telemetry=self.quiet,  # type: ignore[arg-type]
            wait_s=5.0,
            max_refreshes=10,
            monotonic=self.clock.monotonic,
        )
        planner = Planner(
            routes=routes,
            callers=callers,
            transport_of=upstreams.transport_of,
            purges=LivePurges(),
            secret=SECRET,
        )
        self.flow = Flow(
            planner=planner,
            at_once=AtOnce(
                planner=planner,
                tiers=tiers,
                voidable=self.voidable,
                callers=callers,
                modes=self.quiet,
                request_id=lambda: f"ours-{next(ids)}",
                clock=clock,
            ),
            upstreams=upstreams,
            asker=asker,
            fetcher=fetcher,
            grace=grace,
            negatives=Negatives({}, self.clock.monotonic),
            callers=callers,
            voidable=self.voidable,
            tasks=self.tasks,
            modes=self.quiet,
            max_key_body_bytes=100_000,
            max_answer_bytes=MAX_ANSWER,
            clock=clock,
        )

    async def ask(self, method: str, target: str, content: bytes | None = None, lines=LINES) -> tuple[Answer, Outcome]:
        outcome = Outcome()
        request = Request(method, target, lines, "vectors", content if method == GRPC else None)
        answer = await self.flow.answer(request, Content(content), outcome)
        answer.after()
        return answer, outcome

    async def asked(self, method: str, target: str, content: bytes | None = None, lines=LINES):
        """The same, and all that it leaves behind done."""
        answered = await self.ask(method, target, content, lines)
        await self.settled()
        return answered

    async def query(self, content: bytes | None = None) -> tuple[Answer, Outcome]:
        return await self.asked("POST", ONE + "/query", content or query())

    def writing(self) -> "asyncio.Task[tuple[Answer, Outcome]]":
        return asyncio.ensure_future(self.ask("POST", ONE + "/docs/upsert", b"{}"))

    async def warm(self) -> None:
        """A query that hits, and a credential that is known."""
        self.upstream.replies = [Reply(documents(2))]
        await self.query()
        assert (await self.query())[1].state is CacheState.HIT
        self.upstream.replies = [Reply()]
        self.upstream.sent.clear()

    async def settled(self) -> None:
        assert await self.tasks.wait_done(5.0) == 0
        assert not self.faults

    def later(self) -> None:
        self.store.now_ms += 2_001
        self.clock.advance(2.001)


# --- reads ------------------------------------------------------------------------------------------------------------


async def test_a_miss_is_answered_as_it_came_and_a_hit_with_an_id_of_ours():
    rig = Rig()
    rig.upstream.replies = [Reply(documents(2))]
    answer, outcome = await rig.query()
    assert (answer.body, outcome.state, outcome.stored) == (documents(2), CacheState.MISS, True)
    answer, outcome = await rig.query()
    assert outcome.state is CacheState.HIT
    assert answer.body == documents(2).replace(b"vendor-1", b"ours-0")
    assert dict(answer.headers) == {b"Content-Type": b"application/json", b"X-Request-Id": b"ours-0"}
    assert outcome.origins == ("vendor-1",)
    assert len(rig.upstream.sent) == 1


@pytest.mark.parametrize("mode", [Mode.ON, Mode.SHADOW])
async def test_an_answer_that_was_sent_is_not_left_to_the_collector(mode: Mode) -> None:
    rig = Rig()
    rig.quiet.now = mode
    rig.upstream.replies = [Reply(documents(2))]
    gc.collect()
    gc.disable()
    try:
        answer, outcome = await rig.query()
        assert outcome.upstream_calls == 1
        assert [each for each in gc.get_objects() if isinstance(each, Answer)] == [answer]
        del answer
        assert not any(isinstance(each, Answer) for each in gc.get_objects())
    finally:
        gc.enable()


async def test_a_read_by_get_is_sent_without_a_body_and_without_its_length():
    rig = Rig()
    rig.upstream.replies = [Reply(b'{"code":0,"request_id":"r","output":{}}')]
    _, outcome = await rig.asked("GET", ONE + "/docs?ids=1,2")
    (sent,) = rig.upstream.sent
    assert sent.body is None
    assert outcome.stored
    assert (await rig.asked("GET", ONE + "/docs?ids=1,2"))[1].state is CacheState.HIT
    assert (await rig.asked("GET", ONE + "/docs?ids=2,1"))[1].state is CacheState.MISS


@pytest.mark.parametrize("target", ["/query?partition=a", "/query?", "/query"])
async def test_a_query_string_stands_in_the_key_of_a_post_too(target):
    rig = Rig()
    rig.upstream.replies = [Reply(documents(1))]
    await rig.asked("POST", ONE + "/query?partition=b", query())
    assert (await rig.asked("POST", ONE + target, query()))[1].state is CacheState.MISS


async def test_two_credentials_share_nothing_but_what_makes_it_stale():
    rig = Rig()
    await rig.warm()
    rig.upstream.replies = [Reply(documents(1))]
    other = ((b"dashvector-auth-token", b"sk-two"), LINES[1])
    assert (await rig.asked("POST", ONE + "/query", query(), other))[1].state is CacheState.MISS
    rig.upstream.replies = [Reply()]
    await rig.asked("POST", ONE + "/docs", b"{}", other)
    rig.later()
    assert (await rig.query())[1].state is CacheState.MISS


async def test_just_after_a_write_nothing_is_stored_and_the_detail_says_why():
    rig = Rig()
    await rig.warm()
    await rig.writing()
    rig.upstream.replies = [Reply(documents(2))]
    _, outcome = await rig.query()
    assert (outcome.state, outcome.detail, outcome.stored) == (CacheState.MISS, "settling", False)
    rig.later()
    _, outcome = await rig.query()
    assert (outcome.state, outcome.detail, outcome.stored) == (CacheState.MISS, "", True)


@pytest.mark.parametrize("how", ["no redis", "unreachable", "lost before tokens"])
async def test_without_tokens_nothing_is_said_to_be_stored(how):
    rig = Rig(redis=how != "no redis")
    rig.redis.lost = {"unreachable": {"read"}, "lost before tokens": {"make"}}.get(how, set())
    rig.upstream.replies = [Reply(documents(2))]
    answer, outcome = await rig.query()
    assert (answer.body, outcome.stored) == (documents(2), False)
    assert outcome.redis_ok is (how == "no redis")
    assert not rig.store.entries


async def test_a_query_that_was_under_way_across_a_write_is_not_stored():
    """C1."""
    rig = Rig()
    rig.upstream.replies, rig.upstream.gate = [Reply(documents(2)), Reply()], Gate()
    reading = asyncio.ensure_future(rig.query())
    await rig.upstream.gate.wait_arrived()
    gate, rig.upstream.gate = rig.upstream.gate, None
    rig.upstream.replies = [Reply()]
    await rig.writing()
    rig.later()
    rig.upstream.replies = [Reply(documents(2))]
    gate.open()
    _, outcome = await reading
    assert outcome.state is CacheState.MISS
    assert not rig.store.entries


# --- over-fetch -------------------------------------------------------------------------------------------------------


async def test_a_full_miss_that_asked_for_more_is_joined_and_cut():
    rig = Rig(overfetch=5)
    rig.upstream.replies = [Reply(documents(5))]
    answer, outcome = await rig.query(query(2))
    assert json.loads(rig.upstream.sent[0].body)["topk"] == 5
    assert [each["id"] for each in json.loads(answer.body)["output"]] == ["0", "1"]
    assert (outcome.state, outcome.stored) == (CacheState.MISS, True)
    assert dict(answer.headers)[b"X-Request-Id"] == b"ours-0"
    answer, outcome = await rig.query(query(4))
    assert outcome.state is CacheState.HIT
    assert len(json.loads(answer.body)["output"]) == 4


@pytest.mark.parametrize(
    "wider", [Reply(documents(5, ranked=False)), Reply(documents(0, code=-7)), Reply(b"no", 500), Reply(b"x" * 20_000)]
)
async def test_what_cannot_be_cut_is_asked_again_as_the_client_asked(wider):
    rig = Rig(overfetch=5)
    rig.upstream.replies = [wider, Reply(documents(2))]
    answer, outcome = await rig.query(query(2))
    assert [json.loads(sent.body)["topk"] for sent in rig.upstream.sent] == [5, 2]
    assert rig.upstream.sent[1].body == query(2)
    assert b"".join([piece async for piece in answer.body]) == documents(2)
    assert (outcome.state, outcome.stored, outcome.upstream_calls) == (CacheState.MISS, False, 2)
    assert wider.is_closed == (len(wider.content) > MAX_ANSWER), "what was not read to its end is let go of"
    assert not rig.store.entries


async def test_a_request_that_found_no_slot_is_no_call():
    rig = Rig()
    rig.upstream.replies = [UpstreamError(ErrorCode.UPSTREAM_BUSY, "too many", 503)]
    outcome = Outcome()
    with pytest.raises(UpstreamError, match="too many"):
        await rig.flow.answer(Request("POST", f"{ONE}/query", LINES, "vectors"), Content(query()), outcome)
    assert outcome.upstream_calls == 0


async def test_shadow_forwards_what_the_client_asked_for():
    rig = Rig(overfetch=5)
    rig.quiet.now = Mode.SHADOW
    rig.upstream.replies = [Reply(documents(2))]
    for shadow_hits in (0, 1):
        answer, outcome = await rig.query(query(2))
        assert (answer.body, outcome.shadow_hits, outcome.detail) == (documents(2), shadow_hits, "shadow")
    assert [sent.body for sent in rig.upstream.sent] == [query(2), query(2)]
    rig.quiet.now = Mode.ON
    rig.upstream.replies = [Reply(documents(5))]
    answer, outcome = await rig.query(query(4))
    assert outcome.state is CacheState.MISS, "two documents are not four"
    assert len(json.loads(answer.body)["output"]) == 4


# --- writes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.ON, Mode.SHADOW, Mode.BYPASS])
async def test_a_write_counts_in_every_mode(mode):
    rig = Rig()
    await rig.warm()
    rig.quiet.now = mode
    answer, outcome = await rig.writing()
    assert (answer.body, outcome.state) == (Reply().content, CacheState.WRITE)
    assert outcome.redis_ok
    rig.quiet.now = Mode.ON
    rig.later()
    assert (await rig.query())[1].state is CacheState.MISS


STAGES = ("first void", "send", "body", "last void")


@pytest.mark.parametrize("stage", STAGES)
async def test_a_client_that_leaves_cuts_neither_the_write_nor_what_it_makes_stale(stage):
    rig = Rig()
    await rig.warm()
    reply = Reply(gate=Gate("body"))
    rig.upstream.replies, rig.upstream.gate = [reply], Gate("send")
    void = rig.redis.gate("void")
    gates = dict(zip(STAGES, (void, rig.upstream.gate, reply.gate, void), strict=True))
    client = rig.writing()
    for at in STAGES[: STAGES.index(stage)]:
        await gates[at].wait_arrived()
        gates[at].open()
        if at == "body":
            void.close()
    await gates[stage].wait_arrived(2 if stage == "last void" else 1)
    client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client
    for gate in gates.values():
        gate.open()
    await rig.settled()
    assert len(rig.upstream.sent) == 1
    assert rig.redis.calls.count("void") == 2
    assert rig.voidable.pending == 0
    rig.later()
    assert (await rig.query())[1].state is CacheState.MISS


async def test_an_answer_that_nobody_waits_for_is_let_go():
    rig = Rig()
    reply = Reply(b"x" * (MAX_ANSWER + 1), gate=Gate())
    rig.upstream.replies = [reply]
    client = rig.writing()
    await reply.gate.wait_arrived()
    client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client
    reply.gate.open()
    await rig.settled()
    assert reply.is_closed


@pytest.mark.parametrize("has_left", [True, False])
async def test_an_upstream_that_fails_has_perhaps_written(has_left):
    rig = Rig()
    await rig.warm()
    error = UpstreamError(ErrorCode.UPSTREAM_TIMEOUT, "too late", 504, retryable=True)
    rig.upstream.replies, rig.upstream.gate = [error], Gate()
    client = rig.writing()
    await rig.upstream.gate.wait_arrived()
    if has_left:
        client.cancel()
    rig.upstream.gate.open()
    with pytest.raises(asyncio.CancelledError if has_left else UpstreamError):
        await client
    await rig.settled()
    assert len(rig.upstream.sent) == 1, "a write is never sent twice"
    rig.later()
    rig.upstream.replies, rig.upstream.gate = [Reply(documents(2))], None
    assert (await rig.query())[1].state is CacheState.MISS


async def test_an_answer_that_breaks_off_is_an_error_and_counts():
    rig = Rig()
    await rig.warm()
    rig.upstream.replies = [Reply(error=UpstreamError(ErrorCode.UPSTREAM_PROTOCOL, "broke off"))]
    with pytest.raises(UpstreamError):
        await rig.writing()
    rig.later()
    assert rig.redis.calls.count("void") == 2


async def test_a_large_answer_to_a_write_comes_whole():
    rig = Rig()
    rig.upstream.replies = [Reply(content := b"y" * (2 * MAX_ANSWER))]
    answer, _ = await rig.writing()
    assert b"".join([piece async for piece in answer.body]) == content


async def test_strict_mode_refuses_what_redis_does_not_know_of():
    rig = Rig(strict=True)
    await rig.warm()
    rig.redis.is_reachable = False
    with pytest.raises(UpstreamError) as caught:
        await rig.writing()
    assert (caught.value.code, caught.value.status) == (ErrorCode.NOT_INVALIDATED, 503)
    assert rig.upstream.sent == []


async def test_a_write_past_a_dead_redis_says_so_in_its_outcome():
    rig = Rig()
    await rig.warm()
    rig.redis.is_reachable = False
    _, outcome = await rig.writing()
    assert outcome.redis_ok is False
    assert rig.voidable.pending == 1


@pytest.mark.parametrize("is_known", [True, False])
async def test_only_a_credential_that_was_accepted_lately_voids_before_the_upstream_has_spoken(is_known):
    rig, other = Rig(), ((b"dashvector-auth-token", b"sk-two"), LINES[1])
    rig.upstream.replies = [Reply(documents(2))]
    await rig.asked("POST", ONE + "/query", query(), other)
    await rig.warm()
    if not is_known:
        rig.clock.advance(61.0)
    rig.upstream.replies = [Reply(b'{"code":401}', 401)]
    await rig.writing()
    assert rig.redis.calls.count("void") == int(is_known)
    state = (await rig.asked("POST", ONE + "/query", query(), other))[1].state
    assert state is (CacheState.MISS if is_known else CacheState.HIT)


@pytest.mark.parametrize("ended", [Reply(b'{"code":401}', 401), Reply(b"", 403), Reply(b'{"code":403}')])
async def test_s17_a_write_that_was_refused_ends_the_hits_and_the_lease_of_its_credential(ended):
    rig = Rig()
    await rig.warm()
    rig.upstream.replies = [ended, Reply(documents(2))]
    await rig.writing()
    rig.redis.calls.clear()
    await rig.writing()
    assert rig.redis.calls.count("void") == 1, "only once it was accepted"
    rig.store.now_ms += 3_000
    rig.clock.advance(3)
    await rig.warm()
    rig.upstream.replies = [ended, Reply(documents(2))]
    await rig.asked("POST", ONE + "/query", query("other"))
    assert (await rig.query())[1].state is CacheState.MISS
    assert (await rig.query())[1].state is CacheState.HIT


async def test_a_write_that_was_done_makes_its_credential_known():
    rig = Rig()
    await rig.writing()
    assert rig.redis.calls == ["void"]
    await rig.writing()
    assert rig.redis.calls == ["void"] * 3


async def test_writes_tell_of_themselves_only_where_it_is_wanted():
    rig = Rig()
    _, outcome = await rig.writing()
    assert header_lines(outcome) == ()
    parts: dict[str, Any] = {"flow": rig.flow, "bridge": None, "observer": None, "error_body": None}
    parts |= {"at_once": None, "ready": None, "clients": None, "held": HeldBytes(2**30), "body_patience": Patience(1.0)}
    assert Front(**parts)._own_lines(outcome) == ()
    assert Front(**parts, cache_status_on_pass=True)._own_lines(outcome) == (
        (b"Cache-Status", b"dashcache; fwd=method; fwd-status=200"),
    )


# --- gRPC -------------------------------------------------------------------------------------------------------------

CALL_LINES = ((b"dashvector-auth-token", b"sk-one"), (b"collection-name", b"abc"))
MESSAGE = b"\x0a\x02r1\x22\x03\x0a\x01a"  # request id r1, one document with the id a


async def test_a_call_is_answered_as_it_ended_and_a_hit_as_if_it_had_ended_well():
    rig = Rig()
    rig.upstream.replies = [Reply(MESSAGE, headers=((b"x", b"y"),), grpc_status=GrpcStatus())]
    answer, outcome = await rig.asked(GRPC, SERVICE + "query_doc", b"\x10\x02", CALL_LINES)
    assert (answer.body, answer.headers, answer.grpc_status) == (MESSAGE, ((b"x", b"y"),), GrpcStatus())
    assert outcome.stored
    answer, outcome = await rig.asked(GRPC, SERVICE + "query_doc", b"\x10\x02", CALL_LINES)
    assert outcome.state is CacheState.HIT
    assert answer.body == MESSAGE.replace(b"\x02r1", b"\x06ours-0")


async def test_a_call_that_ended_badly_is_passed_on_and_nothing_is_kept():
    rig = Rig()
    status = GrpcStatus(8, "too many")
    rig.upstream.replies = [Reply(b"", 502, ((b"request-id", b"r"),), status)]
    answer, outcome = await rig.asked(GRPC, SERVICE + "query_doc", b"\x10\x02", CALL_LINES)
    assert (answer.grpc_status, answer.headers) == (status, ((b"request-id", b"r"),))
    assert not outcome.stored


@pytest.mark.parametrize("second", [(b"collection-name", b"other"), (b"Collection-Name", b"abc")])
async def test_a_call_that_names_two_collections_is_not_looked_up_and_writes_to_all(second):
    rig = Rig()
    await rig.warm()
    rig.upstream.replies = [Reply(MESSAGE, headers=(), grpc_status=GrpcStatus())]
    _, outcome = await rig.asked(GRPC, SERVICE + "query_doc", b"\x10\x02", (*CALL_LINES, second))
    assert (outcome.state, outcome.detail) == (CacheState.BYPASS, "unknown-shape")
    await rig.asked(GRPC, SERVICE + "insert_doc", b"", (*CALL_LINES, second))
    rig.later()
    assert (await rig.query())[1].state is CacheState.MISS


async def test_a_write_over_one_protocol_counts_for_the_other():
    rig = Rig()
    await rig.warm()
    rig.upstream.replies = [Reply(b"", headers=(), grpc_status=GrpcStatus())]
    await rig.asked(GRPC, SERVICE + "upsert_doc", b"", CALL_LINES)
    rig.later()
    assert (await rig.query())[1].state is CacheState.MISS


@pytest.mark.parametrize(
    ("method", "target", "reply"),
    [
        (GRPC, "/grpc.health.v1.Health/Check", Reply(b"", 502, (), GrpcStatus(12, "no such method"))),
        ("GET", "/healthz", Reply(b"not found", 404)),
        ("OPTIONS", ONE + "/query", Reply(b"", 405)),
    ],
)
async def test_probes_of_strangers_do_not_empty_the_cache(method, target, reply):
    rig = Rig()
    await rig.warm()
    rig.upstream.replies = [reply]
    await rig.asked(method, target, b"" if method == GRPC else None, ())
    assert (await rig.query())[1].state is CacheState.HIT


# --- plans that are remembered ----------------------------------------------------------------------------------------


class Known:
    """A rig that has kept MESSAGE as the answer to a call, and remembers what the call means."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.head = Head(SERVICE + "query_doc", "vectors", ())
        self.request = Request(GRPC, self.head.target, CALL_LINES, "vectors", b"\x10\x02", head=self.head)

    async def filled(self) -> "Known":
        self.rig.upstream.replies = [Reply(MESSAGE, headers=(), grpc_status=GrpcStatus())]
        assert (await self.flow())[1].state is CacheState.MISS
        self.rig.redis.calls.clear()
        return self

    async def flow(self, found: Found | None = None) -> tuple[Answer, Outcome]:
        outcome = Outcome()
        answer = await self.rig.flow.answer(self.request, Content(b"\x10\x02"), outcome, found)
        answer.after()
        await self.rig.settled()
        return answer, outcome

    async def recalled(self, message: bytes = b"\x10\x02") -> tuple[Answer | Found | None, Outcome]:
        outcome = Outcome()
        return await self.rig.flow.at_once.recalled(self.head, message, outcome), outcome


async def test_a_plan_that_is_remembered_is_answered_as_the_flow_would():
    known = await Known().filled()
    (long, long_outcome), (short, outcome) = await known.flow(), await known.recalled()
    assert isinstance(short, Answer)
    assert short.body == long.body.replace(b"ours-0", b"ours-1")
    assert short.headers == ((b"Content-Type", b"application/json"), (b"X-Request-Id", b"ours-1"))
    for one in (outcome, long_outcome):
        one.redis_ms, one.request_id, one.upstream = 0.0, "", ""
    assert outcome == long_outcome
    assert known.rig.redis.calls == ["read", "read"]


async def test_what_is_not_remembered_is_nothing_and_asks_nobody():
    known = Known()
    assert await known.recalled() == (None, Outcome())
    await known.filled()
    assert (await known.recalled(b"\x10\x03"))[0] is None
    assert known.rig.redis.calls == []


async def test_what_a_write_made_stale_is_found_and_is_no_answer():
    known = await Known().filled()
    await known.rig.writing()
    known.rig.later()
    known.rig.redis.calls.clear()
    found, outcome = await known.recalled()
    assert isinstance(found, Found)
    assert (found.entries, outcome.state, outcome.hits) == ({}, CacheState.BYPASS, 0)
    sent = len(known.rig.upstream.sent)
    _, outcome = await known.flow(found)
    assert (outcome.state, outcome.stored) == (CacheState.MISS, True)
    assert known.rig.redis.calls == ["read", "fill"]
    assert len(known.rig.upstream.sent) == sent + 1


async def test_c1_what_was_found_before_a_write_keeps_nothing_after_it():
    known = await Known().filled()
    known.rig.store.entries.clear()
    found, _ = await known.recalled()
    assert isinstance(found, Found)
    assert found.tokens is not None
    await known.rig.writing()
    known.rig.later()
    await known.flow(found)
    assert known.rig.store.entries == {}


async def test_what_is_switched_or_purged_counts_before_redis_is_asked_and_while_it_is():
    def switched(rig: Rig) -> None:
        rig.quiet.now = Mode.BYPASS

    def purged(rig: Rig) -> None:
        rig.flow.at_once.planner._purges = Marks((Mark("00" * 16, 1.0),))

    for change in (switched, purged):
        known = await Known().filled()
        change(known.rig)
        assert (await known.recalled())[0] is None
        assert known.rig.redis.calls == []
        known = await Known().filled()
        gate = known.rig.redis.gate("read")
        asked = asyncio.ensure_future(known.recalled())
        await gate.wait_arrived()
        change(known.rig)
        gate.open()
        assert (await asked)[0] is None


async def test_s17_a_refused_credential_gets_nothing_by_a_plan_that_is_remembered():
    known = await Known().filled()
    assert isinstance((await known.recalled())[0], Answer)
    await known.rig.flow._callers.refused(known.request)
    found, outcome = await known.recalled()
    assert isinstance(found, Found)
    assert outcome.state is CacheState.BYPASS
    assert (await known.flow(found))[1].state is CacheState.MISS


async def test_redis_is_not_asked_again_when_it_could_not_be():
    known = await Known().filled()
    known.rig.redis.is_reachable = False
    found, _ = await known.recalled()
    assert isinstance(found, Found)
    assert not found.redis_ok
    known.rig.redis.calls.clear()
    _, outcome = await known.flow(found)
    assert (outcome.state, outcome.redis_ok) == (CacheState.MISS, False)
    assert "read" not in known.rig.redis.calls
