"""Claims between processes, on a real Redis: who fetches, for how long, and what happens when the holder is gone."""

import asyncio
import itertools
import time
from typing import Self

import pytest

from proxy.cache.claims import Claim, Claims
from proxy.cache.redis.breaker import Guard
from proxy.cache.redis.tier import FAILURES, RedisTier
from proxy.runtime.tasks import Tasks
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

OURS, HELD, THERE, ALONE = Claim.OURS, Claim.HELD, Claim.THERE, Claim.ALONE
NAME = b"dashcache:c:YQ"  # of the key b"a"


class Process:
    """One process: its connections, and its claims."""

    def __init__(
        self,
        server: RedisServer,
        *,
        lease_s: float = 30.0,
        uncacheable_s: float = 30.0,
        url: str = "",
        deadline_s: float = 2.0,
    ) -> None:
        self.faults: list[BaseException] = []
        self.refused: list[str] = []
        self.tasks = Tasks(self.faults.append)
        guard = Guard(
            fail_max=100,
            reset_s=0.1,
            deadline_s=deadline_s,
            failures=FAILURES,
            tasks=self.tasks,
            on_change=lambda _old, _new: None,
            on_failure=lambda _error: None,
        )
        self.tier = RedisTier(
            url or server.url,
            prefix="dashcache",
            deadline_s=deadline_s,
            max_connections=8,
            guard=guard,
            on_rejected=self.refused.append,
        )
        self.claims = Claims(self.tier, self.tasks, lease_s, uncacheable_s)

    async def take(self, *keys: bytes) -> list[Claim]:
        return await self.claims.take(keys, [None] * len(keys))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.claims._held.clear()  # or its timer starts another renewal while the loop is closed
        await self.tasks.wait_done(5.0)
        await self.tier.close()
        assert not self.faults


async def test_one_of_two_has_each_key(redis_server: RedisServer):
    async with Process(redis_server) as one, Process(redis_server) as other:
        assert await one.take(b"a", b"b") == [OURS, OURS]
        assert await other.take(b"b", b"c", b"a") == [HELD, OURS, HELD]
        assert await one.take(b"a", b"c") == [OURS, HELD], "what is ours stays ours"
        assert (len(one.claims), len(other.claims)) == (2, 1)
        assert await one.take() == []


async def test_of_many_who_ask_at_once_one_has_it(redis_server: RedisServer):
    async with Process(redis_server) as one, Process(redis_server) as other:
        for key in (b"%d" % number for number in range(50)):
            (first,), (second,) = await asyncio.gather(one.take(key), other.take(key))
            assert {first, second} == {OURS, HELD}


async def test_r17_a_claim_whose_connection_breaks_is_asked_for_once_more(redis_server: RedisServer):
    async with FaultProxy(redis_server.url) as way, Process(redis_server, url=way.instead_of(redis_server.url)) as one:
        assert await one.take(b"a") == [OURS]
        way.drop_connections(by_reset=True)
        assert await one.take(b"b") == [OURS]
        held = redis_server.command("KEYS", "dashcache:c:*")
        assert len(held) == 2, "in Redis, and not only for want of help"


async def test_r2_a_hung_redis_costs_a_claim_one_deadline(redis_server: RedisServer):
    async with Process(redis_server, deadline_s=0.3) as one:
        assert await one.take(b"a") == [OURS]
        redis_server.hang()
        try:
            began_s = time.monotonic()
            assert await one.take(b"b") == [OURS]
            took_s = time.monotonic() - began_s
        finally:
            redis_server.resume()
        assert took_s < 2 * 0.3, took_s


async def test_r4_a_claim_that_redis_refuses_is_asked_for_once(redis_server: RedisServer):
    async with Process(redis_server) as one:
        await one.take(b"a")
        redis_server.command("CONFIG", "SET", "maxmemory", "1")
        assert await one.take(b"b") == [OURS]
        assert len(one.refused) == 1


async def test_where_an_entry_is_there_nobody_claims(redis_server: RedisServer):
    async with Process(redis_server) as one:
        await one.tier.write([(b"entry", b"sealed", 60_000)])
        assert await one.claims.take([b"a", b"b", b"c"], [b"entry", None, b"absent"]) == [THERE, OURS, OURS]
        assert len(one.claims) == 2


async def test_what_is_given_up_is_free_and_what_is_others_is_not(redis_server: RedisServer):
    async with Process(redis_server) as one, Process(redis_server) as other:
        await one.take(b"a", b"b")
        other.claims.release([b"a", b"b", b"c"])
        assert len(other.tasks) == 0, "it holds none of them"
        one.claims.release([b"a"])
        await one.tasks.wait_done(5.0)
        assert await other.take(b"a", b"b") == [OURS, HELD]
        one.claims.release([b"a"])
        await one.tasks.wait_done(5.0)
        assert await one.take(b"a") == [HELD]


async def test_what_was_lost_meanwhile_is_not_taken_from_its_new_holder(redis_server: RedisServer):
    async with Process(redis_server) as one, Process(redis_server) as other:
        await one.take(b"a")
        redis_server.command("FLUSHALL")
        assert await other.take(b"a") == [OURS]
        holder = redis_server.command("GET", NAME)
        one.claims.release([b"a"])
        await one.tasks.wait_done(5.0)
        assert redis_server.command("GET", NAME) == holder


async def test_a_claim_is_renewed_while_it_is_held_and_ends_with_its_process(redis_server: RedisServer):
    async with Process(redis_server, lease_s=0.3) as one, Process(redis_server) as other:
        await one.take(b"a")
        left_ms = [redis_server.command("PTTL", NAME)]

        def renewals() -> int:
            left_ms.append(redis_server.command("PTTL", NAME))
            return sum(later > earlier for earlier, later in itertools.pairwise(left_ms))

        await wait_until(lambda: renewals() >= 6, what="two leases' time")
        assert await other.take(b"a") == [HELD]
        # As if it were killed: nobody renews any more.
        one.claims._held.clear()
        await wait_until(lambda: redis_server.command("EXISTS", NAME) == 0, what="the end of the lease")
        assert await other.take(b"a") == [OURS]


async def test_nothing_is_renewed_that_is_not_held(redis_server: RedisServer):
    async with Process(redis_server, lease_s=0.03) as one:
        await one.take(b"a")
        one.claims.release([b"a"])
        await wait_until(lambda: one.claims._next_renewal is None, what="the last look")
        assert await one.tasks.wait_done(5.0) == 0
        await one.take(b"a")
        assert one.claims._next_renewal is not None


async def test_a_key_whose_answer_cannot_be_kept_holds_nobody_up(redis_server: RedisServer):
    async with Process(redis_server, uncacheable_s=0.2) as one, Process(redis_server) as other:
        await one.take(b"a", b"b")
        one.claims.mark([b"a", b"never-held"])
        await one.tasks.wait_done(5.0)
        assert await other.take(b"a", b"b") == [ALONE, HELD]
        assert await one.take(b"a") == [ALONE]
        assert (len(one.claims), len(other.claims)) == (1, 0)
        await wait_until(lambda: redis_server.command("EXISTS", NAME) == 0, what="the end of the mark")
        assert await other.take(b"a") == [OURS]
        assert await one.take(b"a") == [HELD]


async def test_without_marks_it_is_given_up_like_any_other(redis_server: RedisServer):
    async with Process(redis_server, uncacheable_s=0) as one:
        await one.take(b"a")
        one.claims.mark([b"a"])
        await one.tasks.wait_done(5.0)
        assert redis_server.command("EXISTS", NAME) == 0


@pytest.mark.parametrize("trouble", ["dead", "switched off", "no Redis", "wrong type", "out of memory"])
async def test_without_help_everything_is_ours(redis_server: RedisServer, trouble: str):
    async with Process(redis_server, lease_s=0 if trouble == "switched off" else 30) as one:
        if trouble == "dead":
            redis_server.kill()
        elif trouble == "no Redis":
            one.claims = Claims(None, one.tasks, 30, 30)
        elif trouble == "wrong type":
            redis_server.command("RPUSH", NAME, "x")
        elif trouble == "out of memory":
            redis_server.config_set("maxmemory", 1)
        assert await one.take(b"a", b"b") == [OURS, OURS]
        assert len(one.claims) == 0
        one.claims.release([b"a", b"b"])
        one.claims.mark([b"a"])
        assert bool(one.refused) == (trouble in ("wrong type", "out of memory"))


async def test_a_claim_that_redis_forgot_how_to_take_is_taught_again(redis_server: RedisServer):
    async with Process(redis_server) as one, Process(redis_server) as other:
        await one.take(b"a")
        redis_server.command("SCRIPT", "FLUSH")
        assert await other.take(b"a") == [HELD]
        redis_server.command("SCRIPT", "FLUSH")
        one.claims.release([b"a"])
        await one.tasks.wait_done(5.0)
        assert await other.take(b"a") == [OURS]
