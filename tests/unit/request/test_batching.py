"""Several requests in one upstream request, and one in several: who asks, what each gets, and what a failure costs."""

import asyncio
import dataclasses
import random
from typing import Any

import pytest

from proxy.core.errors import ErrorCode, UpstreamError
from proxy.core.freshness import Directives
from proxy.core.outcome import Outcome
from proxy.core.request import Request
from proxy.request.ask import Job, Landing
from proxy.request.batching import Rules, common_lines, shared
from tests.support.gate import Gate
from tests.support.waiting import wait_until
from tests.unit.request.test_fetch import JSON, Plan, Process, Reply, World, right, true, vectors

CAP = 4
SOON = Rules(window_s=0.05, max_bytes=100)
NEVER = Rules(window_s=60.0, max_bytes=100)
"""Whatever is sent with this was full."""
CUTTING = Rules(cuts=True, parallel=2)


class Texts(Plan):
    """Texts of which the vendor takes so many; *who* is asking."""

    cap = CAP

    def __init__(self, *texts: bytes, who: bytes = b"sk") -> None:
        super().__init__(*texts)
        self.items, self.identity = texts, (who,)

    @property
    def batchable(self) -> "Texts | None":
        return self if self.cap else None

    def merged(self, parts: Any) -> "Texts":
        assert {plan.identity for plan, _ in parts} == {self.identity}
        return Texts(*(plan.texts[at] for plan, at in parts), who=self.identity[0])


class Batching(Process):
    """A process that batches."""

    def job(self, *texts: bytes, who: bytes = b"sk", lines: Any = (), **fields: Any) -> Job:
        request = Request("POST", "/", (*JSON, *lines), "dashscope")
        plan = Texts(*texts, who=who)
        keys = tuple(text if who == b"sk" else who + text for text in texts)
        values = {"wishes": Directives(), "scopes": (), **fields}
        return Job(request, plan, outcome=Outcome(), keys=keys, owner=b"", **values)

    async def settled(self) -> None:
        await super().settled()
        assert len(self.batcher) == 0


def refusing(*bad: bytes, status: int = 400) -> Any:
    """The vendor refuses whatever holds one of the *bad* texts."""

    def answer(request: Request) -> Reply:
        is_bad = not {*bad}.isdisjoint((request.body or b"").split(b","))
        return Reply(b"no: %b" % (request.body or b""), status) if is_bad else right(request)

    return answer


def letters(count: int) -> list[bytes]:
    return [bytes([ord("a") + number]) for number in range(count)]


# --- several requests in one ------------------------------------------------------------------------------------------


async def test_without_a_window_nothing_waits_for_anything():
    world = World()
    process = Batching(world)
    asking = [process.ask(text)[1] for text in letters(3)]
    await world.gate.wait_arrived(3)
    assert len(process.batcher) == 0
    for task in asking:
        await task
    assert sorted(world.asked) == letters(3)
    await process.settled()


async def test_requests_of_one_moment_are_one_call_and_each_gets_its_own():
    world = World()
    process = Batching(world, rules=SOON)
    asking = [process.ask(text) for text in letters(3)]
    for text, (_, task) in zip(letters(3), asking, strict=True):
        landing = await task
        assert vectors(landing) == true(text)
        assert landing.answer is None, "the vendor's own answer is nobody's"
    assert world.asked == [b"a,b,c"]
    outcomes = [job.outcome for job, _ in asking]
    assert [outcome.upstream_calls for outcome in outcomes] == [1, 0, 0]
    for outcome in outcomes:
        assert (outcome.forwarded, outcome.coalesced, outcome.upstream_status) == (1, 0, 200)
        assert (outcome.stored, outcome.batched) == (True, 3)
    await process.settled()
    assert world.entries.keys() == set(letters(3))
    assert world.claims == {}


async def test_a_full_batch_is_sent_at_once_and_larger_requests_come_along_as_far_as_there_is_room():
    world = World()
    process = Batching(world, rules=NEVER)
    asking = [process.ask(*texts)[1] for texts in ((b"a", b"b"), (b"c", b"d"), (b"e", b"f", b"g"), (b"h", b"i"))]
    assert vectors(await asking[0]) == true(b"a", b"b")
    assert vectors(await asking[1]) == true(b"c", b"d")
    assert vectors(await asking[2]) == true(b"e", b"f", b"g"), "it went when the next one had no room"
    last = [process.ask(text)[1] for text in (b"j", b"k")]
    assert vectors(await asking[3]) == true(b"h", b"i")
    assert [vectors(await task) for task in last] == [true(b"j"), true(b"k")]
    assert world.asked == [b"a,b,c,d", b"e,f,g", b"h,i,j,k"]
    await process.settled()


async def test_who_is_full_or_too_large_already_does_not_wait():
    world = World()
    process = Batching(world, rules=NEVER)
    _, waiting = process.ask(b"z")
    await wait_until(lambda: len(process.batcher))
    landing = await process.ask(*letters(CAP))[1]
    assert landing.answer is not None
    large = b"x" * 101
    assert vectors(await process.ask(large)[1]) == true(large)
    assert world.asked == [b"a,b,c,d", large]
    waiting.cancel()
    await asyncio.wait([waiting])
    await process.settled()


async def test_a_lone_request_goes_as_it_is():
    world = World()
    process = Batching(world, rules=SOON)
    job, asking = process.ask(b"a")
    landing = await asking
    assert landing.answer is not None
    assert landing.answer.body == b"v(a)"
    assert (job.outcome.upstream_calls, job.outcome.batched) == (1, 0)
    await process.settled()


async def test_s1_batches_do_not_cross_credentials():
    world = World()
    process = Batching(world, rules=SOON)
    asking = [process.ask(text, who=who)[1] for text in letters(2) for who in (b"one", b"two")]
    for task in asking:
        assert len(vectors(await task)) == 1
    assert sorted(world.asked) == [b"a,b", b"a,b"]
    assert world.entries.keys() <= {who + text for text in letters(2) for who in (b"one", b"two")}
    await process.settled()


async def test_one_text_of_several_requests_is_asked_for_once():
    world = World()
    process = Batching(world, rules=SOON)
    asking = [process.ask(b"a"), process.ask(b"a", b"b"), process.ask(b"a", b"c", wishes=Directives(no_cache=True))]
    for job, task in asking:
        assert vectors(await task) == true(*job.keys)
    # Who does not want what is on its way asks on its own: nothing but a flight may be put together.
    assert sorted(world.asked) == [b"a,b", b"a,c"]
    await process.settled()


async def test_many_bytes_are_not_put_together():
    world = World()
    process = Batching(world, rules=dataclasses.replace(SOON, max_bytes=20))
    texts = [b"x" * 21, b"y" * 10, b"z" * 10, b"w"]
    asking = [process.ask(text)[1] for text in texts]
    for text, task in zip(texts, asking, strict=True):
        assert vectors(await task) == true(text)
    assert sorted(world.asked) == sorted([texts[0], b"%b,%b" % (texts[1], texts[2]), texts[3]])
    await process.settled()


async def test_a_model_without_a_known_cap_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Texts, "cap", 0)
    world = World()
    process = Batching(world, rules=SOON)
    for task in [process.ask(text)[1] for text in letters(2)]:
        await task
    assert sorted(world.asked) == letters(2)
    await process.settled()


def test_what_names_one_request_or_its_sender_does_not_speak_for_others():
    first = ((b"Authorization", b"k"), (b"X-Request-Id", b"1"), (b"X-Dup", b"a"), (b"X-Dup", b"b"), (b"Via", b"x"))
    alike = ((b"authorization", b"k"), (b"x-request-id", b"2"), (b"X-Dup", b"a"), (b"X-Dup", b"b"), (b"Via", b"x"))
    other = (*alike[:-1], (b"Accept", b"*/*"))
    needed = ((b"User-Agent", b"one"), (b"Content-Type", b"application/json"), (b"Accept-Encoding", b"gzip"))

    def request(*lines: tuple[bytes, bytes]) -> Request:
        return Request("POST", "/", lines, "u")

    assert common_lines([request(*first)] * 2) == first
    assert common_lines([request(*first), request(*alike)]) == (first[0], *first[2:])
    assert common_lines([request(*first), request(*alike), request(*other)]) == (first[0], *first[2:4])
    assert common_lines([request(*needed), request()]) == needed


async def test_the_headers_of_a_batch_are_what_all_have_sent(monkeypatch: pytest.MonkeyPatch):
    world = World()
    sent: list[Request] = []
    monkeypatch.setattr(world, "answer", lambda request: sent.append(request) or right(request))
    process = Batching(world, rules=SOON)
    asking = [process.ask(text, lines=((b"X-Request-Id", text), (b"X-Same", b"s")))[1] for text in letters(2)]
    for task in asking:
        await task
    (request,) = sent
    assert [line for line in request.headers if line[0].startswith(b"X-")] == [(b"X-Same", b"s")]
    await process.settled()


# --- clients that leave -----------------------------------------------------------------------------------------------


async def test_r6b_the_first_may_leave_before_and_after_the_batch_is_sent():
    world = World()
    process = Batching(world, rules=NEVER)
    world.gate.close()
    (_, early), (_, late), *others = [process.ask(text) for text in letters(2)]
    await wait_until(lambda: len(process.batcher))
    early.cancel()
    await asyncio.wait([early])
    others = [process.ask(text) for text in letters(6)[2:5]]
    await world.gate.wait_arrived()
    late.cancel()
    await asyncio.wait([late])
    world.gate.open()
    for text, (_, task) in zip(letters(6)[2:5], others, strict=True):
        assert vectors(await task) == true(text)
    assert (world.asked, world.cancelled) == ([b"b,c,d,e"], 0), "who left in time is not asked for"
    await process.settled()


@pytest.mark.parametrize("is_sent", [False, True])
async def test_r8_when_all_have_left_nothing_is_asked_or_the_upstream_let_go(is_sent: bool):
    world = World()
    process = Batching(world, rules=SOON if is_sent else NEVER)
    world.gate.close()
    asking = [process.ask(text)[1] for text in letters(3)]
    await (world.gate.wait_arrived() if is_sent else wait_until(lambda: len(process.batcher)))
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    await wait_until(lambda: world.cancelled == is_sent)
    await process.settled()
    assert world.asked == ([b"a,b,c"] if is_sent else [])
    assert world.claims == {}


async def test_who_tries_for_all_may_leave():
    world = World()
    process = Batching(world, rules=SOON)
    world.answer = lambda _: Reply(b"down", 503)
    world.gate.close()
    asking = [process.ask(text)[1] for text in letters(3)]
    await world.gate.wait_arrived()
    world.gate.open()
    world.gate.close()
    await world.gate.wait_arrived(2)
    next(task for task, text in zip(asking, letters(3), strict=True) if text == world.asked[1]).cancel()
    await world.gate.wait_arrived(3)
    world.gate.open()
    ends = await asyncio.gather(*asking, return_exceptions=True)
    assert [end.answer.status for end in ends if isinstance(end, Landing)] == [503, 503]
    assert len(world.asked) == 3
    await process.settled()


async def test_what_came_as_all_were_leaving_is_kept():
    world = World()
    process = Batching(world, rules=SOON)
    asking = [process.ask(text)[1] for text in letters(3)]

    def answer(request: Request) -> Reply:
        for task in asking:
            task.cancel()
        return right(request)

    world.answer = answer
    await asyncio.wait(asking)
    assert all(task.cancelled() for task in asking)
    await process.settled()
    assert world.entries.keys() == set(letters(3))


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413])
async def test_one_bad_text_is_refused_alone(status: int):
    world = World()
    process = Batching(world, rules=SOON)
    world.answer = refusing(b"b", status=status)
    asking = [process.ask(text) for text in letters(3)]
    good, bad, fine = [await task for _, task in asking]
    assert (vectors(good), vectors(fine)) == (true(b"a"), true(b"c"))
    assert (bad.answer.status, bad.rows) == (status, None)
    assert b"".join([piece async for piece in bad.answer.body]) == b"no: b", "its own answer"
    assert world.asked[0] == b"a,b,c"
    assert sorted(world.asked[1:]) == letters(3)
    assert world.replies[0].closed, "its connection is free before the next is asked for"
    assert [job.outcome.upstream_calls for job, _ in asking] == [2, 1, 1]
    await process.settled()
    assert world.entries.keys() == {b"a", b"c"}
    assert world.claims == {b"b": b""}, "a mark, on that text alone"


async def test_a_refused_batch_costs_one_call_in_vain_a_second():
    world = World()
    process = Batching(world, rules=SOON)
    world.answer = refusing(b"bad")
    for task in [process.ask(text)[1] for text in (b"bad", b"a")]:
        await task
    del world.asked[:]
    for texts, calls in (((b"b", b"c"), [b"b", b"c"]), ((b"d", b"e"), [b"d,e"])):
        for task in [process.ask(text)[1] for text in texts]:
            await task
        assert sorted(world.asked) == calls
        del world.asked[:]
        world.clock.advance(1.1)
    # What is marked goes on its own, and nobody is asked for twice because of it.
    asking = [process.ask(text)[1] for text in (b"bad", b"f", b"g")]
    assert [(await task).rows is None for task in asking] == [True, False, False]
    assert sorted(world.asked) == [b"bad", b"f,g"]
    await process.settled()


@pytest.mark.parametrize("answer", [Reply(b"junk"), Reply(b"v(a)", 200, (*JSON, (b"Cache-Control", b"no-store")))])
async def test_an_answer_that_is_not_right_is_nobodys(answer: Reply):
    world = World()
    process = Batching(world, rules=SOON)
    world.answer = lambda request: answer if b"," in (request.body or b"") else right(request)
    asking = [process.ask(text)[1] for text in letters(2)]
    assert [vectors(await task) for task in asking] == [true(b"a"), true(b"b")]
    assert len(world.asked) == 3
    await process.settled()


FAILURES = {
    "500": lambda _: Reply(b"down", 500, (*JSON, (b"Set-Cookie", b"of=one"))),
    "timeout": lambda _: UpstreamError(ErrorCode.UPSTREAM_TIMEOUT, "too slow", 504),
    "429": lambda _: Reply(b"slow down", 429),
    "401": lambda _: Reply(b"who?", 401),
}


async def ends_of(asking: list[Any]) -> list[Any]:
    found = []
    for task in asking:
        try:
            landing = await task
        except UpstreamError as error:
            found.append((error.status, b""))
            continue
        body = landing.answer.body
        is_whole = isinstance(body, bytes)
        found.append((landing.answer.status, body if is_whole else b"".join([piece async for piece in body])))
    return found


@pytest.mark.parametrize("kind", FAILURES)
async def test_r6c_what_fails_whoever_asks_is_not_asked_by_everybody(kind: str):
    world = World()
    process = Batching(world, rules=NEVER)
    world.answer = FAILURES[kind]
    asking = [process.ask(text) for text in letters(CAP)]
    ends = await ends_of([task for _, task in asking])
    assert len(set(ends)) == 1
    assert ends[0][0] == {"timeout": 504, "500": 500}.get(kind) or int(kind)
    assert len(world.asked) == 2, "the batch, and one that tried for all"
    assert sum(job.outcome.upstream_calls for job, _ in asking) == 2
    await process.settled()
    assert world.entries == {}


async def test_cookies_are_not_shared():
    world = World()
    process = Batching(world, rules=SOON)
    world.answer = FAILURES["500"]
    landings = [await task for task in [process.ask(text)[1] for text in letters(3)]]
    told = [dict(landing.answer.headers).get(b"Set-Cookie") for landing in landings]
    assert sorted(told, key=str) == [None, None, b"of=one"], "it is whose call it was"
    await process.settled()


@pytest.mark.parametrize("kind", FAILURES)
async def test_a_failure_of_the_batch_alone_is_nobodys(kind: str):
    world = World()
    process = Batching(world, rules=SOON)
    world.answer = lambda request: FAILURES[kind](request) if b"," in (request.body or b"") else right(request)
    asking = [process.ask(text)[1] for text in letters(3)]
    assert [vectors(await task) for task in asking] == [true(text) for text in letters(3)]
    assert len(world.asked) == 4
    await process.settled()


async def test_without_a_turn_for_the_batch_nobody_tries_again():
    world = World()
    process = Batching(world, rules=SOON)
    world.answer = lambda _: UpstreamError(ErrorCode.UPSTREAM_BUSY, "busy", 503)
    assert await ends_of([process.ask(text)[1] for text in letters(3)]) == [(503, b"")] * 3
    assert len(world.asked) == 1
    await process.settled()


async def test_a_refusal_that_breaks_off_or_is_too_long_to_be_shared_is_nobodys():
    class Breaking(Reply):
        async def __aiter__(self):
            yield b"x"
            raise UpstreamError(ErrorCode.UPSTREAM_PROTOCOL, "broken off")

    for answer in (Breaking(b"", 429, long=True), Reply(b"x" * 70_000, 429, long=True)):
        world = World()
        process = Batching(world, rules=SOON)
        world.answer = lambda request, answer=answer: answer if b"," in (request.body or b"") else right(request)
        asking = [process.ask(text)[1] for text in letters(2)]
        assert [vectors(await task) for task in asking] == [true(b"a"), true(b"b")]
        assert answer.closed
        await process.settled()


async def test_a_fault_of_ours_is_told_and_reaches_everybody(monkeypatch: pytest.MonkeyPatch):
    world = World()
    process = Batching(world, rules=SOON)
    monkeypatch.setattr(Texts, "merged", lambda *_: 1 / 0)
    asking = [process.ask(text)[1] for text in letters(2)]
    ends = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(end) for end in ends] == [ZeroDivisionError] * 2
    assert {type(fault) for fault in process.faults} == {ZeroDivisionError}
    assert len(process.batcher) == 0


def test_only_what_is_whole_is_shared():
    with pytest.raises(TypeError):
        shared(Landing(), 1)


# --- one request in several -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [1, 2, 9])
async def test_a_large_request_is_asked_for_in_pieces_a_few_at_a_time(parallel: int):
    world = World()
    process = Batching(world, rules=dataclasses.replace(CUTTING, parallel=parallel))
    world.gate.close()
    job, asking = process.ask(*letters(10))
    await world.gate.wait_arrived(min(parallel, 3))
    for _ in range(5):
        await asyncio.sleep(0)
    assert world.gate.arrived == min(parallel, 3)
    world.gate.open()
    landing = await asking
    assert vectors(landing) == true(*letters(10))
    assert landing.answer is None
    assert sorted(world.asked) == [b"a,b,c,d", b"e,f,g,h", b"i,j"]
    assert (job.outcome.upstream_calls, job.outcome.forwarded) == (3, 10)
    await process.settled()
    assert world.entries.keys() == set(letters(10))


async def test_when_a_piece_fails_no_more_are_sent_and_what_came_is_kept():
    world = World()
    process = Batching(world, rules=CUTTING)
    world.answer = refusing(b"f")
    texts = letters(20)
    job, asking = process.ask(*texts)
    landing = await asking
    assert (landing.rows, list(landing.positions)) == (None, [4, 5, 6, 7])
    assert b"".join([piece async for piece in landing.answer.body]) == b"no: e,f,g,h"
    assert len(world.asked) == 3, "the third was on its way when the second was refused"
    assert job.outcome.upstream_status == 400
    await process.settled()
    assert world.entries.keys() == {*texts[:4], *texts[8:12]}
    assert world.claims == dict.fromkeys(texts[4:8], b""), "only what was refused is marked"


async def test_when_several_pieces_fail_the_first_is_told_and_the_others_are_let_go():
    world = World()
    process = Batching(world, rules=CUTTING)
    world.answer = refusing(b"b", b"f")
    landing = await process.ask(*letters(8))[1]
    assert list(landing.positions) == [0, 1, 2, 3]
    assert [reply.closed for reply in world.replies] == [0, 1]
    await process.settled()


async def test_an_error_of_a_piece_is_the_requests():
    world = World()
    process = Batching(world, rules=CUTTING)
    world.answer = lambda request: (
        UpstreamError(ErrorCode.UPSTREAM_TIMEOUT, "slow", 504) if b"e" in (request.body or b"") else right(request)
    )
    job, asking = process.ask(*letters(6))
    with pytest.raises(UpstreamError):
        await asking
    assert job.outcome.upstream_status is None
    await process.settled()
    assert world.entries.keys() == set(letters(4))


async def test_r8_who_leaves_lets_all_pieces_go_and_what_came_is_kept():
    world = World()
    process = Batching(world, rules=CUTTING)
    second = Gate("second")
    _, asking = process.ask(*letters(12))

    async def send(request: Request, body: object = None) -> Reply:
        world.asked.append(request.body or b"")
        if len(world.asked) > 1:
            try:
                await second.wait()
            except asyncio.CancelledError:
                world.cancelled += 1
                raise
        return right(request)

    world.send = send
    await second.wait_arrived(2)
    asking.cancel()
    await asyncio.wait([asking])
    await wait_until(lambda: world.cancelled == 2)
    await process.settled()
    assert world.entries.keys() == set(letters(4))
    assert world.claims == {}


# --- all at once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_each_gets_its_own(seed: int):
    """Overlapping requests of two credentials, small and large, some with a bad text, some that leave; 5xx at times."""
    chance = random.Random(seed)
    world = World()
    window_s = chance.choice([0.0, 0.001, 0.01])
    process = Batching(world, rules=Rules(window_s=window_s, max_bytes=30, cuts=True, parallel=2))
    refuse = refusing(b"a")
    world.answer = lambda request: Reply(b"down", 500) if chance.random() < 0.1 else refuse(request)
    asked, leaving = [], []
    for _ in range(80):
        texts = chance.sample(letters(20), chance.choice([1, 1, 1, 2, 3, 6, 11]))
        no_cache = Directives(no_cache=chance.random() < 0.1)
        asked.append((texts, *process.ask(*texts, who=chance.choice([b"sk", b"other"]), wishes=no_cache)))
        if chance.random() < 0.2:
            leaving.append(asked[-1][-1])
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        if leaving and chance.random() < 0.3:
            leaving.pop().cancel()
    for texts, job, task in asked:
        await asyncio.wait([task], timeout=5)
        if task.cancelled():
            continue
        landing = task.result()
        if landing.rows is not None:
            assert vectors(landing) == {key: b"v(%b)" % text for key, text in zip(job.keys, texts, strict=True)}
        elif landing.answer.status == 400:
            body = landing.answer.body
            told = body if isinstance(body, bytes) else b"".join([piece async for piece in body])
            refused = told.removeprefix(b"no: ").split(b",")
            assert b"a" in refused
            assert {*refused} <= {*texts}, "nobody hears of what others asked"
        else:
            assert landing.answer.status == 500
    await process.settled()
    assert set(world.claims.values()) <= {b""}
    assert not any(key.removeprefix(b"other") == b"a" for key in world.entries)
