"""R2: Redis hangs; connecting still works, so that a limit on connecting alone would not help."""

import time
from collections.abc import Callable

from tests.faults.observed import assert_quiet, open_breakers, redis_waits_s, settings, wait_event
from tests.faults.redis_tap import RedisTap
from tests.faults.workload import Workload
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.vendor_sim import ProcessSim

DEADLINE_S, RESET_S = 0.2, 0.5


async def test_r2_a_hung_redis_costs_one_deadline_briefly(
    redis_server: RedisServer, sim: ProcessSim, record_property: Callable[[str, object], None]
) -> None:
    env = settings(redis_deadline_ms=200, breaker_reset_s=RESET_S)
    async with (
        RedisTap(redis_server.url) as tap,
        ProxyProcess(dashscope_url=sim.url, redis_url=tap.instead_of(redis_server.url), env=env) as proxy,
        Workload(proxy.http_url) as load,
    ):
        await load.warm_up()
        before = len(proxy.logs)
        async with load.running(rate=100, duration_s=4.5) as running:
            await running.until(0.7)
            redis_server.hang()
            hung_s = running.now_s
            await wait_event(proxy, "redis_breaker_open", after=before)
            opened_s = time.monotonic()
            until_open_s = running.now_s - hung_s
            assert until_open_s < 1.0
            assert await open_breakers(proxy) == 1
            await running.until(2.2)
            resuming_s, before_s = time.monotonic(), running.now_s
            redis_server.resume()
            resumed_s = running.now_s

        report = running.report
        assert not report.errors, report.summary()
        assert report.correct == report.count == 450
        # One deadline at worst, and room for a busy machine.
        worst_s = max(redis_waits_s(proxy, before))
        assert worst_s < DEADLINE_S + 0.3
        assert report.latency(100) < 1.0, report.summary()
        # While it is open, Redis sees one trial per reset time and nothing else. The first deadline is for what
        # was under way.
        trials = tap.between(opened_s + DEADLINE_S, resuming_s)
        assert 1 <= trials <= (resuming_s - opened_s) / RESET_S + 1
        assert report.within(hung_s + DEADLINE_S, before_s).cached == 0
        assert report.between(resumed_s, resumed_s + RESET_S + DEADLINE_S + 1.0).cached > 0, report.summary()
        assert_quiet(proxy, before, opened=1, closed=1)
        record_property(
            "figure",
            f"{report.count} calls, 0 errors; breaker open after {until_open_s * 1000:.0f} ms; "
            f"longest wait {worst_s * 1000:.0f} ms at a deadline of {DEADLINE_S * 1000:.0f} ms",
        )


async def test_r2_after_the_hang_no_request_gets_the_answer_to_another(
    redis_server: RedisServer, sim: ProcessSim
) -> None:
    """Answers to commands that were given up arrive late; each hang here is shorter than what opens the breaker."""
    env = settings(redis_deadline_ms=50, breaker_fail_max=1000)
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, env=env) as proxy,
        Workload(proxy.http_url, repeats=0.95) as load,
    ):
        await load.warm_up()
        async with load.running(rate=150, duration_s=2.5) as running:
            for number in range(8):
                await running.until(0.2 + number * 0.25)
                redis_server.hang()
                await running.until(0.27 + number * 0.25)
                redis_server.resume()

        report = running.report
        assert not report.errors, report.summary()
        assert report.correct == report.count
        assert report.between(2.1).cached > 0, report.summary()
