"""Reads of a real Redis on one connection: whose reply it is, how it is connected, and what the breaker makes of it."""

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import quote

import pytest
import uvloop

from proxy.cache.redis import commands
from proxy.cache.redis.breaker import Guard
from proxy.cache.redis.tier import FAILURES, RedisTier, failure_kind
from proxy.runtime.tasks import Tasks
from tests.support.certificate import made_certificate
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_server import RedisServer
from tests.support.toxics import Latency, Slicer
from tests.support.waiting import wait_until

OWNER = b"owner"
SOUND = b"*5\r\n$5\r\nsound\r\n$88\r\n" + b"0" * 88 + b"\r\n$0\r\n\r\n$6\r\nmaster\r\n:0\r\n"
RESET_S = 0.05
FAIL_MAX = 5


class Rig:
    """A tier and its guard, with what both have told."""

    def __init__(self, url: str, *, deadline_s: float, max_connections: int = 8) -> None:
        self.is_well = True
        self.faults, self.failures, self.rejected = list[BaseException](), list[str](), list[str]()
        self.tasks = Tasks(self.faults.append)
        self.guard = Guard(
            fail_max=FAIL_MAX,
            reset_s=RESET_S,
            deadline_s=deadline_s,
            failures=FAILURES,
            tasks=self.tasks,
            on_change=lambda old, new: None,
            on_failure=lambda error: self.failures.append(failure_kind(error)),
        )
        self.tier = RedisTier(
            url,
            prefix="t",
            deadline_s=deadline_s,
            max_connections=max_connections,
            guard=self.guard,
            on_rejected=self.rejected.append,
        )

    async def read(self, *keys: bytes) -> list[bytes | None] | None:
        reply = await self.tier.read(keys, OWNER)
        return None if reply is None else reply[0]

    async def write(self, *keys: bytes) -> None:
        """Each key's value is the key itself, and something more."""
        assert await self.tier.write([(key, value_of(key), 60_000) for key in keys]) == len(keys)


def value_of(key: bytes) -> bytes:
    return key + b"\r\n" * (key[0] + 1)


@contextlib.asynccontextmanager
async def rig(url: str, *, deadline_s: float = 5.0, **options: int) -> AsyncIterator[Rig]:
    made = Rig(url, deadline_s=deadline_s, **options)
    try:
        yield made
    finally:
        await made.tasks.wait_done(5)
        await made.tier.close()
    assert not made.faults


async def kept(url: str, *keys: bytes) -> None:
    """Values that are there before anything is made slow."""
    async with rig(url) as made:
        await made.write(*keys)


def on_uvloop(test: Callable[[], Awaitable[None]]) -> None:
    """*test* on the event loop that the product uses; pytest's own is asyncio's."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())


@contextlib.asynccontextmanager
async def raw_redis(answer: Callable[[int, bytes], bytes | None]) -> AsyncIterator[str]:
    """
    The URL of a server that answers what it reads as *answer* says: number of the connection, bytes.

    ``None`` closes the connection.
    """
    accepted, open_lines = 0, set[asyncio.StreamWriter]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        number = accepted
        open_lines.add(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if b"EVAL" in data:  # the look that a connection begins with
                    writer.write(SOUND)
                    if b"MGET" not in data:
                        continue
                reply = answer(number, data)
                if reply is None:
                    break
                writer.write(reply)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
        for line in open_lines:
            line.close()


# --- whose reply it is ------------------------------------------------------------------------------------------------


async def pairing(url: str) -> None:
    chance = random.Random(5)
    keys = [b"%c%d" % (chance.randrange(200), at) for at in range(300)]
    async with rig(url) as made:
        await made.write(*keys)

        async def ask() -> int:
            wanted = chance.sample(keys, chance.randrange(1, 5))
            absent = chance.random() < 0.2
            found = await made.read(*wanted, *([b"absent"] if absent else []))
            assert found == [*map(value_of, wanted), *([None] if absent else [])]
            return 1

        async def ask_and_leave() -> int:
            asking = Tasks(made.faults.append).start(ask(), is_awaited=True)
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            return 0

        for _ in range(3):
            asked = [ask() if chance.random() < 0.6 else ask_and_leave() for _ in range(1000)]
            answered = sum(await asyncio.gather(*asked))
            assert answered > 500
        assert made.failures == []
        assert made.guard.state == "closed"


async def test_a_thousand_reads_at_once_each_get_their_own_values_whoever_leaves(redis_server):
    async with FaultProxy(redis_server.url) as line:
        with line.toxic(Slicer(701)):
            await pairing(line.instead_of(redis_server.url))
        assert line.accepted <= 8


def test_the_same_on_uvloop(redis_server):
    on_uvloop(lambda: pairing(redis_server.url))


async def test_reads_take_one_connection(redis_server):
    async with rig(redis_server.url) as made:
        before = redis_server.command("INFO", "stats")["total_connections_received"]
        await asyncio.gather(*(made.read(b"a") for _ in range(500)))
        assert redis_server.command("INFO", "stats")["total_connections_received"] == before + 1


async def test_a_reply_that_comes_after_its_deadline_is_nobodys(redis_server):
    await kept(redis_server.url, b"a", b"b", b"c")
    async with FaultProxy(redis_server.url) as line, rig(line.instead_of(redis_server.url), deadline_s=0.1) as made:
        await wait_until(lambda: made.read(b"a"), what="a connection")
        with line.toxic(Latency(0.5)):
            assert await asyncio.gather(made.read(b"a"), made.read(b"b")) == [None, None]
        for key in (b"c", b"b", b"a") * 3:
            assert await made.read(key) in ([value_of(key)], None)
        await wait_until(lambda: made.read(b"b"), what="hits")


async def test_stores_do_not_stand_before_reads(redis_server):
    """They have a connection of their own, and sixteen at a time a turn on it."""
    async with rig(redis_server.url) as made:
        await made.write(b"a")
        assert await made.read(b"a") == [value_of(b"a")]
        before = redis_server.command("INFO", "stats")["total_connections_received"]
        large = [[(b"%c%d" % (at, at), bytes(50_000), 60_000) for _ in range(5)] for at in range(60)]
        stores = asyncio.gather(*(made.tier.write(values) for values in large))
        await asyncio.sleep(0)
        assert await made.read(b"a") == [value_of(b"a")]
        assert not stores.done()
        assert await stores == [5] * 60
        assert redis_server.command("INFO", "stats")["total_connections_received"] == before


async def test_several_commands_are_asked_in_their_order_whether_there_is_a_connection_or_not(redis_server):
    async with rig(redis_server.url) as made:
        for _ in range(3):
            puts = [commands.put(b"t:order", b"%d" % at, 60_000) for at in range(20)]
            found, missing = commands.values([b"t:order"]), commands.values([b"t:nothing"])
            replies = await made.tier._telling.ask_all([*puts, found, missing])
            assert replies == [*[True] * 20, [b"19"], [None]]
            assert await made.tier._telling.ask_all([]) == []
            await made.tier._telling.close()


async def test_several_commands_without_redis_are_answered_with_nothing(redis_server):
    async with rig("redis://127.0.0.1:1/0") as made:
        puts = [commands.put(b"t:order", b"x", 60_000) for _ in range(3)]
        assert await made.tier._telling.ask_all(puts) == [None] * 3
        assert made.failures == ["connection"]
        assert await made.tier.write([(b"a", b"b", 1_000)] * 3) == 0


# --- connecting -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def tls_in_front(port: int, folder) -> AsyncIterator[str]:
    """A TLS server that passes everything on to *port*; the URL that trusts it."""
    certificate, key = made_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, back), carry(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}/0?ssl_ca_certs={quote(str(certificate))}"
    finally:
        server.close()


async def over_tls(port: int, folder) -> None:
    async with tls_in_front(port, folder) as url, rig(url) as made:
        large = b"\xc7" * 300_000
        await made.write(b"a", large)
        assert (
            await asyncio.gather(*(made.read(b"a", large) for _ in range(20)))
            == [[value_of(b"a"), value_of(large)]] * 20
        )
        assert made.failures == []


async def test_over_tls(redis_server, tmp_path):
    await over_tls(redis_server.port, tmp_path)


def test_over_tls_on_uvloop(redis_server, tmp_path):
    on_uvloop(lambda: over_tls(redis_server.port, tmp_path))


def test_with_a_password_another_database_and_a_unix_socket():
    async def there_and_back() -> None:
        for url in (server.url.replace("/0", "/3"), server.unix_url.replace("db=0", "db=5")):
            async with rig(url) as made:
                assert await made.read(b"a") == [None], "each has a database of its own"
                await made.write(b"a")
                assert await made.read(b"a") == [value_of(b"a")]
        for wrong in (server.url.replace(server.password or "", "wrong"), f"redis://127.0.0.1:{server.port}/0"):
            async with rig(wrong) as made:
                assert await made.read(b"a") is None
                assert made.failures == ["authentication"]

    with RedisServer(unix_socket=True, password="a-password") as server:
        asyncio.run(there_and_back())
        server.command("FLUSHALL")
        on_uvloop(there_and_back)


async def test_a_database_that_there_is_not_refuses_every_read_and_is_no_outage(redis_server):
    async with rig(redis_server.url.replace("/0", "/99")) as made:
        for _ in range(FAIL_MAX + 1):
            assert await made.read(b"a") == [None]
        assert made.rejected == ["rejected"] * (FAIL_MAX + 1)
        assert made.guard.state == "closed"


async def test_what_comes_with_the_answer_to_the_password_is_not_the_first_reply():
    def too_much(_number: int, data: bytes) -> bytes:
        return b"+OK\r\n*2\r\n$4\r\nevil\r\n$4\r\nevil\r\n" if b"AUTH" in data else b""

    async with raw_redis(too_much) as url, rig(url.replace("//", "//:password@")) as made:
        for _ in range(FAIL_MAX):
            assert await made.read(b"a") is None
        assert made.guard.state == "open"
        assert made.failures == ["connection"] * FAIL_MAX


# --- when it breaks ---------------------------------------------------------------------------------------------------


async def test_after_a_kill_reads_come_back_with_the_server(redis_server):
    async with rig(redis_server.url) as made:
        await made.write(b"a")
        assert await made.read(b"a") == [value_of(b"a")]
        redis_server.kill()
        for _ in range(FAIL_MAX + 3):
            assert await made.read(b"a") is None
        assert made.guard.state == "open"
        assert set(made.failures) == {"connection"}
        redis_server.start()
        assert await wait_until(lambda: made.read(b"a"), what="an answer") == [None]
        assert made.guard.state == "closed"
        await made.write(b"a")
        assert await made.read(b"a") == [value_of(b"a")]


async def test_one_connection_that_breaks_is_one_failure_however_many_ask(redis_server):
    """Redis is well: a hundred reads that shared a connection are not a hundred witnesses."""
    async with FaultProxy(redis_server.url) as line, rig(line.instead_of(redis_server.url)) as made:
        await made.write(b"a")
        assert await made.read(b"a") == [value_of(b"a")]
        with line.toxic(Latency(3.0)):
            asking = asyncio.gather(*(made.read(b"a") for _ in range(100)))
            await asyncio.sleep(0.02)
            line.drop_connections(by_reset=True)
            assert await asking == [None] * 100
        assert made.failures == ["connection"]
        assert await made.read(b"a") == [value_of(b"a")]
        assert made.guard.failures_in_a_row == 0


async def test_an_idle_connection_that_was_closed_is_no_failure(redis_server):
    async with rig(redis_server.url) as made:
        await made.write(b"a")
        for _ in range(3):
            assert await made.read(b"a") == [value_of(b"a")]
            redis_server.command("CLIENT", "KILL", "TYPE", "normal")
            await wait_until(lambda: not made.tier._asking._pipe.is_open, what="the end of the connection")
        assert made.failures == []


async def test_a_hung_server_costs_each_read_one_deadline_and_then_nothing(redis_server):
    deadline_s = 0.1
    await kept(redis_server.url, b"a")
    async with rig(redis_server.url, deadline_s=deadline_s) as made:
        await wait_until(lambda: made.read(b"a"), what="a connection")
        made.failures.clear()
        redis_server.hang()
        began_s = time.monotonic()
        assert await asyncio.gather(*(made.read(b"a") for _ in range(50))) == [None] * 50
        assert deadline_s <= time.monotonic() - began_s < deadline_s + 1.0
        assert made.failures == ["timeout"] * 50
        assert made.guard.state == "open"
        began_s = time.monotonic()
        assert await made.read(b"a") is None
        assert time.monotonic() - began_s < deadline_s
        redis_server.resume()
        assert await wait_until(lambda: made.read(b"a"), what="an answer") == [value_of(b"a")]


async def test_a_server_that_is_silent_on_new_connections_too_opens_the_circuit():
    async with raw_redis(lambda _number, _data: b"") as url, rig(url, deadline_s=0.02) as made:
        for _ in range(FAIL_MAX):
            assert await made.read(b"a") is None
        assert made.guard.state == "open"
        assert made.failures == ["timeout"] * FAIL_MAX


async def test_a_trial_goes_over_a_connection_of_its_own_and_is_one_command():
    asked: list[int] = []

    def silent_at_first(number: int, data: bytes) -> bytes:
        asked.extend([number] * data.count(b"MGET"))
        return b"" if number == 1 else b"*2\r\n$1\r\nx\r\n$-1\r\n" * data.count(b"MGET")

    async with raw_redis(silent_at_first) as url, rig(url, deadline_s=0.1) as made:
        await asyncio.gather(*(made.read(b"a") for _ in range(FAIL_MAX)))
        assert made.guard.state == "open"
        await asyncio.sleep(RESET_S + 0.01)
        replies = await asyncio.gather(*(made.read(b"a") for _ in range(100)))
        assert sorted(map(str, replies))[:99] == ["None"] * 99
        assert [b"x"] in replies
        assert asked == [1] * FAIL_MAX + [2]
        assert await made.read(b"a") == [b"x"]
        assert made.guard.state == "closed"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "loading"),
        (b"-BUSY Redis is busy running a script\r\n", "connection"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "cluster-down"),
        (b"-CLUSTERDOWN Hash slot not served\r\n", "cluster-down"),
        (b"-NOAUTH Authentication required.\r\n", "authentication"),
        (b"-MOVED\r\n", "garbage"),
        (b"*1\r\n$1\r\nx\r\n", "garbage"),
        (b"\x16\x03\x01", "garbage"),
        (None, "connection"),
    ],
)
async def test_what_speaks_of_redis_health_opens_the_circuit_and_closes_the_connection(reply, kind):
    def well_at_first(_number: int, _data: bytes) -> bytes | None:
        return b"*2\r\n$-1\r\n$-1\r\n" if made.is_well else reply

    async with raw_redis(well_at_first) as url, rig(url) as made:
        assert await made.read(b"a") == [None]
        made.is_well = False
        for count in range(1, FAIL_MAX + 1):
            assert await made.read(b"a") is None
            assert made.failures == [kind] * count
        assert made.guard.state == "open"


@pytest.mark.parametrize(
    "reply", [b"-NOPERM no\r\n", b"-READONLY no\r\n", b"-MOVED 1 h:1\r\n", b"-ERR \xff\r\n", b"-WRONGTYPE no\r\n"]
)
async def test_what_refuses_a_command_is_a_miss_and_no_outage(reply):
    async with raw_redis(lambda _number, _data: reply) as url, rig(url) as made:
        for count in range(1, 2 * FAIL_MAX):
            assert await made.read(b"a") == [None]
            assert made.rejected == ["rejected"] * count
        assert made.failures == []
        assert made.guard.state == "closed"
