"""R10: the bypass works when nothing else does; and what a client's Cache-Control asks of the cache."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import orjson
import pytest

from tests.faults.observed import settings, stats, stored
from tests.faults.workload import Workload
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.vendor_sim import ProcessSim

Trouble = Callable[[RedisServer], AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def _well(_: RedisServer) -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def _hung(redis: RedisServer) -> AsyncIterator[None]:
    redis.hang()
    yield
    redis.resume()


@contextlib.asynccontextmanager
async def _dead(redis: RedisServer) -> AsyncIterator[None]:
    redis.kill()
    yield
    redis.start()


@contextlib.asynccontextmanager
async def _full(redis: RedisServer) -> AsyncIterator[None]:
    redis.config_set("maxmemory-policy", "noeviction")
    redis.config_set("maxmemory", 1)
    yield
    redis.config_set("maxmemory", 0)


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(_well, id="well", marks=pytest.mark.slow),
        pytest.param(_hung, id="hung"),
        pytest.param(_dead, id="dead"),
        pytest.param(_full, id="full", marks=pytest.mark.slow),
    ],
)
async def test_r10_the_bypass_works_under_load_whatever_redis_does(
    trouble: Trouble, redis_server: RedisServer, sim: ProcessSim, record_property: Callable[[str, object], None]
) -> None:
    # With the memory tier, so that there are hits to be switched off while Redis is away.
    env = settings(memory_max_bytes=2**22)
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, workers=2, env=env) as proxy,
        Workload(proxy.http_url) as load,
    ):
        for _ in range(3):  # for both workers, and the memory of each
            await load.warm_up()
        async with load.running(rate=100, duration_s=3.0) as running, trouble(redis_server):
            await running.until(0.6)
            switched = await asyncio.to_thread(proxy.mode, "bypass", reason="test")
            bypassed_s = running.now_s
            await running.until(1.8)
            restoring_s = running.now_s - 0.2  # what was planned for then has started by now
            await asyncio.to_thread(proxy.mode, "on")
            restored_s = running.now_s
            await running.until(3.0)

        report = running.report
        assert not report.errors, report.summary()
        assert report.correct == report.count == 300
        assert switched["workers"] == {"confirmed": 2, "serving": 2, "unconfirmed": []}
        assert report.between(0.0, 0.6).cached > 20, report.summary()
        # Promised within a second; as both workers confirmed, it holds at once.
        bypassed = report.between(bypassed_s, restoring_s)
        assert bypassed.count > 30
        assert bypassed.cached == 0
        assert report.between(restored_s + 0.5).cached > 20, report.summary()
        by_state = (await stats(proxy))["operations"]["embedding"]["requests_by_state"]
        assert by_state["bypass"] >= bypassed.count
        record_property("figure", f"{bypassed.count} calls once the switch had returned: 0 from the cache, 0 errors")


async def test_r10_the_switch_shows_in_the_metrics(redis_server: RedisServer, sim: ProcessSim) -> None:
    redis_server.kill()
    with ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url) as proxy:
        proxy.mode("bypass")
        lines = [line for line in proxy.metrics().splitlines() if line.startswith("dashcache_mode")]
        assert any('mode="bypass"' in line and line.endswith(" 1.0") for line in lines), lines
        assert proxy.modes()["effective"]["dashscope"]["embedding"] == "bypass"


async def test_r10_the_bypass_stores_nothing(redis_server: RedisServer, sim: ProcessSim) -> None:
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, workers=2, env=settings()) as proxy,
        Workload(proxy.http_url) as load,
    ):
        await load.warm_up()
        await asyncio.to_thread(proxy.mode, "bypass")
        keys = redis_server.entries()
        asked = sim.stats["requests"]
        async with load.running(rate=100, duration_s=1.0) as running:
            pass
        assert not running.report.errors, running.report.summary()
        assert sim.stats["requests"] == asked + running.report.count
        assert redis_server.entries() == keys

        reply = await load.ask(load.texts[0])
        assert "fwd=bypass" in reply.cache_status
        assert "detail=bypass" in reply.cache_status
        assert "stored" not in reply.cache_status


async def test_r10_what_was_on_its_way_when_the_switch_came_is_not_stored(
    redis_server: RedisServer, sim: ProcessSim
) -> None:
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, env=settings()) as proxy,
        Workload(proxy.http_url) as load,
        asyncio.TaskGroup() as group,
    ):
        sim.configure(latency_ms=1_000)
        asking = group.create_task(load.ask("on its way"))
        await wait_until(lambda: sim.texts_asked["on its way"] == 1, what="the vendor to have the request")
        await asyncio.to_thread(proxy.mode, "bypass")
        assert not asking.done()
        assert (await asking).is_right
        sim.configure(latency_ms=0)
        await asyncio.to_thread(proxy.mode, "on")
        assert not (await load.ask("on its way")).is_cached


async def test_r10_one_operation_can_be_bypassed(redis_server: RedisServer, sim: ProcessSim) -> None:
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, workers=2, env=settings()) as proxy,
        Workload(proxy.http_url) as load,
    ):
        await load.warm_up()
        answered = await asyncio.to_thread(proxy.mode, "bypass", operation="embedding")
        assert answered["effective"]["dashscope"]["embedding"] == "bypass"
        assert not any(reply.is_cached for reply in await load.ask_all())
        # Turned off for everything means everything, also what was switched on its own.
        await asyncio.to_thread(proxy.mode, "on")
        assert all(reply.is_cached for reply in await load.ask_all())


async def test_r10_a_bypass_for_some_time_ends_by_itself(redis_server: RedisServer, sim: ProcessSim) -> None:
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis_server.url, env=settings()) as proxy,
        Workload(proxy.http_url) as load,
    ):
        await load.warm_up()
        await asyncio.to_thread(proxy.mode, "bypass", for_s=0.5)
        assert not (await load.ask(load.texts[0])).is_cached

        async def is_over() -> bool:
            return (await load.ask(load.texts[0])).is_cached

        await wait_until(is_over, what="the end of the bypass")


async def test_r10_a_bypass_outlives_a_restart(redis_server: RedisServer, sim: ProcessSim, data_dir) -> None:
    options = {"dashscope_url": sim.url, "redis_url": redis_server.url, "data_dir": data_dir, "key_secret": "s" * 32}
    async with ProxyProcess(**options) as proxy:
        await asyncio.to_thread(proxy.mode, "bypass")
    redis_server.kill()
    async with ProxyProcess(**options) as proxy, Workload(proxy.http_url) as load:
        assert "detail=bypass" in (await load.ask("after the restart")).cache_status


@contextlib.asynccontextmanager
async def _serving(redis: RedisServer, sim: ProcessSim) -> AsyncIterator[Workload]:
    env = settings(memory_max_bytes=2**20)  # both tiers have to obey
    async with (
        ProxyProcess(dashscope_url=sim.url, redis_url=redis.url, env=env) as proxy,
        Workload(proxy.http_url) as load,
    ):
        yield load


async def test_no_store_is_neither_read_nor_stored(redis_server: RedisServer, sim: ProcessSim) -> None:
    async with _serving(redis_server, sim) as load:
        await load.ask("known")
        await stored(redis_server, 1)
        reply = await load.ask("known", Cache_Control="no-store")
        assert reply.is_right
        assert "fwd=bypass" in reply.cache_status
        assert "detail=no-store" in reply.cache_status
        assert sim.texts_asked["known"] == 2

        assert (await load.ask("secret", Cache_Control="no-store")).is_right
        assert not (await load.ask("secret", Cache_Control="max-age=3600")).is_cached
        assert sim.texts_asked["secret"] == 2


async def test_no_cache_is_not_read_but_stored(redis_server: RedisServer, sim: ProcessSim) -> None:
    async with _serving(redis_server, sim) as load:
        for wish in ("no-cache", "max-age=0"):
            assert not (await load.ask(f"new by {wish}", Cache_Control=wish)).is_cached
            assert not (await load.ask(f"new by {wish}", Cache_Control=wish)).is_cached
            assert sim.texts_asked[f"new by {wish}"] == 2
            reply = await load.ask(f"new by {wish}")
            assert reply.is_cached
            assert reply.is_right


async def test_only_if_cached_is_refused_in_the_vendors_form(redis_server: RedisServer, sim: ProcessSim) -> None:
    async with _serving(redis_server, sim) as load:
        refused = await load.ask("unknown", Cache_Control="only-if-cached")
        assert refused.status == 504
        assert refused.headers["X-Dashcache-Error"] == "NotInCache"
        told = orjson.loads(refused.body)
        assert told["code"] == "NotInCache"
        assert set(told) == {"code", "message", "request_id"}
        assert sim.texts_asked["unknown"] == 0

        await load.ask("known")
        reply = await load.ask("known", Cache_Control="only-if-cached")
        assert reply.is_cached
        assert reply.is_right


async def test_max_age_and_min_fresh_are_kept_to(redis_server: RedisServer, sim: ProcessSim) -> None:
    async with _serving(redis_server, sim) as load:
        await load.ask("known")
        await stored(redis_server, 1)
        await asyncio.sleep(1.2)  # an entry's age, which is told in whole seconds, is what is tried
        assert (await load.ask("known", Cache_Control="max-age=60")).is_cached
        assert (await load.ask("known", Cache_Control="min-fresh=60")).is_cached
        assert not (await load.ask("known", Cache_Control="max-age=1, only-if-cached")).is_right
        # Lifetimes are ten minutes here, give or take a tenth.
        assert not (await load.ask("known", Cache_Control="min-fresh=3600")).is_cached
        assert not (await load.ask("known", Cache_Control="max-age=0")).is_cached
        # What that brought is young again.
        assert (await load.ask("known", Cache_Control="max-age=1")).is_cached
