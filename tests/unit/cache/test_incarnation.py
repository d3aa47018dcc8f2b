"""The record of Redis' data with a real Redis: when a new identity is due, and that everybody agrees on it (C13)."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
import redis

from proxy.cache.codec import Codec
from proxy.cache.invalidation.generations import Generations, Journal
from proxy.cache.invalidation.incarnation import RECORD_BYTES, Incarnation, Look, Names, Standing, read_look
from proxy.cache.invalidation.tier import Effect, VoidableTier
from proxy.cache.redis.breaker import Guard
from proxy.cache.redis.commands import Garbage
from proxy.cache.redis.tier import FAILURES, RedisTier
from proxy.core.entry import Entry, Row
from proxy.core.key import Secret
from proxy.runtime.tasks import Tasks
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until, wait_until_sync

NAMES = Names.under(b"t")
KEY, SCOPES, OWNER = b"k" * 32, (b"endpoint", b"one"), b"owner"
HOLD_MS = 100


class Process:
    """One process's knowledge, and its way to Redis."""

    def __init__(self, server: RedisServer, known: bytes = b"", prints: tuple[bytes, ...] = ()) -> None:
        self.server, self.news = server, list[str]()
        self.incarnation = Incarnation(NAMES, hold_ms=HOLD_MS, known=known, fingerprints=prints)
        self.incarnation.on_renewed.append(self.news.append)

    def look(self, *, reconnected: bool = False, trusted: bytes = b"") -> Look:
        words = self.incarnation.words(is_new_connection=reconnected, trusted=trusted)
        look = read_look(self.server.command("EVAL", *words))
        self.incarnation.heard(look)
        return look

    def write(self) -> None:
        """As a write through another connection advances the mark."""
        record = advance(self.server.command("GET", NAMES.record))
        self.server.command("SET", NAMES.record, record)
        assert self.incarnation.stands(record)


def follow(replica: RedisServer, primary: RedisServer) -> None:
    """Return when *replica* has the data of *primary*."""
    replica.command("REPLICAOF", "127.0.0.1", primary.port)
    wait_until_sync(lambda: replica.command("INFO", "replication")["master_link_status"] == "up", 20.0, "a replica")


def advance(record: bytes) -> bytes:
    return record[:72] + b"%016d" % (int(record[72:]) + 1)


def test_c13_the_first_to_look_makes_a_record_and_the_others_find_it(redis_server):
    one, two = Process(redis_server), Process(redis_server)
    first = one.look()
    assert (first.standing, first.why, first.hold_ms) == (Standing.SOUND, "empty", 0)
    assert len(first.record) == RECORD_BYTES
    assert two.look() == first._replace(why="")
    assert one.incarnation.token == two.incarnation.token != b""
    assert one.news == two.news == []
    one.write()
    assert two.look().why == ""
    assert two.incarnation.record == one.incarnation.record


def test_c13_a_mark_that_went_back_is_noticed_by_who_saw_it_and_told_to_who_did_not(redis_server):
    one, two = Process(redis_server), Process(redis_server)
    one.look()
    two.look()
    before = redis_server.command("GET", NAMES.record)
    one.write()
    redis_server.command("SET", NAMES.record, before)
    assert two.look().why == "", "it saw no write"
    assert not one.incarnation.stands(before)
    assert one.look().why == "older"
    assert not two.incarnation.stands(redis_server.command("GET", NAMES.record))
    assert two.look().why == ""
    assert (one.news, two.news) == (["older"], [""])
    assert one.incarnation.token == two.incarnation.token
    assert one.incarnation.holds
    assert two.incarnation.holds


def test_c13_an_identity_of_before_is_never_taken_for_a_new_one(redis_server):
    one, two = Process(redis_server), Process(redis_server)
    first = one.look().record
    redis_server.command("DEL", NAMES.record)
    assert one.look().why == "empty"
    redis_server.command("SET", NAMES.record, first)
    for _ in range(3):
        two.look()
    assert one.look().why == "older"
    assert two.look().why == ""
    assert two.incarnation.record > first


@pytest.mark.parametrize("junk", [b"x", b"x" * RECORD_BYTES, b"9" * (RECORD_BYTES + 1), b"\xff" * RECORD_BYTES])
def test_c13_a_damaged_record_is_replaced_and_does_not_end_all_looks(redis_server, junk):
    process = Process(redis_server)
    process.look()
    redis_server.command("SET", NAMES.record, junk)
    assert process.look().why in ("damaged", "server")
    assert process.look().why == ""
    assert process.incarnation.token


def test_c13_another_server_with_the_same_data_is_not_believed_unless_it_was_stopped_with_them():
    with RedisServer() as server:
        process = Process(server)
        process.look()
        process.write()
        record = process.incarnation.record
        server.restart(empty=False)
        assert server.command("GET", NAMES.record) == record
        for other in (b"", advance(record)):
            assert Process(server, record, ()).incarnation.stands(record) is False
            trusting = Process(server, record)
            words = trusting.incarnation.words(is_new_connection=True, trusted=other)
            assert words[5] == record + b"," + other
        assert Process(server, record).look(trusted=record).why == ""
        assert Process(server, record).look().why == "", "from now on this server's"
        server.restart(empty=False)
        late = Process(server)
        assert late.look(trusted=record).why == "server", "what is there is not what it was stopped with"
        server.restart(empty=True)
        assert late.look().why == "empty"
        assert late.incarnation.holds


def test_c13_a_replica_that_lags_and_is_promoted_is_not_believed():
    with RedisServer() as primary, RedisServer() as replica:
        process, other = Process(primary), Process(replica)
        follow(replica, primary)
        process.look()
        primary.command("WAIT", 1, 5_000)
        assert other.look().role == b"slave"
        assert other.incarnation.record == process.incarnation.record, "one server to another, as long as it follows"
        replica.command("REPLICAOF", "NO", "ONE")
        process.write()
        assert other.look().why == "server"
        process.server = replica
        assert process.look().why == ""
        assert process.news == [""]


def test_c13_who_may_not_write_believes_nothing_of_another_server():
    with RedisServer() as primary, RedisServer() as replica:
        process = Process(primary)
        follow(replica, primary)
        process.look()
        primary.command("WAIT", 1, 5_000)
        process.server = replica
        assert process.look().why == ""
        process.incarnation.heard(None)
        assert process.incarnation.token == b""
        behind = Process(replica, advance(process.incarnation.record))
        assert behind.look().standing is Standing.READ_ONLY
        assert behind.incarnation.token == b""
        assert not behind.incarnation.stands(redis_get(replica))


def redis_get(server: RedisServer) -> bytes:
    return server.command("GET", NAMES.record)


def test_c13_without_info_a_connection_that_broke_is_another_server(redis_server):
    redis_server.command("ACL", "SETUSER", "u", "on", ">p", "~*", "+@all", "-info")
    user = redis.Redis(port=redis_server.port, username="u", password="p")
    one, two = Process(redis_server), Process(redis_server)

    def look(process: Process, *, reconnected: bool) -> str:
        reply = read_look(user.eval(*process.incarnation.words(is_new_connection=reconnected)))
        process.incarnation.heard(reply)
        return reply.why

    with user:
        assert look(one, reconnected=True) == "empty"
        assert look(two, reconnected=True) == ""
        assert look(one, reconnected=False) == look(two, reconnected=False) == ""
        assert look(one, reconnected=True) == "server"
        assert look(two, reconnected=True) == "", "somebody has found out already"
        assert two.news == [""]


@pytest.mark.parametrize(
    "reply",
    [
        None,
        1,
        [],
        [b"sound"] * 5,
        [b"sound", b"0" * 87, b"", b"", 0],
        [b"odd", b"", b"", b"", 0],
        [b"sound", 1, 1, 1, 1],
    ],
)
def test_what_is_no_answer_to_a_look_is_garbage(reply):
    with pytest.raises(Garbage):
        read_look(reply)


# --- through the tier -------------------------------------------------------------------------------------------------


class Silent:
    """Telemetry."""

    def __getattr__(self, name: str):
        return lambda *_, **__: None


class Worker:
    """A worker's parts that read and write vector answers."""

    def __init__(self, url: str) -> None:
        self.faults: list[BaseException] = []
        self.tasks = Tasks(self.faults.append)
        self.incarnation = Incarnation(NAMES, hold_ms=HOLD_MS)
        guard = Guard(
            fail_max=3,
            reset_s=0.02,
            deadline_s=1.0,
            failures=FAILURES,
            tasks=self.tasks,
            on_change=lambda old, new: None,
            on_failure=lambda error: None,
        )
        self.redis = RedisTier(
            url,
            prefix="t",
            deadline_s=1.0,
            max_connections=8,
            guard=guard,
            on_rejected=lambda kind: None,
            incarnation=self.incarnation,
        )
        self.tier = VoidableTier(
            self.redis,
            Codec(Secret.derive(b"deployment"), 1 << 20),
            Generations(Journal(None), time.time),
            self.tasks,
            Silent(),  # type: ignore[arg-type]
            settle_s=HOLD_MS / 1000,
            is_strict=False,
            max_pending_stores=10,
        )
        self.incarnation.on_renewed.append(lambda _: self.tier.redis_went_back())

    async def read(self) -> list[str]:
        """The marks of what is found."""
        found = await self.tier.read([KEY], SCOPES, OWNER)
        return [entry.row.origin for entry in found.entries.values()]

    async def kept(self, mark: str) -> None:
        """Ask the vendor, as it were, who says *mark*, until that was kept."""
        while not await self.read():
            found = await self.tier.read([KEY], SCOPES, OWNER)
            entry = Entry(Row(b"{}", b"", b"", (), mark), int(time.time() * 1000), 60_000, b"".join(found.tokens or ()))
            self.tier.fill({KEY: entry}, SCOPES, found.tokens)
            await self.tasks.wait_done(5.0)

    async def write(self) -> None:
        async def forward() -> None:
            await self.tier.announce(SCOPES)

        await self.tier.writing(SCOPES, forward, effect=lambda _: Effect.KNOWN)


@contextlib.asynccontextmanager
async def workers(server: RedisServer) -> AsyncIterator[tuple[Worker, Worker]]:
    pair = Worker(server.url), Worker(server.url)
    try:
        yield pair
    finally:
        for worker in pair:
            await worker.redis.close()
            assert worker.faults == []


async def test_c13_kept_before_a_write_and_back_by_a_snapshot_is_served_by_nobody():
    with RedisServer() as server:
        async with workers(server) as (one, two):
            await one.kept("before")
            assert await two.read() == ["before"]
            server.command("SAVE")
            await one.write()
            server.kill()
            server.start()
            assert server.count_entries() == 0
            assert await two.read() == [], "it saw no write, and reads first"

            async def agree() -> bool:
                assert await one.read() in ([], ["after"])
                await two.kept("after")
                # A worker that hears late of its own word to Redis does not serve what was kept just after the hold
                # there: it counts from then. As any miss does, it asks anew and keeps over it.
                await one.kept("after")
                return await one.read() == await two.read() == ["after"]

            await wait_until(agree, what="both to serve what came after")


async def test_c13_data_that_go_back_under_an_open_connection_are_seen_within_one_look(redis_server):
    async with workers(redis_server) as (one, two):
        await one.kept("before")
        assert await two.read() == ["before"]
        dump = {name: redis_server.command("DUMP", name) for name in redis_server.command("KEYS", "t:*")}
        await one.write()
        redis_server.command("FLUSHALL")
        for name, value in dump.items():
            redis_server.command("RESTORE", name, 0, value)
        await one.redis.look()
        assert await two.read() == await one.read() == []


async def test_c13_a_hold_that_was_lost_is_told_again_and_meanwhile_nothing_is_kept(redis_server):
    async with workers(redis_server) as (one, two):
        await one.kept("before")
        assert await two.read() == ["before"]
        await one.write()
        redis_server.command("FLUSHALL")
        found = await two.tier.read([KEY], SCOPES, OWNER)
        assert found.tokens is None, "nothing is kept as long as a write of before may be settling"
        await one.redis.look()
        assert one.tier.pending == len(SCOPES)
        await one.tier.tell()
        assert redis_server.command("KEYS", "t:h:*") != []


async def test_c13_what_is_on_its_way_while_redis_goes_back_is_not_kept(redis_server):
    async with workers(redis_server) as (one, _):
        await one.kept("before")
        redis_server.command("UNLINK", *redis_server.command("KEYS", "t:e:*"))
        found = await one.tier.read([KEY], SCOPES, OWNER)
        assert found.tokens is not None
        record = redis_server.command("GET", NAMES.record)
        redis_server.command("SET", NAMES.record, record[:16] + b"f" * 16 + record[32:])
        entry = Entry(Row(b"{}", b"", b"", (), "x"), int(time.time() * 1000), 60_000, b"".join(found.tokens))
        one.tier.fill({KEY: entry}, SCOPES, found.tokens)
        await one.tasks.wait_done(5.0)
        assert redis_server.command("KEYS", "t:e:*") == []


async def test_c13_a_hundred_at_once_find_out_together_and_agree():
    with RedisServer() as server:
        async with workers(server) as (one, two):
            await one.kept("before")
            server.command("SAVE")
            await one.write()
            server.kill()
            server.start()
            answers = await asyncio.gather(*(worker.read() for worker in (one, two) for _ in range(50)))
            assert answers == [[]] * 100

            async def agree() -> bool:
                assert await one.read() == await two.read() == []
                return one.incarnation.record == two.incarnation.record

            await wait_until(agree, what="both to agree")
