"""
Items of several requests in one upstream request, and items of one request in several; both are off unless set.

::

    what a trip asks for (``fetch``)
        |-- more than the vendor takes in one request: pieces, a few side by side, then put together
        |-- less, and nothing is known against it: wait a moment for others that differ in their items only
        |       |-- nobody else came: as it is
        |       |-- right: each has its own rows out of the one answer
        |       `-- not right: nobody gets to see that; each asks on its own, unless the first to do so
        |           fails as the batch did, and the failure is none that hangs on items: then all have that
        `-- the rest: as it is

Pure in the middle: what a request for several has to say is the vendor's to know (``core.plan.Batchable``).
"""

import asyncio
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence

from proxy.cache.flights import Land, Trip
from proxy.cache.lock_times import LockTimes
from proxy.core.answer import Answer
from proxy.core.coding import decoded
from proxy.core.errors import ErrorCode, ProxyError
from proxy.core.key import prefixed
from proxy.core.plan import Batchable, NotStorable
from proxy.core.ports import Clock
from proxy.core.request import HeaderLines, Request
from proxy.request.ask import Asker, Job, Landing
from proxy.runtime.offload import Heavy
from proxy.runtime.tasks import Tasks

# Statuses that speak of an account or of its load, as 5xx do of the vendor: not of what was asked.
_OF_NO_ITEM = frozenset({401, 403, 429})
# After a batch that was refused its like go on their own: at most one call in this time is made in vain.
_APART_S = 1.0
# Every request needs these, and they name nobody; whose they are does not matter where no answer hangs on them.
_NEEDED = frozenset({b"accept", b"accept-encoding", b"content-type", b"cookie", b"user-agent"})


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """
    How items are put together and taken apart; the default is: not at all.

    A batch waits *window_s* seconds for others; it has at most *max_bytes* of texts. Of the pieces of one request at
    most *parallel* are at the upstream at a time.
    """

    window_s: float = 0.0
    max_bytes: int = 0
    cuts: bool = False
    parallel: int = 1


@dataclasses.dataclass(slots=True, eq=False)
class _Member:
    """One request in a batch, with what it asks for."""

    job: Job
    plan: Batchable
    positions: Sequence[int]

    @property
    def size(self) -> int:
        """Bytes of all its items."""
        return sum(len(self.plan.items[at]) for at in self.positions)


class _Batch:
    """
    Requests that wait for each other until ``sent`` has the trip that brings the rows of all.

    ``None`` there: nobody else has come, so go on your own.
    """

    def __init__(self, group: bytes) -> None:
        self.group = group
        self.members: list[_Member] = []
        self.sent: asyncio.Future[Trip[Landing] | None] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None
        self.turn = asyncio.Lock()
        self.fails_for_all: bool | None = None
        """Of a batch that failed: whether others would fail alike; ``None`` until one of them has tried."""

    @property
    def wanted(self) -> dict[bytes, tuple[Batchable, int]]:
        """Each key that is asked for, once, with a plan and a position that have it."""
        found: dict[bytes, tuple[Batchable, int]] = {}
        for member in self.members:
            for at in member.positions:
                found.setdefault(member.job.keys[at], (member.plan, at))
        return found

    def has_room(self, member: _Member, max_bytes: int) -> bool:
        """Whether *member* can come along."""
        keys = self.wanted.keys() | {member.job.keys[at] for at in member.positions}
        size = sum(one.size for one in (*self.members, member))
        return len(keys) <= member.plan.cap and size <= max_bytes


class Batcher:
    """Asks upstreams for items, in as many requests as there should be; *on_batch* is told of items, and of success."""

    def __init__(
        self,
        asker: Asker,
        tasks: Tasks,
        *,
        rules: Rules,
        clock: Clock,
        lock_times: LockTimes,
        max_answer_bytes: int,
        heavy: Heavy | None = None,
        on_batch: Callable[[int, bool], None] = lambda _items, _is_right: None,
    ) -> None:
        self._asker = asker
        self._tasks = tasks
        self._rules = rules
        self._clock = clock
        self._lock_times = lock_times
        self._max_answer_bytes = max_answer_bytes
        self._heavy = heavy or Heavy()
        self._on_batch = on_batch
        self._is_on = rules.cuts or rules.window_s > 0
        self._open: dict[bytes, _Batch] = {}
        self._apart: dict[bytes, float] = {}
        """Until when (monotonic) nobody of the group is put together with others."""

    def __len__(self) -> int:
        return len(self._open)

    async def ask(self, job: Job, positions: Sequence[int]) -> Landing:
        """What the upstream says to the items at *positions*. Our errors are part of the landing."""
        plan = job.plan.batchable if self._is_on else None
        if plan is not None and len(positions) > plan.cap:
            return await self._in_pieces(job, positions, plan.cap)
        if plan is not None and self._rules.window_s and job.may_batch and len(positions) < plan.cap:
            return await self._together(_Member(job, plan, positions))
        return await self._alone(job, positions)

    async def _alone(self, job: Job, positions: Sequence[int]) -> Landing:
        try:
            content = await self._heavy(len(job.request.body or b""), job.plan.narrowed, positions)
            return await self._asker.ask(job, positions, content)
        except ProxyError as error:
            return Landing(positions, error=error)

    # --- several requests in one --------------------------------------------------------------------------------------

    async def _together(self, member: _Member) -> Landing:
        group = _group(member)
        if member.size > self._rules.max_bytes or self._is_apart(group):
            return await self._alone(member.job, member.positions)
        batch = self._boarded(group, member)
        try:
            trip = await asyncio.shield(batch.sent)
            # One that hangs must not have all its members hang: then each asks on its own, as if there were no batch.
            landing = await trip.landed_in_time() if trip is not None else None
        finally:
            self._leave(batch, member)
        if landing is None:
            return await self._alone(member.job, member.positions)
        return await self._own(batch, member, landing)

    def _boarded(self, group: bytes, member: _Member) -> _Batch:
        """The batch that *member* is in; it is on its way if that has made it full."""
        batch = self._open.get(group)
        if batch is not None and not batch.has_room(member, self._rules.max_bytes):
            self._send(batch)
            batch = None
        if batch is None:
            batch = self._open[group] = _Batch(group)
            batch.timer = asyncio.get_running_loop().call_later(self._rules.window_s, self._send, batch)
        batch.members.append(member)
        if len(batch.wanted) >= member.plan.cap:
            self._send(batch)
        return batch

    def _leave(self, batch: _Batch, member: _Member) -> None:
        """*member* has what it came for, or its clients have gone: the last one takes the upstream request along."""
        if batch.sent.done():
            if (trip := batch.sent.result()) is not None:
                trip.leave()
            return
        batch.members.remove(member)
        if not batch.members:
            self._close(batch)

    def _close(self, batch: _Batch) -> None:
        """Nobody comes along any more."""
        if batch.timer is not None:
            batch.timer.cancel()
        if self._open.get(batch.group) is batch:
            del self._open[batch.group]

    def _send(self, batch: _Batch) -> None:
        self._close(batch)
        if len(batch.members) == 1:
            batch.sent.set_result(None)
            return
        group = batch.members[0].job.latency_group
        trip: Trip[Landing] = Trip(lambda land: self._trip(batch, land), self._tasks, self._lock_times.lock_s(group))
        for _ in batch.members:
            trip.board()
        batch.sent.set_result(trip)

    async def _trip(self, batch: _Batch, land: Land[Landing]) -> None:
        """One request for all, in a task that belongs to none of them; the first one's outcome has the call."""
        first, *others = batch.members
        before_ms = first.job.outcome.upstream_ms
        job = _merged(batch)
        landing = await self._alone(job, range(len(job.keys)))
        if landing.rows is None:
            landing = await landing.read_whole()
            batch.fails_for_all = _first_guess(landing)
            if batch.fails_for_all is False:
                self._set_apart(batch.group)
        for member in others:
            outcome = member.job.outcome
            outcome.upstream_status = first.job.outcome.upstream_status
            outcome.vendor_request_id = first.job.outcome.vendor_request_id
            outcome.upstream_ms += first.job.outcome.upstream_ms - before_ms
            outcome.stored = outcome.stored or bool(landing.stores)
        for member in batch.members:
            member.job.outcome.batched = len(job.keys)
        self._on_batch(len(job.keys), landing.rows is not None)
        land(landing, False)
        await landing.kept()  # also if all have gone just now: it is paid for

    async def _own(self, batch: _Batch, member: _Member, landing: Landing) -> Landing:
        """What came of *batch* for one of its members, with calls of its own if that was nothing good."""
        job, positions = member.job, member.positions
        if landing.rows is not None:
            rows = {job.keys[at]: landing.rows[job.keys[at]] for at in positions}
            return Landing(rows=rows, stores=landing.stores)
        if batch.fails_for_all is None:
            async with batch.turn:
                # One tries for all: a vendor that is down or busy is not asked by everybody at once.
                if batch.fails_for_all is None:
                    own = await self._alone(job, positions)
                    batch.fails_for_all = _fails_alike(own, landing)
                    if not batch.fails_for_all:
                        self._set_apart(batch.group)
                    return own
        if batch.fails_for_all:
            return dataclasses.replace(shared(landing, self._max_answer_bytes), positions=positions)
        return await self._alone(job, positions)

    def _is_apart(self, group: bytes) -> bool:
        return bool(self._apart) and self._apart.get(group, 0.0) > self._clock.monotonic()

    def _set_apart(self, group: bytes) -> None:
        now_s = self._clock.monotonic()
        self._apart = {one: until_s for one, until_s in self._apart.items() if until_s > now_s}
        self._apart[group] = now_s + _APART_S

    # --- one request in several ---------------------------------------------------------------------------------------

    async def _in_pieces(self, job: Job, positions: Sequence[int], cap: int) -> Landing:
        """All pieces put together; or the first one that failed, and then no more are sent. What came is kept."""
        pieces = [positions[at : at + cap] for at in range(0, len(positions), cap)]
        left, landed = iter(range(len(pieces))), dict[int, Landing]()
        began_s, before_ms = self._clock.monotonic(), job.outcome.upstream_ms

        async def some() -> None:
            for number in left:
                landed[number] = await self._alone(job, pieces[number])
                if any(landing.rows is None for landing in landed.values()):
                    return

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._rules.parallel, len(pieces))):
                    group.create_task(some())
        except BaseException:
            _let_go(landed.values())
            raise
        job.outcome.upstream_ms = before_ms + (self._clock.monotonic() - began_s) * 1000
        return _rejoined(job, [landed[number] for number in sorted(landed)])


def shared(failed: Landing, max_bytes: int) -> Landing:
    """The end of a request that failed, for one more of those who waited for it; it must be whole."""
    if failed.error is not None:
        return failed
    answer = failed.answer
    if answer is None or not isinstance(answer.body, bytes):
        raise TypeError("no failure to be shared")
    # Cookies are for who was answered; and not everybody reads the coding that the first accepted.
    lines = tuple(line for line in answer.headers if line[0].lower() != b"set-cookie")
    codings = tuple(value for name, value in lines if name.lower() == b"content-encoding")
    try:
        body = decoded(answer.body, codings, max_bytes)
    except NotStorable:
        body = answer.body
    else:
        lines = tuple(line for line in lines if line[0].lower() != b"content-encoding")
    plain = dataclasses.replace(answer, headers=lines, body=body, length=len(body))
    return Landing(answer=plain, detail=failed.detail, asked=failed.asked)


def common_lines(requests: Sequence[Request]) -> HeaderLines:
    """
    The header lines that a request for all of *requests* goes with: those in which they do not differ.

    What can change an answer is alike in all of them. What names a single request or who is behind it (its id, a
    trace, an address) would tell something wrong of the others.
    """
    first, *others = (_by_name(request.headers) for request in requests)
    differing = {name for name, values in first.items() if any(other.get(name) != values for other in others)}
    return tuple(line for line in requests[0].headers if line[0].lower() not in differing - _NEEDED)


def _group(member: _Member) -> bytes:
    """
    Who may be asked for together: of one upstream, and alike in everything that can change an answer but the items.

    A digest, as some of it is kept for a while, and credentials are not to be.
    """
    parts = (member.job.request.upstream.encode(), member.plan.operation.encode(), *member.plan.identity)
    return hashlib.blake2b(prefixed(parts), digest_size=32).digest()


def _by_name(lines: HeaderLines) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in lines:
        found.setdefault(name.lower(), []).append(value)
    return found


def _merged(batch: _Batch) -> Job:
    """The request for all members, on behalf of the first."""
    first, wanted = batch.members[0], batch.wanted
    lines = common_lines([member.job.request for member in batch.members])
    return dataclasses.replace(
        first.job,
        request=dataclasses.replace(first.job.request, headers=lines, body=None),
        plan=first.plan.merged(list(wanted.values())),
        keys=tuple(wanted),
    )


def _first_guess(failed: Landing) -> bool | None:
    """Whether all members fail as the batch did; ``None`` where one of them has to try."""
    if failed.error is not None:
        # We had no turn for the batch: there is none for its members.
        return True if failed.error.code is ErrorCode.UPSTREAM_BUSY else None
    return None if failed.is_shareable or _status(failed.answer) in _OF_NO_ITEM else False


def _fails_alike(own: Landing, batch: Landing) -> bool:
    if own.rows is not None:
        return False
    if batch.is_shareable:
        return own.error is not None or (_status(own.answer) or 0) >= 500
    return _status(own.answer) == _status(batch.answer)


def _status(answer: Answer | None) -> int | None:
    return answer.status if answer is not None else None


def _rejoined(job: Job, pieces: Sequence[Landing]) -> Landing:
    stores = tuple(store for piece in pieces for store in piece.stores)
    failed = [piece for piece in pieces if piece.rows is None]
    if not failed:
        rows = {key: row for piece in pieces for key, row in (piece.rows or {}).items()}
        return Landing(rows=rows, stores=stores)
    _let_go(piece for piece in pieces if piece is not failed[0])
    job.outcome.upstream_status = _status(failed[0].answer)
    return dataclasses.replace(failed[0], stores=stores)


def _let_go(pieces: Iterable[Landing]) -> None:
    """Keep what was paid for, although nobody gets it now; let go of the rest."""
    for piece in pieces:
        piece.store()
        piece.close()
