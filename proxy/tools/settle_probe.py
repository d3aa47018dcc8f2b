"""
How long DashVector takes to show a write that it has acknowledged: rounds, timing and the rule for ``settle_s``.

No I/O here: the document, the clock and the sleep are handed in. ``settle_vendor`` brings the real ones, and
``settle_report`` shows the outcome.
"""

import asyncio
import enum
import math
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxy.runtime.tasks import Tasks

FACTOR = 2.0
FLOOR_S = 0.1
_LONGEST_PAUSE_S = 1.0
_CLEAN_UP_TRIES = 3
_CLEAN_UP_PAUSE_S = 0.5


class ProbeError(Exception):
    """Nothing could be measured; the message is for the operator."""


class RateLimitedError(ProbeError):
    """The vendor wants fewer calls per second; the call was not executed."""


class Reader(enum.StrEnum):
    """The two ways to read a document, which may learn of a write at different times."""

    FETCH = "fetch"
    QUERY = "query"


class Kind(enum.StrEnum):
    """What is timed, from the acknowledgement of a write; the strings are keys in JSON and labels of the metric."""

    SHOWN_BY_FETCH = "shown_by_fetch"
    SHOWN_BY_QUERY = "shown_by_query"
    GONE_BY_FETCH = "gone_by_fetch"
    GONE_BY_QUERY = "gone_by_query"


_AFTER_UPSERT = {Reader.FETCH: Kind.SHOWN_BY_FETCH, Reader.QUERY: Kind.SHOWN_BY_QUERY}
_AFTER_DELETE = {Reader.FETCH: Kind.GONE_BY_FETCH, Reader.QUERY: Kind.GONE_BY_QUERY}


class Document(Protocol):
    """The one document that a probe writes. Every method raises ProbeError, RateLimitedError for too many calls."""

    name: str
    """Its id and its collection, for messages."""

    async def upsert(self, value: int) -> None:
        """Write it with *value* in its field; returns when that is acknowledged."""

    async def delete(self) -> None:
        """Delete it, if it is there; returns when that is acknowledged."""

    async def read(self, reader: Reader, value: int) -> Collection[int | None]:
        """
        The different values that *reader* shows, ``None`` for no document.

        More than one when a collection has several vectors that do not agree. A query only looks for *value*.
        """


@dataclass(frozen=True, slots=True)
class Plan:
    """What an operator may choose; *timeout_s* is for a whole round, *interval_s* lies between two polls."""

    rounds: int = 20
    sightings: int = 3
    timeout_s: float = 30.0
    interval_s: float = 0.01


@dataclass(slots=True)
class Samples:
    """What was measured: seconds by kind, one for each round; and how many calls were refused for their rate."""

    elapsed_s: dict[Kind, list[float]] = field(default_factory=lambda: {kind: [] for kind in Kind})
    rate_limited: int = 0


class Watch:
    """
    One way to read, from an acknowledgement until the new state has been seen *sightings* times in a row.

    Reads may be served by replicas that learn of a write one after the other, so an old state starts the count anew.
    The time is that of the first answer after the last old one. A replica that was not asked in between may have been
    later by a few polls; the factor of the recommendation is meant for that too.
    """

    def __init__(self, acknowledged_s: float, sightings: int) -> None:
        self._acknowledged_s = acknowledged_s
        self._wanted = sightings
        self._seen = 0
        self._first_s = math.inf

    def note(self, answered_s: float, *, is_new: bool) -> None:
        """An answer that arrived at *answered_s* on the clock of the acknowledgement."""
        if not is_new:
            self._seen = 0
            return
        self._seen += 1
        if self._seen == 1:
            self._first_s = answered_s

    @property
    def is_settled(self) -> bool:
        """Whether the new state has been seen often enough."""
        return self._seen >= self._wanted

    @property
    def elapsed_s(self) -> float:
        """Seconds from the acknowledgement to the first answer of the last row; only once there was one."""
        return self._first_s - self._acknowledged_s


class SettleProbe:
    """Measures on one document, and deletes it whatever happens; *tell* is given what an operator has to know then."""

    def __init__(
        self,
        document: Document,
        plan: Plan,
        tell: Callable[[str], None],
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._document = document
        self._plan = plan
        self._tell = tell
        self._now = now
        self._sleep = sleep
        self._samples = Samples()
        self._writes = Tasks(lambda _: None)  # each is awaited, which shows its failure
        self._may_exist = False
        # Fields without a schema hold 32 bits; the start is drawn so that no value of an earlier run looks new.
        self._first_value = 1 + secrets.randbelow(2**30)

    async def run(self) -> Samples:
        """All rounds. Raises ProbeError when one cannot be measured."""
        try:
            for number in range(self._plan.rounds):
                await self._round(f"round {number + 1}", self._first_value + number)
        finally:
            await self._clean_up()
        return self._samples

    async def _round(self, name: str, value: int) -> None:
        deadline_s = self._now() + self._plan.timeout_s
        self._may_exist = True
        await self._write(lambda: self._document.upsert(value), f"{name}, upsert", deadline_s)
        await self._watch(_AFTER_UPSERT, value, value, name, deadline_s)
        await self._write(self._document.delete, f"{name}, delete", deadline_s)
        self._may_exist = False
        await self._watch(_AFTER_DELETE, value, None, name, deadline_s)

    async def _write(self, write: Callable[[], Coroutine[Any, Any, None]], name: str, deadline_s: float) -> None:
        """Write, as often as it takes for a vendor that wants fewer calls."""
        pause_s = self._plan.interval_s
        while True:
            try:
                await self._to_its_end(write())
            except RateLimitedError as error:
                self._samples.rate_limited += 1
                if self._now() >= deadline_s:
                    raise ProbeError(f"{name}: {error}") from error
            else:
                return
            pause_s = _longer(pause_s)
            await self._sleep(pause_s)

    async def _to_its_end(self, write: Coroutine[Any, Any, None]) -> None:
        """Await *write* even when cancelled: it is under way, and a deletion must not come before it."""
        task = self._writes.start(write, is_awaited=True)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            # Its outcome does not matter any more: either way the document is deleted next.
            await asyncio.gather(task, return_exceptions=True)
            raise

    async def _watch(
        self, kinds: Mapping[Reader, Kind], value: int, wanted: int | None, name: str, deadline_s: float
    ) -> None:
        """Poll with each reader until all show *wanted* only, and note how long each took."""
        acknowledged_s = self._now()
        watches = {reader: Watch(acknowledged_s, self._plan.sightings) for reader in kinds}
        pause_s = self._plan.interval_s
        while True:
            refused = [
                reader for reader, watch in watches.items() if not await self._look(reader, watch, value, wanted)
            ]
            # All at once: one that had settled may meanwhile have met a replica that is behind.
            if all(watch.is_settled for watch in watches.values()):
                break
            if self._now() >= deadline_s:
                behind = [kinds[reader] for reader, watch in watches.items() if not watch.is_settled]
                raise ProbeError(f"{name}: {self._unsettled(behind, refused)}")
            pause_s = _longer(pause_s) if refused else self._plan.interval_s
            await self._sleep(pause_s)
        for reader, watch in watches.items():
            self._samples.elapsed_s[kinds[reader]].append(watch.elapsed_s)

    async def _look(self, reader: Reader, watch: Watch, value: int, wanted: int | None) -> bool:
        """Read once and note what was seen; false when the vendor did not answer that, which says nothing."""
        try:
            values = await self._document.read(reader, value)
        except RateLimitedError:
            self._samples.rate_limited += 1
            return False
        watch.note(self._now(), is_new=set(values) == {wanted})
        return True

    def _unsettled(self, behind: Sequence[Kind], refused: Sequence[Reader]) -> str:
        kinds = " and ".join(kind.replace("_", " ") for kind in behind)
        text = f"not {kinds}, {self._plan.sightings} times in a row, within {self._plan.timeout_s:g} s"
        return f"{text}; the vendor refuses calls for their rate: poll less often" if refused else text

    async def _clean_up(self) -> None:
        """Delete the document if it may be there. Failing is told, not raised: what ended the run matters more."""
        if not self._may_exist:
            return
        reason = "interrupted again"
        try:
            for attempt in range(_CLEAN_UP_TRIES):
                if attempt:
                    await self._sleep(_CLEAN_UP_PAUSE_S)
                try:
                    await self._document.delete()
                except ProbeError as error:
                    reason = str(error)
                else:
                    self._may_exist = False
                    return
        finally:
            if self._may_exist:
                self._tell(f"{self._document.name} may be left behind: {reason}")


def _longer(pause_s: float) -> float:
    return max(pause_s, min(pause_s * 2, _LONGEST_PAUSE_S))


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The figures that are shown of *values*: p99 by nearest rank, so below 100 rounds it is the largest."""
    ordered = sorted(values)
    rank = math.ceil(len(ordered) * 99 / 100)
    return {"min": ordered[0], "median": statistics.median(ordered), "p99": ordered[rank - 1], "max": ordered[-1]}


def recommended_s(longest_s: float) -> float:
    """
    What ``vector.settle_s`` should at least be when *longest_s* is the longest time that was measured.

    Twice that, because a few rounds do not meet the slowest moment, and never below a tenth of a second; rounded up
    to tenths below a second, to halves below ten, to whole seconds above.
    """
    wanted_s = max(longest_s * FACTOR, FLOOR_S)
    step_s = 0.1 if wanted_s <= 1 else 0.5 if wanted_s <= 10 else 1.0
    return round(math.ceil(wanted_s / step_s) * step_s, 1)
