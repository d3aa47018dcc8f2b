"""C10: processes that end with work pending, politely or not, at every stage of a write; and what their heirs know."""

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.consistency.calls import PROTOCOLS, Call, Clients, Protocol
from tests.consistency.rig import ANN, BOB, Rig, all_warm, through, wait_pending, warm
from tests.consistency.vendor import Vendor
from tests.support.child import send_signal
from tests.support.fault_proxy import FaultProxy
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="session")

WRITE = "upsert_doc"


async def _kill_worker(proxy: ProxyProcess) -> None:
    """SIGKILL one worker; its successor serves under the same number."""
    (old,) = proxy.worker_pids()
    os.kill(old, signal.SIGKILL)

    def is_back() -> bool:
        pids = proxy.worker_pids()
        return bool(pids) and pids != [old] and proxy.ready()

    await wait_until(lambda: asyncio.to_thread(is_back), 20.0, "the next worker")


async def _ended(proxy: ProxyProcess, how: str) -> None:
    await asyncio.to_thread(proxy.kill if how == "kill" else proxy.stop)


async def _try(made: Rig, protocol: Protocol, call: Call) -> None:
    """A write whose answer may never come."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        await made.door(protocol).ask(call)


@contextlib.asynccontextmanager
async def _line(redis: RedisServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(redis.url) as line:
        yield line


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("execute", "kill"),
        ("answer", "stop"),
        ("execute", "kill worker"),
        *(pytest.param(*way, marks=pytest.mark.slow) for way in (("answer", "kill"), ("execute", "stop"))),
        pytest.param("answer", "kill worker", marks=pytest.mark.slow),
    ],
)
async def test_c10_a_write_under_way_when_the_process_ends_is_known_to_the_next(
    vendor: Vendor, clients: Clients, redis_server: RedisServer, data_dir: Path, stage: Any, how: str
) -> None:
    """What was kept after the first step, and before the vendor did it, is what nobody else would ever void."""
    async with _line(redis_server) as line:
        first = through(vendor, line, redis_server, data_dir)
        second = through(vendor, line, redis_server, data_dir)
        names = [vendor.create() for _ in PROTOCOLS]
        reads = [Call("query_doc", name) for name in names]
        async with first:
            made = Rig(vendor, clients, redis_server, [first])
            await all_warm(made.doors(), reads, version=1)
            with vendor.holding("execute", WRITE) as begun, vendor.holding("answer", WRITE) as done:
                async with asyncio.TaskGroup() as group:
                    for name, protocol in zip(names, PROTOCOLS, strict=True):
                        group.create_task(_try(made, protocol, Call(WRITE, name, version=2)))
                    await begun.wait_arrived(2)
                    await made.settled()
                    await all_warm(made.doors(), reads, version=1)
                    if stage == "answer":
                        begun.release()
                        await done.wait_arrived(2)
                    if how == "kill worker":
                        await _kill_worker(first)
                    else:
                        await _ended(first, how)
                    for name in names:
                        vendor.put(name, 2)  # the vendor did it, whether or not anybody still waits for it
            if how == "kill worker":
                await all_warm(made.doors(), reads, version=2)
                return
        async with second:
            heir = Rig(vendor, clients, redis_server, [second])
            await all_warm(heir.doors(), reads, version=2)
            await wait_pending(second, False)


@pytest.mark.parametrize("how", ["kill", "stop", pytest.param("kill worker", marks=pytest.mark.slow)])
async def test_c10_what_redis_was_not_told_outlives_the_process(
    vendor: Vendor, clients: Clients, redis_server: RedisServer, data_dir: Path, how: str
) -> None:
    async with _line(redis_server) as line:
        first = through(vendor, line, redis_server, data_dir)
        second = through(vendor, line, redis_server, data_dir)
        names = [vendor.create() for _ in PROTOCOLS]
        reads = [Call("query_doc", name) for name in names]
        async with first:
            made = Rig(vendor, clients, redis_server, [first])
            await all_warm(made.doors(), reads, version=1)
            await line.down()
            for name, protocol in zip(names, PROTOCOLS, strict=True):
                assert (await made.door(protocol, BOB).ask(Call(WRITE, name, version=2))).is_success
            await wait_pending(first, True)
            if how == "kill worker":
                await _kill_worker(first)
                await line.up()
                await all_warm(made.doors(), reads, version=2)
                await wait_pending(first, False)
                return
            await _ended(first, how)
        async with second:  # which finds Redis still away
            heir = Rig(vendor, clients, redis_server, [second])
            answers = await asyncio.gather(*(door.ask(read) for door in heir.doors() for read in reads))
            assert {answer.version for answer in answers} == {2}
            await wait_pending(second, True)
            await line.up()
            await all_warm(heir.doors(), reads, version=2)
            await wait_pending(second, False)


async def test_c10_a_reload_forgets_nothing_that_redis_was_not_told(
    vendor: Vendor, clients: Clients, redis_server: RedisServer, data_dir: Path
) -> None:
    """The new worker knows what the old one does, and does not wait for it to tell Redis, or to end."""
    async with _line(redis_server) as line, through(vendor, line, redis_server, data_dir) as proxy:
        door = Rig(vendor, clients, redis_server, [proxy]).door("http")
        name = vendor.create()
        read = Call("query_doc", name)
        await warm(door, read, version=1)
        (old,) = proxy.worker_pids()
        await line.down()
        assert (await door.ask(Call(WRITE, name, version=2))).is_success
        assert (await asyncio.to_thread(proxy.admin, "POST", "/v1/reload", {})).status == 200
        send_signal(old, signal.SIGSTOP)
        newcomers = Clients()
        try:
            await line.up()
            await warm(dataclasses.replace(door, clients=newcomers), read, version=2)
        finally:
            await newcomers.close()
            send_signal(old, signal.SIGCONT)


async def test_c10_fewer_workers_take_over_what_more_had_left(
    vendor: Vendor, clients: Clients, redis_server: RedisServer, data_dir: Path
) -> None:
    async with _line(redis_server) as line:
        names = [vendor.create() for _ in range(24)]
        reads = [Call("query_doc", name) for name in names]
        first = through(vendor, line, redis_server, data_dir, workers=2)
        async with first:
            made = Rig(vendor, clients, redis_server, [first])
            door = made.door("http")
            await all_warm([door], reads, version=1)
            await line.down()
            journals = [data_dir / f"invalidations-{number}.journal" for number in (1, 2)]
            for name in names:
                # Connections of their own, so that the kernel spreads them over the workers.
                async with aiohttp.ClientSession() as session:
                    url = f"{first.http_url}/v1/collections/{name}/docs/upsert"
                    doc = {"id": "a", "vector": [1.0, 0.0], "fields": {"version": 2, "kind": "a"}}
                    headers = {"dashvector-auth-token": ANN}
                    async with session.post(url, json={"docs": [doc]}, headers=headers) as answer:
                        assert answer.status == 200
            assert all(path.stat().st_size for path in journals), "a worker that had no write leaves nothing"
            await asyncio.to_thread(first.kill)
        async with through(vendor, line, redis_server, data_dir, workers=1) as second:
            heir = Rig(vendor, clients, redis_server, [second])
            await line.up()
            await all_warm([heir.door("http")], reads, version=2)
            await wait_pending(second, False)
            assert [path for path in journals if path.exists()] == journals[:1]
