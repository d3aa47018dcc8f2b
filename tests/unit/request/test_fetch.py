"""Who asks the upstream for what is missing, who waits for whom, and what each gets (R6a-R6e, R8)."""

import asyncio
import gzip
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import pytest

from proxy.cache.claims import Claims
from proxy.cache.flights import Flights
from proxy.cache.lock_times import LockTimes
from proxy.cache.tiers import Found
from proxy.core.answer import Answer
from proxy.core.entry import Entry, Row
from proxy.core.errors import ErrorCode, UpstreamError
from proxy.core.freshness import Directives
from proxy.core.modes import Mode
from proxy.core.outcome import Outcome
from proxy.core.plan import NotStorable, Refusal
from proxy.core.ports import Clock
from proxy.core.request import Request
from proxy.request.ask import Asker, Job, Landing, Upstreams
from proxy.request.batching import Batcher, Rules
from proxy.request.coalesce import Fetcher
from proxy.runtime.tasks import Tasks
from tests.support.clock import FakeClock
from tests.support.gate import Gate
from tests.support.waiting import wait_until

JSON = ((b"Content-Type", b"application/json"),)
OFF = Rules()


class Plan:
    """Items are texts; the upstream answers ``text=vector`` for each, with commas between."""

    operation, model, credential, plain, trial = "embedding", "m", b"sk", None, None

    def lasting_error(self, status: int, body: bytes) -> None:
        return None

    def refusal(self, status: int, headers: Any) -> Refusal | None:
        if status != 200:
            return Refusal.STATUS
        return Refusal.NO_STORE if (b"Cache-Control", b"no-store") in headers else None

    def narrowed(self, positions: Sequence[int]) -> bytes:
        return b",".join(self.texts[at] for at in positions)

    def answer_weight(self, body: bytes) -> int:
        return len(body)

    def split(self, body: bytes, positions: Sequence[int]) -> tuple[Row, ...]:
        if body == b"junk":
            raise NotStorable(Refusal.SHAPE)
        return tuple(Row(b"", b"", part, (("total_tokens", 3),), "id") for part in body.split(b","))

    def __init__(self, *texts: bytes) -> None:
        self.texts = texts


class Reply:
    """An upstream's answer; a *long* one does not end within any limit."""

    grpc_status, reason = None, ""

    def __init__(self, body: bytes = b"", status: int = 200, headers: Any = JSON, *, long: bool = False) -> None:
        self.status, self.headers, self.length = status, headers, len(body)
        self._body, self._long = body, long
        self.closed = 0

    async def __aiter__(self):
        yield self._body

    async def read(self, limit: int, has_room: Callable[[int], bool]) -> tuple[bytes, bool]:
        return self._body, not self._long

    def close(self) -> None:
        self.closed += 1


Script = Callable[[Request], Any]


def right(request: Request) -> Reply:
    """Each text with a vector of its own."""
    return Reply(b",".join(b"v(%b)" % text for text in (request.body or b"").split(b",")))


class World:
    """The upstream and Redis, which all processes share."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.asked: list[bytes] = []
        self.deadlines: list[float | None] = []
        self.replies: list[Reply] = []
        self.answer: Script = right
        self.gate = Gate("upstream")
        self.gate.open()
        self.cancelled = 0
        self.entries: dict[bytes, Entry] = {}
        self.claims: dict[bytes, bytes] = {}
        self.claimed = 0
        self.redis_works = True
        self.filling: Gate | None = None
        self.mode = Mode.ON
        self.origin = "http://upstream"

    async def send(self, request: Request, body: object = None) -> Reply:
        self.asked.append(request.body or b"")
        self.deadlines.append(request.timeout_s)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        reply = self.answer(request)
        if isinstance(reply, BaseException):
            raise reply
        self.replies.append(reply)
        return reply

    # What ``Claims`` wants of Redis.

    async def claim(
        self, keys: Sequence[bytes], entries: Sequence[bytes | None], owner: bytes, lease_ms: int
    ) -> list[int] | None:
        self.claimed += 1
        if not self.redis_works:
            return None
        held = {key: self.claims.get(key, owner) for key in keys}
        answers = [
            2 if entry in self.entries else 3 if held[key] == b"" else int(held[key] == owner)
            for key, entry in zip(keys, entries, strict=True)
        ]
        self.claims.update((key, owner) for key, answer in zip(keys, answers, strict=True) if answer == 1)
        return answers

    async def release(self, keys: Sequence[bytes], owner: bytes, nobody_ms: int = 0) -> None:
        for key in keys:
            if self.claims.get(key) == owner:
                self.claims[key] = b""
                if not nobody_ms:
                    del self.claims[key]

    async def renew(self, keys: Sequence[bytes], owner: bytes, lease_ms: int) -> None:
        """The lease outlives the test."""


class FakeTiers:
    """Redis' entries, no memory; in the place of both tiers."""

    def __init__(self, world: World, tasks: Tasks) -> None:
        self._world, self._tasks = world, tasks
        self.reads: list[list[bytes]] = []
        self.fills: list[set[bytes]] = []

    async def read(self, keys: Sequence[bytes], *_scopes_and_owner: object) -> Found:
        self.reads.append(list(keys))
        found = {key: self._world.entries[key] for key in keys if key in self._world.entries}
        return Found(entries=found if self._world.redis_works else {}, redis_ok=self._world.redis_works)

    def fill(self, entries: Mapping[bytes, Entry], *more: Any) -> None:
        self.fills.append(set(entries))
        self._tasks.start(self._fill(entries, more[-1]))

    async def _fill(self, entries: Mapping[bytes, Entry], done: Callable[[], None]) -> None:
        if self._world.filling is not None:
            await self._world.filling.wait()
        if self._world.redis_works:
            self._world.entries.update(entries)
        done()


class NobodyRefused:
    """Callers whom the upstream accepts."""

    def known(self, request: Request, owner: bytes | None = None) -> bytes:
        return b""

    def accepted(self, owner: bytes, mark: bytes | None) -> None:
        pass

    async def refused(self, request: Request) -> None:
        pass


class Process:
    """One process's fetcher, and clients of it."""

    def __init__(
        self,
        world: World,
        *,
        uncacheable_s: float = 10.0,
        rules: Rules = OFF,
        lock_s: float = 100.0,
        deadline_s: float = 100.0,
    ) -> None:
        self.world, self.faults, self.overdue = world, list[BaseException](), list[str]()
        self.tasks, self.clients = Tasks(self.faults.append), Tasks(self.faults.append)
        self.tiers = FakeTiers(world, self.tasks)
        clock = Clock(world.clock.monotonic, world.clock.wall)
        self.flights: Flights[Landing] = Flights(self.tasks, uncacheable_s, clock.monotonic)
        callers: Any = NobodyRefused()
        asker = Asker(
            upstreams=Upstreams(lambda _request: world, callers, clock, deadline_s),
            callers=callers,
            tiers=self.tiers,
            voidable=self.tiers,
            modes=self,
            lifetime=lambda _operation, _model: 100.0,
            jitter=0.0,
            keeps_errors=False,
            max_answer_bytes=1000,
            clock=clock,
            random_unit=lambda: 0.5,
        )
        self.lock_times = LockTimes(lock_s)
        self.batcher = Batcher(
            asker, self.tasks, rules=rules, clock=clock, lock_times=self.lock_times, max_answer_bytes=1000
        )
        self.claims = Claims(world, self.tasks, 2.0, uncacheable_s)
        self.fetcher = Fetcher(
            batcher=self.batcher,
            flights=self.flights,
            lock_times=self.lock_times,
            claims=self.claims,
            tiers=self.tiers,
            voidable=self.tiers,
            clock=clock,
            max_answer_bytes=1000,
            on_overdue=self.overdue.append,
        )

    def mode(self, _upstream: str, _operation: str) -> Mode:
        return self.world.mode

    def job(self, *texts: bytes, timeout_s: float | None = None, **fields: Any) -> Job:
        request = Request("POST", "/", JSON, "dashscope", None, timeout_s)
        values = {"wishes": Directives(), "scopes": (), **fields}
        return Job(request, Plan(*texts), outcome=Outcome(), keys=texts, owner=b"", **values)

    async def fetch(self, job: Job) -> Landing:
        landing = await self.fetcher.fetch(job, list(job.first_positions.values()))
        landing.store()
        return landing

    def client(self, work: Coroutine[Any, Any, Landing]) -> "asyncio.Task[Landing]":
        return self.clients.start(work, is_awaited=True)

    def ask(self, *texts: bytes, **fields: Any) -> "tuple[Job, asyncio.Task[Landing]]":
        job = self.job(*texts, **fields)
        return job, self.client(self.fetch(job))

    async def settled(self) -> None:
        """Nothing is left running, on its way, or claimed; and nothing went wrong unseen."""
        assert await self.tasks.wait_done(5.0) == 0
        assert not self.faults
        assert len(self.flights) == 0
        assert len(self.claims) == 0


def vectors(landing: Landing) -> dict[bytes, bytes]:
    assert landing.rows is not None
    return {key: row.vector for key, row in landing.rows.items()}


def true(*texts: bytes) -> dict[bytes, bytes]:
    return {text: b"v(%b)" % text for text in texts}


# --- in one process ---------------------------------------------------------------------------------------------------


async def test_a_lone_request_has_the_upstreams_answer_and_it_is_kept():
    world = World()
    process = Process(world)
    job, asking = process.ask(b"a", b"b")
    landing = await asking
    assert landing.answer is not None
    assert (landing.answer.body, vectors(landing)) == (b"v(a),v(b)", true(b"a", b"b"))
    await process.settled()
    assert world.entries.keys() == {b"a", b"b"}
    assert (job.outcome.forwarded, job.outcome.coalesced, job.outcome.stored) == (2, 0, True)
    assert world.claims == {}


async def test_r6a_many_who_ask_at_once_are_one_call():
    world = World()
    process = Process(world)
    world.gate.close()
    asking = [process.ask(b"a") for _ in range(100)]
    await world.gate.wait_arrived()
    world.gate.open()
    for job, task in asking:
        assert vectors(await task) == true(b"a")
        assert job.outcome.forwarded + job.outcome.coalesced == 1
    assert sum(job.outcome.coalesced for job, _ in asking) == 99
    assert sum(job.outcome.stored for job, _ in asking) == 1
    assert sum(job.outcome.tokens_saved for job, _ in asking) == 99 * 3
    assert world.asked == [b"a"]
    await process.settled()
    assert process.tiers.fills == [{b"a"}], "kept once"


async def test_r6a_overlapping_batches_ask_for_each_text_once():
    world = World()
    process = Process(world)
    world.gate.close()
    batches = [(b"a", b"b"), (b"b", b"c"), (b"c", b"a"), (b"a", b"b", b"c", b"d")]
    asking = [process.ask(*batch) for batch in batches]
    await world.gate.wait_arrived(3)
    world.gate.open()
    for batch, (job, task) in zip(batches, asking, strict=True):
        landing = await task
        assert vectors(landing) == true(*batch)
        assert (landing.answer is None) == (batch != batches[0]), (
            "the upstream's answer only to who asked for all of it"
        )
        assert job.outcome.forwarded + job.outcome.coalesced == len(batch)
    assert world.asked == [b"a,b", b"c", b"d"]
    await process.settled()


async def test_what_has_come_and_is_not_yet_kept_is_not_asked_for_again():
    world = World()
    process = Process(world)
    world.filling = Gate("store")
    await process.ask(b"a")[1]
    await world.filling.wait_arrived()
    job, late = process.ask(b"a")
    assert vectors(await late) == true(b"a")
    assert (job.outcome.coalesced, world.asked) == (1, [b"a"])
    world.filling.open()
    await process.settled()
    assert process.tiers.fills == [{b"a"}]


async def test_what_nobody_keeps_is_kept_all_the_same():
    """Its client has gone after the answer had come."""
    world = World()
    process = Process(world)
    await process.fetcher.fetch(process.job(b"a"), [0])
    assert world.entries == {}
    await process.settled()
    assert world.entries.keys() == {b"a"}


async def test_nothing_is_kept_in_bypass():
    world = World()
    process = Process(world)
    world.gate.close()
    _, asking = process.ask(b"a")
    await world.gate.wait_arrived()
    world.mode = Mode.BYPASS
    world.gate.open()
    assert vectors(await asking) == true(b"a")
    await process.settled()
    assert world.entries == world.claims == {}


async def test_r6b_the_first_may_leave():
    world = World()
    process = Process(world)
    world.gate.close()
    (_, first), *others = [process.ask(b"a") for _ in range(20)]
    await world.gate.wait_arrived()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    world.gate.open()
    for _, task in others:
        assert vectors(await task) == true(b"a")
    assert (world.asked, world.cancelled) == ([b"a"], 0)
    await process.settled()


async def test_r8_when_all_have_left_the_upstream_is_let_go():
    world = World()
    process = Process(world)
    world.gate.close()
    asking = [process.ask(b"a", b"b")[1], process.ask(b"b", b"c")[1], process.ask(b"b")[1]]
    await world.gate.wait_arrived(2)
    for task in asking:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*asking, return_exceptions=True))
    await wait_until(lambda: world.cancelled == 2)
    await process.settled()
    assert world.claims == {}


async def test_the_first_ones_deadline_is_not_everybodys():
    world = World()
    process = Process(world)
    await process.ask(b"a", timeout_s=0.05)[1]
    assert world.deadlines == [None]
    await process.settled()


async def test_no_cache_joins_nobody_but_others_may_join_it():
    world = World()
    process = Process(world)
    world.gate.close()
    _, plain = process.ask(b"a")
    await world.gate.wait_arrived()
    fresh, alone = process.ask(b"a", b"b", wishes=Directives(no_cache=True))
    await world.gate.wait_arrived(2)
    job, joining = process.ask(b"b")
    assert process.flights.carrying([b"b"])
    world.gate.open()
    for task, texts in ((plain, [b"a"]), (alone, [b"a", b"b"]), (joining, [b"b"])):
        assert vectors(await task) == true(*texts)
    assert world.asked == [b"a", b"a,b"]
    assert (fresh.outcome.forwarded, job.outcome.coalesced) == (2, 1)
    await process.settled()
    assert world.claims == {}


# --- failures ---------------------------------------------------------------------------------------------------------


def failing_once(*replies: Any) -> Script:
    left = list(replies)
    return lambda request: left.pop(0) if left else right(request)


@pytest.mark.parametrize(
    "failure",
    [
        lambda: Reply(b"no", 502),
        lambda: UpstreamError(ErrorCode.UPSTREAM_TIMEOUT, "late", 504),
        lambda: UpstreamError(ErrorCode.UPSTREAM_PROTOCOL, "broke off"),
    ],
)
async def test_r6c_a_failure_is_the_firsts_and_the_rest_ask_once_more(failure: Callable[[], Any]):
    world = World()
    process = Process(world)
    world.gate.close()
    world.answer = failing_once(failure())
    asking = [process.ask(b"a") for _ in range(50)]
    await world.gate.wait_arrived()
    world.gate.open()
    ends = await asyncio.gather(*(task for _, task in asking), return_exceptions=True)
    assert isinstance(ends[0], UpstreamError) or ends[0].answer.status == 502
    assert all(vectors(end) == true(b"a") for end in ends[1:])
    assert world.asked == [b"a", b"a"]
    await process.settled()


async def test_r6c_a_failure_that_lasts_is_everybodys_after_two_calls():
    world = World()
    process = Process(world)
    world.gate.close()
    cookie = (b"Set-Cookie", b"session=first")
    world.answer = lambda _: Reply(gzip.compress(b"no"), 503, (*JSON, cookie, (b"Content-Encoding", b"gzip")))
    asking = [process.ask(b"a") for _ in range(50)]
    await world.gate.wait_arrived()
    world.gate.open()
    ends = [await task for _, task in asking]
    assert world.asked == [b"a", b"a"]
    own, shared = [end for end in ends if cookie in end.answer.headers], [end for end in ends if end.rows is None][2:]
    assert len(own) == 2
    for end in shared:
        assert (end.answer.status, end.detail, end.answer.body, end.answer.length) == (503, Refusal.STATUS, b"no", 2)
        assert end.answer.headers == JSON, "no cookie of another's, and no coding that it may not read"
        assert end.answer is not own[1].answer
    assert sum(job.outcome.coalesced for job, _ in asking) == 48
    await process.settled()


async def test_r6c_errors_of_ours_are_handed_on_without_growing():
    world = World()
    process = Process(world)
    world.gate.close()
    error = UpstreamError(ErrorCode.UPSTREAM_TIMEOUT, "late", 504)
    world.answer = lambda _: error
    asking = [process.ask(b"a")[1] for _ in range(50)]
    await world.gate.wait_arrived()
    world.gate.open()
    assert await asyncio.gather(*asking, return_exceptions=True) == [error] * 50
    depth, step = 0, error.__traceback__
    while step is not None:
        depth, step = depth + 1, step.tb_next
    assert depth < 10
    assert world.asked == [b"a", b"a"]
    await process.settled()


async def test_a_coding_that_nobody_can_undo_is_handed_on_as_it_is():
    world = World()
    process = Process(world)
    world.gate.close()
    lines = (*JSON, (b"Content-Encoding", b"br"))
    world.answer = lambda _: Reply(b"\x0b", 500, lines)
    asking = [process.ask(b"a")[1] for _ in range(4)]
    await world.gate.wait_arrived()
    world.gate.open()
    assert {((end := await task).answer.body, end.answer.headers) for task in asking} == {(b"\x0b", lines)}
    await process.settled()


@pytest.mark.parametrize("uncacheable_s", [10.0, 0.0])
@pytest.mark.parametrize(
    "reply",
    [
        lambda: Reply(b"x", long=True),
        lambda: Reply(b"v(a)", 200, ((b"Cache-Control", b"no-store"),)),
        lambda: Reply(b"slow down", 429),
        lambda: Reply(b"junk"),
        lambda: Reply(b"x" * 2_000_000, 500, long=True),
    ],
)
async def test_r6d_what_cannot_be_kept_is_waited_for_once(reply: Callable[[], Reply], uncacheable_s: float):
    world = World()
    process = Process(world, uncacheable_s=uncacheable_s)
    world.answer = lambda _: reply()
    world.gate.close()
    asking = [process.ask(b"a")[1] for _ in range(20)]
    await world.gate.wait_arrived()
    world.gate.open()
    world.gate.close()
    await world.gate.wait_arrived(20)  # all the others at once, not one after the other
    assert len(world.asked) == 20
    later = [process.ask(b"a")[1] for _ in range(20)]
    if uncacheable_s:
        await world.gate.wait_arrived(40)  # nobody waits for anybody
    world.gate.open()
    for landing in [await task for task in asking + later]:
        assert landing.rows is None
        assert landing.positions == [0]
        landing.close()
    await process.settled()


async def test_an_answer_to_a_part_says_so():
    """What was asked for by another is missing in it: it must not be taken for the whole."""
    world = World()
    process = Process(world)
    world.gate.close()
    _, other = process.ask(b"a")
    await world.gate.wait_arrived()
    world.answer = lambda request: Reply(b"v(b)", 200, ((b"Cache-Control", b"no-store"),))
    _, asking = process.ask(b"a", b"b")
    await world.gate.wait_arrived(2)
    world.gate.open()
    landing = await asking
    assert (landing.rows, landing.positions) == (None, [1])
    assert (await other).rows is None
    await process.settled()


async def test_who_has_its_end_does_not_wait_for_others():
    """It would hold a connection that those it waits for may need."""
    world = World()
    process = Process(world)
    gates = {b"a": Gate("a"), b"b": Gate("b")}

    async def send(request: Request, body: object = None) -> Reply:
        await gates[request.body or b""].wait()
        return right(request) if request.body == b"a" else Reply(b"too long", long=True)

    world.send = send
    _, other = process.ask(b"a")
    await gates[b"a"].wait_arrived()
    _, asking = process.ask(b"a", b"b")
    gates[b"b"].open()
    assert (await asking).detail == Refusal.TOO_LARGE
    assert not other.done()
    gates[b"a"].open()
    assert vectors(await other) == true(b"a")
    await process.settled()


async def test_one_part_from_others_failing_is_asked_for_by_oneself():
    world = World()
    process = Process(world)
    world.gate.close()
    world.answer = lambda request: (
        Reply(b"no", 429) if [request.body, *world.asked].count(b"a") == 2 else right(request)
    )
    _, other = process.ask(b"a")
    await world.gate.wait_arrived()
    job, asking = process.ask(b"a", b"b")
    await world.gate.wait_arrived(2)
    world.gate.open()
    assert (await other).answer.status == 429
    assert vectors(await asking) == true(b"a", b"b")
    assert world.asked == [b"a", b"b", b"a"]
    assert (job.outcome.forwarded, job.outcome.coalesced) == (2, 0)
    await process.settled()


async def test_an_unread_answer_is_let_go_when_its_only_reader_has_left():
    world = World()
    process = Process(world)
    world.gate.close()
    world.answer = lambda _: Reply(b"x", long=True)
    _, first = process.ask(b"a")
    _, second = process.ask(b"a")
    await world.gate.wait_arrived()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    world.gate.open()
    landing = await second
    assert [reply.closed for reply in world.replies] == [1, 0]
    landing.close()
    assert world.replies[1].closed == 1
    await process.settled()


async def test_an_answer_that_cannot_be_judged_is_let_go():
    world = World()
    process = Process(world)
    job = process.job(b"a")
    job.plan.split = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        await process.fetch(job)
    assert [reply.closed for reply in world.replies] == [1]
    assert await process.tasks.wait_done(5.0) == 0
    assert (len(process.flights), len(process.claims)) == (0, 0)
    assert [type(fault) for fault in process.faults] == [ZeroDivisionError]


async def test_a_store_that_breaks_ends_the_trip():
    world = World()
    process = Process(world)

    def broken(*_: object) -> None:
        raise KeyError("a bug")

    process.tiers.fill = broken
    with pytest.raises(KeyError):
        await process.ask(b"a")[1]
    await process.settled()


async def test_a_read_is_sent_again_when_its_connection_had_closed():
    world = World()
    process = Process(world)
    world.answer = failing_once(UpstreamError(ErrorCode.UPSTREAM_UNREACHABLE, "closed", retryable=True))
    job, asking = process.ask(b"a")
    assert vectors(await asking) == true(b"a")
    assert (job.outcome.upstream_calls, world.asked) == (2, [b"a", b"a"])
    await process.settled()


# --- what hangs on writes ---------------------------------------------------------------------------------------------


def vector(*tokens: bytes) -> dict[str, Any]:
    return {"scopes": (b"collection",), "tokens": tokens or None}


async def test_only_under_equal_tokens_do_queries_share():
    world = World()
    process = Process(world)
    world.gate.close()
    before = [process.ask(b"q", **vector(b"t1"))[1] for _ in range(3)]
    await world.gate.wait_arrived(1)
    after = [process.ask(b"q", **vector(b"t2"))[1] for _ in range(3)]
    await world.gate.wait_arrived(2)
    world.gate.open()
    await asyncio.gather(*before, *after)
    assert len(world.asked) == 2
    await process.settled()


async def test_without_tokens_nobody_shares_claims_or_keeps():
    world = World()
    process = Process(world)
    world.gate.close()
    asking = [process.ask(b"q", **vector()) for _ in range(3)]
    await world.gate.wait_arrived(3)
    assert world.claims == {}
    world.gate.open()
    for job, task in asking:
        assert (await task).stores == ()
        assert not job.outcome.stored
    await process.settled()
    assert process.tiers.fills == []


# --- between processes ------------------------------------------------------------------------------------------------


async def test_two_processes_ask_once():
    world = World()
    one, other = Process(world), Process(world)
    world.gate.close()
    _, first = one.ask(b"a")
    await world.gate.wait_arrived()
    others = [other.ask(b"a") for _ in range(10)]
    await wait_until(lambda: other.tiers.reads)
    world.gate.open()
    assert vectors(await first) == true(b"a")
    for job, task in others:
        assert vectors(await task) == true(b"a")
        assert (job.outcome.forwarded, job.outcome.coalesced, job.outcome.upstream_calls) == (0, 1, 0)
    assert world.asked == [b"a"]
    await one.settled()
    await other.settled()
    assert world.claims == {}


async def test_what_came_since_the_look_up_is_not_asked_for():
    world = World()
    one, other = Process(world), Process(world)
    await one.ask(b"a")[1]
    await one.settled()
    assert vectors(await other.ask(b"a")[1]) == true(b"a")
    assert world.asked == [b"a"]
    await other.settled()


async def test_what_is_there_but_of_no_use_is_replaced():
    world = World()
    one, other = Process(world), Process(world)
    await one.ask(b"a")[1]
    await one.settled()
    world.filling = Gate("store")
    await other.ask(b"a", unusable=frozenset([b"a"]))[1]
    assert world.asked == [b"a", b"a"]
    # Not even what has just come and is not yet kept will do: it may be what was found.
    await other.ask(b"a", unusable=frozenset([b"a"]))[1]
    assert world.asked == [b"a"] * 3
    world.filling.open()
    await other.settled()
    # There, and only now seen to be too old for this client.
    world.clock.advance(5)
    await other.ask(b"a", wishes=Directives(max_age_s=1))[1]
    assert world.asked == [b"a"] * 4
    await other.settled()
    assert world.claims == {}


async def test_overlapping_batches_of_two_processes_ask_once_for_each_text():
    world = World()
    one, other = Process(world), Process(world)
    world.gate.close()
    _, first = one.ask(b"a", b"b")
    await world.gate.wait_arrived(1)
    job, second = other.ask(b"c", b"b", b"d")
    await world.gate.wait_arrived(2)
    world.gate.open()
    assert vectors(await first) == true(b"a", b"b")
    landing = await second
    assert vectors(landing) == true(b"c", b"b", b"d")
    assert landing.answer is None
    assert world.asked == [b"a,b", b"c,d"]
    assert (job.outcome.forwarded, job.outcome.coalesced) == (2, 1)
    await one.settled()
    await other.settled()


async def test_nothing_is_held_while_waiting():
    world = World()
    process = Process(world)
    world.claims[b"b"] = b"another"
    _, asking = process.ask(b"a", b"b")
    await wait_until(lambda: process.tiers.reads)
    assert world.entries.keys() == {b"a"}
    assert len(process.claims) == 0
    del world.claims[b"b"]
    assert vectors(await asking) == true(b"a", b"b")
    await process.settled()


async def test_a_holder_that_fails_leaves_it_to_the_next():
    world = World()
    one, other = Process(world), Process(world)
    world.gate.close()
    world.answer = failing_once(Reply(b"no", 502))
    _, first = one.ask(b"a")
    await world.gate.wait_arrived()
    _, second = other.ask(b"a", b"b")
    await world.gate.wait_arrived(2)
    world.gate.open()
    assert (await first).answer.status == 502
    assert vectors(await second) == true(b"a", b"b")
    assert world.asked == [b"a", b"b", b"a"]
    await one.settled()
    await other.settled()
    assert world.claims == {}


async def test_two_who_wait_for_each_other_get_on():
    """Claims on *x* and *y* end one after the other; whoever got *x* waits for *y*, and the other way round."""
    world = World()
    one, other = Process(world), Process(world)
    world.claims.update({b"x": b"dead", b"y": b"dead"})
    asking = [one.ask(b"x", b"y")[1], other.ask(b"y", b"x")[1]]
    await wait_until(lambda: one.tiers.reads and other.tiers.reads)
    world.gate.close()
    del world.claims[b"x"]
    await world.gate.wait_arrived(1)
    del world.claims[b"y"]
    await wait_until(lambda: len(world.asked) == 2)
    world.gate.open()
    for task in asking:
        assert vectors(await asyncio.wait_for(task, 5)) == true(b"x", b"y")
    assert sorted(world.asked) == [b"x", b"y"]
    await one.settled()
    await other.settled()
    assert world.claims == {}


async def test_what_was_claimed_is_given_up_when_the_rest_fails():
    world = World()
    process = Process(world)
    world.claims[b"b"] = b"another"
    world.gate.close()
    world.answer = lambda _: Reply(b"no", 502)
    _, asking = process.ask(b"a", b"b")
    await world.gate.wait_arrived()
    del world.claims[b"b"]
    world.gate.open()
    landing = await asking
    assert (landing.answer.status, landing.positions) == (502, [0])
    await process.settled()
    assert world.claims == {}


async def test_who_leaves_while_it_waits_for_another_process_gives_up_what_it_holds():
    world = World()
    process = Process(world)
    world.claims[b"b"] = b"another"
    _, asking = process.ask(b"a", b"b")
    await wait_until(lambda: process.tiers.reads)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await process.settled()
    assert world.claims == {b"b": b"another"}
    assert world.entries.keys() == {b"a"}, "what was paid for is kept"


async def test_r6d_what_cannot_be_kept_holds_no_other_process_up():
    world = World()
    one, other = Process(world), Process(world)
    world.answer = lambda _: Reply(b"no", 429)
    await one.ask(b"a")[1]
    await one.settled()
    assert world.claims == {b"a": b""}, "a mark"
    world.gate.close()
    busy = [one.ask(b"a")[1] for _ in range(3)]
    await world.gate.wait_arrived(4)
    _, asking = other.ask(b"a")
    await world.gate.wait_arrived(5)  # though the first is always at it
    world.gate.open()
    assert {(await task).answer.status for task in (*busy, asking)} == {429}
    await one.settled()
    await other.settled()


@pytest.mark.parametrize("uncacheable_s", [10.0, 0.0])
@pytest.mark.parametrize("is_known_before", [False, True])
async def test_r6d_what_another_process_could_not_keep_is_asked_for_side_by_side(
    uncacheable_s: float, is_known_before: bool
):
    world = World()
    process = Process(world, uncacheable_s=uncacheable_s)
    world.gate.close()
    world.claims[b"a"] = b"" if is_known_before else b"another"
    waiting = [process.ask(b"a") for _ in range(10)]
    if not is_known_before:
        await wait_until(lambda: process.tiers.reads)
        world.claims[b"a"] = b""
    await world.gate.wait_arrived(10)  # nobody has had to wait for an answer of this process
    assert process.flights.free([b"a"]) == (set() if uncacheable_s else {b"a"})
    late, asking = process.ask(b"a", b"b")
    await world.gate.wait_arrived(11)
    world.gate.open()
    for job, task in waiting:
        assert vectors(await task) == true(b"a")
        assert (job.outcome.forwarded, job.outcome.coalesced) == (1, 0)
    assert vectors(await asking) == true(b"a", b"b")
    assert late.outcome.forwarded == 2
    await process.settled()


async def test_nobody_waits_for_ever_for_a_holder_that_lives():
    world = World()
    process = Process(world)
    world.claims[b"a"] = b"stuck, and renewed for ever"
    _, asking = process.ask(b"a")
    await wait_until(lambda: len(process.tiers.reads) > 3)
    assert not asking.done()
    world.clock.advance(30)
    assert vectors(await asking) == true(b"a")
    await process.settled()
    assert world.claims.keys() == {b"a"}


@pytest.mark.parametrize("when", ["before", "while waiting"])
async def test_redis_may_die_at_any_time(when: str):
    world = World()
    process = Process(world)
    world.claims[b"a"] = b"another"
    job = process.job(b"a")
    if when == "before":
        job.outcome.redis_ok = world.redis_works = False
    asking = process.client(process.fetch(job))
    if when == "while waiting":
        await wait_until(lambda: process.tiers.reads)
        world.redis_works = False
    assert vectors(await asking) == true(b"a")
    if when == "before":
        assert process.tiers.reads == [], "one deadline per request is enough"
        assert world.claimed == 0
    await process.settled()


async def test_a_shared_end_needs_a_failure():
    world = World()
    process = Process(world)
    with pytest.raises(TypeError):
        process.fetcher._shared(Landing(answer=Answer(200, "OK", (), Reply())))
