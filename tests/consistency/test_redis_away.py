"""C3: writes that Redis could not be told of, and what it still holds when it comes back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.consistency.calls import PROTOCOLS, Call, Clients
from tests.consistency.rig import ANN, BOB, FAULTY, Rig, all_warm, assert_true, through, wait_pending
from tests.consistency.vendor import Vendor
from tests.support.fault_proxy import Direction, FaultProxy
from tests.support.redis_server import RedisServer
from tests.support.toxics import BlackHole

pytestmark = pytest.mark.asyncio(loop_scope="session")

Fault = Callable[[RedisServer, FaultProxy], AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def cut(_: RedisServer, line: FaultProxy) -> AsyncIterator[None]:
    """Connecting is refused; the server and all that it holds stay as they are."""
    await line.down()
    yield
    await line.up()


@contextlib.asynccontextmanager
async def swallowed(_: RedisServer, line: FaultProxy) -> AsyncIterator[None]:
    """Nothing arrives any more."""
    with line.toxic(BlackHole(), Direction.BOTH):
        yield


@contextlib.asynccontextmanager
async def unheard(_: RedisServer, line: FaultProxy) -> AsyncIterator[None]:
    """Everything is done by the server, and no answer comes back."""
    with line.toxic(BlackHole(), Direction.TO_CLIENT):
        yield


@contextlib.asynccontextmanager
async def hung(redis: RedisServer, _: FaultProxy) -> AsyncIterator[None]:
    redis.hang()
    yield
    redis.resume()


@contextlib.asynccontextmanager
async def killed(redis: RedisServer, _: FaultProxy) -> AsyncIterator[None]:
    """It comes back with what it had saved before."""
    redis.command("SAVE")
    redis.kill()
    yield
    redis.restart(empty=False)


def _known(made: Rig) -> dict[bytes, bytes]:
    return {name: made.redis.command("GET", name) for name in made.names("e")}


@pytest.mark.parametrize(
    "fault",
    # Nothing arrives at a server that hangs, nor over a line that swallows: alike to the proxy.
    [cut, pytest.param(swallowed, marks=pytest.mark.slow), unheard, hung, killed],
    ids=lambda fault: fault.__name__,
)
async def test_c3_what_redis_could_not_be_told_is_not_lost(
    vendor: Vendor, clients: Clients, redis_server: RedisServer, data_dir: Path, fault: Fault
) -> None:
    async with (
        FaultProxy(redis_server.url) as line,
        through(vendor, line, redis_server, data_dir) as proxy,
    ):
        made = Rig(vendor, clients, redis_server, [proxy])
        names = [vendor.create() for _ in range(4)]
        reads = [Call(operation, name) for name in names for operation in ("query_doc", "fetch_doc")]
        await all_warm(made.doors(), reads, version=1)
        before = _known(made)
        async with fault(redis_server, line):
            for number, name in enumerate(names):
                door = made.door(PROTOCOLS[number % 2], (ANN, BOB)[number // 2])
                assert (await door.ask(Call("upsert_doc", name, version=2))).is_success
            answers = await asyncio.gather(*(door.ask(read) for door in made.doors() for read in reads))
            assert {answer.version for answer in answers} == {2}
            assert not any(answer.is_hit for answer in answers)
            await wait_pending(proxy, True)
        # From the first moment on, while the old entries are still there.
        assert {name: value for name, value in _known(made).items() if name in before} == before
        await all_warm(made.doors(), reads, version=2)
        await wait_pending(proxy, False)
        assert [len(vendor.records(name, "upsert_doc")) for name in names] == [1] * len(names)


async def test_c3_redis_is_told_though_nobody_asks(
    vendor: Vendor, clients: Clients, redis_server: RedisServer, data_dir: Path
) -> None:
    """So another replica, which saw no write, is wrong for no longer than Redis was away."""
    async with (
        FaultProxy(redis_server.url) as line,
        through(vendor, line, redis_server, data_dir) as cut_off,
        through(vendor, line, redis_server, data_dir / "other", redis_url=redis_server.url) as other,
    ):
        made = Rig(vendor, clients, redis_server, [cut_off, other])
        name = vendor.create()
        read = Call("query_doc", name)
        await all_warm(made.doors(), [read], version=1)
        async with cut(redis_server, line):
            assert (await made.door("http").ask(Call("upsert_doc", name, version=2))).is_success
            assert (await made.door("http").ask(read)).version == 2
            assert (await made.door("http", replica=1).ask(read)).version == 1  # it cannot know
            await wait_pending(cut_off, True)
        await wait_pending(cut_off, False)
        for door in made.doors():
            assert (await door.ask(read)).version == 2
        await all_warm(made.doors(), [read], version=2)


@pytest.mark.parametrize("fault", [cut, hung], ids=lambda fault: fault.__name__)
async def test_c3_strict_mode_refuses_a_write_before_it_is_forwarded(
    vendor: Vendor, clients: Clients, redis_server: RedisServer, data_dir: Path, fault: Fault
) -> None:
    env = {**FAULTY, "DASHCACHE_VECTOR_STRICT_WRITES": "true"}
    async with (
        FaultProxy(redis_server.url) as line,
        through(vendor, line, redis_server, data_dir, env=env) as proxy,
    ):
        made = Rig(vendor, clients, redis_server, [proxy])
        name = vendor.create()
        read = Call("query_doc", name)
        await all_warm(made.doors(), [read], version=1)
        newcomer = f"sk-dv-new-{name}"
        async with fault(redis_server, line):
            for protocol in PROTOCOLS:
                for token in (ANN, newcomer):
                    answer = await made.door(protocol, token).ask(Call("upsert_doc", name, version=2))
                    assert answer.status == (503 if protocol == "http" else 14)
                    assert answer.marks["x-dashcache-error"] == "NotInvalidated", answer.marks
            assert not vendor.records(name, "upsert_doc")
            assert (await made.door("http").ask(read)).version == 1  # reads go on
        await all_warm(made.doors(), [read], version=1)
        for number, protocol in enumerate(PROTOCOLS):
            answer = await made.door(protocol, newcomer).ask(Call("upsert_doc", name, version=3 + number))
            assert answer.is_success
            await assert_true(made, made.doors(), [read])
            await all_warm(made.doors(), [read], version=3 + number)
        await wait_pending(proxy, False)
