"""R14, R15: the breaker judges Redis and not clients, and lets one through when it tries again."""

import asyncio
import random
from collections.abc import Callable

from tests.faults.observed import CLOSED, OPENED, events, open_breakers, settings, stats, wait_event
from tests.faults.redis_tap import RedisTap
from tests.faults.workload import PATH, Workload, question
from tests.support.fault_proxy import FaultProxy
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient, request_bytes
from tests.support.redis_server import RedisServer
from tests.support.toxics import Latency
from tests.support.waiting import wait_until
from tests.vendor_sim import ProcessSim

_FIELDS = [(b"Authorization", b"Bearer sk-faults"), (b"Content-Type", b"application/json")]


async def _ask_and_leave(port: int, text: str, after_s: float) -> None:
    client = await RawClient.connect(port)
    await client.send(request_bytes("POST", PATH, _FIELDS, question(text)))
    await asyncio.sleep(after_s)
    client.abort()


async def _leave(port: int, texts: list[str], *, at_most_s: float, at_once: int) -> None:
    """Ask for each of *texts* and leave at a random moment, before the answer or just after."""
    chance = random.Random(14)
    places = asyncio.Semaphore(at_once)

    async def one(text: str) -> None:
        async with places:
            await _ask_and_leave(port, text, chance.uniform(0.0, at_most_s))

    async with asyncio.TaskGroup() as group:
        for text in texts:
            group.create_task(one(text))


async def test_r14_a_thousand_clients_that_leave_say_nothing_about_redis(
    redis_server: RedisServer, sim: ProcessSim, record_property: Callable[[str, object], None]
) -> None:
    # A single failure would open it. Redis is slow enough for clients to leave while it is being asked.
    env = settings(redis_deadline_ms=3000, breaker_fail_max=1)
    async with (
        FaultProxy(redis_server.url) as line,
        ProxyProcess(dashscope_url=sim.url, redis_url=line.instead_of(redis_server.url), env=env) as proxy,
        Workload(proxy.http_url) as load,
    ):
        await load.warm_up()
        before = len(proxy.logs)
        with line.toxic(Latency(0.02, 0.01)):
            known_and_new = load.texts * 13 + [load.new_text() for _ in range(480)]
            random.Random(1).shuffle(known_and_new)
            await _leave(proxy.http_port, known_and_new, at_most_s=0.04, at_once=40)
        assert len(known_and_new) == 1000

        left = [record for record in proxy.logs[before:] if record.get("client_gone")]
        assert len(left) > 100  # else they came too late to prove anything
        told = await stats(proxy)
        assert told["breaker"] == {"state": "closed", "open_workers": 0}
        assert told["redis"]["failures"] == {}
        assert not events(proxy, before)
        # No connection was left with the answer to somebody else's question in it.
        for _ in range(3):
            assert all(reply.is_cached for reply in await load.ask_all())
        record_property("figure", f"1,000 clients left, {len(left)} before their answer: not one failure counted")


async def test_r14_a_hung_redis_is_found_out_though_every_client_leaves(
    redis_server: RedisServer, sim: ProcessSim
) -> None:
    async with ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, env=settings()) as proxy:
        redis_server.hang()
        # All are gone long before the deadline of 200 ms.
        await _leave(proxy.http_port, [f"hung {number}" for number in range(20)], at_most_s=0.02, at_once=20)
        await wait_event(proxy, OPENED, timeout=2.0)
        assert await open_breakers(proxy) == 1
        redis_server.resume()


async def test_r15_half_open_lets_one_through(
    redis_server: RedisServer, sim: ProcessSim, record_property: Callable[[str, object], None]
) -> None:
    deadline_s, reset_s = 1.0, 1.0
    env = settings(redis_deadline_ms=int(deadline_s * 1000), breaker_reset_s=reset_s, breaker_fail_max=3)
    async with (
        RedisTap(redis_server.url) as tap,
        ProxyProcess(dashscope_url=sim.url, redis_url=tap.instead_of(redis_server.url), env=env) as proxy,
        Workload(proxy.http_url) as load,
    ):
        await load.warm_up()
        redis_server.hang()
        before = len(proxy.logs)
        await asyncio.gather(*(load.ask(text) for text in load.texts[:3]))
        await wait_event(proxy, OPENED, after=before)
        await asyncio.sleep(reset_s + 0.1)

        # Its time is over: of two hundred at once, one asks Redis; and nobody else waits.
        seen, came = tap.asked, len(proxy.logs)
        replies = await asyncio.gather(*(load.ask(text) for text in load.texts * 5))
        assert len(replies) == 200
        assert all(reply.is_right and not reply.is_cached for reply in replies)
        assert tap.asked <= seen + 1  # none if the trial was the worker's own look at Redis, each second
        waited = [record["redis_ms"] for record in proxy.logs[came:] if record.get("event") == "request"]
        assert sum(ms > 100 for ms in waited) <= 1, sorted(waited)[-5:]
        others_ms = sorted(waited)[-2]
        record_property(
            "figure", f"200 at once: 1 asked Redis at most, the others waited {others_ms:.1f} ms for it at most"
        )
        # It failed, so the next one waits for its turn again.
        assert await open_breakers(proxy) == 1
        assert (await load.ask(load.texts[0])).is_right
        assert tap.asked <= seen + 1

        redis_server.resume()
        await wait_until(lambda: _is_hit(load), timeout=reset_s + deadline_s + 2, what="hits")
        assert await open_breakers(proxy) == 0
        assert (events(proxy, before)[OPENED], events(proxy, before)[CLOSED]) == (1, 1)


async def test_r15_a_trial_whose_client_left_frees_its_place(redis_server: RedisServer, sim: ProcessSim) -> None:
    reset_s = 0.5
    env = settings(redis_deadline_ms=300, breaker_reset_s=reset_s, breaker_fail_max=1)
    async with (
        RedisTap(redis_server.url) as tap,
        ProxyProcess(dashscope_url=sim.url, redis_url=tap.instead_of(redis_server.url), env=env) as proxy,
        Workload(proxy.http_url) as load,
    ):
        redis_server.hang()
        await load.ask("opens it")
        await wait_event(proxy, OPENED)
        await asyncio.sleep(reset_s + 0.1)
        seen = tap.asked
        await _ask_and_leave(proxy.http_port, "the trial", 0.05)
        assert tap.asked == seen + 1
        redis_server.resume()
        await wait_until(lambda: _is_hit(load), timeout=reset_s + 2, what="hits")


async def _is_hit(load: Workload) -> bool:
    reply = await load.ask(load.texts[0])
    assert reply.is_right
    return reply.is_cached
