"""
The breaker in front of Redis: pybreaker as the state machine, everything else made for asyncio.

pybreaker alone does not fit: its ``call`` judges the making of a coroutine, its own async form needs another framework
and holds a lock across the await, a cancelled call counts as failure or as success depending on settings, and a
half-open circuit admits everybody. So here

- the awaited operation runs in a task of its own, which no client can cancel, under a hard deadline that a busy loop
  of ours does not run down;
- its end is reported to pybreaker by a synchronous call, and only if the circuit has not changed state meanwhile: what
  began before a trip says nothing about what came after it;
- time is monotonic and ours;
- half-open admits one.

What costs less than such a task, and cannot be cancelled either, runs without one while the circuit is closed: between
``begin`` and ``end``.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pybreaker

from proxy.cache.redis.deadline import Deadline
from proxy.runtime.tasks import Tasks

Result = TypeVar("Result")


class Unavailable(Exception):  # noqa: N818  a fork in the road for the caller, never seen by a client
    """Redis was not asked, or did not answer in time; go on without it."""


class Neutral(Exception):  # noqa: N818  see Unavailable
    """Raised by an operation for trouble that says nothing about Redis (our own pool is empty, for example)."""


class Guard:
    """Runs operations while the circuit allows it; *failures* are the exceptions that count against Redis."""

    def __init__(
        self,
        *,
        fail_max: int,
        reset_s: float,
        deadline_s: float,
        failures: tuple[type[Exception], ...],
        tasks: Tasks,
        on_change: Callable[[str, str], None],
        on_failure: Callable[[BaseException], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reset_s = reset_s
        self._deadline_s = deadline_s
        self._failures: tuple[type[Exception], ...] = (*failures, TimeoutError)
        self._tasks = tasks
        self._on_failure = on_failure
        self._monotonic = monotonic
        self._epoch = 0  # grows with every change of state
        self._is_closed = True
        self._is_clean = True  # closed, and nothing counted: success changes nothing
        self._opened_s = 0.0
        self._trial_running = False
        # A day: pybreaker's own clock is the wall clock; ours decides when a trial may start.
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=fail_max,
            reset_timeout=86_400,
            throw_new_error_on_trip=False,
            listeners=[_Listener(self._changed, on_change)],
        )

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        return str(self._breaker.current_state)

    @property
    def failures_in_a_row(self) -> int:
        """What the breaker has counted since the last success."""
        return int(self._breaker.fail_counter)

    async def run(self, operation: Callable[[], Awaitable[Result]], *, vouches: bool = True) -> Result:
        """
        The result of *operation*, or Unavailable.

        Success without *vouches* ends a trial, but does not make up for failures of other operations: every read that
        fails is followed by a write, and writes that succeed must not keep the circuit closed.

        Raises:
            Unavailable: the circuit is open, the deadline passed, Redis failed, or the operation was neutral.
        """
        is_trial = self._admit()
        settled = self._tasks.start(self._settle(operation, self._epoch, is_trial=is_trial, vouches=vouches))
        try:
            result: Result | Unavailable = await asyncio.shield(settled)
        except Exception as error:  # a fault of ours: Tasks tells of it, and no request fails for it
            raise Unavailable("broken") from error
        if isinstance(result, Unavailable):
            raise result
        return result

    def begin(self) -> int | None:
        """
        The mark of an operation that runs without ``run``, for ``end``; ``None`` unless the circuit is closed.

        Whoever begins is sure to end, within the deadline and whatever its client does.
        """
        return self._epoch if self._is_closed else None

    def end(self, mark: int, error: Exception | None) -> None:
        """The operation with this *mark* has succeeded, and vouches, or ended with *error*, which may be neutral."""
        if error is None:
            self._report(mark, None)
        elif isinstance(error, self._failures):
            self._on_failure(error)
            self._report(mark, error)

    def _admit(self) -> bool:
        """Whether the caller runs the one trial of a half-open circuit; raises Unavailable if it may not run at all."""
        if self.state == pybreaker.STATE_CLOSED:
            return False
        if self._trial_running or self._monotonic() - self._opened_s < self._reset_s:
            raise Unavailable("circuit open")
        self._breaker.half_open()
        self._trial_running = True
        return True

    async def _settle(
        self, operation: Callable[[], Awaitable[Result]], epoch: int, *, is_trial: bool, vouches: bool
    ) -> Result | Unavailable:
        """The end of *operation*. Unavailable is returned, as an exception in a task would be told as a bug of ours."""
        try:
            async with Deadline(self._deadline_s):
                result = await operation()
        except Neutral:
            return Unavailable("not tried")
        except self._failures as error:
            self._on_failure(error)
            self._report(epoch, error)
            return Unavailable("failed")
        else:
            if vouches or is_trial:
                self._report(epoch, None)
            return result
        finally:
            if is_trial:
                self._trial_running = False
                if self.state == pybreaker.STATE_HALF_OPEN:
                    self._breaker.open()  # nothing was learnt; the next trial gets its turn after the usual time

    def _report(self, epoch: int, error: BaseException | None) -> None:
        if epoch != self._epoch or (error is None and self._is_clean):
            return

        def outcome() -> None:
            if error is not None:
                raise error

        try:
            self._breaker.call(outcome)
        except BaseException as raised:
            if raised is not error:
                raise
        finally:
            self._is_clean = self._is_closed and self.failures_in_a_row == 0

    def _changed(self, new: str) -> None:
        self._epoch += 1
        self._is_closed = new == pybreaker.STATE_CLOSED
        if new == pybreaker.STATE_OPEN:
            self._opened_s = self._monotonic()


class _Listener(pybreaker.CircuitBreakerListener):  # type: ignore[misc, unused-ignore]  # ships no complete types
    """Hands changes of state to the guard and to whoever logs them; must not raise, pybreaker would pass it on."""

    def __init__(self, changed: Callable[[str], None], on_change: Callable[[str, str], None]) -> None:
        self._changed = changed
        self._on_change = on_change

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:  # noqa: ANN401, ARG002  pybreaker's own
        """Called by pybreaker on every change."""
        self._changed(new_state.name)
        self._on_change(old_state.name if old_state is not None else "", new_state.name)
