"""R3: whatever Redis does, the client gets the right answer; and the breaker counts what speaks of Redis' health."""

import asyncio

import pytest

from tests.faults.observed import ABOUT_REDIS, CLOSED, OPENED, WENT_BACK, events, redis_failures, settings, stats
from tests.faults.redis_cases import CASES, Case
from tests.faults.workload import Workload
from tests.support.fault_proxy import FaultProxy
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.toxics import Latency
from tests.support.waiting import wait_until
from tests.vendor_sim import ProcessSim

RATE = 100
MENDING_S = 1.2


# Like another one in what the proxy does about it.
ALIKE = {"master-down", "half-an-error", "wrong-shape", "foreign-values", "busy"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case.name in ALIKE)) for case in CASES],
)
async def test_r3_every_fault_of_redis_is_a_miss(case: Case, redis_server: RedisServer, sim: ProcessSim) -> None:
    env = settings(redis_deadline_ms=case.deadline_ms, breaker_reset_s=0.3)
    async with (
        FaultProxy(redis_server.url) as line,
        ProxyProcess(dashscope_url=sim.url, redis_url=line.instead_of(redis_server.url), env=env) as proxy,
        Workload(proxy.http_url) as load,
    ):
        await load.warm_up()
        before = len(proxy.logs)
        async with load.running(RATE, duration_s=1.7) as running:
            await running.until(0.2)
            broken_s = running.now_s
            async with case.breaking(redis_server, line):
                await running.until(MENDING_S)
        # Hits come back, at the latest now.
        async with load.running(RATE / 2, duration_s=0.4) as afterwards:
            await wait_until(lambda: not events(proxy, before)[OPENED] or events(proxy, before)[CLOSED], what="closing")
        assert (await load.ask(load.texts[0])).is_right
        assert (await load.ask(load.texts[0])).is_cached

        for report in (running.report, afterwards.report):
            assert not report.errors, report.summary()
            assert report.correct == report.count
        assert running.report.between(0.0, broken_s).cached > 0
        found, failures = events(proxy, before, process="worker-1"), await redis_failures(proxy)
        assert set(found) <= {OPENED, CLOSED, WENT_BACK}, found
        assert case.opens in (None, found[OPENED] > 0), (found, failures)
        assert found[OPENED] == found[CLOSED], found
        if case.opens:
            assert set(failures) & case.kinds, failures
            # Broken lines show as either of these, beside what broke them.
            assert set(failures) <= case.kinds | {"connection", "timeout", "rejected"}, failures
            assert running.report.within(broken_s + 0.5, MENDING_S).cached == 0
        else:
            assert set(failures) <= case.kinds, failures


async def test_r3_dns_gone_is_a_miss(sim: ProcessSim) -> None:
    gone = "redis://redis.invalid:6379/0"
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=gone, env=settings(redis_deadline_ms=100)) as proxy,
        Workload(proxy.http_url) as load,
    ):
        async with load.running(RATE, duration_s=2.0) as running:
            pass

        assert not running.report.errors, running.report.summary()
        assert running.report.correct == running.report.count
        assert set(events(proxy)) <= ABOUT_REDIS | {"ready"}
        assert events(proxy)[OPENED] == 1
        assert set(await redis_failures(proxy)) <= {"connection", "timeout"}


async def test_r3_few_connections_say_nothing_about_redis(redis_server: RedisServer, sim: ProcessSim) -> None:
    env = settings(redis_deadline_ms=2000, redis_max_connections=3, breaker_fail_max=1)
    async with (
        FaultProxy(redis_server.url) as line,
        ProxyProcess(dashscope_url=sim.url, redis_url=line.instead_of(redis_server.url), env=env) as proxy,
        Workload(proxy.http_url) as load,
    ):
        await load.ask_all()
        before = len(proxy.logs)
        with line.toxic(Latency(0.03)):
            async with load.running(RATE, duration_s=2.0) as running:
                pass

        assert not running.report.errors, running.report.summary()
        assert running.report.correct == running.report.count
        told = await stats(proxy)
        assert told["redis"]["failures"] == {}
        assert told["breaker"]["state"] == "closed"
        assert told["stores"]["failed"] == 0
        assert not events(proxy, before)


async def test_r3_a_burst_of_misses_is_stored_though_the_pool_is_small(
    redis_server: RedisServer, sim: ProcessSim
) -> None:
    env = settings(redis_deadline_ms=2000, redis_max_connections=8)
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, env=env) as proxy,
        Workload(proxy.http_url) as load,
    ):
        # Not looked up, so that the stores have all connections to themselves.
        burst = (load.ask(load.new_text(), Cache_Control="no-cache") for _ in range(200))
        replies = await asyncio.gather(*burst)
        assert all(reply.is_right for reply in replies)

        async def settled() -> dict[str, int] | None:
            counted: dict[str, int] = (await stats(proxy))["stores"]
            return counted if counted["stored"] + counted["failed"] == 200 else None

        assert await wait_until(settled, what="all stores") == {"stored": 200, "failed": 0, "rejected_on_read": 0}
