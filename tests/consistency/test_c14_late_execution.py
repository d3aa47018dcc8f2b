"""
C14: a write of unknown outcome that the vendor executes later, when everybody has long read what was before it.

The vendor breaks off and does nothing, and the document changes a while after that. No answer from before may be served
once it has, by whichever door; answers from before the end of the hold are not kept by anybody.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.consistency.calls import PROTOCOLS, Call, Clients, Door, Protocol
from tests.consistency.rig import BOB, CALM, FAULTY, SETTLE_S, Rig, all_warm, rig, through, wait_pending
from tests.consistency.vendor import Vendor
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")

WRITE = "upsert_doc"
HOLD_S = 4.0
LATE = {"DASHCACHE_VECTOR_UNKNOWN_SETTLE_S": str(HOLD_S)}
RULES: dict[Protocol, list[dict[str, Any]]] = {
    "http": [
        {"wrong": "disconnect"},
        *({"http_status": status} for status in (502, 503, 504)),
        {"wrong": "empty_body"},
    ],
    "grpc": [
        {"wrong": "disconnect"},
        *({"grpc_status": status} for status in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN")),
    ],
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def late(_vendor: Vendor, clients: Clients) -> AsyncIterator[Rig]:
    """Two replicas before a Redis of their own."""
    with RedisServer() as server:
        async with rig(_vendor, clients, server, replicas=2, env={**CALM, **LATE}) as made:
            yield made


async def _attempt(door: Door, call: Call) -> None:
    with contextlib.suppress(aiohttp.ClientError):
        assert not (await door.ask(call)).is_success


async def _executed_late(made: Rig, name: str) -> None:
    """Long after the usual settling time; everybody has asked meanwhile, and asks again after it."""
    read, doors = Call("query_doc", name), made.doors()
    for _ in range(3):
        for door in doors:
            answer = await door.ask(read)
            assert (answer.version, answer.is_hit) == (1, False)
        await asyncio.sleep(2 * SETTLE_S)  # the usual settling time has to pass: that it is over is what is tried
    made.vendor.put(name, 2)
    for door in doors:
        assert (await door.ask(read)).version == 2, (door.protocol, door.token)
    await all_warm(doors, [read], version=2)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_c14_a_write_that_is_executed_late_is_seen(late: Rig, vendor: Vendor, protocol: Protocol) -> None:
    async def case(rule: dict[str, Any], name: str) -> None:
        await all_warm(late.doors(), [Call("query_doc", name)], version=1)
        late.vendor.fail(operation=WRITE, collection=name, **rule)
        await _attempt(late.door(protocol), Call(WRITE, name, version=2))
        await _executed_late(late, name)

    assert vendor is late.vendor
    async with asyncio.TaskGroup() as group:
        for rule in RULES[protocol]:
            group.create_task(case(rule, late.vendor.create()))


@pytest.mark.parametrize("replica", [0, 1])
async def test_c14_a_later_write_of_somebody_else_does_not_shorten_the_wait(
    late: Rig, vendor: Vendor, replica: int
) -> None:
    name = vendor.create()
    await all_warm(late.doors(), [Call("query_doc", name)], version=1)
    late.vendor.fail(operation=WRITE, collection=name, wrong="disconnect", times=1)
    await _attempt(late.door("http"), Call(WRITE, name, version=2))
    vendor.sim.faults.clear()
    assert (await late.door("http", BOB, replica).ask(Call(WRITE, name, version=1))).is_success
    await _executed_late(late, name)


async def test_c14_while_redis_is_away_and_after_a_restart(
    vendor: Vendor, clients: Clients, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Redis is told of it when it is back, by the process that saw it or by the one after that, and waits as long."""
    for is_restarted in (False, True):
        name, folder = vendor.create(), tmp_path / str(is_restarted)
        read = Call("query_doc", name)
        async with FaultProxy(redis_server.port) as line:
            proxy = through(vendor, line, redis_server, folder, env={**FAULTY, **LATE})
            async with proxy:
                made = Rig(vendor, clients, redis_server, [proxy])
                await all_warm(made.doors(), [read], version=1)
                await line.down()
                vendor.fail(operation=WRITE, collection=name, wrong="disconnect")
                await _attempt(made.door("http"), Call(WRITE, name, version=2))
                vendor.sim.faults.clear()
                await wait_pending(proxy, True)
                if not is_restarted:
                    await line.up()
                    await wait_pending(proxy, False)
                    await _executed_late(made, name)
                    continue
            await line.up()
            async with through(vendor, line, redis_server, folder, env={**FAULTY, **LATE}) as after:
                made = Rig(vendor, clients, redis_server, [after])
                await wait_pending(after, False)
                await _executed_late(made, name)


async def test_c14_a_proxy_that_is_killed_inside_a_write_leaves_word_of_it(
    vendor: Vendor, clients: Clients, redis_server: RedisServer, tmp_path: Path
) -> None:
    name = vendor.create()
    read = Call("query_doc", name)
    async with FaultProxy(redis_server.port) as line:
        async with through(vendor, line, redis_server, tmp_path, env={**FAULTY, **LATE}) as proxy:
            made = Rig(vendor, clients, redis_server, [proxy])
            await all_warm(made.doors(), [read], version=1)
            vendor.fail(operation=WRITE, collection=name, wrong="disconnect")
            with vendor.holding("execute", WRITE, name) as held:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_attempt(made.door("http"), Call(WRITE, name, version=2)))
                    await held.wait_arrived()
                    await asyncio.to_thread(proxy.kill)
                    held.release()
        vendor.sim.faults.clear()
        async with through(vendor, line, redis_server, tmp_path, env={**FAULTY, **LATE}) as after:
            made = Rig(vendor, clients, redis_server, [after])
            await wait_until(lambda: bool(made.names("h")), 10.0, "the hold")
            await _executed_late(made, name)


async def test_c14_redis_goes_back_and_the_process_that_saw_the_write_is_gone(vendor: Vendor, clients: Clients) -> None:
    with RedisServer() as server:
        async with rig(vendor, clients, server, replicas=2, env={**CALM, **LATE}) as made:
            gone, other = made.proxies
            name = vendor.create()
            await all_warm(made.doors(), [Call("query_doc", name)], version=1)
            vendor.fail(operation=WRITE, collection=name, wrong="disconnect")
            await _attempt(made.door("http"), Call(WRITE, name, version=2))
            vendor.sim.faults.clear()
            await asyncio.to_thread(gone.kill)
            await asyncio.to_thread(server.restart)
            left = Rig(vendor, clients, server, [other])
            await wait_until(lambda: bool(left.names("i")), 10.0, "the new incarnation")
            await _executed_late(left, name)
