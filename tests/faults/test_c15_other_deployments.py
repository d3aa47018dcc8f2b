"""C15: a replica whose secret is another is refused the Redis of the first, loudly, and shares nothing with it."""

import asyncio
import json

from proxy.cache.invalidation.incarnation import FINGERPRINT_MS
from tests.faults.test_c13_redis_went_back import ENV as QUICK
from tests.faults.test_c13_redis_went_back import TOKEN, Vendor
from tests.scenario.telling import NATIVE, bearer, native, post, state, telling
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import ask
from tests.support.raw_upstream import RawUpstream
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


async def test_c15_a_replica_with_another_secret_is_refused_loudly_and_serves_without_redis(
    redis_server: RedisServer,
) -> None:
    async with RawUpstream(telling()) as upstream:
        options = {"dashscope_url": upstream.url, "redis_url": redis_server.url}
        async with ProxyProcess(**options) as first:

            async def is_hit() -> bool:
                return state(await post(first.http_port, NATIVE, bearer("sk-a"), native("one"))) == "hit"

            await wait_until(is_hit, 15.0, "a hit")
            await wait_until(lambda: redis_server.count_entries() == 1, what="the entry")
            await wait_until(lambda: redis_server.command("KEYS", "dashcache:s:*") != [], what="the standing")
            names = set(redis_server.command("KEYS", "*"))
            async with ProxyProcess(**options) as stranger:
                told = stranger.wait_log("redis_not_usable", level="error")
                assert told["error"].startswith("refused: another deployment")
                assert stranger.wait_log("ready")["redis"] == told["error"]
                health = await asyncio.to_thread(stranger.admin, "GET", "/healthz")
                assert "another deployment" in str(health)
                metrics = await asyncio.to_thread(stranger.metrics)
                assert "\ndashcache_redis_stranger 1.0\n" in metrics
                assert (await post(stranger.http_port, NATIVE, bearer("sk-a"), native("two"))).status == 200
                kept = {
                    name
                    for name in redis_server.command("KEYS", "*")
                    if name[:12] in (b"dashcache:e:", b"dashcache:s:")
                }
                assert kept <= names, "it keeps nothing there"
            assert await is_hit()


async def test_c15_a_rolling_rotation_of_the_secret_gives_no_answer_of_before_a_write(
    redis_server: RedisServer,
) -> None:
    vendor = Vendor()
    async with RawUpstream(vendor) as upstream:
        options = {"dashvector_url": upstream.url, "redis_url": redis_server.url, "env": QUICK}

        async def is_hit(proxy: ProxyProcess) -> bool:
            answer = await ask(proxy.http_port, "POST", "/v1/collections/abc/query", TOKEN, b'{"vector":[0.5]}')
            assert json.loads(answer.body)["output"][0]["id"] == str(vendor.version), state(answer)
            return state(answer) == "hit"

        async with ProxyProcess(**options, key_secret="the old secret, to be replaced") as old:
            await wait_until(lambda: is_hit(old), 15.0, "a hit by the old secret")
            await asyncio.to_thread(old.mode, "bypass", upstream="dashvector")
            new = ProxyProcess(**options, key_secret="the new secret, from now on")
            await new.__aenter__()
            try:
                assert new.wait_log("redis_not_usable")["error"].startswith("refused: another deployment")
                assert [await is_hit(new) for _ in range(3)] == [False] * 3
                for writer in (old, new):
                    path = "/v1/collections/abc/docs"
                    assert (await ask(writer.http_port, "POST", path, TOKEN, b'{"docs":[]}')).status == 200
                    assert [await is_hit(each) for each in (old, new, old, new)] == [False] * 4
                await asyncio.to_thread(old.stop)
                # Nobody renews it now; a minute need not be waited for.
                assert 0 < redis_server.command("PTTL", "dashcache:f") <= FINGERPRINT_MS
                redis_server.command("DEL", "dashcache:f")
                await asyncio.to_thread(new.wait_log, "redis_usable")
                await wait_until(lambda: is_hit(new), 15.0, "a hit by the new secret")
            finally:
                await new.__aexit__(None, None, None)
