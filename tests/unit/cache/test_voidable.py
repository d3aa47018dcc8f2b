"""Answers that a write makes stale: reading, keeping, voiding, one Redis command at a time (C1 to C3, C7, C8)."""

import asyncio
import dataclasses
import os

import pytest

from proxy.cache.codec import Codec
from proxy.cache.invalidation.generations import Generations, Journal, Scope
from proxy.cache.invalidation.tier import Effect, NotTold, VoidableTier
from proxy.core.entry import Entry, Row
from proxy.core.found import Found
from proxy.core.key import Secret
from proxy.runtime.tasks import Tasks
from tests.support.clock import FakeClock
from tests.support.gate import Gate
from tests.support.guarded_store import GuardedRedis, Store

CODEC = Codec(Secret.derive(b"deployment"), 1 << 20)
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
ENDPOINT, ONE, TWO = b"endpoint", b"one", b"two"
SCOPES = (ENDPOINT, ONE)
SETTLE_S = 2.0


@dataclasses.dataclass
class Told:
    """What telemetry was told."""

    stored_entries: int = 0
    failed: int = 0
    rejected: int = 0
    invalidations: list[bool] = dataclasses.field(default_factory=list)
    faults: list[BaseException] = dataclasses.field(default_factory=list)

    def stored(self, entries: int, failed: int) -> None:
        self.stored_entries += entries
        self.failed += failed

    def entries_rejected(self, entries: int) -> None:
        self.rejected += entries

    def invalidated(self, told: bool) -> None:
        self.invalidations.append(told)

    def journal_failed(self, error: OSError) -> None:
        self.faults.append(error)

    def background_failed(self, error: BaseException) -> None:
        self.faults.append(error)


class Process:
    """A tier with all that is its own; processes that share a store are replicas."""

    def __init__(
        self,
        store: Store | None = None,
        *,
        strict: bool = False,
        max_pending: int = 2,
        clock: FakeClock | None = None,
        journal: Journal | None = None,
        redis: bool = True,
    ) -> None:
        self.store = store or Store()
        self.redis, self.told = GuardedRedis(self.store), Told()
        self.tasks = Tasks(self.told.faults.append)
        self.clock = clock or FakeClock()
        self.generations = Generations(journal or Journal(None), self.wall)
        self.tier = VoidableTier(
            self.redis if redis else None,  # type: ignore[arg-type]
            CODEC,
            self.generations,
            self.tasks,
            self.told,  # type: ignore[arg-type]
            settle_s=SETTLE_S,
            is_strict=strict,
            max_pending_stores=max_pending,
        )

    def wall(self) -> float:
        """Redis' time passes here too, whatever date was set."""
        return self.clock.wall() + self.store.now_ms / 1000

    def entry(self, mark: str, tokens: tuple[bytes, ...] | None) -> Entry:
        """An answer with this mark that came just now."""
        row = Row(b'{"request_id":\x04}', b"", b"", (), mark)
        return Entry(row, int(self.wall() * 1000), 3_600_000, b"".join(tokens or ()))

    async def read(self, scopes: tuple[Scope, ...] = SCOPES, key: bytes = KEY) -> Found:
        return await self.tier.read([key], scopes, b"owner")

    async def fetched(self, mark: str = "a", scopes: tuple[Scope, ...] = SCOPES, key: bytes = KEY) -> Found:
        """Read, and keep an answer with this mark as one does after a miss."""
        found = await self.read(scopes, key)
        await self.keep(found, mark, scopes, key)
        return found

    async def keep(self, found: Found, mark: str = "a", scopes: tuple[Scope, ...] = SCOPES, key: bytes = KEY) -> None:
        self.tier.fill({key: self.entry(mark, found.tokens)}, scopes, found.tokens)
        await self.settled()

    async def settled(self) -> None:
        assert await self.tasks.wait_done(5.0) == 0

    async def write(self, scopes: tuple[Scope, ...] = (ONE,), *, announce: bool = True, counts: bool = True) -> None:
        async def forward() -> None:
            if announce:
                await self.tier.announce(scopes)

        await self.tier.writing(scopes, forward, effect=lambda _: effect_of(counts))


def effect_of(counts: bool) -> Effect:
    return Effect.KNOWN if counts else Effect.NONE


def marks(found: Found) -> list[str]:
    return [entry.row.origin for entry in found.entries.values()]


def later(store: Store) -> None:
    """All holds are over."""
    store.now_ms += int(SETTLE_S * 1000) + 1


async def warm(process: Process) -> None:
    await process.fetched()
    assert marks(await process.read()) == ["a"]


# --- reading and keeping ----------------------------------------------------------------------------------------------


async def test_the_first_read_makes_tokens_and_the_next_finds_what_was_kept_under_them():
    process = Process()
    found = await process.fetched()
    assert not found.entries
    assert found.redis_ok
    assert found.tokens == (*(process.store.tokens[scope] for scope in SCOPES), process.store.incarnation)
    assert process.redis.calls == ["read", "make", "fill"]
    found = await process.read()
    assert marks(found) == ["a"]
    assert process.redis.calls[3:] == ["read"], "a hit is one round trip"
    assert (process.told.stored_entries, process.told.failed) == (1, 0)


async def test_replicas_share_what_they_keep():
    process = Process()
    await warm(process)
    assert marks(await Process(process.store).read()) == ["a"]


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_new_token_of_any_scope_makes_an_entry_stale(scope):
    process = Process()
    await warm(process)
    await process.write((scope,))
    later(process.store)
    assert not (await process.read()).entries


async def test_another_collections_write_leaves_an_entry_alone():
    process = Process()
    await warm(process)
    await process.write((TWO,))
    assert marks(await process.read()) == ["a"]


async def test_a_fill_is_refused_when_a_token_changed():
    process = Process()
    found = await process.read()
    await Process(process.store).write()
    later(process.store)
    await process.keep(found)
    assert process.redis.calls[-1] == "fill"
    assert not process.store.entries
    assert process.told.stored_entries == 0


async def test_a_fill_is_refused_when_a_token_is_absent():
    process = Process()
    found = await process.read()
    del process.store.tokens[ONE]
    await process.keep(found)
    assert not process.store.entries


async def test_a_fill_is_refused_during_a_hold():
    process = Process()
    found = await process.read()
    process.store.holds[ONE] = process.store.now_ms + 1
    await process.keep(found)
    assert not process.store.entries


async def test_nothing_is_kept_or_found_during_a_hold_and_it_says_so():
    process = Process()
    await warm(process)
    await process.write()
    found = await process.fetched("b")
    assert found.is_held
    assert found.tokens is None
    assert not found.entries
    later(process.store)
    await process.fetched("c")
    assert marks(await process.read()) == ["c"]


async def test_a_hold_that_came_with_the_token_counts_from_the_first_read_on():
    """The token was absent when we looked, and a write's when we had made one: its vendor may not show it yet."""
    process = Process()
    gate = process.redis.gate("make")
    reading = asyncio.ensure_future(process.read())
    await gate.wait_arrived()
    await Process(process.store).write()
    gate.open()
    found = await reading
    later(process.store)  # the fetch takes longer than the hold
    await process.keep(found)
    assert not process.store.entries
    assert found.is_held


async def test_a_fill_is_not_even_tried_when_this_process_knows_better():
    process = Process()
    found = await process.read()
    process.redis.lost = {"void"}
    await process.write()
    await process.keep(found)
    assert "fill" not in process.redis.calls


async def test_without_tokens_nothing_is_kept():
    process = Process()
    await process.keep(Found(tokens=None))
    assert process.redis.calls == []


async def test_an_entry_under_other_tokens_is_a_miss():
    process = Process()
    found = await process.read()
    store = process.store
    wrong = process.entry("old", tuple(reversed(found.tokens)))
    store.entries[KEY] = CODEC.seal(KEY, wrong)
    assert not (await process.read()).entries
    store.entries[KEY] = CODEC.seal(KEY, process.entry("old", None))
    assert not (await process.read()).entries
    store.entries[KEY] = CODEC.seal(OTHER_KEY, process.entry("moved", found.tokens))
    assert not (await process.read()).entries
    assert process.told.rejected == 1


@pytest.mark.parametrize("operation", ["read", "make"])
async def test_a_redis_that_cannot_be_asked_is_a_miss_that_keeps_nothing(operation):
    process = Process()
    process.redis.lost = {operation}
    found = await process.fetched()
    assert (found.redis_ok, found.tokens, found.entries) == (False, None, {})
    assert not process.store.entries


async def test_without_redis_there_is_nothing_and_nothing_is_wrong():
    process = Process(redis=False, strict=True)
    found = await process.fetched()
    assert (found.redis_ok, found.tokens, found.entries) == (True, None, {})
    await process.write()
    await process.write(announce=False)
    assert process.tier.pending == 0


async def test_pending_stores_are_bounded_and_the_excess_is_counted():
    process = Process(max_pending=2)
    found = await process.read()
    gate = process.redis.gate("fill")
    for _ in range(5):
        process.tier.fill({KEY: process.entry("a", found.tokens)}, SCOPES, found.tokens)
    await gate.wait_arrived(2)
    assert process.told.failed == 3
    gate.open()
    await process.settled()
    await process.keep(found)
    assert process.redis.calls.count("fill") == 3


async def test_a_store_that_breaks_frees_its_place():
    process = Process(max_pending=1)
    found = await process.read()

    async def broken(*_arguments):
        raise KeyError("a bug")

    good, process.redis.fill_guarded = process.redis.fill_guarded, broken
    await process.keep(found)
    assert [type(fault) for fault in process.told.faults] == [KeyError]
    process.redis.fill_guarded = good
    await process.keep(found)
    assert process.store.entries


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Upstream:
    """Takes a write when the gate opens, and ends as told."""

    gate: Gate = dataclasses.field(default_factory=Gate)
    error: BaseException | None = None
    taken: int = 0

    async def __call__(self) -> str:
        await self.gate.wait()
        self.taken += 1
        if self.error is not None:
            raise self.error
        return "done"


def writing(process: Process, upstream: Upstream, *, announce: bool = True, counts: bool = True) -> "asyncio.Task[str]":
    async def forward() -> str:
        if announce:
            await process.tier.announce((ONE,))
        return await upstream()

    return asyncio.ensure_future(process.tier.writing((ONE,), forward, effect=lambda _: effect_of(counts)))


async def test_what_was_kept_is_stale_from_before_the_write_is_forwarded_until_after():
    process, upstream = Process(), Upstream()
    await warm(process)
    before = process.store.tokens[ONE]
    unit = writing(process, upstream)
    await upstream.gate.wait_arrived()
    during = process.store.tokens[ONE]
    assert during != before
    later(process.store)
    await process.fetched("during")
    assert marks(await process.read()) == ["during"], "a write that takes long does not keep others from hits"
    upstream.gate.open()
    assert await unit == "done"
    assert process.store.tokens[ONE] not in (before, during)
    assert process.store.is_held((ONE,))
    later(process.store)
    assert not (await process.read()).entries
    assert process.told.invalidations == [True, True]


async def test_a_stranger_makes_nothing_stale_before_the_upstream_has_spoken():
    process, upstream = Process(), Upstream()
    await warm(process)
    unit = writing(process, upstream, announce=False)
    await upstream.gate.wait_arrived()
    assert marks(await process.read()) == ["a"]
    upstream.gate.open()
    await unit
    later(process.store)
    assert not (await process.read()).entries


async def test_a_refused_stranger_makes_nothing_stale_at_all():
    process = Process()
    await warm(process)
    await process.write(announce=False, counts=False)
    assert marks(await process.read()) == ["a"]
    assert not process.generations._writing


@pytest.mark.parametrize("announce", [True, False])
@pytest.mark.parametrize("error", [RuntimeError("upstream"), asyncio.CancelledError()])
async def test_a_write_of_unknown_outcome_counts(announce, error):
    process, upstream = Process(), Upstream(error=error)
    upstream.gate.open()
    await warm(process)
    with pytest.raises(type(error)):
        await writing(process, upstream, announce=announce)
    await process.settled()
    later(process.store)
    assert not (await process.read()).entries
    assert not process.generations._writing


@pytest.mark.parametrize("stage", ["first void", "forward", "last void"])
async def test_a_unit_that_is_cancelled_counts_at_any_stage(stage, tmp_path):
    """As at shutdown; a client that leaves does not cancel it."""
    process, upstream = Process(journal=Journal(tmp_path / "j")), Upstream()
    await warm(process)
    gate = process.redis.gate("void")
    unit = writing(process, upstream)
    await gate.wait_arrived()
    if stage != "first void":
        gate.open()
        await upstream.gate.wait_arrived()
    if stage == "last void":
        gate.close()
        upstream.gate.open()
        await gate.wait_arrived(2)
    unit.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await unit
    await process.settled()
    later(process.store)
    assert not (await process.read()).entries
    assert not process.generations._writing
    assert Journal(tmp_path / "j").left_over() == set()


async def test_a_process_that_is_killed_in_a_write_leaves_word(tmp_path):
    """C10: at each stage of the write."""
    process, upstream = Process(journal=Journal(tmp_path / "j")), Upstream()
    await warm(process)
    gate = process.redis.gate("void")
    unit = writing(process, upstream)
    await gate.wait_arrived()
    assert Journal(tmp_path / "j").left_over() == {ONE}
    gate.open()
    await upstream.gate.wait_arrived()
    gate.close()
    later(process.store)
    await process.fetched("between")
    after = Process(process.store, journal=Journal(tmp_path / "j"))
    found = await after.read()
    upstream.gate.open()
    gate.open()
    await unit
    assert not found.entries


async def test_writes_that_overlap_are_each_told():
    """Fifty at once on one collection; no token of an earlier one makes up for a later."""
    process = Process()
    await warm(process)
    gate = process.redis.gate("void")
    upstreams = [Upstream() for _ in range(50)]
    units = [writing(process, upstream) for upstream in upstreams]
    await gate.wait_arrived(50)
    gate.open()
    for upstream in upstreams:
        await upstream.gate.wait_arrived()
        upstream.gate.open()
    await asyncio.gather(*units)
    assert process.tier.pending == 0
    assert not process.generations._writing
    assert len(process.told.invalidations) == 100
    later(process.store)
    assert not (await process.read()).entries


async def test_a_void_that_comes_late_does_not_make_up_for_the_write_after_it():
    process = Process()
    await warm(process)
    gate = process.redis.gate("void")
    first = asyncio.ensure_future(process.write())
    await gate.wait_arrived()
    process.redis.gates, process.redis.lost = {}, {"void"}
    await process.write()
    process.redis.lost = set()
    gate.open()
    await gate.wait_arrived()
    await first
    assert process.tier.pending == 0, "its second step came after"
    process.redis.gates = {"void": (late := Gate())}
    reading = asyncio.ensure_future(process.tier._void((ONE,)))
    await late.wait_arrived()
    process.redis.gates, process.redis.lost = {}, {"void"}
    await process.write()
    process.redis.lost = set()
    late.open()
    assert await reading
    assert process.tier.pending == 1, "told of something, but not of the last write"


# --- what Redis could not be told -------------------------------------------------------------------------------------


async def test_nothing_is_read_or_kept_until_redis_knows():
    process = Process()
    await warm(process)
    process.redis.lost = {"void"}
    await process.write()
    assert process.tier.pending == 1
    assert process.tier.is_pending(SCOPES)
    found = await process.fetched("b")
    assert (found.redis_ok, found.entries, found.tokens) == (False, {}, None)
    process.redis.is_reachable = True
    found = await process.read()
    assert not found.entries
    assert found.is_held
    assert process.tier.pending == 0
    assert process.told.invalidations == [False, False, False, True]


async def test_telling_of_one_collection_leaves_the_others_alone():
    """Everything under an endpoint hangs on one of a read's scopes: voiding that would empty the whole cache."""
    process = Process()
    await process.fetched("two", (ENDPOINT, TWO), OTHER_KEY)
    await warm(process)
    process.redis.lost = {"void"}
    await process.write()
    await process.read()
    assert process.generations.untold == {ONE}
    process.redis.is_reachable = True
    await process.read()
    assert process.redis.voided == [{ONE}] * 4
    assert marks(await process.read((ENDPOINT, TWO), OTHER_KEY)) == ["two"]


async def test_a_redis_that_was_set_back_is_not_believed_and_loses_no_more_than_it_must():
    process = Process()
    await process.fetched("two", (ENDPOINT, TWO), OTHER_KEY)
    await warm(process)
    snapshot = process.store.copy()
    await process.write()
    later(process.store)
    process.store.set_back(snapshot)
    assert not (await process.read()).entries
    assert process.redis.voided[-1] == {ONE}
    later(process.store)
    assert not (await process.read()).entries
    assert marks(await process.read((ENDPOINT, TWO), OTHER_KEY)) == ["two"]


async def test_a_redis_that_was_set_back_is_not_believed_by_whoever_has_a_slow_clock():
    """C8 with replicas whose clocks disagree: the token of then was made by the one that is ahead."""
    store, now_s = Store(), 1_700_000_000.0
    ahead = Process(store, clock=FakeClock(wall_unix_s=now_s + 60))
    behind = Process(store, clock=FakeClock(wall_unix_s=now_s))
    await ahead.write()
    later(store)
    await ahead.fetched("old")
    snapshot = store.copy()
    await behind.write()
    later(store)
    store.set_back(snapshot)
    assert not (await behind.read()).entries


async def test_clocks_that_disagree_cost_one_step_and_no_more():
    store = Store()
    ahead, behind = (Process(store, clock=FakeClock(wall_unix_s=wall_s)) for wall_s in (1_700_000_060.0, 1_700_000_000))
    await ahead.write()
    await behind.write()
    for process in (ahead, behind, ahead, behind):
        later(store)
        await process.read()
    later(store)
    await behind.fetched("new")
    assert marks(await behind.read()) == marks(await ahead.read()) == ["new"]
    assert len(ahead.redis.voided) + len(behind.redis.voided) <= 6


@pytest.mark.parametrize("operation", ["void"])
async def test_a_void_that_redis_took_without_saying_so_is_made_again(operation):
    process = Process()
    await warm(process)
    process.redis.unheard = {operation}
    await process.write()
    assert process.tier.pending == 1
    process.redis.unheard = set()
    await process.tier.tell()
    assert process.tier.pending == 0


async def test_telling_goes_in_parts_and_stops_when_redis_is_gone():
    process = Process()
    process.generations.not_told(b"%d" % number for number in range(250))
    process.redis.lost = {"void"}
    await process.tier.tell()
    assert len(process.redis.voided) == 1
    process.redis.lost = set()
    await process.tier.tell()
    assert process.tier.pending == 0
    assert max(map(len, process.redis.voided)) <= 100
    calls = len(process.redis.calls)
    await process.tier.tell()
    assert len(process.redis.calls) == calls, "nothing to tell"


# --- strict mode ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("announce", "lost"), [(True, "void"), (False, "make")])
async def test_in_strict_mode_nothing_is_forwarded_that_redis_does_not_know_of(announce, lost):
    process, upstream = Process(strict=True), Upstream()
    upstream.gate.open()
    process.redis.lost = {lost}
    with pytest.raises(NotTold):
        await writing(process, upstream, announce=announce)
    assert upstream.taken == 0
    assert not process.generations._writing
    process.redis.lost = set()
    assert await writing(process, upstream, announce=announce) == "done"
    assert process.tier.pending == 0


async def test_in_strict_mode_a_stranger_makes_nothing_stale_either():
    process = Process(strict=True)
    await warm(process)
    await process.write(announce=False, counts=False)
    assert marks(await process.read()) == ["a"]


async def test_in_strict_mode_what_redis_was_not_told_afterwards_is_untold():
    process, upstream = Process(strict=True), Upstream()
    await warm(process)
    unit = writing(process, upstream)
    await upstream.gate.wait_arrived()
    process.redis.is_reachable = False
    upstream.gate.open()
    assert await unit == "done", "it was forwarded: the client must learn how it ended"
    assert process.tier.pending == 1


async def test_outside_strict_mode_a_write_is_forwarded_whatever_redis_says():
    process, upstream = Process(), Upstream()
    upstream.gate.open()
    process.redis.is_reachable = False
    assert await writing(process, upstream) == "done"
    assert await writing(process, upstream, announce=False) == "done"


@pytest.mark.parametrize("strict", [True, False])
async def test_a_full_disk_stops_writes_in_strict_mode_only(strict, tmp_path, monkeypatch):
    process, upstream = Process(strict=strict, journal=Journal(tmp_path / "j")), Upstream()
    upstream.gate.open()
    await warm(process)

    def full(_file, _data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    if strict:
        with pytest.raises(NotTold):
            await writing(process, upstream)
    else:
        assert await writing(process, upstream) == "done"
        later(process.store)
        assert not (await process.read()).entries
    assert [(type(fault), fault.filename) for fault in process.told.faults] == [(OSError, str(tmp_path / "j"))]
    assert not process.generations._writing
    monkeypatch.undo()
    assert await writing(process, upstream) == "done"
