"""S18: the proxy needs few commands, on its own keys only; the documented line for Redis' ACL grants no other."""

import asyncio
import contextlib
import re
from pathlib import Path

import pytest
import redis

from tests.faults.observed import settings, stats
from tests.scenario.telling import NATIVE, bearer, native, post, state, telling
from tests.support import answers
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawResponse, ask
from tests.support.raw_upstream import RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "redis.md"
PASSWORD = "a-password-of-the-test"
QUERY = "/v1/collections/abc/query"
UPSERT = "/v1/collections/abc/docs"
TOKEN = ((b"dashvector-auth-token", b"sk-a"), (b"Content-Type", b"application/json"))


def documented() -> list[str]:
    """The words of the documented line behind the name."""
    (line,) = re.findall(r"^user dashcache (.+)$", PAGE.read_text(), re.MULTILINE)
    return line.split()


def allow(server: RedisServer) -> str:
    """Let that user in; the URL with which it comes."""
    server.command("ACL", "SETUSER", "dashcache", *(word.replace("PASSWORD", PASSWORD) for word in documented()))
    return f"redis://dashcache:{PASSWORD}@127.0.0.1:{server.port}/0"


async def vendor(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
    if b"sk-revoked" in request.raw:
        await answers.respond_json(b'{"code":"InvalidApiKey","message":"no","request_id":"v"}', 401)(request, writer)
    elif request.target.decode().startswith("/v1/"):
        await answers.respond_json(b'{"code":0,"message":"","request_id":"v","output":[]}')(request, writer)
    else:
        await telling()(request, writer)


class Rig:
    """One proxy that has no memory of its own, so that everything is asked of Redis."""

    def __init__(self, proxy: ProxyProcess, server: RedisServer) -> None:
        self.proxy, self.server = proxy, server

    async def embed(self, text: str, key: str = "sk-a") -> str:
        return state(await post(self.proxy.http_port, NATIVE, bearer(key), native(text)))

    async def vectors(self, target: str) -> RawResponse:
        return await ask(self.proxy.http_port, "POST", target, TOKEN, b'{"vector":[0.5]}')

    async def embedded_hit(self, text: str) -> None:
        async def is_hit() -> bool:
            return await self.embed(text) == "hit"

        await wait_until(is_hit, 10.0, f"a hit for {text}")

    async def vector_hit(self) -> None:
        async def is_hit() -> bool:
            return state(await self.vectors(QUERY)) == "hit"

        await wait_until(is_hit, 10.0, "a hit for the query")

    async def everything(self) -> None:
        """Hits, misses, writes, purges, modes, a refusal, a forgotten script, and the breaker's way round."""
        await self.embedded_hit("one")
        await self.vector_hit()
        assert (await self.vectors(UPSERT)).status == 200
        await self.vector_hit()
        self.server.command("SCRIPT", "FLUSH")  # the proxy brings its scripts along again
        await self.embedded_hit("two")
        assert (await self.vectors(UPSERT)).status == 200
        await self.vector_hit()
        assert (await ask(self.proxy.http_port, "GET", "/x", bearer("sk-revoked"))).status == 401
        await self.admin("PUT", "/v1/mode", {"mode": "bypass"})
        assert await self.embed("one") == "bypass"
        await self.admin("PUT", "/v1/mode", {"mode": "on"})
        await self.admin("POST", "/v1/purge", {"model": "text-embedding-v4"})
        await self.admin("POST", "/v1/purge", {"all": True})
        await asyncio.to_thread(self.proxy.wait_log, "purged_entries_removed")
        await self.embedded_hit("one")
        self.server.hang()
        for number in range(8):
            assert await self.embed(f"meanwhile {number}") == "miss"
        assert (await stats(self.proxy))["breaker"]["state"] == "open"
        self.server.resume()
        await self.embedded_hit("one")
        assert (await asyncio.to_thread(self.proxy.admin, "GET", "/readyz")).status == 200
        assert await self.shares(), "modes and purges, for other replicas"

    async def admin(self, method: str, path: str, body: object) -> None:
        answer = await asyncio.to_thread(self.proxy.admin, method, path, body)
        assert answer.status == 200, answer

    async def shares(self) -> bool:
        names = self.server.command("KEYS", "dashcache:*")
        return {b"modes", b"purges"} <= {name.split(b":")[1] for name in names}


@contextlib.asynccontextmanager
async def running(server: RedisServer, url: str):
    env = settings(
        memory_max_bytes=0,
        redis_deadline_ms=150,
        breaker_reset_s=0.2,
        vector_settle_s=0.02,
        vector_strict_writes="true",
    )
    async with (
        RawUpstream(vendor) as upstream,
        ProxyProcess(dashscope_url=upstream.url, dashvector_url=upstream.url, redis_url=url, env=env) as proxy,
    ):
        yield Rig(proxy, server)


def used(server: RedisServer) -> set[str]:
    """Every command that anybody has called, in scripts too; of those that are granted, the rig calls none."""
    return {name.removeprefix("cmdstat_").partition("|")[0] for name in server.command("INFO", "commandstats")}


async def test_s18_everything_works_with_the_documented_user(redis_server: RedisServer, record_property) -> None:
    url = allow(redis_server)
    redis_server.command("ACL", "LOG", "RESET")
    redis_server.command("CONFIG", "RESETSTAT")
    async with running(redis_server, url) as rig:
        await rig.everything()
        assert redis_server.command("ACL", "LOG") == []
        failures = (await stats(rig.proxy))["redis"]["failures"]
        assert not set(failures) & {"rejected", "authentication", "other"}, failures
    # Without the subcommands, as Redis 6 counts them all under one name.
    granted = {word[1:].partition("|")[0] for word in documented() if word.startswith("+")}
    assert granted <= used(redis_server), "each that is granted is used"
    record_property("figure", f"{len(granted)} commands granted, all used, ACL LOG empty")


DENIED = r"(?i)permission|ACL failure|can't (run|access)|unknown command"
FORBIDDEN = (
    *("FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET dir", "CONFIG SET dir /tmp", "DEBUG SLEEP 0", "SHUTDOWN", "SAVE"),
    *("REPLICAOF NO ONE", "MODULE LIST", "ACL LIST", "CLIENT LIST", "CLIENT KILL ID 1", "MONITOR", "DBSIZE"),
    *("RANDOMKEY", "SUBSCRIBE x", "PUBLISH x y", "SCRIPT FLUSH", "SCRIPT KILL", "FUNCTION LIST", "DUMP dashcache:e:1"),
    *("GET other:key", "SET other:key 1", "MGET dashcache:e:1 other:key", "UNLINK other:key", "GETRANGE other:key 0 1"),
    *("DEL dashcache:e:1", "RENAME dashcache:e:1 dashcache:e:2", "MIGRATE h 1 k 0 1", "EVALSHA x 0", "SCRIPT LOAD x"),
)


def test_s18_any_other_command_or_key_is_denied(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(allow(redis_server)) as user:
        assert user.set("dashcache:e:1", b"x")
        for words in FORBIDDEN:
            with pytest.raises(redis.exceptions.ResponseError) as caught:
                user.execute_command(*words.split())
            assert re.search(DENIED, str(caught.value)), words
        for script in ("return redis.call('GET', 'other:key')", "return redis.call('FLUSHALL')"):
            with pytest.raises(redis.exceptions.ResponseError, match=DENIED):
                user.eval(script, 0)
