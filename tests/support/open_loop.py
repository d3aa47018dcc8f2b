"""
Load at a fixed arrival rate, which does not slow down when the answers do. Used by the tests of faults under load.

A closed loop (so many clients, each waiting for its answer) sends less while the server stalls, and so hides the stall.
Here every call has its planned start, and its latency counts from there.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one call came to. *correct*: the answer was what it had to be; *error* groups failures, so keep it short."""

    correct: bool
    error: str | None = None
    cached: bool | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One call; *planned_s* and *started_s* count from the start of the load, *latency_s* from *planned_s*."""

    index: int
    planned_s: float
    started_s: float
    latency_s: float
    outcome: Outcome


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least *percent* of all do not exceed (nearest rank); NaN without any."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass(slots=True)
class Report:
    """What the load found. Times are seconds since its start and refer to planned starts."""

    rate: float
    samples: list[Sample] = field(default_factory=list)

    def between(self, start_s: float = 0.0, end_s: float = math.inf) -> "Report":
        """The part of it that was planned to start in this span."""
        return Report(self.rate, [sample for sample in self.samples if start_s <= sample.planned_s < end_s])

    def within(self, start_s: float, end_s: float) -> "Report":
        """The part of it that was planned and answered in this span; on a busy machine the one can be far behind."""
        return Report(
            self.rate,
            [
                sample
                for sample in self.samples
                if start_s <= sample.planned_s and sample.planned_s + sample.latency_s < end_s
            ],
        )

    def per_second(self) -> dict[int, "Report"]:
        """The report cut into its seconds."""
        cut: dict[int, Report] = {}
        for sample in self.samples:
            cut.setdefault(int(sample.planned_s), Report(self.rate)).samples.append(sample)
        return dict(sorted(cut.items()))

    @property
    def count(self) -> int:
        """How many calls were made."""
        return len(self.samples)

    @property
    def correct(self) -> int:
        """How many of them got the right answer."""
        return sum(sample.outcome.correct for sample in self.samples)

    @property
    def cached(self) -> int:
        """How many say that they came from the cache."""
        return sum(sample.outcome.cached is True for sample in self.samples)

    @property
    def errors(self) -> Counter[str]:
        """How often each error occurred; a wrong answer without one counts as "wrong"."""
        failed = [sample.outcome for sample in self.samples if sample.outcome.error or not sample.outcome.correct]
        return Counter(outcome.error or "wrong" for outcome in failed)

    def latency(self, percent: float) -> float:
        """The percentile of the latencies, in seconds: ``report.latency(99)``."""
        return percentile((sample.latency_s for sample in self.samples), percent)

    @property
    def worst_lag_s(self) -> float:
        """How late a call was started at worst: beyond a few milliseconds the generator itself was too slow."""
        return max((sample.started_s - sample.planned_s for sample in self.samples), default=0.0)

    def summary(self) -> str:
        """One line, for the message of an assertion."""
        return (
            f"{self.count} calls at {self.rate:g}/s, {self.correct} correct, {self.cached} cached, "
            f"errors {dict(self.errors)}, p50 {self.latency(50) * 1000:.1f} ms, p99 {self.latency(99) * 1000:.1f} ms, "
            f"max {self.latency(100) * 1000:.1f} ms, generator lag {self.worst_lag_s * 1000:.1f} ms"
        )


async def run_open_loop(
    call: Callable[[int], Awaitable[Outcome]],
    rate: float,
    *,
    count: int | None = None,
    duration_s: float | None = None,
    drain_s: float = 10.0,
) -> Report:
    """
    Start ``call(i)`` *rate* times a second, *count* times or for *duration_s*, whichever ends first.

    An exception of a call is its error. Calls that have no result *drain_s* after the last start are cancelled and
    reported as "unfinished".
    """
    limits = [*([count] if count is not None else []), *([int(rate * duration_s)] if duration_s is not None else [])]
    if not limits:
        raise ValueError("give a count or a duration: a load without an end is none")
    report = Report(rate)
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for index in range(min(limits)):
            planned_s = index / rate
            await asyncio.sleep(max(0.0, began + planned_s - time.monotonic()))
            tasks.append(group.create_task(_measure(call, index, planned_s, began, report)))
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=drain_s)
            for task in late:
                task.cancel()
    report.samples.sort(key=lambda sample: sample.index)
    return report


async def _measure(
    call: Callable[[int], Awaitable[Outcome]], index: int, planned_s: float, began: float, report: Report
) -> None:
    started_s = time.monotonic() - began
    outcome = Outcome(correct=False, error="unfinished")
    try:
        outcome = await call(index)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is this call's error and must not end the load)
        outcome = Outcome(correct=False, error=f"{type(error).__name__}: {error}"[:120])
    finally:
        report.samples.append(Sample(index, planned_s, started_s, time.monotonic() - began - planned_s, outcome))
