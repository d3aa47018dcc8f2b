"""C8: Redis loses or goes back to what it held, at any point of a mix of queries and writes."""

import random
import secrets
import time
from pathlib import Path
from typing import Any

import pytest

from tests.consistency.calls import PROTOCOLS, Answer, Call, Clients, Door
from tests.consistency.rig import ANN, BOB, CALM, FAULTY, Rig, all_warm, rig, through, warm
from tests.consistency.vendor import Vendor
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import TooLateError, with_time_enough

pytestmark = pytest.mark.asyncio(loop_scope="session")

STEPS = 400
Snapshot = dict[bytes, tuple[int, bytes]]


def _snapshot(redis: RedisServer) -> Snapshot:
    """Everything with its lifetime, to be put back later."""
    held: Snapshot = {}
    for name in redis.command("KEYS", "*"):
        left_ms, value = redis.command("PTTL", name), redis.command("GET", name)
        if value is not None:
            held[name] = (left_ms, value)
    return held


def _put_back(redis: RedisServer, snapshot: Snapshot) -> None:
    """As a failover to a replica that had fallen behind, or a restart from an old file."""
    redis.command("FLUSHALL")
    for name, (left_ms, value) in snapshot.items():
        redis.command("SET", name, value, "PX", max(1, left_ms))  # everything of the proxy has an end


class Mix:
    """One process, a few collections, and a Redis that cannot be relied on."""

    def __init__(self, made: Rig, seed: int) -> None:
        self.made, self.random = made, random.Random(seed)
        self.versions = {made.vendor.create(): 1 for _ in range(3)}
        self.snapshots: list[Snapshot] = [{}]
        self.hits = 0
        self.losses = 0

    def door(self) -> Door:
        return self.made.door(self.random.choice(PROTOCOLS), self.random.choice((ANN, BOB)))

    async def step(self) -> None:
        """Something happens; the vendor shows every write at once, so every answer must be the newest."""
        name = self.random.choice(list(self.versions))
        move = self.random.choices(("read", "warm", "write", "lose", "snapshot"), (6, 3, 2, 2, 1))[0]
        if move == "write":
            self.versions[name] += 1
            assert (await self.door().ask(Call("upsert_doc", name, version=self.versions[name]))).is_success
        elif move == "lose":
            self.losses += 1
            self._lose()
        elif move == "snapshot":
            self.snapshots.append(_snapshot(self.made.redis))
        elif move == "warm":
            await warm(self.door(), Call("query_doc", name), version=self.versions[name])
            self.hits += 1
        else:
            self._check(name, await self.door().ask(Call("query_doc", name)))

    def _check(self, name: str, answer: Answer) -> None:
        assert answer.version == self.versions[name], answer
        self.hits += answer.is_hit

    def _lose(self) -> None:
        redis = self.made.redis
        how = self.random.choice(("e", "g", "h", "some", "all", "back", "back"))
        if how == "back":
            _put_back(redis, self.random.choice(self.snapshots))
        elif how == "all":
            redis.command("FLUSHALL")
        else:
            names = self.made.names(how) if how != "some" else sorted(redis.command("KEYS", "*"))
            gone = [name for name in names if self.random.random() < 0.5]
            if gone:
                redis.command("DEL", *gone)


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.slow)])
async def test_c8_a_process_that_saw_a_write_never_answers_from_before_it(
    vendor: Vendor, clients: Clients, redis_server: RedisServer, part: int
) -> None:
    env = {**CALM, "DASHCACHE_VECTOR_SETTLE_S": "0.01"}
    seed = secrets.randbelow(2**32)
    async with rig(vendor, clients, redis_server, env=env) as made:
        mix = Mix(made, seed)
        try:
            for _ in range(STEPS):
                await mix.step()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
    assert mix.hits > STEPS / 8
    assert mix.losses > STEPS / 20


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_c8_a_server_that_restarts_from_an_old_file_is_not_believed(
    vendor: Vendor, clients: Clients, redis_server: RedisServer, data_dir: Path, protocol: Any
) -> None:
    async with (
        FaultProxy(redis_server.url) as line,
        through(vendor, line, redis_server, data_dir, env=FAULTY) as proxy,
    ):
        made = Rig(vendor, clients, redis_server, [proxy])
        name = vendor.create()
        read = Call("query_doc", name)
        await all_warm(made.doors(), [read], version=1)
        redis_server.command("SAVE")
        assert (await made.door(protocol).ask(Call("upsert_doc", name, version=2))).is_success
        await all_warm(made.doors(), [read], version=2)
        redis_server.kill()
        redis_server.restart(empty=False)
        assert made.count("e") >= len(made.doors()), "the old entries are back"
        await all_warm(made.doors(), [read], version=2)


LOSSES = {
    "the hold": lambda made: made.redis.command("DEL", *made.names("h")),
    "the tokens": lambda made: made.redis.command("DEL", *made.names("g")),
    "hold and tokens": lambda made: made.redis.command("DEL", *made.names("h"), *made.names("g")),
    "everything": lambda made: made.redis.command("FLUSHALL"),
}


async def test_c8_what_is_lost_while_a_write_settles_does_not_freeze_the_old_state_in(
    vendor: Vendor, clients: Clients, redis_server: RedisServer
) -> None:
    """Redis forgets that nothing may be kept, while the vendor does not show the write yet."""

    async def case(settle_s: float) -> None:
        env = {**CALM, "DASHCACHE_VECTOR_SETTLE_S": str(settle_s)}
        async with rig(vendor, clients, redis_server, env=env) as made:
            for loss, lose in LOSSES.items():
                name = vendor.create()
                read, doors = Call("query_doc", name), made.doors()
                await all_warm(doors, [read], version=1)
                with vendor.sim.hold_visibility(name):
                    started_s = time.monotonic()
                    assert (await made.door("http").ask(Call("upsert_doc", name, version=2))).is_success
                    lose(made)
                    answers = [await door.ask(read) for _ in range(4) for door in doors]
                    if time.monotonic() - started_s > settle_s:
                        raise TooLateError
                    assert {answer.version for answer in answers} == {1}, "the vendor shows the old state"
                    assert not any(answer.is_hit for answer in answers), loss
                await all_warm(doors, [read], version=2)

    await with_time_enough(case, 0.4)


async def test_c8_what_another_replica_kept_meanwhile_is_not_believed_by_who_saw_the_write(
    vendor: Vendor, clients: Clients, redis_server: RedisServer
) -> None:
    """
    If a hold alone is lost, the other one cannot know; who saw the write does, also when the settling is over.

    If all is lost, both know, and nothing is kept as long as a write of before may be settling.
    """

    async def case(settle_s: float) -> None:
        env = {**CALM, "DASHCACHE_VECTOR_SETTLE_S": str(settle_s)}
        async with rig(vendor, clients, redis_server, replicas=2, env=env) as made:
            saw = [made.door(protocol) for protocol in PROTOCOLS]
            others = [made.door(protocol, replica=1) for protocol in PROTOCOLS]
            for loss in ("the hold", "everything"):
                name = vendor.create()
                read = Call("query_doc", name)
                await all_warm([*saw, *others], [read], version=1)
                with vendor.sim.hold_visibility(name):
                    started_s = time.monotonic()
                    assert (await made.door("grpc", BOB).ask(Call("upsert_doc", name, version=2))).is_success
                    LOSSES[loss](made)
                    if loss == "the hold":
                        await all_warm(others, [read], version=1)
                    else:
                        for door in [*others, *others]:
                            answer = await door.ask(read)
                            assert (answer.version, answer.is_hit) == (1, False)
                    if time.monotonic() - started_s > settle_s:
                        raise TooLateError
                await all_warm(saw, [read], version=2)

    await with_time_enough(case, 0.5)
