"""The load keeps its rate whatever the answers do, and counts latency from the planned start."""

import asyncio
import math
import time

import pytest

from tests.support.open_loop import Outcome, Report, Sample, percentile, run_open_loop

GOOD = Outcome(correct=True, cached=True)


async def test_calls_start_at_the_planned_times_and_not_after_each_other():
    starts = []

    async def slow(index: int) -> Outcome:
        starts.append((index, time.monotonic()))
        await asyncio.sleep(0.2)
        return GOOD

    began = time.monotonic()
    report = await run_open_loop(slow, 100, count=20)
    assert time.monotonic() - began < 1.5  # one after the other it would be four seconds
    assert [index for index, _ in starts] == list(range(20))
    assert starts[-1][1] - began >= 0.19
    assert (report.count, report.correct, report.cached, report.errors) == (20, 20, 20, {})
    assert 0.2 <= report.latency(50) < 1


async def test_a_stall_shows_as_latency_of_all_who_should_have_started_meanwhile():
    async def stall_once(index: int) -> Outcome:
        if index == 5:
            time.sleep(0.2)  # noqa: ASYNC251 (the stall under test)
        return GOOD

    report = await run_open_loop(stall_once, 100, count=20)
    late = [sample for sample in report.samples if sample.latency_s > 0.05]
    assert len(late) >= 12
    assert report.worst_lag_s > 0.1


@pytest.mark.parametrize(
    ("count", "duration_s", "made"), [(5, None, 5), (None, 0.05, 10), (3, 0.05, 3), (100, 0.05, 10)]
)
async def test_it_ends_by_count_or_time(count, duration_s, made):
    async def call(index: int) -> Outcome:
        return GOOD

    assert (await run_open_loop(call, 200, count=count, duration_s=duration_s)).count == made


async def test_a_load_without_end_is_refused():
    with pytest.raises(ValueError, match="without an end"):
        await run_open_loop(lambda index: asyncio.sleep(0, GOOD), 10)


async def test_errors_are_counted_by_kind():
    async def call(index: int) -> Outcome:
        if index == 0:
            raise ConnectionResetError("gone")
        if index == 1:
            return Outcome(correct=False)
        if index == 2:
            await asyncio.sleep(60)
        return Outcome(correct=True, cached=False)

    report = await run_open_loop(call, 1000, count=4, drain_s=0.1)
    assert report.errors == {"ConnectionResetError: gone": 1, "wrong": 1, "unfinished": 1}
    assert (report.correct, report.cached, report.count) == (1, 0, 4)
    assert "1 correct" in report.summary()


def test_percentiles_are_nearest_ranks():
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, p) for p in (0, 1, 50, 99, 99.5, 100)] == [1, 1, 50, 99, 100, 100]
    assert percentile([7.0], 99) == 7
    assert math.isnan(percentile([], 50))


def test_a_report_is_cut_by_planned_start():
    samples = [Sample(n, n / 2, n / 2, n / 10, GOOD) for n in range(6)]
    report = Report(2, samples)
    assert {second: part.count for second, part in report.per_second().items()} == {0: 2, 1: 2, 2: 2}
    assert report.per_second()[1].latency(100) == 0.3
    assert [sample.index for sample in report.between(0.5, 1.5).samples] == [1, 2]
