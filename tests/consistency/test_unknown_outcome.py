"""C7: a write whose outcome nobody knows counts, and is sent no second time."""

import asyncio
import itertools
import json
from typing import Any

import aiohttp
import grpc.aio
import pytest

from tests.consistency.calls import PROTOCOLS, Answer, Call, Clients, Door, Protocol, grpc_form, http_form
from tests.consistency.rig import CALM, Rig, all_warm, rig
from tests.consistency.vendor import Held, Vendor
from tests.support.fault_proxy import FaultProxy
from tests.support.raw_client import RawClient, request_bytes
from tests.support.redis_server import RedisServer
from tests.support.toxics import ResetPeer
from tests.support.waiting import TooLateError, wait_until, with_time_enough

pytestmark = pytest.mark.asyncio(loop_scope="session")

WRITE = "upsert_doc"
BOTH: list[dict[str, Any]] = [
    {"wrong": wrong, "stage": stage}
    for wrong in ("disconnect", "truncated_body", "not_json", "empty_body")
    for stage in ("before", "after")
]
HTTP: list[dict[str, Any]] = [
    *({"http_status": status} for status in (400, 404, 408, 409, 429, 500, 502, 503, 504)),
    {"http_status": 500, "stage": "after"},
    {"code": -2000},
]
GRPC: list[dict[str, Any]] = [
    *({"grpc_status": status} for status in ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN")),
    *({"grpc_status": status} for status in ("RESOURCE_EXHAUSTED", "ABORTED", "UNIMPLEMENTED", "INVALID_ARGUMENT")),
    {"grpc_status": "UNAVAILABLE", "stage": "after"},
    {"grpc_status": "INTERNAL", "has_trailers": False},
    {"code": -2000},
]


async def _attempt(door: Door, call: Call, **options: Any) -> Answer | None:
    """The answer; None where there is none that could be read."""
    try:
        return await door.ask(call, **options)
    except aiohttp.ClientError:
        return None


async def _new_everywhere(made: Rig, name: str, version: int) -> None:
    """No door tells of what was before *version*, now or later."""
    read = Call("query_doc", name)
    for door in made.doors():
        answer = await door.ask(read)
        assert answer.version == version, (door.protocol, door.token, answer.cache)
    await all_warm(made.doors(), [read], version=version)


@pytest.mark.parametrize(
    ("protocol", "rule"),
    [*(("http", rule) for rule in BOTH + HTTP), *(("grpc", rule) for rule in BOTH + GRPC)],
    ids=str,
)
async def test_c7_a_write_that_fails_in_any_way_voids_what_was_known(
    pair: Rig, protocol: Protocol, rule: dict[str, Any]
) -> None:
    """Whatever was answered, the vendor may have done it: the document has changed."""
    name = pair.vendor.create()
    await all_warm(pair.doors(), [Call("query_doc", name)], version=1)
    pair.vendor.fail(operation=WRITE, collection=name, **rule)
    with pair.vendor.holding("execute", WRITE, name) as held:
        async with asyncio.TaskGroup() as group:
            group.create_task(_attempt(pair.door(protocol), Call(WRITE, name, version=2)))
            await held.wait_arrived()
            await pair.settled()
            await all_warm(pair.doors(), [Call("query_doc", name)], version=1)
            pair.vendor.put(name, 2)
            held.release()
    await _new_everywhere(pair, name, 2)
    assert len(pair.vendor.records(name, WRITE)) == 1


async def test_c7_a_write_that_the_upstream_does_not_answer_in_time_voids_what_was_known(
    vendor: Vendor, clients: Clients, redis_server: RedisServer
) -> None:
    async def case(door: Door, made: Rig, stage: str) -> None:
        protocol, name = door.protocol, vendor.create()
        await all_warm(made.doors(), [Call("query_doc", name)], version=1)
        vendor.fail(operation=WRITE, collection=name, wrong="timeout", stage=stage)
        with vendor.holding("execute", WRITE, name) as held:
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(door.ask(Call(WRITE, name, version=2), timeout_s=None))
                await held.wait_arrived()
                await made.settled()
                await all_warm(made.doors(), [Call("query_doc", name)], version=1)
                if asked.done():
                    raise TooLateError
                vendor.put(name, 2)
                held.release()
        assert asked.result().status == (504 if protocol == "http" else 4)
        await _new_everywhere(made, name, 2)
        assert len(vendor.records(name, WRITE)) == 1

    async def cases(timeout_s: float) -> None:
        env = {**CALM, "DASHCACHE_UPSTREAM_READ_TIMEOUT_S": str(timeout_s)}
        async with rig(vendor, clients, redis_server, env=env) as made, asyncio.TaskGroup() as group:
            for protocol, stage in itertools.product(PROTOCOLS, ("before", "after")):
                group.create_task(case(made.door(protocol), made, stage))

    await with_time_enough(cases, 1.5)


async def test_c7_an_answer_that_breaks_off_with_a_reset_voids_what_was_known(
    vendor: Vendor, clients: Clients, redis_server: RedisServer
) -> None:
    """The line to the vendor breaks without a byte of the answer, and in the middle of its head and of its body."""
    async with FaultProxy(vendor.sim.http_port) as line:
        url = f"http://127.0.0.1:{line.port}"
        async with rig(vendor, clients, redis_server, dashvector_url=url) as made:
            for size in (0, 40, 250):
                name = vendor.create()
                await all_warm(made.doors(), [Call("query_doc", name)], version=1)
                with vendor.holding("execute", WRITE, name) as held:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(_attempt(made.door("http"), Call(WRITE, name, version=2)))
                        await held.wait_arrived()
                        await made.settled()
                        await all_warm(made.doors(), [Call("query_doc", name)], version=1)
                        toxic = line.add(ResetPeer(size))
                        held.release()
                line.remove(toxic)
                line.drop_connections()
                assert len(vendor.records(name, WRITE)) == 1
                await _new_everywhere(made, name, 2)


# --- the client leaves ------------------------------------------------------------------------------------------------


async def _http_leaves(door: Door, call: Call, held: Held) -> None:
    method, target, body = http_form(call)
    lines = [(b"dashvector-auth-token", door.token.encode()), (b"Content-Type", b"application/json")]
    async with await RawClient.connect(door.http_url) as client:
        await client.send(request_bytes(method, target, lines, json.dumps(body).encode()))
        await held.wait_arrived()
        client.abort()


async def _grpc_leaves(door: Door, call: Call, held: Held) -> None:
    method, message, metadata = grpc_form(call)
    token = (("dashvector-auth-token", door.token),)
    async with grpc.aio.insecure_channel(
        door.grpc_address, options=(("grpc.use_local_subchannel_pool", 1),)
    ) as channel:
        running = channel.unary_unary(method)(message, metadata=token + metadata)
        await held.wait_arrived()
        running.cancel()


async def _until_new(made: Rig, name: str, version: int) -> None:
    """Nobody is told when the end of such a write is known; a lost one would leave the old answer for an hour."""
    read = Call("query_doc", name)

    async def is_new() -> bool:
        return all([(await door.ask(read)).version == version for door in made.doors()])

    await wait_until(is_new, 10.0, "the new answer everywhere")
    await _new_everywhere(made, name, version)


@pytest.mark.parametrize("point", ["execute", "answer"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_c7_a_client_that_leaves_after_forwarding_cuts_neither_the_write_nor_its_end(
    pair: Rig, protocol: Protocol, point: Any
) -> None:
    name = pair.vendor.create()
    read, door = Call("query_doc", name), pair.door(protocol)
    await all_warm(pair.doors(), [read], version=1)
    before = len(pair.proxy.logs)
    with pair.vendor.holding(point, WRITE, name) as held:
        leaves = _http_leaves if protocol == "http" else _grpc_leaves
        await leaves(door, Call(WRITE, name, version=2), held)
        # The proxy has noticed, and others go on asking; what they keep now has to go when the write is over.
        await asyncio.to_thread(pair.proxy.wait_log, "request", 10.0, after=before, state="write")
        await pair.settled()
        await all_warm(pair.doors(), [read], version=1 if point == "execute" else 2)
        held.release()
    await _until_new(pair, name, 2)
    (record,) = pair.vendor.records(name, WRITE)
    assert record.is_executed
    assert not record.is_aborted


async def test_c7_a_deadline_of_the_clients_that_passes_voids_what_was_known(pair: Rig) -> None:
    name = pair.vendor.create()
    read = Call("query_doc", name)
    await all_warm(pair.doors(), [read], version=1)
    with pair.vendor.holding("answer", WRITE, name) as held:
        answer = await pair.door("grpc").ask(Call(WRITE, name, version=2), timeout_s=1.0)
        assert answer.status == 4
        await held.wait_arrived()
        await _until_new(pair, name, 2)
    assert len(pair.vendor.records(name, WRITE)) == 1
