"""Work on large bodies: where it is done, one at a time, and what is left of it when nobody waits any more."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from proxy.runtime.offload import LARGE_BYTES, Heavy
from tests.support.waiting import wait_until


class Body:
    """Something that can be seen to be gone."""


@pytest_asyncio.fixture
async def heavy() -> AsyncIterator[Heavy]:
    made = Heavy()
    yield made
    await made.close()


async def test_small_things_are_done_in_place_and_large_ones_are_not(heavy: Heavy) -> None:
    assert await heavy(LARGE_BYTES - 1, threading.get_ident) == threading.get_ident()
    assert await heavy(LARGE_BYTES, threading.get_ident) != threading.get_ident()


@pytest.mark.parametrize("size", [0, LARGE_BYTES])
async def test_what_goes_wrong_is_told_and_the_next_one_goes_on(heavy: Heavy, size: int) -> None:
    with pytest.raises(ZeroDivisionError):
        await heavy(size, lambda: 1 // 0)
    assert await heavy(size, int, "7") == 7


async def test_one_at_a_time_in_their_order_while_the_loop_goes_on(heavy: Heavy) -> None:
    order: list[int] = []
    go = threading.Event()

    def work(number: int) -> None:
        assert go.wait(10)
        order.append(number)

    running = [asyncio.ensure_future(heavy(LARGE_BYTES, work, number)) for number in range(5)]
    await wait_until(lambda: any(thread.name.startswith("heavy") for thread in threading.enumerate()))
    for _ in range(10):
        await asyncio.sleep(0)
    assert order == []
    go.set()
    await asyncio.gather(*running)
    assert order == [0, 1, 2, 3, 4]


async def test_who_leaves_takes_its_body_along_and_the_turn_comes_to_the_next() -> None:
    heavy = Heavy()
    go, began = threading.Event(), threading.Event()

    def work(_body: Body) -> None:
        began.set()
        assert go.wait(10)

    first, second = Body(), Body()
    gone = [weakref.ref(first), weakref.ref(second)]
    running, waiting = (asyncio.ensure_future(heavy(LARGE_BYTES, work, body)) for body in (first, second))
    del first, second
    await wait_until(began.is_set, what="the first to begin")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    del waiting
    await asyncio.sleep(0)  # the loop's own memory of it
    gc.collect()
    assert gone[1]() is None, "who has not begun is forgotten at once"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    del running
    # The thread is still at it: the next one must wait, and the end must wait for both.
    third = asyncio.ensure_future(heavy(LARGE_BYTES, threading.current_thread))
    closing = asyncio.ensure_future(heavy.close())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not third.done()
    assert not closing.done()
    go.set()
    assert (await third).name.startswith("heavy")
    await closing
    await asyncio.sleep(0)
    gc.collect()
    assert gone[0]() is None
    assert not any(thread.name.startswith("heavy") for thread in threading.enumerate())
