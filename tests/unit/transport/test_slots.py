"""Slots at an upstream: how many, how long in line, how fast one after the other; on a clock of the test's."""

import asyncio
import functools
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from proxy.core.errors import ErrorCode, UpstreamError
from proxy.core.share import Share
from proxy.transport.slots import QUEUE_FULL, QUEUE_WAIT, Slots
from tests.support import fake_loop


def timeless(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The test on a loop whose time passes at once."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        fake_loop.run(test(**arguments))

    return run


def slots(
    max_inflight: int = 2,
    max_queue: int = 10,
    queue_wait_s: float = 1.0,
    per_minute: float = 0,
    refused: list[str] | None = None,
) -> Slots:
    told = refused if refused is not None else []
    return Slots(
        max_inflight=max_inflight,
        max_queue=max_queue,
        queue_wait_s=queue_wait_s,
        per_minute=per_minute,
        on_refused=told.append,
    )


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def one(of: Slots, lasts_s: float) -> float:
    """One request; when it began."""
    slot = await of.take()
    began_s = now_s()
    await asyncio.sleep(lasts_s)
    slot.give_back()
    return began_s


@timeless
async def test_no_more_at_a_time_than_slots_and_in_order() -> None:
    at = slots(max_inflight=2)
    began = await asyncio.gather(*(one(at, 0.25) for _ in range(6)))
    assert began == [0, 0, 0.25, 0.25, 0.5, 0.5]
    assert (at.inflight, at.waiting) == (0, 0)


@timeless
async def test_who_has_waited_long_enough_is_refused() -> None:
    refused: list[str] = []
    at = slots(max_inflight=1, queue_wait_s=1.0, refused=refused)
    await at.take()
    with pytest.raises(UpstreamError) as caught:
        await at.take()
    assert now_s() == pytest.approx(1.0)
    assert (caught.value.code, caught.value.status, caught.value.retryable) == (ErrorCode.UPSTREAM_BUSY, 503, False)
    assert refused == [QUEUE_WAIT]
    assert (at.inflight, at.waiting) == (1, 0)


@timeless
async def test_who_would_stand_at_the_end_of_a_full_line_is_refused_at_once() -> None:
    refused: list[str] = []
    at = slots(max_inflight=1, max_queue=2, refused=refused)
    waiting = [asyncio.ensure_future(one(at, 0.1)) for _ in range(3)]
    await asyncio.sleep(0)
    assert (at.inflight, at.waiting) == (1, 2)
    with pytest.raises(UpstreamError):
        await at.take()
    assert now_s() == 0
    assert refused == [QUEUE_FULL]
    await asyncio.gather(*waiting)


@timeless
async def test_without_a_line_nobody_waits() -> None:
    at = slots(max_inflight=1, max_queue=0)
    await at.take()
    with pytest.raises(UpstreamError):
        await at.take()
    assert now_s() == 0


@timeless
async def test_a_deadline_that_is_nearer_counts() -> None:
    at = slots(max_inflight=1, queue_wait_s=5.0)
    await at.take()
    with pytest.raises(UpstreamError):
        await at.take(0.5)
    assert now_s() == pytest.approx(0.5)


@timeless
async def test_newcomers_do_not_overtake_the_line() -> None:
    at = slots(max_inflight=1)
    held = await at.take()
    first = asyncio.ensure_future(one(at, 0.25))
    await asyncio.sleep(0)
    held.give_back()
    assert await one(at, 0) == 0.25
    assert await first == 0


@timeless
async def test_newcomers_do_not_overtake_who_waits_for_the_pace() -> None:
    at = slots(per_minute=60)
    await at.take()
    order: list[str] = []

    async def come(name: str, at_s: float) -> None:
        await asyncio.sleep(at_s)
        await at.take()
        order.append(name)

    # The second comes as the first's turn is due, and before the timer has said so.
    await asyncio.gather(come("first", 0.5), come("second", 0.9995), return_exceptions=True)
    assert order[0] == "first"


@timeless
async def test_who_comes_again_goes_first_also_when_the_line_is_full() -> None:
    at = slots(max_inflight=1, max_queue=2)
    order: list[str] = []

    async def come(name: str, *, is_again: bool = False) -> None:
        slot = await at.take(is_again=is_again)
        order.append(name)
        slot.give_back()

    held = await at.take()
    waiting = [asyncio.ensure_future(come(name)) for name in ("first", "second")]
    await asyncio.sleep(0)
    again = asyncio.ensure_future(come("again", is_again=True))
    await asyncio.sleep(0)
    held.give_back()
    await asyncio.gather(*waiting, again)
    assert order == ["again", "first", "second"]
    assert (at.inflight, at.waiting) == (0, 0)


@timeless
async def test_who_leaves_the_line_takes_no_slot_along() -> None:
    at = slots(max_inflight=1)
    held = await at.take()
    leaving, staying = (asyncio.ensure_future(one(at, 0)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert at.waiting == 1
    held.give_back()
    await staying
    assert at.inflight == 0


@timeless
async def test_who_leaves_at_the_moment_of_its_turn_gives_it_on() -> None:
    at = slots(max_inflight=1)
    held = await at.take()
    leaving, staying = (asyncio.ensure_future(one(at, 0)) for _ in range(2))
    await asyncio.sleep(0)
    held.give_back()  # it is its turn now, but it has not run since
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert leaving.cancelled()
    await staying
    assert (at.inflight, at.waiting) == (0, 0)


@timeless
async def test_a_turn_at_the_last_moment_is_a_turn() -> None:
    at = slots(max_inflight=1, queue_wait_s=1.0)
    held = await at.take()
    asyncio.get_running_loop().call_at(1.0, held.give_back)  # in the same instant as the end of its patience
    late = asyncio.ensure_future(one(at, 0))
    await asyncio.gather(late, return_exceptions=True)
    assert (at.inflight, at.waiting) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_slots_are_neither_lost_nor_made(seed: int) -> None:
    chance = random.Random(seed)

    async def storm() -> None:
        at = slots(max_inflight=3, max_queue=8, queue_wait_s=0.5, per_minute=chance.choice([0, 600]))
        worst = 0

        async def ask() -> None:
            nonlocal worst
            await asyncio.sleep(chance.random() * 5)
            share = Share(chance.choice("abc"), chance.choice([b"", b"1"]))
            is_long = chance.random() < 0.3
            slot = await at.take(share=share, is_long=is_long)
            worst = max(worst, at.inflight)
            try:
                await asyncio.sleep(chance.random() / 2)
                slot.shorten()
                await asyncio.sleep(chance.random() / 2)
            finally:
                slot.give_back()
                slot.give_back()  # once

        asking = [asyncio.ensure_future(ask()) for _ in range(200)]
        for task in chance.sample(asking, 60):
            asyncio.get_running_loop().call_later(chance.random() * 5, task.cancel)
        ended = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(end) for end in ended} <= {type(None), UpstreamError, asyncio.CancelledError}
        assert worst <= 3
        assert (at.inflight, at.waiting) == (0, 0)
        (await at.take()).give_back()

    fake_loop.run(storm())


@timeless
async def test_a_flush_is_spread_evenly_after_a_second_s_worth() -> None:
    at = slots(max_inflight=1000, max_queue=1000, queue_wait_s=2.0, per_minute=600)
    began = await asyncio.gather(*(one(at, 0) for _ in range(20)))
    assert began[:10] == [0] * 10
    assert began[10:] == pytest.approx([0.1 * number for number in range(1, 11)], abs=0.005)


@timeless
async def test_a_slow_pace_has_no_burst() -> None:
    at = slots(max_inflight=1000, queue_wait_s=60, per_minute=30)
    began = await asyncio.gather(*(one(at, 0) for _ in range(4)))
    assert began == pytest.approx([0, 2, 4, 6], abs=0.005)


@timeless
async def test_never_more_in_a_minute_than_the_pace_and_its_burst() -> None:
    at = slots(max_inflight=1000, max_queue=50, per_minute=300)
    began: list[float] = []

    async def ask(at_s: float) -> None:
        await asyncio.sleep(at_s)
        try:
            began.append(await one(at, 0))
        except UpstreamError:
            return

    await asyncio.gather(*(ask(number / 50) for number in range(6000)))  # 50 a second for two minutes
    for start_s in range(60):
        within = sum(start_s <= at_s < start_s + 60 for at_s in began)
        assert 295 <= within <= 306
    assert len(began) <= 2 * 300 + 11


@timeless
async def test_waiting_for_the_pace_counts_as_waiting() -> None:
    refused: list[str] = []
    at = slots(max_inflight=1000, queue_wait_s=1.0, per_minute=20, refused=refused)
    await at.take()
    with pytest.raises(UpstreamError):
        await at.take()
    assert now_s() == pytest.approx(1.0)
    assert refused == [QUEUE_WAIT]


@timeless
async def test_what_was_not_used_is_not_kept_beyond_a_second() -> None:
    at = slots(max_inflight=1000, max_queue=1000, per_minute=600)
    await asyncio.sleep(3600)
    began = await asyncio.gather(*(one(at, 0) for _ in range(15)))
    assert began[9] == 3600
    assert began[10] > 3600.05


# --- shares -----------------------------------------------------------------------------------------------------------


async def turns(of: Slots, shares: list[Share]) -> list[Share]:
    """The order in which those who come in the order of *shares* get one slot after the other."""
    order: list[Share] = []

    async def come(share: Share) -> None:
        slot = await of.take(share=share)
        order.append(share)
        await asyncio.sleep(0.01)
        slot.give_back()

    await asyncio.gather(*(come(share) for share in shares))
    return order


@timeless
async def test_r21_one_client_alone_has_all_slots_and_the_whole_line() -> None:
    app = Share("10.0.0.1", b"key")
    at = slots(max_inflight=5, max_queue=15)
    taken = await asyncio.gather(*(at.take(share=app) for _ in range(5)))
    waiting = [asyncio.ensure_future(at.take(share=app)) for _ in range(15)]
    await asyncio.sleep(0)
    assert (at.inflight, at.waiting) == (5, 15)
    for slot in taken:
        slot.give_back()
    for slot in await asyncio.gather(*waiting[:5]):
        slot.give_back()


@timeless
async def test_r21_when_several_wait_the_next_turn_is_for_who_has_least() -> None:
    many, few = Share("10.0.0.1"), Share("10.0.0.2")
    at = slots(max_inflight=2, max_queue=100, queue_wait_s=60)
    held = await at.take(share=many)  # for as long as this lasts, the one slot left is given in turn
    order = await turns(at, [many] * 6 + [few] * 3)
    held.give_back()
    assert order[0] == many  # nobody else was there
    assert order[1:4] == [few] * 3


@timeless
async def test_r21_behind_one_address_credentials_share() -> None:
    known, made_up = Share("10.0.0.1", b"key"), Share("10.0.0.1")
    at = slots(max_inflight=2, max_queue=100, queue_wait_s=60)
    held = await at.take(share=made_up)
    order = await turns(at, [made_up] * 6 + [known] * 3)
    held.give_back()
    assert order[1:4] == [known] * 3


@timeless
async def test_r21_a_full_line_makes_room_for_who_waits_less() -> None:
    refused: list[str] = []
    stranger, app = Share("10.0.0.1"), Share("10.0.0.2", b"key")
    at = slots(max_inflight=1, max_queue=4, queue_wait_s=60, refused=refused)
    held = await at.take(share=stranger)
    crowd = [asyncio.ensure_future(turns(at, [stranger])) for _ in range(4)]
    await asyncio.sleep(0)
    own = asyncio.ensure_future(turns(at, [app]))
    await asyncio.wait([*crowd, own], return_when=asyncio.FIRST_COMPLETED)
    assert [task.done() for task in crowd] == [False, False, False, True]  # who came last among those who have most
    assert refused == [QUEUE_FULL]
    with pytest.raises(UpstreamError):
        await crowd[3]
    held.give_back()
    await asyncio.gather(own, *crowd[:3])
    assert (at.inflight, at.waiting) == (0, 0)


@timeless
async def test_r21_a_full_line_of_many_makes_no_room_for_one_more_of_them() -> None:
    at = slots(max_inflight=1, max_queue=2)
    await at.take()
    crowd = [asyncio.ensure_future(at.take(share=Share(address))) for address in "ab"]
    await asyncio.sleep(0)
    with pytest.raises(UpstreamError):
        await at.take(share=Share("c"))
    assert now_s() == 0
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)


@timeless
async def test_r21_what_lasts_as_its_client_likes_leaves_a_quarter_to_others() -> None:
    at = slots(max_inflight=8, queue_wait_s=0.5)
    uploads = [await at.take(is_long=True) for _ in range(6)]
    one_more = asyncio.ensure_future(at.take(is_long=True))
    await asyncio.sleep(0)
    whole = [await at.take() for _ in range(2)]  # past the one that waits
    assert (now_s(), at.waiting) == (0, 1)
    uploads[0].shorten()  # the upload is complete, and its answer awaited like any other's
    assert at.waiting == 1  # for all slots are taken
    whole[0].give_back()
    last = await one_more
    for slot in (*uploads, whole[1], last):
        slot.give_back()
    assert (at.inflight, at.waiting) == (0, 0)
