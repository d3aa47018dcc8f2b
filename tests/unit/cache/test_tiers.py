"""Reading through the tiers, nearest first, and filling them."""

import asyncio
import dataclasses

import pytest

from proxy.cache.codec import Codec
from proxy.cache.memory import MemoryTier
from proxy.cache.tiers import Tiers
from proxy.core.entry import Entry, Row
from proxy.core.key import Secret
from proxy.runtime.tasks import Tasks
from tests.support.clock import FakeClock

SECRET = Secret.derive(b"deployment")
CODEC = Codec(SECRET, 1 << 20)

OWNER = b"owner"


class FakeRedis:
    """Values by key; unreachable when told so; writes held at a gate when there is one."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.lifetimes_ms: dict[bytes, int] = {}
        self.reads: list[list[bytes]] = []
        self.reachable = True
        self.takes = 10**9
        self.gate: asyncio.Event | None = None
        self.closed = False

    async def read(self, keys, owner):
        self.reads.append(list(keys))
        return ([self.values.get(key) for key in keys], None) if self.reachable else None

    async def write(self, values):
        if self.gate is not None:
            await self.gate.wait()
        if not self.reachable:
            return 0
        for key, sealed, ttl_ms in values[: self.takes]:
            self.values[key], self.lifetimes_ms[key] = sealed, ttl_ms
        return min(len(values), self.takes)

    async def close(self):
        self.closed = True


@dataclasses.dataclass
class Told:
    """What telemetry was told."""

    rejected: int = 0
    written: int = 0
    failed: int = 0
    faults: list[BaseException] = dataclasses.field(default_factory=list)

    def entries_rejected(self, entries: int) -> None:
        self.rejected += entries

    def stored(self, entries: int, failed: int) -> None:
        self.written += entries
        self.failed += failed


class Rig:
    """Tiers over a fake Redis and a fake clock."""

    def __init__(self, *, redis: bool = True, max_pending_stores: int = 2, codec: Codec = CODEC) -> None:
        self.clock, self.redis, self.told = FakeClock(), FakeRedis(), Told()
        self.tasks = Tasks(self.told.faults.append)
        self.tiers = Tiers(
            MemoryTier(1 << 20, 60.0, self.clock.monotonic),
            self.redis if redis else None,
            codec,
            self.tasks,
            self.told,
            max_pending_stores=max_pending_stores,
            wall=self.clock.wall,
        )

    def entry(self, mark: str = "a", ttl_ms: int = 1_000_000) -> Entry:
        row = Row(b'{"x":\x02}', b"{}", b"[1.0,2.0]", (("total_tokens", 1),), mark)
        return Entry(row, int(self.clock.wall() * 1000), ttl_ms)

    def put_sealed(self, key: bytes, entry: Entry) -> None:
        self.redis.values[key] = CODEC.seal(key, entry)

    async def settled(self) -> None:
        assert await self.tasks.wait_done(5.0) == 0


async def test_memory_is_asked_first_and_redis_only_for_the_rest():
    rig = Rig()
    near, far = rig.entry("near"), rig.entry("far")
    rig.tiers.memory.put(b"near", near, 10_000)
    rig.put_sealed(b"far", far)
    found = await rig.tiers.read([b"near", b"far", b"absent", b"far", b"near"], OWNER)
    assert found.entries == {b"near": near, b"far": far}
    assert found.from_memory == {b"near"}
    assert found.redis_ok
    assert rig.redis.reads == [[b"far", b"absent"]], "one round trip, each key once"


async def test_what_redis_had_is_near_the_next_time():
    rig = Rig()
    rig.put_sealed(b"k", rig.entry())
    assert (await rig.tiers.read([b"k"], OWNER)).from_memory == set()
    assert (await rig.tiers.read([b"k"], OWNER)).from_memory == {b"k"}
    assert len(rig.redis.reads) == 1


async def test_redis_is_not_asked_when_memory_has_all_or_nothing_is_asked():
    rig = Rig()
    rig.tiers.memory.put(b"k", rig.entry(), 10_000)
    await rig.tiers.read([b"k", b"k"], OWNER)
    await rig.tiers.read([], OWNER)
    assert rig.redis.reads == []


async def test_an_unavailable_redis_is_a_miss_and_is_told():
    rig = Rig()
    rig.put_sealed(b"far", rig.entry())
    rig.tiers.memory.put(b"near", rig.entry(), 10_000)
    rig.redis.reachable = False
    found = await rig.tiers.read([b"near", b"far"], OWNER)
    assert set(found.entries) == {b"near"}
    assert not found.redis_ok


async def test_without_a_redis_there_is_memory_alone():
    rig = Rig(redis=False)
    rig.tiers.fill({b"k": rig.entry()})
    found = await rig.tiers.read([b"k", b"absent"], OWNER)
    assert set(found.entries) == {b"k"}
    assert found.redis_ok
    assert len(rig.tasks) == 0
    await rig.tiers.close()


async def test_s9_values_that_do_not_open_are_misses_and_counted():
    rig = Rig()
    good = rig.entry()
    rig.put_sealed(b"good", good)
    sealed = CODEC.seal(b"moved-from", good)
    rig.redis.values |= {
        b"moved-to": sealed,
        b"cut": rig.redis.values[b"good"][:-1],
        b"empty": b"",
        b"foreign": Codec(Secret.derive(b"other"), 1 << 20).seal(b"foreign", good),
        b"random": bytes(range(256)),
    }
    found = await rig.tiers.read([*rig.redis.values, b"absent"], OWNER)
    assert found.entries == {b"good": good}
    assert rig.told.rejected == 5
    assert rig.tiers.memory.entries == 1


async def test_filling_is_near_at_once_and_far_in_the_background():
    rig = Rig()
    entries = {b"a": rig.entry("a", 5_000), b"b": rig.entry("b", 9_000)}
    rig.tiers.fill(entries)
    assert rig.tiers.memory.entries == 2
    assert rig.redis.values == {}
    await rig.settled()
    assert rig.redis.lifetimes_ms == {b"a": 5_000, b"b": 9_000}
    assert {key: CODEC.open(key, sealed) for key, sealed in rig.redis.values.items()} == entries
    assert (rig.told.written, rig.told.failed) == (2, 0)


async def test_an_entry_that_redis_keeps_too_long_ends_in_memory_when_it_should():
    """A value put back by somebody else, or an expiry lost: the lifetime inside it counts."""
    rig = Rig()
    rig.put_sealed(b"k", rig.entry(ttl_ms=10_000))
    rig.clock.advance(9.0)
    assert (await rig.tiers.read([b"k"], OWNER)).entries
    rig.clock.advance(1.0)
    assert rig.tiers.memory.get(b"k") is None
    stale = (await rig.tiers.read([b"k"], OWNER)).entries.get(b"k")
    assert stale is None or stale.remaining_ms(int(rig.clock.wall() * 1000)) <= 0
    assert rig.tiers.memory.entries == 0


async def test_pending_stores_are_bounded_and_the_excess_is_counted():
    rig = Rig(max_pending_stores=2)
    rig.redis.gate = asyncio.Event()
    for number in range(10):
        rig.tiers.fill({b"%d-a" % number: rig.entry(), b"%d-b" % number: rig.entry()})
    assert len(rig.tasks) == 2
    assert rig.told.failed == 16
    assert rig.tiers.memory.entries == 20, "memory takes them all the same"
    rig.redis.gate.set()
    await rig.settled()
    assert len(rig.redis.values) == 4
    rig.tiers.fill({b"after": rig.entry()})
    await rig.settled()
    assert b"after" in rig.redis.values


@pytest.mark.parametrize(("reachable", "takes", "failed"), [(False, 9, 3), (True, 0, 3), (True, 2, 1)])
async def test_stores_that_redis_did_not_take_are_counted(reachable, takes, failed):
    rig = Rig()
    rig.redis.reachable, rig.redis.takes = reachable, takes
    rig.tiers.fill({b"%d" % number: rig.entry() for number in range(3)})
    await rig.settled()
    assert (rig.told.written, rig.told.failed) == (3 - failed, failed)


async def test_a_store_that_breaks_frees_its_place():
    rig = Rig(max_pending_stores=1)

    async def broken(_values):
        raise KeyError("a bug")

    good, rig.redis.write = rig.redis.write, broken
    rig.tiers.fill({b"a": rig.entry()})
    await rig.settled()
    assert [type(fault) for fault in rig.told.faults] == [KeyError]
    rig.redis.write = good
    rig.tiers.fill({b"b": rig.entry()})
    await rig.settled()
    assert set(rig.redis.values) == {b"b"}


async def test_entries_too_large_for_redis_stay_near_only():
    rig = Rig(codec=Codec(SECRET, 5))
    rig.tiers.fill({b"k": rig.entry()})
    await rig.settled()
    assert rig.redis.values == {}
    assert rig.tiers.memory.get(b"k") is not None


async def test_close_lets_go_of_redis():
    rig = Rig()
    await rig.tiers.close()
    assert rig.redis.closed
