"""R4: Redis can read but not write; what is in it goes on being served, and the breaker stays out of it."""

from collections.abc import Callable

import pytest

from tests.faults.observed import events, settings, stats
from tests.faults.workload import Workload
from tests.support.ports import PortReservation
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.vendor_sim import ProcessSim


def _full(redis: RedisServer, _: int) -> None:
    redis.config_set("maxmemory-policy", "noeviction")
    redis.config_set("maxmemory", 1)


def _replica(redis: RedisServer, nobodys_port: int) -> None:
    redis.command("REPLICAOF", "127.0.0.1", nobodys_port)


@pytest.mark.parametrize("fault", [_full, _replica], ids=["out-of-memory", "read-only-replica"])
async def test_r4_what_can_be_read_is_served(
    fault, redis_server: RedisServer, sim: ProcessSim, record_property: Callable[[str, object], None]
) -> None:
    # One failure that counts would open it.
    env = settings(redis_deadline_ms=2000, breaker_fail_max=1)
    nobody = PortReservation()
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, env=env) as proxy,
        Workload(proxy.http_url, known=200, repeats=1.0) as warm,
        Workload(proxy.http_url, repeats=0.0, name="cold") as cold,
    ):
        await warm.warm_up()
        before = len(proxy.logs)
        fault(redis_server, nobody.port)
        async with warm.running(rate=100, duration_s=2.0) as hits, cold.running(rate=30, duration_s=2.0) as misses:
            pass

        for report in (hits.report, misses.report):
            assert not report.errors, report.summary()
            assert report.correct == report.count
        assert hits.report.cached == hits.report.count == 200
        told = await stats(proxy)
        assert told["breaker"] == {"state": "closed", "open_workers": 0}
        assert set(told["redis"]["failures"]) == {"rejected"}

        async def all_failed() -> bool:
            return (await stats(proxy))["stores"]["failed"] == 60

        await wait_until(all_failed, what="the last store to fail")
        assert not set(events(proxy, before)) - {"orders_not_shared", "redis_read_only"}
        assert events(proxy, before, process="worker-1")["redis_read_only"] <= 1
        record_property("figure", f"{hits.report.cached} of {hits.report.count} known texts are hits")
    nobody.close()


async def test_r4_stores_go_on_once_redis_can_write_again(redis_server: RedisServer, sim: ProcessSim) -> None:
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, env=settings(redis_deadline_ms=2000)) as proxy,
        Workload(proxy.http_url) as load,
    ):
        _full(redis_server, 0)
        for _ in range(2):
            assert not any(reply.is_cached for reply in await load.ask_all())
        redis_server.config_set("maxmemory", 0)
        await load.warm_up()
