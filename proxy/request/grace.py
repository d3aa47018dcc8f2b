"""
What is done with entries in grace: served while one refresh runs, or in place of an upstream's failure.

Open ``Grace.at_once`` first: whether stale entries are served without asking; then ``Grace.fetch``: what becomes of a
request for which they are the fallback. When an item may be served at all is decided in ``core.grace``. Nothing that a
write can make stale is ever in grace.

A refresh is a fetch like any other, with the credential of the request that set it off, which is kept in memory only:
it shares flights and claims, so there is one for an item at a time, in all processes together.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence

from cachetools import TTLCache

from proxy.core.entry import Entry
from proxy.core.errors import ErrorCode, UpstreamError
from proxy.core.freshness import NONE
from proxy.core.grace import Cause, StaleReason, Windows, cause_of_status, may_be_stale
from proxy.core.outcome import Outcome
from proxy.core.telemetry import Telemetry
from proxy.request.ask import Job, Landing
from proxy.request.coalesce import Fetcher
from proxy.runtime.tasks import Tasks

_CAUSES = {
    ErrorCode.UPSTREAM_UNREACHABLE: Cause.UNREACHABLE,
    ErrorCode.UPSTREAM_PROTOCOL: Cause.UNREACHABLE,
    ErrorCode.UPSTREAM_TIMEOUT: Cause.TIMEOUT,
    ErrorCode.UPSTREAM_BUSY: Cause.BUSY,
}
_FIRST_REST_S, _LONGEST_REST_S = 1.0, 60.0
_MAX_REMEMBERED = 10_000

Stale = Mapping[bytes, Entry]
"""Entries past their lifetime, by key."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Rest:
    """After a failure an item that has a stale entry is not asked for again before *ends_s* (monotonic)."""

    ends_s: float
    length_s: float
    is_excused: bool
    """Whether the failure is a cause for serving stale answers."""


class Grace:
    """
    The entries in grace of one worker.

    *max_refreshes* run at a time; *wait_s* is how long a request that has a stale answer waits for a fresh one.
    """

    def __init__(
        self,
        *,
        windows: Windows,
        fetcher: Fetcher,
        tasks: Tasks,
        telemetry: Telemetry,
        wait_s: float,
        max_refreshes: int,
        monotonic: Callable[[], float],
    ) -> None:
        self._windows = windows
        self._fetcher = fetcher
        self._tasks = tasks
        self._telemetry = telemetry
        self._wait_s = wait_s if Cause.TIMEOUT in windows.causes else None
        self._max_refreshes = max_refreshes
        self._monotonic = monotonic
        self._refreshes: set[asyncio.Task[None]] = set()
        self._refreshing: set[bytes] = set()
        self._rests: TTLCache[bytes, _Rest] = TTLCache(_MAX_REMEMBERED, 2 * _LONGEST_REST_S, monotonic)
        # As long as an entry could be served again; what the upstream refused must not be answered in its name.
        self._refused: TTLCache[bytes, bool] = TTLCache(_MAX_REMEMBERED, max(1.0, windows.longest_s), monotonic)

    def stand_ins(self, job: Job, found: Mapping[bytes, Entry], missing: Sequence[int], now_unix_ms: int) -> Stale:
        """Entries of *found* that may stand in for all items at positions *missing*; empty if one of them has none."""
        if job.scopes or not self._windows.longest_s:
            return {}
        stale: dict[bytes, Entry] = {}
        for at in missing:
            key = job.keys[at]
            entry = found.get(key)
            if entry is None or key in self._refused:
                return {}
            if not may_be_stale(entry, job.wishes, now_unix_ms, self._windows.longest_s):
                return {}
            stale[key] = entry
        return stale

    def at_once(self, job: Job, missing: Sequence[int], stale: Stale, now_unix_ms: int) -> StaleReason | None:
        """
        Why *stale* is served without asking, ``None`` if the upstream is to be asked first.

        Begins the refresh of what nobody refreshes, unless that failed a moment ago.
        """
        if not stale:
            return None
        stale_s = max(-entry.remaining_ms(now_unix_ms) for entry in stale.values()) / 1000
        rests = {at: self._rest_of(job.keys[at]) for at in missing}
        # Switched off, it does not count in the very millisecond of the end either.
        if 0 < self._windows.while_refresh_s >= stale_s:
            asleep = [at for at, rest in rests.items() if rest is not None or job.keys[at] in self._refreshing]
            self._refresh(job, [at for at in missing if at not in asleep])
            return StaleReason.WHILE_REFRESH
        is_excused = all(rest is not None and rest.is_excused for rest in rests.values())
        return StaleReason.IF_ERROR if is_excused else None

    async def fetch(self, job: Job, missing: Sequence[int], stale: Stale) -> Landing | None:
        """
        What the upstream brings for the positions *missing*; ``None`` when *stale* is to be served in its place.

        Raises:
            ProxyError: no answer could be had.
        """
        if not stale:
            return await self._fetcher.fetch(job, missing)
        asking: asyncio.Task[Landing] = self._tasks.start(self._fetcher.fetch(job, missing), is_awaited=True)
        try:
            await asyncio.wait((asking,), timeout=self._wait_s)
        except asyncio.CancelledError:
            asking.cancel()
            raise
        if not asking.done():
            self._rest(job, missing, Cause.TIMEOUT)
            if self._is_full:
                asking.cancel()
            else:
                self._go_on(dataclasses.replace(job, outcome=_outcome_of(job)), missing, asking)
            return None
        cause = _cause_of(asking)
        if cause is None or cause not in self._windows.causes:
            landing = asking.result()
            self._answered(job, missing, landing)
            return landing
        if asking.exception() is None:
            asking.result().close()
        self._rest(job, missing, cause)
        return None

    async def close(self) -> None:
        """End all refreshes."""
        for task in tuple(self._refreshes):
            task.cancel()
        await asyncio.gather(*self._refreshes, return_exceptions=True)

    # --- refreshes ----------------------------------------------------------------------------------------------------

    @property
    def _is_full(self) -> bool:
        return len(self._refreshes) >= self._max_refreshes

    def _refresh(self, job: Job, positions: Sequence[int]) -> None:
        """Begin one, if there is room; the next request for these items looks again."""
        if not positions or self._is_full:
            return
        refresh = dataclasses.replace(
            job, request=dataclasses.replace(job.request, timeout_s=None), wishes=NONE, outcome=_outcome_of(job)
        )
        self._go_on(refresh, positions, self._tasks.start(self._fetcher.fetch(refresh, positions), is_awaited=True))

    def _go_on(self, job: Job, positions: Sequence[int], asking: "asyncio.Task[Landing]") -> None:
        """*asking* goes on as a refresh."""
        self._refreshing.update(job.keys[at] for at in positions)
        task = self._tasks.start(self._refreshed(job, positions, asking))
        self._refreshes.add(task)
        task.add_done_callback(self._refreshes.discard)

    async def _refreshed(self, job: Job, positions: Sequence[int], asking: "asyncio.Task[Landing]") -> None:
        """What is right is kept, a failure lets the items rest, a refusal ends their grace."""
        is_fresh = False
        try:
            await asyncio.wait((asking,))
            cause = _cause_of(asking)
            if cause is not None:
                self._rest(job, positions, cause)
            if not isinstance(asking.exception(), UpstreamError):
                landing = asking.result()
                landing.close()
                is_fresh = landing.rows is not None
                if cause is None:
                    self._answered(job, positions, landing)
                landing.store()
                await landing.kept()  # or who looked just before would begin another refresh
        finally:
            asking.cancel()
            self._refreshing.difference_update(job.keys[at] for at in positions)
        self._telemetry.refreshed(is_fresh, job.outcome)

    # --- what the upstream did lately ---------------------------------------------------------------------------------

    def _answered(self, job: Job, positions: Sequence[int], landing: Landing) -> None:
        for at in positions:
            self._rests.pop(job.keys[at], None)
            if landing.rows is None:
                self._refused[job.keys[at]] = True

    def _rest(self, job: Job, positions: Sequence[int], cause: Cause) -> None:
        for key in (job.keys[at] for at in positions):
            before = self._rests.get(key)
            length_s = min(before.length_s * 2, _LONGEST_REST_S) if before is not None else _FIRST_REST_S
            self._rests[key] = _Rest(self._monotonic() + length_s, length_s, cause in self._windows.causes)

    def _rest_of(self, key: bytes) -> _Rest | None:
        rest = self._rests.get(key)
        return rest if rest is not None and self._monotonic() < rest.ends_s else None


def _outcome_of(job: Job) -> Outcome:
    """A refresh has one of its own: that of the request that set it off is told of before."""
    return Outcome(operation=job.outcome.operation, upstream=job.outcome.upstream)


def _cause_of(asked: "asyncio.Task[Landing]") -> Cause | None:
    """How the upstream failed, if it did."""
    error = asked.exception()
    if error is not None:
        return _CAUSES.get(error.code) if isinstance(error, UpstreamError) else None
    landing = asked.result()
    return cause_of_status(landing.answer.status) if landing.rows is None and landing.answer is not None else None
