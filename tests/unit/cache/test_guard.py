"""The breaker: judges Redis and nobody else (R14), lets one through when half-open (R15), knows no wall clock (R16)."""

import asyncio
import datetime as dt
import time

import pybreaker
import pytest

from proxy.cache.redis.breaker import Guard, Neutral, Unavailable
from proxy.runtime.tasks import Tasks
from tests.support.clock import FakeClock

RESET_S = 2.0


class RedisDownError(Exception):
    """What an operation raises when Redis is to blame."""


class Rig:
    """A guard with everything that it is told of and tells."""

    def __init__(self, *, fail_max: int = 5, deadline_s: float = 30.0) -> None:
        self.clock = FakeClock()
        self.background: list[BaseException] = []
        self.failures: list[BaseException] = []
        self.changes: list[tuple[str, str]] = []
        self.tasks = Tasks(self.background.append)
        self.operations = 0
        self.guard = Guard(
            fail_max=fail_max,
            reset_s=RESET_S,
            deadline_s=deadline_s,
            failures=(RedisDownError, ConnectionError),
            tasks=self.tasks,
            on_change=lambda old, new: self.changes.append((old, new)),
            on_failure=self.failures.append,
            monotonic=self.clock.monotonic,
        )

    async def run(self, outcome: object = "value", gate: asyncio.Event | None = None) -> object:
        """One guarded operation with this *outcome* (an exception is raised), held at *gate*."""

        async def operation() -> object:
            self.operations += 1
            if gate is not None:
                await gate.wait()
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        return await self.guard.run(operation)

    async def fail(self, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(Unavailable):
                await self.run(RedisDownError())

    async def open(self) -> "Rig":
        await self.fail(5)
        assert self.guard.state == "open"
        return self


async def turns(count: int = 5) -> None:
    """Let every ready task run, a few times over."""
    for _ in range(count):
        await asyncio.sleep(0)


def start(rig: Rig, *args: object, **options: object) -> "asyncio.Task[object]":
    return Tasks(lambda _error: None).start(rig.run(*args, **options))


# --- closed -----------------------------------------------------------------------------------------------------------


async def test_results_and_refusals_pass_through():
    rig = Rig()
    assert await rig.run("value") == "value"
    assert await rig.run(None) is None
    assert await rig.run(False) is False
    with pytest.raises(Unavailable):
        await rig.run(RedisDownError())
    assert len(rig.failures) == 1


async def test_only_failures_in_a_row_open():
    rig = Rig()
    for _ in range(10):
        await rig.fail(4)
        await rig.run()
        assert rig.guard.failures_in_a_row == 0
    assert rig.guard.state == "closed"
    await rig.fail(4)
    assert rig.guard.state == "closed"
    await rig.fail(1)
    assert rig.guard.state == "open"
    assert rig.changes == [("closed", "open")]


async def test_expected_failures_are_not_told_as_faults_of_ours():
    """Tasks reports exceptions of background tasks; an unreachable Redis is none."""
    rig = await Rig().open()
    rig.clock.advance(RESET_S)
    with pytest.raises(Unavailable):
        await rig.run(Neutral())
    with pytest.raises(Unavailable):
        await rig.run()
    await turns()
    assert rig.background == []


async def test_r14_clients_that_leave_count_for_nothing():
    rig, gate = Rig(), asyncio.Event()
    clients = [start(rig, gate=gate) for _ in range(1_000)]
    await turns()
    assert rig.operations == 1_000
    for client in clients:
        client.cancel()
    ends = await asyncio.gather(*clients, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    assert (rig.guard.state, rig.guard.failures_in_a_row) == ("closed", 0)
    assert len(rig.tasks) == 1_000, "the operations go on, each with its deadline"
    gate.set()
    await turns()
    assert (rig.guard.state, rig.guard.failures_in_a_row, len(rig.tasks)) == ("closed", 0, 0)
    assert (rig.failures, rig.background, rig.changes) == ([], [], [])


async def test_r14_clients_that_leave_do_not_reset_the_count_either():
    rig, gate = Rig(), asyncio.Event()
    await rig.fail(4)
    client = start(rig, gate=gate)
    await turns()
    client.cancel()
    await turns()
    assert rig.guard.failures_in_a_row == 4
    gate.set()
    await turns()
    assert rig.guard.failures_in_a_row == 0, "the operation itself ended well"


async def test_r14_a_failure_counts_though_its_client_has_left():
    rig, gate = Rig(), asyncio.Event()
    clients = [start(rig, RedisDownError(), gate) for _ in range(5)]
    await turns()
    for client in clients:
        client.cancel()
    await turns()
    assert rig.guard.failures_in_a_row == 0
    gate.set()
    await turns()
    assert rig.guard.state == "open"
    assert rig.background == []


async def test_r14_a_hung_redis_opens_the_circuit_whatever_the_clients_do():
    rig, never = Rig(deadline_s=0.0), asyncio.Event()
    clients = [start(rig, gate=never) for _ in range(5)]
    await turns(1)
    clients[0].cancel()
    clients[3].cancel()
    ends = await asyncio.gather(*clients, return_exceptions=True)
    assert [type(end) for end in ends] == [
        asyncio.CancelledError,
        Unavailable,
        Unavailable,
        asyncio.CancelledError,
        Unavailable,
    ]
    assert rig.guard.state == "open"
    assert [type(error) for error in rig.failures] == [TimeoutError] * 5


async def test_neutral_trouble_neither_counts_nor_resets():
    rig = Rig()
    await rig.fail(4)
    for _ in range(20):
        with pytest.raises(Unavailable):
            await rig.run(Neutral())
    assert (rig.guard.state, rig.guard.failures_in_a_row) == ("closed", 4)
    assert len(rig.failures) == 4
    assert rig.background == []


async def test_a_fault_of_ours_costs_a_miss_and_is_told():
    rig = Rig()
    with pytest.raises(Unavailable):
        await rig.run(KeyError("a bug"))
    await turns()
    assert [type(error) for error in rig.background] == [KeyError]
    assert (rig.guard.state, rig.guard.failures_in_a_row) == ("closed", 0)


# --- open -------------------------------------------------------------------------------------------------------------


async def test_open_admits_nobody_until_the_reset():
    rig = await Rig().open()
    before = rig.operations
    for elapsed_s in (0, 0.5, 1.0, 0.499):
        rig.clock.advance(elapsed_s)
        for _ in range(50):
            with pytest.raises(Unavailable):
                await rig.run()
    assert rig.operations == before
    rig.clock.advance(0.001)
    assert await rig.run("trial") == "trial"
    assert rig.guard.state == "closed"


async def test_one_wave_of_failures_opens_once():
    rig, gate = Rig(), asyncio.Event()
    clients = [start(rig, RedisDownError(), gate) for _ in range(200)]
    await turns()
    gate.set()
    await asyncio.gather(*clients, return_exceptions=True)
    assert rig.changes == [("closed", "open")]
    assert rig.guard.failures_in_a_row == 5


async def test_what_began_before_the_trip_changes_nothing_after_it():
    """Neither late failures nor late successes move the state, and failures do not push the reset away."""
    rig, gate = Rig(), asyncio.Event()
    late = [start(rig, outcome, gate) for outcome in [RedisDownError(), "good"] * 20]
    await turns()
    await rig.open()
    rig.clock.advance(1.0)
    gate.set()
    ends = await asyncio.gather(*late, return_exceptions=True)
    assert ends[1::2] == ["good"] * 20, "a result is a result"
    assert rig.changes == [("closed", "open")]
    rig.clock.advance(1.0)
    assert await rig.run("trial") == "trial"


async def test_what_began_before_the_trip_does_not_decide_the_trial():
    rig, early_gate, trial_gate = Rig(), asyncio.Event(), asyncio.Event()
    early = [start(rig, outcome, early_gate) for outcome in ("good", RedisDownError())]
    await turns()
    await rig.open()
    rig.clock.advance(RESET_S)
    trial = start(rig, "trial", trial_gate)
    await turns()
    assert rig.guard.state == "half-open"
    early_gate.set()
    await asyncio.gather(*early, return_exceptions=True)
    assert rig.guard.state == "half-open"
    trial_gate.set()
    assert await trial == "trial"
    assert rig.guard.state == "closed"


# --- half-open --------------------------------------------------------------------------------------------------------


async def test_r15_half_open_lets_one_of_200_through_and_the_others_go_on_at_once():
    rig, never = await Rig().open(), asyncio.Event()
    before = rig.operations
    rig.clock.advance(RESET_S)
    clients = [start(rig, gate=never) for _ in range(200)]
    await turns(2)
    done = [client for client in clients if client.done()]
    assert len(done) == 199
    assert all(isinstance(client.exception(), Unavailable) for client in done)
    assert rig.operations == before + 1
    assert rig.guard.state == "half-open"
    never.set()
    await asyncio.gather(*clients, return_exceptions=True)
    assert rig.guard.state == "closed"


async def test_r15_a_trial_that_fails_opens_again_once_and_for_the_whole_time():
    rig = await Rig().open()
    for _ in range(3):
        rig.changes.clear()
        rig.clock.advance(RESET_S)
        await rig.fail(1)
        assert rig.changes == [("open", "half-open"), ("half-open", "open")]
        before = rig.operations
        rig.clock.advance(RESET_S - 0.001)
        with pytest.raises(Unavailable):
            await rig.run()
        assert rig.operations == before
        rig.clock.advance(0.001)
        await rig.fail(1)


async def test_a_trial_that_succeeds_closes_and_forgets_the_failures():
    rig = await Rig().open()
    rig.clock.advance(RESET_S)
    assert await rig.run("trial") == "trial"
    assert (rig.guard.state, rig.guard.failures_in_a_row) == ("closed", 0)
    await rig.fail(4)
    assert rig.guard.state == "closed"


@pytest.mark.parametrize(("outcome", "state"), [("good", "closed"), (RedisDownError(), "open"), (Neutral(), "open")])
async def test_r15_a_trial_whose_client_leaves_is_not_lost(outcome, state):
    rig, gate = await Rig().open(), asyncio.Event()
    rig.clock.advance(RESET_S)
    client = start(rig, outcome, gate)
    await turns()
    client.cancel()
    await turns()
    assert rig.guard.state == "half-open", "a leaving client is no verdict"
    with pytest.raises(Unavailable):
        await rig.run()
    gate.set()
    await turns()
    assert rig.guard.state == state
    rig.clock.advance(RESET_S)
    assert await rig.run("next") == "next"


async def test_r15_a_trial_that_hangs_frees_its_place_at_the_deadline():
    rig, never = Rig(deadline_s=0.0), asyncio.Event()
    for _ in range(5):
        with pytest.raises(Unavailable):
            await rig.run(gate=never)
    rig.clock.advance(RESET_S)
    with pytest.raises(Unavailable):
        await rig.run(gate=never)
    assert rig.guard.state == "open"
    rig.clock.advance(RESET_S)
    assert await rig.run("next") == "next"


@pytest.mark.parametrize("outcome", [Neutral(), KeyError("a bug")])
async def test_a_trial_that_teaches_nothing_waits_for_the_next_turn(outcome):
    rig = await Rig().open()
    rig.clock.advance(RESET_S)
    with pytest.raises(Unavailable):
        await rig.run(outcome)
    assert rig.guard.state == "open"
    before = rig.operations
    rig.clock.advance(RESET_S - 0.001)
    with pytest.raises(Unavailable):
        await rig.run()
    assert rig.operations == before
    rig.clock.advance(0.001)
    assert await rig.run("next") == "next"


async def test_a_trial_ended_by_shutdown_leaves_the_circuit_open():
    rig, never = await Rig().open(), asyncio.Event()
    rig.clock.advance(RESET_S)
    client = start(rig, gate=never)
    await turns()
    assert await rig.tasks.wait_done(0) == 1
    with pytest.raises(asyncio.CancelledError):
        await client
    assert rig.guard.state == "open"
    assert rig.background == []


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [3_600.0, -3_600.0, 1e8])
async def test_r16_wall_clock_steps_move_nothing(monkeypatch, step_s):
    rig = await Rig().open()
    now_unix_s = time.time()

    class Stepped(dt.datetime):
        @classmethod
        def now(cls, tz=None):
            return dt.datetime.fromtimestamp(now_unix_s + step_s, tz)

    monkeypatch.setattr(time, "time", lambda: now_unix_s + step_s)
    monkeypatch.setattr(pybreaker, "datetime", Stepped)
    before = rig.operations
    rig.clock.step_wall(step_s)
    rig.clock.advance(RESET_S - 0.001)
    with pytest.raises(Unavailable):
        await rig.run()
    assert rig.operations == before
    rig.clock.advance(0.001)
    assert await rig.run("trial") == "trial"


async def test_a_long_outage_is_tried_every_time_pybreakers_own_clock_notwithstanding():
    """Its own reset time must never be the one that decides."""
    rig = await Rig().open()
    for _ in range(100):
        rig.clock.advance(10_000)
        await rig.fail(1)
    assert rig.guard.state == "open"
    rig.clock.advance(RESET_S)
    assert await rig.run("back") == "back"


# --- operations that do not vouch -------------------------------------------------------------------------------------


async def test_success_that_does_not_vouch_leaves_the_count_alone():
    """Every read that fails is followed by a write; writes that succeed must not keep the circuit closed."""
    rig = Rig()

    async def write() -> str:
        return "written"

    for _ in range(4):
        await rig.fail(1)
        assert await rig.guard.run(write, vouches=False) == "written"
    assert rig.guard.failures_in_a_row == 4
    await rig.fail(1)
    assert rig.guard.state == "open"


async def test_success_that_does_not_vouch_ends_a_trial_all_the_same():
    rig = await Rig().open()
    rig.clock.advance(RESET_S)

    async def write() -> str:
        return "written"

    assert await rig.guard.run(write, vouches=False) == "written"
    assert rig.guard.state == "closed"


async def test_failure_counts_whether_it_would_have_vouched_or_not():
    rig = Rig()

    async def write() -> str:
        raise ConnectionError

    for _ in range(5):
        with pytest.raises(Unavailable):
            await rig.guard.run(write, vouches=False)
    assert rig.guard.state == "open"


# --- operations without a task ----------------------------------------------------------------------------------------


def marked(rig: Rig) -> int:
    mark = rig.guard.begin()
    assert mark is not None
    return mark


async def test_failures_between_begin_and_end_count_with_all_others():
    rig = Rig()
    for _ in range(10):
        for _ in range(2):
            rig.guard.end(marked(rig), RedisDownError())
        await rig.fail(2)
        assert rig.guard.failures_in_a_row == 4
        rig.guard.end(marked(rig), None)
        assert rig.guard.failures_in_a_row == 0
    rig.guard.end(marked(rig), TimeoutError())
    await rig.fail(3)
    rig.guard.end(marked(rig), ConnectionError())
    assert rig.guard.state == "open"
    assert rig.changes == [("closed", "open")]
    assert len(rig.failures) == 45
    assert rig.guard.begin() is None


async def test_a_neutral_end_says_nothing():
    rig = Rig()
    await rig.fail(4)
    for _ in range(10):
        rig.guard.end(marked(rig), Neutral())
    assert (rig.guard.state, rig.guard.failures_in_a_row, len(rig.failures)) == ("closed", 4, 4)


async def test_nothing_begins_without_a_task_unless_the_circuit_is_closed():
    rig, gate = await Rig().open(), asyncio.Event()
    rig.clock.advance(RESET_S)
    assert rig.guard.begin() is None, "a trial is one, and has a task"
    trial = start(rig, "trial", gate)
    await turns()
    assert rig.guard.state == "half-open"
    assert rig.guard.begin() is None
    gate.set()
    assert await trial == "trial"
    rig.guard.end(marked(rig), None)
    assert rig.guard.state == "closed"


async def test_the_end_of_what_began_before_the_trip_changes_nothing():
    rig = Rig()
    early = [marked(rig) for _ in range(20)]
    await rig.open()
    for mark in early[:10]:
        rig.guard.end(mark, None)
        rig.guard.end(mark, RedisDownError())
    assert (rig.guard.state, rig.changes) == ("open", [("closed", "open")])
    rig.clock.advance(RESET_S)
    assert await rig.run("trial") == "trial"
    await rig.fail(4)
    for mark in early[10:]:
        rig.guard.end(mark, None)
        assert rig.guard.failures_in_a_row == 4
        rig.guard.end(mark, RedisDownError())
    assert rig.guard.state == "closed"
    assert len(rig.failures) == 29, "they are told all the same"


async def test_successes_in_a_row_are_not_worth_a_call_to_the_state_machine(monkeypatch):
    """It takes a lock and tells listeners; with nothing counted, there is nothing that success could change."""
    rig, calls = Rig(), 0
    plain = pybreaker.CircuitBreaker.call

    def counted(self, *args):
        nonlocal calls
        calls += 1
        return plain(self, *args)

    monkeypatch.setattr(pybreaker.CircuitBreaker, "call", counted)
    for _ in range(10):
        rig.guard.end(marked(rig), None)
        await rig.run()
    assert calls == 0
    await rig.fail(1)
    await rig.run()
    await rig.run()
    assert calls == 2
    await rig.open()
    rig.clock.advance(RESET_S)
    await rig.run("trial")
    calls = 0
    for _ in range(3):
        await rig.run()
    assert calls <= 1
