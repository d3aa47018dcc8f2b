"""
R11: restarts are quiet, and so are reloads.

Under load, over kept connections, connections of one request each, streams and gRPC: nobody sees an error when a
replica is restarted or takes up other settings, and a worker that is killed takes only its own connections along.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.restart_load import Balancer, EchoVendor
from tests.support.child import send_signal
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.vendor_sim import ProcessSim

NOTICE_S = 0.5
QUICK: dict[str, str] = {"DASHCACHE_LIMITS_NOTICE_S": str(NOTICE_S), "DASHCACHE_LIMITS_DRAIN_S": "10"}
SECRET = "0123456789abcdef" * 4


@pytest.fixture
async def vendor() -> AsyncIterator[EchoVendor]:
    async with EchoVendor() as echo:
        yield echo


@pytest.fixture
def slow_sim(sim: ProcessSim) -> ProcessSim:
    """Misses and streams take a while, so that some are always under way."""
    sim.configure(latency_ms=50.0, frame_delay_ms=100.0)
    return sim


def options(sim: ProcessSim, vendor: EchoVendor, redis: RedisServer, **env: str) -> dict[str, Any]:
    return {
        "dashscope_url": sim.url,
        "dashvector_url": vendor.url,
        "dashvector_grpc_url": vendor.url,
        "redis_url": redis.url,
        "key_secret": SECRET,
        "workers": 2,
        "env": {**QUICK, **env},
    }


async def restarted(old: ProxyProcess, stack: contextlib.AsyncExitStack, **made: Any) -> ProxyProcess:
    """*old* stopped politely, and another one on its ports and its folder."""
    env = {
        **made["env"],
        "DASHCACHE_HTTP_LISTEN": f"127.0.0.1:{old.http_port}",
        "DASHCACHE_GRPC_LISTEN": old.grpc_address,
        "DASHCACHE_ADMIN_LISTEN": old.admin_address,
    }
    assert await asyncio.to_thread(old.stop) == 0
    return await stack.enter_async_context(ProxyProcess(**{**made, "env": env, "data_dir": old.data_dir}))


async def rolling(sim: ProcessSim, vendor: EchoVendor, redis: RedisServer, rate: float, rounds: int) -> None:
    made = options(sim, vendor, redis)
    async with contextlib.AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(ProxyProcess(**made)) for _ in range(2)]
        balancer = await stack.enter_async_context(Balancer())
        replicas = [await balancer.add(proxy) for proxy in proxies]
        await balancer.warm_up()
        async with balancer.running(rate, rounds * 8.0) as running:
            for number in list(range(2)) * rounds:
                proxies[number] = await restarted(proxies[number], stack, **made)
                await wait_until(lambda: all(replica.is_ready for replica in replicas), 10.0, "both to be ready")
        assert running.report.errors == {}, running.report.summary()
        assert running.report.correct == running.report.count > 0
        print(running.report.summary())


async def test_a_rolling_restart_of_two_replicas_is_not_noticed(
    slow_sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer
) -> None:
    await rolling(slow_sim, vendor, redis_server, rate=100.0, rounds=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_many_rolling_restarts_are_not_noticed(
    slow_sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer
) -> None:
    await rolling(slow_sim, vendor, redis_server, rate=200.0, rounds=8)


async def reloading(sim: ProcessSim, vendor: EchoVendor, redis: RedisServer, tmp: Path, rate: float, times: int) -> None:
    file = tmp / "mine.toml"
    file.write_text("cache_status_on_pass = false\n")
    made = options(sim, vendor, redis, DASHCACHE_CONFIG=str(file))
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(ProxyProcess(**made))
        balancer = await stack.enter_async_context(Balancer())
        await balancer.add(proxy)
        await balancer.warm_up()
        await asyncio.to_thread(proxy.mode, "on", reason="to be kept")
        async with balancer.running(rate, 5.0 * times) as running:
            for number in range(times):
                before = set(proxy.worker_pids())
                file.write_text(f"cache_status_on_pass = {'false' if number % 2 else 'true'}\n")
                answer = await asyncio.to_thread(proxy.admin, "POST", "/v1/reload", {})
                assert answer.status == 200, answer.body
                assert answer.json()["workers"] == {"serving": 2, "wanted": 2}
                await wait_until(lambda before=before: not before & set(proxy.worker_pids()), 20.0, "the old to end")
        assert running.report.errors == {}, running.report.summary()
        assert running.report.correct == running.report.count > 0
        print(running.report.summary())
        assert [rule["reason"] for rule in proxy.modes()["rules"] if rule["source"] == "switched"] == ["to be kept"]


async def test_a_reload_under_load_is_not_noticed(
    slow_sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer, tmp_path: Path
) -> None:
    await reloading(slow_sim, vendor, redis_server, tmp_path, rate=100.0, times=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_many_reloads_under_load_are_not_noticed(
    slow_sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer, tmp_path: Path
) -> None:
    await reloading(slow_sim, vendor, redis_server, tmp_path, rate=200.0, times=12)
