"""Waiting, gates and the fake clock."""

import asyncio
import time

import pytest

from tests.support.clock import FakeClock
from tests.support.gate import Gate
from tests.support.waiting import TooLateError, WaitTimeoutError, wait_until, wait_until_sync, with_time_enough


async def test_waiting_returns_the_value_once_it_is_true_and_lets_the_loop_run():
    found: list[int] = []
    asyncio.get_running_loop().call_later(0.02, found.append, 7)
    assert await wait_until(lambda: found) == [7]


async def test_the_condition_may_be_async():
    turns = iter([0, 0, 3])

    async def condition() -> int:
        return next(turns)

    assert await wait_until(condition) == 3


async def test_waiting_in_vain_says_for_what():
    started = time.monotonic()
    with pytest.raises(WaitTimeoutError, match=r"0\.03 s in vain for the moon \(last value: 0\)"):
        await wait_until(lambda: 0, 0.03, "the moon")
    assert time.monotonic() - started >= 0.03
    with pytest.raises(TimeoutError, match="told at the end"):
        wait_until_sync(lambda: None, 0.01, lambda: "told at the end")


async def test_a_condition_that_holds_already_needs_no_time():
    assert await wait_until(lambda: 1, timeout=0) == 1
    assert wait_until_sync(lambda: 2, timeout=0) == 2


def test_waiting_without_a_loop():
    turns = iter([None, None, "x"])
    assert wait_until_sync(lambda: next(turns)) == "x"


async def test_a_gate_holds_counts_and_lets_go():
    gate = Gate("start")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(gate.wait()) for _ in range(3)]
        await gate.wait_arrived(3)
        assert not any(task.done() for task in tasks)
        gate.open()
    await gate.wait()
    assert gate.arrived == 4
    gate.close()
    with pytest.raises(WaitTimeoutError, match=r"5 arrivals at start \(so far 4\)"):
        await gate.wait_arrived(5, timeout=0.01)


def test_time_passes_on_both_clocks_but_a_step_moves_only_the_wall_clock():
    clock = FakeClock(10, 1000)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.wall()) == (12.5, 1002.5)
    clock.step_wall(-3600)
    assert (clock.monotonic(), clock.wall()) == (12.5, -2597.5)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


async def test_what_was_too_late_is_tried_again_with_more_time():
    spans: list[float] = []

    async def case(span_s: float) -> None:
        spans.append(span_s)
        if len(spans) == 1:
            raise TooLateError
        if len(spans) == 2:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(3_600))
                raise TooLateError

    await with_time_enough(case, 0.5)
    assert spans == [0.5, 2.0, 8.0]


async def test_what_is_always_too_late_and_what_is_wrong_are_failures():
    async def never(_span_s: float) -> None:
        raise TooLateError

    async def wrong(_span_s: float) -> None:
        raise AssertionError("wrong")

    with pytest.raises(BaseExceptionGroup) as caught:
        await with_time_enough(never, 0.5)
    assert caught.group_contains(TooLateError)
    with pytest.raises(AssertionError, match="wrong"):
        await with_time_enough(wrong, 0.5)
