"""C1, C2, C4, C9, C11, C12: reads and writes that cross each other, over both protocols, replicas and credentials."""

import asyncio
import itertools
import time

import pytest

from tests.consistency.calls import PROTOCOLS, Answer, Call, Clients, Protocol
from tests.consistency.rig import ANN, BOB, CALM, Rig, all_warm, rig, warm
from tests.consistency.vendor import STRANGER, Vendor
from tests.support.redis_server import RedisServer
from tests.support.waiting import TooLateError, wait_until, with_time_enough

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("operation", ["query_doc", "fetch_doc", "query_doc_group_by"])
@pytest.mark.parametrize("writing", PROTOCOLS)
@pytest.mark.parametrize("reading", PROTOCOLS)
async def test_c1_a_query_in_flight_across_a_write_is_not_stored(
    pair: Rig, reading: Protocol, writing: Protocol, operation: str
) -> None:
    """The reader is Ann at one replica, the writer Bob at the other; then the same within one replica."""
    for replica, token in ((1, BOB), (0, BOB), (0, ANN)):
        name = pair.vendor.create()
        reader, writer = pair.door(reading), pair.door(writing, token, replica)
        read, write = Call(operation, name), Call("upsert_doc", name, version=2)
        with pair.vendor.holding("answer", operation, name) as held:
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(reader.ask(read))
                await held.wait_arrived()
                assert (await writer.ask(write)).is_success
                await pair.settled()
                held.release()
            old = asked.result()
        assert not old.is_hit
        assert old.version == 1
        answers = await warm(reader, read, version=2)
        assert not answers[0].is_hit
        await warm(pair.door(reading, replica=1), read, version=2)


@pytest.mark.parametrize("reading", PROTOCOLS)
async def test_c1_a_late_answer_takes_nothing_from_those_who_asked_after_the_write(
    pair: Rig, reading: Protocol
) -> None:
    """Neither does it come up, nor does it push out what is newer."""
    name = pair.vendor.create()
    read, reader, other = Call("query_doc", name), pair.door(reading), pair.door(reading, replica=1)
    with pair.vendor.holding("answer", "query_doc", name, at_most=1) as held:
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(reader.ask(read))
            await held.wait_arrived()
            assert (await pair.door("http", BOB, 1).ask(Call("upsert_doc", name, version=2))).is_success
            await warm(other, read, version=2)
            held.release()
    assert asked.result().version == 1
    answers = [await door.ask(read) for _ in range(15) for door in (reader, other)]
    assert all(answer.is_hit and answer.version == 2 for answer in answers)


@pytest.mark.parametrize("writing", PROTOCOLS)
async def test_c1_a_query_that_starts_while_a_write_is_under_way_is_not_kept_beyond_it(
    pair: Rig, writing: Protocol
) -> None:
    """The write takes longer than the time for settling: what was kept meanwhile must go when it ends."""
    name = pair.vendor.create()
    write, read = Call("upsert_doc", name, version=2), Call("query_doc", name)
    doors = pair.doors()
    await all_warm(doors, [read], version=1)
    with pair.vendor.holding("execute", "upsert_doc", name) as held:
        async with asyncio.TaskGroup() as group:
            written = group.create_task(pair.door(writing).ask(write))
            await held.wait_arrived()
            await pair.settled()
            await all_warm(doors, [read], version=1)  # nothing has happened yet
            held.release()
    assert written.result().is_success
    await all_warm(doors, [read], version=2)


async def test_c2_what_is_acknowledged_but_not_visible_is_not_frozen_in(
    vendor: Vendor, clients: Clients, redis_server: RedisServer
) -> None:
    settle_s, delay_s = 0.8, 0.6
    env = {**CALM, "DASHCACHE_VECTOR_SETTLE_S": str(settle_s)}
    async with rig(vendor, clients, redis_server, replicas=2, env=env) as made:
        name = vendor.create()
        read, doors = Call("query_doc", name), made.doors()
        await all_warm(doors, [read], version=1)
        vendor.sim.configure(visibility_ms=delay_s * 1000)
        assert (await made.door("http").ask(Call("upsert_doc", name, version=2))).is_success
        acknowledged_s = time.monotonic()
        seen: list[tuple[float, Answer]] = []

        async def look(number: int) -> None:
            door = doors[number]
            while True:
                before = await made.direct(door.protocol).ask(read)
                answer = await door.ask(read)
                after = await made.direct(door.protocol).ask(read)
                assert answer.version in (before.version, after.version), (answer, before, after)
                seen.append((time.monotonic() - acknowledged_s, answer))
                if answer.is_hit:
                    return
                await asyncio.sleep(0.02)  # between two looks; the end is told by what they show

        async with asyncio.timeout(15):
            await asyncio.gather(*map(look, range(len(doors))))
        hits = [(at_s, answer.version) for at_s, answer in seen if answer.is_hit]
        assert len(hits) == len(doors)
        assert {version for _, version in hits} == {2}
        assert min(at_s for at_s, _ in hits) >= settle_s - 0.1
        # There was something to freeze: the vendor showed the old state after the acknowledgement, and then turned.
        assert {answer.version for _, answer in seen} == {1, 2}


async def test_c2_what_was_asked_while_a_write_settled_is_not_kept_when_it_has(
    vendor: Vendor, clients: Clients, redis_server: RedisServer
) -> None:
    """The vendor answers with the old state, and takes longer for it than the write takes to settle."""

    async def case(settle_s: float) -> None:
        env = {**CALM, "DASHCACHE_VECTOR_SETTLE_S": str(settle_s)}
        async with rig(vendor, clients, redis_server, env=env) as made:
            name = vendor.create()
            read, doors = Call("query_doc", name), made.doors()
            await all_warm(doors, [read], version=1)
            with vendor.sim.hold_visibility(name) as invisible, vendor.holding("answer", "query_doc", name) as held:
                started_s = time.monotonic()
                assert (await made.door("http").ask(Call("upsert_doc", name, version=2))).is_success
                async with asyncio.TaskGroup() as group:
                    asked = [group.create_task(door.ask(read)) for door in doors]
                    await held.wait_arrived(len(doors))
                    if time.monotonic() - started_s > settle_s:
                        raise TooLateError
                    await made.settled()
                    invisible.release()
                    held.release()
            assert {task.result().version for task in asked} == {1}
            await all_warm(doors, [read], version=2)

    await with_time_enough(case, 0.4)


@pytest.mark.parametrize("writing", PROTOCOLS)
@pytest.mark.parametrize("token", [ANN, BOB])
async def test_c4_a_write_through_one_replica_reaches_the_other(pair: Rig, writing: Protocol, token: str) -> None:
    name = pair.vendor.create()
    calls = [Call(operation, name) for operation in ("query_doc", "fetch_doc", "query_doc_group_by")]
    version = 1
    for replica in (0, 1, 0):
        await all_warm(pair.doors(), calls, version=version)
        version += 1
        written = await pair.door(writing, token, replica).ask(Call("upsert_doc", name, version=version))
        assert written.is_success
        for door in pair.doors():
            for call in calls:
                answer = await door.ask(call)
                assert not answer.is_hit or answer.version == version


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("other", [BOB, STRANGER])
async def test_c9_one_query_of_two_credentials_at_once_is_two_calls(pair: Rig, protocol: Protocol, other: str) -> None:
    name = pair.vendor.create()
    read = Call("query_doc", name)
    with pair.vendor.holding("execute", "query_doc", name) as held:
        async with asyncio.TaskGroup() as group:
            anns = group.create_task(pair.door(protocol, ANN).ask(read))
            others = group.create_task(pair.door(protocol, other).ask(read))
            await held.wait_arrived(2 if other == BOB else 1)
            held.release()
    asked = [record.header("dashvector-auth-token") for record in pair.vendor.records(name)]
    assert sorted(asked) == sorted([ANN, other])
    assert anns.result().is_success
    assert anns.result().version == 1
    assert others.result().is_success == (other == BOB)
    await warm(pair.door(protocol, ANN), read)
    if other == STRANGER:
        again = await pair.door(protocol, other).ask(read)
        assert not again.is_hit
        assert again.status == (401 if protocol == "http" else 16)


async def test_c11_a_write_past_the_proxy_is_seen_when_the_lifetime_ends(
    vendor: Vendor, clients: Clients, redis_server: RedisServer
) -> None:
    lifetime_s = 2.0
    env = {**CALM, "DASHCACHE_LIFETIMES_VECTOR_QUERY_S": str(lifetime_s), "DASHCACHE_LIFETIMES_JITTER": "0"}
    async with rig(vendor, clients, redis_server, replicas=2, env=env) as made:
        name = vendor.create()
        read, doors = Call("query_doc", name), made.doors()
        await all_warm(doors, [read], version=1)
        vendor.put(name, 2)
        written_s = time.monotonic()
        assert (await doors[0].ask(read)).version == 1  # nobody can know

        async def until_new(number: int) -> float:
            async def is_new() -> bool:
                return (await doors[number].ask(read)).version == 2

            await wait_until(is_new, 10.0, "the new answer")
            return time.monotonic() - written_s

        waits_s = await asyncio.gather(*map(until_new, range(len(doors))))
        assert max(waits_s) <= lifetime_s + 1.0
        await all_warm(doors, [read], version=2)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_c12_a_dropped_and_remade_collection_does_not_mix_with_its_predecessor(
    pair: Rig, protocol: Protocol
) -> None:
    """The remade one has another dimension, so that the old question is not even allowed any more."""
    name = pair.vendor.create(partitions=["part"])
    doors = pair.doors()
    two = [Call(operation, name) for operation in ("query_doc", "fetch_doc", "describe_collection")]
    two.append(Call("query_doc", name, partition="part"))
    for dimension, past in ((3, 2), (2, 3)):
        # What the last life left behind, and what this one may not answer any more.
        calls = [Call(call.operation, name, call.partition, dimension=past) for call in two]
        await all_warm(doors, calls if past == 2 else calls[2:3])
        writer = pair.door(protocol, BOB, 1)
        assert (await writer.ask(Call("delete_collection", name))).is_success
        gone = await asyncio.gather(*(door.ask(call) for door in doors for call in calls))
        assert not any(answer.is_hit or answer.is_success for answer in gone)
        assert (await writer.ask(Call("create_collection", name, dimension=dimension))).is_success
        await pair.settled()
        for door in doors:
            answers = [await door.ask(call) for call in calls]
            assert not any(answer.versions for answer in answers), "nothing has been written in this life"
            described = await door.ask(Call("describe_collection", name))
            now = await pair.direct(door.protocol).ask(Call("describe_collection", name))
            assert described.output == now.output


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_c12_a_collection_dropped_past_the_proxy_and_remade_through_it_has_no_past(
    pair: Rig, protocol: Protocol
) -> None:
    name = pair.vendor.create()
    doors, reads = (
        pair.doors(),
        [Call(operation, name) for operation in ("query_doc", "fetch_doc", "describe_collection")],
    )
    await all_warm(doors, reads)
    pair.vendor.sim.store.delete(name)
    remade = await pair.door(protocol, BOB, 1).ask(Call("create_collection", name, dimension=3))
    assert remade.is_success
    for door, read in itertools.product(doors, reads):
        answer, now = await door.ask(read), await pair.direct(door.protocol).ask(read)
        assert not answer.versions, "nothing has been written in this life"
        assert (answer.code, answer.output) == (now.code, now.output)
