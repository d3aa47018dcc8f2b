"""C15: a replica whose secret is another is refused the Redis of the first, loudly, and shares nothing with it."""

import asyncio

from tests.scenario.telling import NATIVE, bearer, native, post, state, telling
from tests.support.proxy_process import ProxyProcess
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
                assert (await post(stranger.http_port, NATIVE, bearer("sk-a"), native("two"))).status == 200
                kept = {
                    name
                    for name in redis_server.command("KEYS", "*")
                    if name[:12] in (b"dashcache:e:", b"dashcache:s:")
                }
                assert kept <= names, "it keeps nothing there"
            assert await is_hit()
