"""Grace by itself: windows and wishes, and how long what failed is left alone."""

import asyncio
import dataclasses
from typing import Any

import pytest

from proxy.core.answer import Answer
from proxy.core.entry import Entry, Row
from proxy.core.errors import ErrorCode, UpstreamError
from proxy.core.freshness import NONE, Directives
from proxy.core.grace import Cause, StaleReason, Windows, cause_of_status, may_be_stale
from proxy.core.outcome import Outcome
from proxy.core.request import Request
from proxy.request.ask import Job, Landing
from proxy.request.grace import Grace
from proxy.runtime.tasks import Tasks
from tests.support.clock import FakeClock
from tests.support.waiting import wait_until

ROW = Row(b"{}", b"{}", b"[]", (), "")
STORED, TTL = 1_000_000, 10_000
KEY = b"k"


@pytest.mark.parametrize(
    ("stale_ms", "wish", "served"),
    [
        (-1, NONE, False),  # fresh: not a case for grace
        (0, NONE, True),
        (5_000, NONE, True),
        (5_001, NONE, False),
        (1_000, Directives(no_cache=True), False),
        (1_000, Directives(min_fresh_s=1), False),
        (1_000, Directives(max_age_s=600), False),
        (1_000, Directives(max_age_s=11, max_stale_s=1), True),
        (1_001, Directives(max_age_s=600, max_stale_s=1), False),
        (1_000, Directives(max_age_s=10, max_stale_s=600), False),
        (1_000, Directives(max_stale_s=0), False),
        (5_001, Directives(max_stale_s=600), False),
    ],
)
def test_a_stale_entry_is_served_in_its_window_and_as_the_client_takes_it(stale_ms, wish, served) -> None:
    assert may_be_stale(Entry(ROW, STORED, TTL), wish, STORED + TTL + stale_ms, 5.0) is served


@pytest.mark.parametrize(
    ("status", "cause"),
    [(200, None), (400, None), (401, None), (403, None), (404, None), (408, None), (429, Cause.THROTTLED)]
    + [(status, Cause.SERVER_ERROR) for status in (500, 502, 503, 504, 599)],
)
def test_what_a_status_says_of_the_upstream(status, cause) -> None:
    assert cause_of_status(status) is cause


class Rig:
    """Grace before a fetcher that answers as it is told; counts fetches and background failures."""

    def __init__(self, windows: Windows, **changes: Any) -> None:
        self.clock, self.faults, self.told = FakeClock(), list[BaseException](), list[bool]()
        self.tasks = Tasks(self.faults.append)
        self.fetches = 0
        self.answer: Landing | Exception = UpstreamError(ErrorCode.UPSTREAM_TIMEOUT, "late", 504)
        self.hold = asyncio.Event()
        self.hold.set()
        parts: Any = {"fetcher": self, "telemetry": self, "wait_s": 5.0, "max_refreshes": 2}
        self.grace = Grace(windows=windows, tasks=self.tasks, monotonic=self.clock.monotonic, **(parts | changes))

    async def fetch(self, job: Job, positions: Any) -> Landing:
        self.fetches += 1
        await self.hold.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def refreshed(self, is_fresh: bool, outcome: Outcome) -> None:
        self.told.append(is_fresh)

    def look(self, stale_s: float = 1.0, key: bytes = KEY) -> StaleReason | None:
        """Whether an entry that is past its lifetime for so long is served at once."""
        job, now_unix_ms = job_of(key), STORED + TTL + round(stale_s * 1000)
        stale = self.grace.stand_ins(job, {key: Entry(ROW, STORED, TTL)}, [0], now_unix_ms)
        return self.grace.at_once(job, [0], stale, now_unix_ms)

    async def idle(self) -> None:
        await wait_until(lambda: not len(self.tasks))
        assert not self.faults


def job_of(key: bytes) -> Job:
    return Job(Request("POST", "/", (), "u"), Any, NONE, Outcome(), (key,), b"", ())  # type: ignore[arg-type]


async def test_a_failing_refresh_rests_for_1_to_60_seconds() -> None:
    rig = Rig(Windows(while_refresh_s=100_000))
    for length_s in (1, 2, 4, 8, 16, 32, 60, 60, 60):
        before = rig.fetches
        assert rig.look() is StaleReason.WHILE_REFRESH
        await rig.idle()
        assert rig.fetches == before + 1
        rig.clock.advance(length_s - 0.01)
        assert rig.look() is StaleReason.WHILE_REFRESH
        await rig.idle()
        assert rig.fetches == before + 1, f"it rests for {length_s} s"
        rig.clock.advance(0.02)
    assert not any(rig.told)


@pytest.mark.parametrize("stale_s", [0.0, 0.001, 1.0])
async def test_what_is_switched_off_is_off_from_the_first_moment(stale_s: float) -> None:
    assert Rig(Windows(if_error_s=60)).look(stale_s) is None
    assert Rig(Windows(while_refresh_s=1.0, if_error_s=60)).look(stale_s) is StaleReason.WHILE_REFRESH


async def test_no_more_refreshes_than_may_be() -> None:
    rig = Rig(Windows(while_refresh_s=60))
    rig.hold.clear()
    for number in range(5):
        assert rig.look(key=b"%d" % number) is StaleReason.WHILE_REFRESH
    await wait_until(lambda: rig.fetches == 2)
    rig.hold.set()
    await rig.idle()
    assert rig.fetches == 2


async def test_a_fault_of_ours_in_a_refresh_is_told() -> None:
    rig = Rig(Windows(while_refresh_s=60))
    rig.answer = ValueError("a bug")
    rig.look()
    await wait_until(lambda: rig.faults)
    assert [type(fault) for fault in rig.faults] == [ValueError]
    rig.look()
    await wait_until(lambda: len(rig.faults) == 2)  # and leaves nothing behind that would stop the next


async def test_who_waits_long_enough_is_served_and_the_fetch_goes_on() -> None:
    rig = Rig(Windows(if_error_s=60), wait_s=0.01)
    rig.hold.clear()
    row = dataclasses.replace(ROW, vector=b"[1]")
    rig.answer = Landing((0,), Answer(200, "OK", (), b""), {KEY: row})
    assert rig.look() is None
    stale = {KEY: Entry(ROW, STORED, TTL)}
    assert await rig.grace.fetch(job_of(KEY), [0], stale) is None
    assert rig.look() is StaleReason.IF_ERROR
    rig.hold.set()
    await rig.idle()
    assert (rig.fetches, rig.told) == (1, [True])
    assert rig.look() is None, "the upstream is well again"


async def test_a_client_that_leaves_ends_its_fetch() -> None:
    rig = Rig(Windows(if_error_s=60))
    rig.hold.clear()
    waiting = asyncio.get_running_loop().create_task(rig.grace.fetch(job_of(KEY), [0], {KEY: Entry(ROW, STORED, TTL)}))
    await wait_until(lambda: rig.fetches == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await rig.idle()


async def test_closing_ends_refreshes() -> None:
    rig = Rig(Windows(while_refresh_s=60))
    rig.hold.clear()
    rig.look()
    await wait_until(lambda: rig.fetches == 1)
    await rig.grace.close()
    await rig.idle()
    assert not rig.told


async def test_what_a_write_can_make_stale_is_never_in_grace() -> None:
    rig = Rig(Windows(60, 60))
    job = dataclasses.replace(job_of(KEY), scopes=(b"collection",))
    assert not rig.grace.stand_ins(job, {KEY: Entry(ROW, STORED, TTL)}, [0], STORED + TTL + 1)
