"""A deadline that a busy loop does not run down."""

import asyncio
import time

import pytest

from proxy.cache.redis.deadline import Deadline


async def _until(answered: asyncio.Event, seconds: float) -> str:
    async with Deadline(seconds):
        await answered.wait()
    return "answered"


async def test_nobody_waits_for_an_answer_that_does_not_come() -> None:
    with pytest.raises(TimeoutError):
        await _until(asyncio.Event(), 0.02)


async def test_an_answer_in_time_is_an_answer() -> None:
    answered = asyncio.Event()
    asyncio.get_running_loop().call_later(0.001, answered.set)
    assert await _until(answered, 5) == "answered"


async def test_the_time_in_which_the_loop_heard_nobody_does_not_count() -> None:
    """The answer comes within the deadline, but the loop is kept busy beyond it and hears it only then."""
    answered = asyncio.Event()
    loop = asyncio.get_running_loop()
    waiting = asyncio.ensure_future(_until(answered, 0.02))
    await asyncio.sleep(0)

    def keep_busy() -> None:
        busy_until_s = time.monotonic() + 0.05
        while time.monotonic() < busy_until_s:
            pass
        # Two turns later, as for an answer that waits in the kernel behind other callbacks.
        loop.call_soon(loop.call_soon, answered.set)

    loop.call_soon(keep_busy)
    assert await waiting == "answered"


async def test_an_answer_that_takes_several_turns_has_all_of_them() -> None:
    """As a connection does: its greeting, its password, the command. A busy turn before must not cost it those."""
    answered = asyncio.Event()
    loop = asyncio.get_running_loop()
    waiting = asyncio.ensure_future(_until(answered, 0.05))
    await asyncio.sleep(0)

    def exchange(left: int) -> None:
        if left:
            loop.call_later(0.002, exchange, left - 1)
        else:
            answered.set()

    def keep_busy() -> None:
        busy_until_s = time.monotonic() + 0.1
        while time.monotonic() < busy_until_s:
            pass
        exchange(5)

    loop.call_soon(keep_busy)
    assert await waiting == "answered"


async def test_a_loop_that_is_always_busy_does_not_wait_for_ever() -> None:
    loop = asyncio.get_running_loop()
    stop = False

    def keep_busy() -> None:
        busy_until_s = time.monotonic() + 0.01
        while time.monotonic() < busy_until_s:
            pass
        if not stop:
            loop.call_soon(keep_busy)

    loop.call_soon(keep_busy)
    with pytest.raises(TimeoutError):
        await _until(asyncio.Event(), 0.02)
    stop = True


async def test_a_cancellation_from_outside_stays_one() -> None:
    waiting = asyncio.ensure_future(_until(asyncio.Event(), 5))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_deadline_that_was_kept_leaves_nothing_behind() -> None:
    answered = asyncio.Event()
    answered.set()
    for _ in range(100):
        assert await _until(answered, 0.001) == "answered"
    await asyncio.sleep(0.01)
