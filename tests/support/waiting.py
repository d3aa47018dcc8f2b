"""
Waiting for a condition with a deadline, instead of sleeping and hoping. Used by the rig and by every kind of test.

The condition is polled, so it must be cheap. Its last (true) value is returned, which saves asking again.
"""

# ruff: noqa: ASYNC109 (the timeout is an argument because its message says what was waited for)

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

LONG_S = 30.0
"""For what comes soon, unless the machine is busy: only a failure waits so long."""

# Short enough not to slow a test down, long enough not to steal the core from the process that is waited for.
FIRST_PAUSE_S = 0.001
LONGEST_PAUSE_S = 0.02


class WaitTimeoutError(TimeoutError):
    """A condition did not come true in time; the message names it."""


class TooLateError(Exception):
    """A span of time was over before all that had to happen within it had happened."""


def _description(what: str | Callable[[], str]) -> str:
    return what if isinstance(what, str) else what()


async def wait_until(
    condition: Callable[[], T | Awaitable[T]], timeout: float = LONG_S, what: str | Callable[[], str] = "condition"
) -> T:
    """
    Poll *condition* (plain or async) until it is truthy and return its value; the event loop keeps running.

    *what* ends the sentence "waited in vain for ..."; a callable is asked at the end, when there is more to say.
    An async condition is not interrupted: the deadline is looked at between polls.
    """
    deadline = time.monotonic() + timeout
    pause = FIRST_PAUSE_S
    while True:
        answer = condition()
        value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(f"waited {timeout} s in vain for {_description(what)} (last value: {value!r})")
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_S)


def wait_until_sync(
    condition: Callable[[], T], timeout: float = LONG_S, what: str | Callable[[], str] = "condition"
) -> T:
    """Poll as `wait_until` does, from code without an event loop; it blocks the thread."""
    deadline = time.monotonic() + timeout
    pause = FIRST_PAUSE_S
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(f"waited {timeout} s in vain for {_description(what)} (last value: {value!r})")
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_S)
    return value


async def with_time_enough(case: Callable[[float], Awaitable[None]], first_s: float) -> None:
    """
    Run *case* with a span of *first_s* seconds, and with four times as long a one as often as that was too short.

    For what a test needs to happen within a time that the product keeps, and that nobody can hold: *case* raises
    TooLateError when its machine was too slow for it, which shows nothing, and starts afresh. The third is the last.
    """
    for span_s in (first_s, 4 * first_s, 16 * first_s):
        late: BaseExceptionGroup[TooLateError] | None = None
        try:
            await case(span_s)
        except* TooLateError as error:  # of a task group, too
            late = error
        if late is None:
            return
    raise late
