"""What a write makes stale, with a real Redis: its script and transaction, what it loses, when it does not answer."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from proxy.cache.codec import Codec
from proxy.cache.invalidation.generations import Generations, Journal
from proxy.cache.invalidation.tier import Effect, NotTold, VoidableTier
from proxy.cache.redis.breaker import Guard
from proxy.cache.redis.tier import FAILURES, RedisTier
from proxy.core.entry import Entry, Row
from proxy.core.found import Found
from proxy.core.key import Secret
from proxy.runtime.tasks import Tasks
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_server import RedisServer
from tests.support.toxics import Latency
from tests.support.waiting import wait_until

CODEC = Codec(Secret.derive(b"deployment"), 1 << 20)
KEY = b"k" * 32
SCOPES = (b"endpoint", b"one")
SETTLE_S = 0.05
DEADLINE_S = 0.05


class Told:
    """Telemetry that only counts faults of ours."""

    def __init__(self) -> None:
        self.faults: list[BaseException] = []
        self.kept = 0

    def stored(self, entries: int, failed: int) -> None:
        self.kept += entries

    def entries_rejected(self, entries: int) -> None:
        raise AssertionError("nobody alters entries here")

    def invalidated(self, told: bool) -> None:
        pass


class Process:
    """One process's way to a real Redis."""

    def __init__(self, url: str, *, strict: bool = False, max_connections: int = 16, deadline_s: float = 1.0) -> None:
        self.told, self.rejected = Told(), list[str]()
        self.tasks = Tasks(self.told.faults.append)
        self.guard = Guard(
            fail_max=3,
            reset_s=0.05,
            deadline_s=deadline_s,
            failures=FAILURES,
            tasks=self.tasks,
            on_change=lambda old, new: None,
            on_failure=lambda error: None,
        )
        self.redis = RedisTier(
            url,
            prefix="t",
            deadline_s=deadline_s,
            max_connections=max_connections,
            guard=self.guard,
            on_rejected=self.rejected.append,
        )
        self.tier = VoidableTier(
            self.redis,
            CODEC,
            Generations(Journal(None), time.time),
            self.tasks,
            self.told,  # type: ignore[arg-type]
            settle_s=SETTLE_S,
            is_strict=strict,
            max_pending_stores=100,
        )

    async def read(self) -> Found:
        return await self.tier.read([KEY], SCOPES, b"owner")

    async def keep(self, found: Found, mark: str = "a") -> None:
        row = Row(b"{}", b"", b"", (), mark)
        entry = Entry(row, int(time.time() * 1000), 60_000, b"".join(found.tokens or ()))
        self.tier.fill({KEY: entry}, SCOPES, found.tokens)
        assert await self.tasks.wait_done(10.0) == 0

    async def write(self) -> None:
        async def forward() -> None:
            pass

        await self.tier.writing(SCOPES[1:], forward, effect=lambda _: Effect.KNOWN)

    async def settled(self) -> Found:
        """A read after the hold."""
        return await wait_until(self._unheld, what="the hold to end")

    async def _unheld(self) -> Found | None:
        found = await self.read()
        return None if found.is_held or not found.redis_ok else found


def marks(found: Found) -> list[str]:
    return [entry.row.origin for entry in found.entries.values()]


@contextlib.asynccontextmanager
async def process(url: str, **options) -> AsyncIterator[Process]:
    made = Process(url, **options)
    try:
        yield made
        await made.tasks.wait_done(10.0)
        assert not made.told.faults
    finally:
        await made.redis.close()


def tokens_and_entries(server: RedisServer) -> dict[bytes, bytes]:
    """Every value but the holds, to be put back later."""
    names = server.keys()
    return {name: server.client.get(name) for name in names if b":h:" not in name}


async def test_reading_keeping_and_voiding_over_two_processes(redis_server):
    async with process(redis_server.url) as one, process(redis_server.url) as two:
        await one.keep(await one.read())
        assert marks(await one.read()) == marks(await two.read()) == ["a"]
        late = await two.read()
        await one.write()
        held = await two.read()
        assert held.is_held
        assert not held.entries
        assert not (await two.settled()).entries
        await two.keep(late, "fetched before")
        assert not (await one.read()).entries
        await two.keep(await two.settled(), "b")
        assert marks(await one.read()) == ["b"]


async def test_names_tell_no_scope_and_tokens_outlive_entries(redis_server):
    async with process(redis_server.url) as one:
        await one.keep(await one.read())
        await one.write()
        names = redis_server.keys()
        assert not any(b"endpoint" in name or b"one" in name for name in names)
        lifetimes = {name: redis_server.command("PTTL", name) for name in names}
        assert -1 not in lifetimes.values(), "nothing stays for ever"
        assert min(lifetimes[name] for name in names if b":g:" in name) > 29 * 86_400_000


async def test_a_script_that_redis_forgot_is_sent_again(redis_server):
    async with process(redis_server.url) as one:
        await one.keep(await one.read())
        for _ in range(2):
            redis_server.command("SCRIPT", "FLUSH")
            await one.keep(await one.read(), "b")
            assert marks(await one.read()) == ["b"]
        assert one.guard.state == "closed"
        assert not one.rejected


@pytest.mark.parametrize("change", ["token", "hold", "absent"])
async def test_a_fill_is_refused_by_the_script(redis_server, change):
    async with process(redis_server.url) as one:
        found = await one.read()
        name = one.redis._token(SCOPES[1])
        if change == "token":
            redis_server.client.set(name, b"x" * 24)
        elif change == "absent":
            redis_server.client.delete(name)
        else:
            redis_server.client.set(one.redis._hold(SCOPES[1]), b"1")
        await one.keep(found)
        names = redis_server.keys()
        assert not [name for name in names if b":e:" in name]
        assert one.told.kept == 0
        assert one.told.faults == []


async def test_tokens_made_while_a_hold_began_are_made_known_as_held(redis_server):
    async with process(redis_server.url) as one:
        await one.write()
        made = await one.redis.make_tokens(SCOPES, [b"a" * 24, b"b" * 24])
        assert made is not None
        assert made[1]
        assert made[0][0] == b"a" * 24
        assert made[0][1] != b"b" * 24


async def test_an_emptied_redis_costs_hits_only(redis_server):
    async with process(redis_server.url) as one, process(redis_server.url) as two:
        await one.keep(await one.read())
        await one.write()
        redis_server.command("FLUSHALL")
        assert not (await one.settled()).entries
        found = await two.read()
        assert not found.entries
        await two.keep(found, "b")
        assert marks(await one.read()) == ["b"]


async def test_a_redis_that_was_set_back_is_not_believed_by_who_wrote(redis_server):
    async with process(redis_server.url) as one:
        await one.keep(await one.read())
        then = tokens_and_entries(redis_server)
        await one.write()
        redis_server.command("FLUSHALL")
        redis_server.client.mset(then)
        assert not (await one.read()).entries
        assert not (await one.settled()).entries
        assert one.tier.pending == 0


async def test_a_redis_that_takes_no_writes_leaves_nothing_that_was_written_to(redis_server):
    async with process(redis_server.url) as one:
        await one.keep(await one.read())
        redis_server.config_set("min-replicas-to-write", 1)
        assert marks(await one.read()) == ["a"], "what nobody wrote to is still served"
        await one.write()
        assert one.tier.pending == 1
        found = await one.read()
        assert (found.entries, found.redis_ok) == ({}, False)
        assert one.guard.state == "closed"
        redis_server.config_set("min-replicas-to-write", 0)
        await one.tier.tell()
        assert one.tier.pending == 0
        assert not (await one.settled()).entries


async def test_a_dead_redis_opens_the_circuit_and_learns_of_the_write_when_it_is_back(redis_server):
    async with process(redis_server.url) as one:
        await one.keep(await one.read())
        then = tokens_and_entries(redis_server)
        redis_server.kill()
        for _ in range(5):
            await one.write()
        assert one.guard.state == "open"
        assert one.tier.pending == 1
        redis_server.restart()
        redis_server.client.mset(then)
        assert not (await one.settled()).entries
        assert one.tier.pending == 0
        assert marks(await one.read()) == []


async def test_a_strict_write_is_not_forwarded_past_a_dead_redis(redis_server):
    async with process(redis_server.url, strict=True) as one:
        await one.write()
        redis_server.kill()
        with pytest.raises(NotTold):
            await one.write()


async def test_what_a_hung_redis_does_later_is_not_believed(redis_server):
    """Its commands pile up and are carried out in whatever order its connections have."""
    async with process(redis_server.url, deadline_s=DEADLINE_S) as one:
        await one.keep(await one.read())
        late = await one.read()
        redis_server.hang()
        await asyncio.gather(one.write(), one.write(), one.write(), one.keep(late, "fetched before"))
        assert one.tier.pending == 1
        redis_server.resume()
        found = await one.settled()
        assert marks(found) == []
        assert one.tier.pending == 0


async def test_a_slow_redis_holds_nobody_for_as_long_as_the_queue(redis_server):
    """Just in time each time, so that the circuit stays closed; 200 at once on one connection would take 8 s."""
    async with (
        FaultProxy(redis_server.port) as between,
        process(between.instead_of(redis_server.url), max_connections=3, deadline_s=0.2) as one,
    ):
        await one.write()
        between.add(Latency(0.04))
        started_s = time.monotonic()
        await asyncio.gather(*(one.write() for _ in range(100)), *(one.read() for _ in range(100)))
        assert time.monotonic() - started_s < 4.0
        between.clear()
        await one.tier.tell()
        assert one.tier.pending == 0


async def test_many_writes_and_reads_at_once_leave_nothing_stale(redis_server):
    async with process(redis_server.url) as one, process(redis_server.url) as two:
        for round_ in range(10):
            found = await two.settled()
            await asyncio.gather(
                *(one.write() for _ in range(20)), two.keep(found, f"{round_}"), *(two.read() for _ in range(20))
            )
            assert marks(await one.read()) == marks(await two.read()) == []
        assert one.tier.pending == two.tier.pending == 0
