"""R17: a flight that hangs holds nobody for long, in this process and in others."""

import asyncio
from collections.abc import Callable

import pytest

from proxy.core.errors import ErrorCode, UpstreamError
from proxy.core.freshness import Directives
from proxy.core.request import Request
from proxy.request.ask import Landing
from proxy.request.batching import Rules
from tests.support.gate import Gate
from tests.support.waiting import wait_until
from tests.unit.request.test_batching import Batching
from tests.unit.request.test_fetch import Process, Reply, World, right, true, vector, vectors

LOCK_S = 0.2
"""Half of it is the lock time of what nothing is known of."""


class Hanging(World):
    """The upstream never answers the first *hung* requests, unless their ``gates`` are opened."""

    def __init__(self, hung: int = 1) -> None:
        super().__init__()
        self.gates = [Gate(f"request {number}") for number in range(hung)]

    async def send(self, request: Request, body: object = None) -> Reply:
        number = len(self.asked)
        if number < len(self.gates):
            self.asked.append(request.body or b"")
            try:
                await self.gates[number].wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            self.replies.append(right(request))
            return self.replies[-1]
        return await super().send(request, body)


async def let_go(world: World, *hung: "asyncio.Task[Landing]") -> None:
    """The clients of hung requests leave, and the upstream sees that."""
    before = world.cancelled
    for task in hung:
        task.cancel()
    await asyncio.gather(*hung, return_exceptions=True)
    await wait_until(lambda: world.cancelled == before + len(hung))


async def test_r17_those_who_wait_ask_once_more_together():
    world = Hanging()
    process = Process(world, lock_s=LOCK_S)
    (_, hung), *others = [process.ask(b"a") for _ in range(50)]
    for job, task in others:
        assert vectors(await task) == true(b"a")
        assert job.outcome.forwarded + job.outcome.coalesced >= 1
    assert world.asked == [b"a", b"a"]
    assert process.tiers.fills == [{b"a"}], "the second is a flight like any other"
    assert process.overdue == ["embedding"]
    assert not hung.done()
    await let_go(world, hung)
    await process.settled()
    assert world.claims == {}


async def test_r17_when_the_next_one_hangs_too_each_goes_alone_and_keeps_nothing():
    world = Hanging(2)
    process = Process(world, lock_s=LOCK_S)
    asking = [process.ask(b"a") for _ in range(12)]
    await wait_until(lambda: len(world.asked) == 12)
    await wait_until(lambda: sum(task.done() for _, task in asking) == 10)
    assert all(vectors(task.result()) == true(b"a") for _, task in asking if task.done())
    assert not any(job.outcome.stored for job, _ in asking)
    assert process.tiers.fills == []
    await let_go(world, *(task for _, task in asking if not task.done()))
    await process.settled()
    assert world.claims == {}


async def test_r17_who_comes_after_the_lock_time_waits_for_nobody():
    world = Hanging()
    process = Process(world, lock_s=LOCK_S)
    _, hung = process.ask(b"a")
    await wait_until(lambda: process.overdue)
    world.gate.close()
    _, second = process.ask(b"a")
    await world.gate.wait_arrived()
    third_job, third = process.ask(b"a")
    world.gate.open()
    assert vectors(await second) == vectors(await third) == true(b"a")
    assert (world.asked, third_job.outcome.coalesced) == ([b"a", b"a"], 1), "they share a new flight"
    await let_go(world, hung)
    await process.settled()


async def test_r17_what_comes_after_all_serves_everybody():
    """A vendor that is slow today is not asked by everybody who waited: the second call is given up."""
    world = Hanging(2)
    process = Process(world, lock_s=2.0)
    asking = [process.ask(b"a") for _ in range(20)]
    await world.gates[1].wait_arrived()
    world.gates[0].open()
    for _, task in asking:
        assert vectors(await task) == true(b"a")
    await wait_until(lambda: world.cancelled == 1)
    assert world.asked == [b"a", b"a"]
    assert [landing.answer is not None for landing in [await task for _, task in asking]].count(True) == 1
    await process.settled()
    assert world.entries.keys() == {b"a"}


async def test_r17_what_comes_late_is_not_for_those_who_asked_for_a_fresh_one():
    world = Hanging(2)
    process = Process(world, lock_s=LOCK_S)
    _, hung = process.ask(b"a")
    await wait_until(lambda: process.overdue)
    _, fresh = process.ask(b"a", wishes=Directives(no_cache=True))
    await world.gates[1].wait_arrived()
    world.gates[0].open()
    assert vectors(await hung) == true(b"a")
    assert not fresh.done()
    world.gates[1].open()
    assert vectors(await fresh) == true(b"a")
    assert world.cancelled == 0
    await process.settled()


async def test_r17_the_part_of_a_batch_that_hangs_elsewhere_is_asked_for_again():
    world = Hanging()
    process = Process(world, lock_s=LOCK_S)
    _, hung = process.ask(b"a")
    await world.gates[0].wait_arrived()
    _, batch = process.ask(b"a", b"b")
    assert vectors(await batch) == true(b"a", b"b")
    assert world.asked == [b"a", b"b", b"a"]
    await let_go(world, hung)
    await process.settled()


@pytest.mark.parametrize("fields", [{}, vector(b"t1")], ids=["embedding", "query"])
async def test_r17_another_process_waits_no_longer_than_this_one(fields: dict[str, object]):
    world = Hanging()
    one, other = Process(world, lock_s=LOCK_S), Process(world)
    _, hung = one.ask(b"a", **fields)
    await world.gates[0].wait_arrived()
    assert world.claims
    others = [other.ask(b"a", **fields)[1] for _ in range(10)]
    for task in others:
        assert vectors(await task) == true(b"a")
    assert world.asked == [b"a", b"a"]
    await let_go(world, hung)
    await one.settled()
    await other.settled()
    assert world.claims == {}


async def test_r17_a_claim_that_is_never_given_up_costs_two_leases():
    world = World()
    process = Process(world)
    flight = process.job(b"a").flight(0)
    world.claims[flight] = b"a stranger who lives and is stuck"
    _, asking = process.ask(b"a")
    await wait_until(lambda: world.claimed >= 2)
    world.clock.advance(2 * 2.0 - 0.1)
    claimed = world.claimed
    await wait_until(lambda: world.claimed >= claimed + 2)
    assert world.asked == []
    world.clock.advance(0.2)
    assert vectors(await asking) == true(b"a")
    assert world.asked == [b"a"]
    await process.settled()


async def test_r17_a_flight_over_its_lock_time_waits_for_no_claim():
    world = World()
    process = Process(world, lock_s=LOCK_S)
    world.claims[process.job(b"a").flight(0)] = b"a stranger who lives and is stuck"
    assert vectors(await process.ask(b"a")[1]) == true(b"a")
    await process.settled()


async def test_r17_a_batch_that_hangs_is_nobodys_end():
    world = Hanging()
    process = Batching(world, rules=Rules(window_s=0.05, max_bytes=1000), lock_s=LOCK_S)
    asking = {text: process.ask(text)[1] for text in (b"a", b"b", b"c")}
    for text, task in asking.items():
        assert vectors(await task) == true(text)
    assert sorted(world.asked) == [b"a", b"a,b,c", b"b", b"c"]
    await wait_until(lambda: world.cancelled == 1)  # nobody waits for the batch any more
    await process.settled()


async def test_r17_a_read_has_a_time_for_all_of_its_answer():
    world = Hanging()
    process = Process(world, deadline_s=0.1)
    with pytest.raises(UpstreamError) as failed:
        await process.ask(b"a")[1]
    assert (failed.value.code, failed.value.status) == (ErrorCode.UPSTREAM_TIMEOUT, 504)
    assert world.cancelled == 1
    await process.settled()


async def test_r17_also_one_whose_answer_begins_and_never_ends():
    world = World()
    process = Process(world, deadline_s=0.1)

    class Endless(Reply):
        async def read(self, limit: int, has_room: Callable[[int], bool]) -> tuple[bytes, bool]:
            await Gate("never").wait()
            return b"", True

    world.answer = lambda _request: Endless()
    with pytest.raises(UpstreamError):
        await process.ask(b"a")[1]
    assert world.replies[0].closed == 1
    await process.settled()
