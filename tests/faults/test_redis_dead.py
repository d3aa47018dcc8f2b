"""R1: Redis dies and comes back empty; nobody notices but the operator."""

from collections.abc import Callable

from tests.faults.observed import assert_quiet, open_breakers, settings, stats, wait_event
from tests.faults.workload import Workload
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.vendor_sim import ProcessSim

RESET_S = 0.5


async def test_r1_a_dead_redis_is_invisible(
    redis_server: RedisServer, sim: ProcessSim, record_property: Callable[[str, object], None]
) -> None:
    env = settings(breaker_reset_s=RESET_S)
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, env=env) as proxy,
        Workload(proxy.http_url) as load,
    ):
        await load.warm_up()
        before = len(proxy.logs)
        async with load.running(rate=100, duration_s=4.5) as running:
            await running.until(1.0)
            redis_server.kill()
            killed_s = running.now_s
            await wait_event(proxy, "redis_breaker_open", after=before)
            assert await open_breakers(proxy) == 1
            assert (await stats(proxy))["breaker"]["state"] == "open"
            await running.until(2.2)
            restarting_s = running.now_s
            redis_server.restart(empty=True)
            restarted_s = running.now_s

        report = running.report
        assert not report.errors, report.summary()
        assert report.correct == report.count == 450
        assert report.between(0.0, killed_s).cached > 50, report.summary()
        assert report.within(killed_s + 0.3, restarting_s).cached == 0
        # One trial within a reset's time, then the first refills, then hits.
        assert report.between(restarted_s, restarted_s + RESET_S + 1.0).cached > 0, report.summary()
        assert_quiet(proxy, before, opened=1, closed=1)
        assert await open_breakers(proxy) == 0
        worst_ms = report.within(killed_s, restarting_s).latency(100) * 1000
        record_property("figure", f"{report.count} calls, 0 errors; worst while it was dead {worst_ms:.0f} ms")


async def test_r1_the_memory_tier_serves_on_without_redis(redis_server: RedisServer, sim: ProcessSim) -> None:
    env = settings(memory_max_bytes=2**20)
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, env=env) as proxy,
        Workload(proxy.http_url, repeats=1.0) as load,
    ):
        await load.warm_up()
        redis_server.kill()
        asked = sim.stats["requests"]
        async with load.running(rate=100, duration_s=1.0) as running:
            pass

        assert not running.report.errors, running.report.summary()
        assert running.report.cached == running.report.count
        assert sim.stats["requests"] == asked


async def test_r1_a_proxy_starts_and_serves_while_redis_is_dead(redis_server: RedisServer, sim: ProcessSim) -> None:
    redis_server.kill()
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, env=settings()) as proxy,
        Workload(proxy.http_url) as load,
    ):
        assert proxy.ready()
        async with load.running(rate=50, duration_s=1.0) as running:
            pass
        assert not running.report.errors, running.report.summary()
        assert running.report.cached == 0

        redis_server.restart(empty=True)
        async with load.running(rate=50, duration_s=2.0) as running:
            pass
        assert not running.report.errors, running.report.summary()
        assert running.report.cached > 0
