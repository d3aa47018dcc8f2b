"""
C13 and R22: a Redis that went back is noticed by everybody, and one that moved is found.

Real processes and real servers: all of it killed at once, a restored snapshot, a lagging replica that is promoted, data
put back under open connections. The vendor shows each write at once, so every answer must be of the newest.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from tests.faults.observed import WENT_BACK, events, stats
from tests.scenario.telling import NATIVE, bearer, native, post, state, telling
from tests.support import answers
from tests.support.fault_proxy import FaultProxy
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawResponse, ask
from tests.support.raw_upstream import RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

SECRET = "one secret for all of them"
TOKEN = ((b"dashvector-auth-token", b"sk-a"), (b"Content-Type", b"application/json"))
BOUND_S = 3.0
"""How soon after Redis is back nothing of before is answered, whether or not anybody asks."""
ENV = {
    "DASHCACHE_VECTOR_SETTLE_S": "0.02",
    "DASHCACHE_VECTOR_UNKNOWN_SETTLE_S": "0.02",
    "DASHCACHE_MEMORY_MAX_BYTES": "0",
    "DASHCACHE_REDIS_DEADLINE_MS": "1000",
    "DASHCACHE_BREAKER_RESET_S": "0.2",
    "DASHCACHE_LIMITS_DRAIN_S": "1",
}


class Vendor:
    """Both vendors: a query is answered with the number of the last write; those who are *refused* get 401."""

    def __init__(self) -> None:
        self.version = 1
        self.refused: set[bytes] = set()
        self._embed = telling()

    async def __call__(self, request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        if any(key in request.raw for key in self.refused):
            refusal = b'{"code":"InvalidApiKey","message":"no","request_id":"v"}'
            await answers.respond_json(refusal, 401)(request, writer)
        elif not request.target.startswith(b"/v1/"):
            await self._embed(request, writer)
        else:
            self.version += request.target.endswith(b"/docs")
            output = [{"id": str(self.version), "score": 0.5}]
            body = {"code": 0, "message": "", "request_id": "v", "output": output}
            await answers.respond_json(json.dumps(body).encode())(request, writer)


class Rig:
    def __init__(self, vendor: Vendor, proxies: Sequence[ProxyProcess]) -> None:
        self.vendor, self.proxies = vendor, proxies

    async def query(self, at: int = 0, name: str = "abc") -> RawResponse:
        """The answer, which must be of the last write."""
        port = self.proxies[at].http_port
        answer = await ask(port, "POST", f"/v1/collections/{name}/query", TOKEN, b'{"vector":[0.5]}')
        assert json.loads(answer.body)["output"][0]["id"] == str(self.vendor.version), state(answer)
        return answer

    async def warm(self, name: str = "abc") -> None:
        """A hit at every proxy."""
        for at in range(len(self.proxies)):
            await wait_until(lambda at=at: self.is_hit(at, name), 15.0, "a hit")

    async def is_hit(self, at: int, name: str = "abc") -> bool:
        return state(await self.query(at, name)) == "hit"

    async def write(self, at: int = 0) -> None:
        answer = await ask(self.proxies[at].http_port, "POST", "/v1/collections/abc/docs", TOKEN, b'{"docs":[]}')
        assert answer.status == 200

    async def has_told(self) -> bool:
        return (await stats(self.proxies[0]))["invalidations"]["pending"] == 0

    async def embed(self, key: str, text: str, at: int = 0) -> RawResponse:
        return await post(self.proxies[at].http_port, NATIVE, bearer(key), native(text))

    async def embedded(self, key: str, text: str) -> None:
        for at in range(len(self.proxies)):
            await wait_until(lambda at=at: self._is_embedded(key, text, at), 15.0, "a hit for a text")

    async def _is_embedded(self, key: str, text: str, at: int) -> bool:
        return state(await self.embed(key, text, at)) == "hit"

    async def refuse(self, key: str, at: int = 0) -> None:
        """The vendor refuses this credential from now on, and one proxy sees it."""
        self.vendor.refused.add(b"Bearer " + key.encode() + b"\r\n")
        assert (await self.embed(key, "never asked before", at)).status == 401


@contextlib.asynccontextmanager
async def running(
    vendor: Vendor, *redis_urls: str | None, data_dir: Path | None = None, upstream: RawUpstream | None = None
) -> AsyncIterator[Rig]:
    """A proxy for each URL; of an *upstream* of its own unless one is given."""
    async with contextlib.AsyncExitStack() as stack:
        upstream = upstream or await stack.enter_async_context(RawUpstream(vendor))
        made = [
            ProxyProcess(
                dashscope_url=upstream.url,
                dashvector_url=upstream.url,
                redis_url=url,
                key_secret=SECRET,
                data_dir=data_dir,
                env=ENV,
            )
            for url in redis_urls
        ]
        await asyncio.gather(*(stack.enter_async_context(proxy) for proxy in made))
        yield Rig(vendor, made)


async def nobody_answers_of_before(rig: Rig, key: str) -> None:
    """Every proxy, asked first by a query and by the refused credential."""
    for at in range(len(rig.proxies)):
        assert state(await rig.query(at)) != "hit" or at, "the first to ask can have no hit"
        assert (await rig.embed(key, "one", at)).status == 401
    assert state(await rig.embed("sk-b", "one")) in ("miss", "hit")


async def test_c13_all_killed_at_once_and_the_embedded_redis_comes_back_with_its_snapshot(
    data_dir: Path, record_property
) -> None:
    vendor = Vendor()
    async with RawUpstream(vendor) as upstream:
        await _killed_at_once(lambda: running(vendor, None, data_dir=data_dir, upstream=upstream))
    record_property("figure", "0 answers of before after a kill of everything, the snapshot older than a write")


async def _killed_at_once(start: Callable[[], contextlib.AbstractAsyncContextManager[Rig]]) -> None:
    async with start() as rig:
        await rig.warm()
        await rig.embedded("sk-a", "one")
        assert await asyncio.to_thread(rig.proxies[0].stop) == 0
    async with start() as rig:
        assert await rig.is_hit(0), "stopped in order, nothing is lost"
        assert state(await rig.embed("sk-a", "one")) == "hit"
        await rig.write()
        await rig.refuse("sk-a")
        rig.proxies[0].kill()
    async with start() as rig:
        await nobody_answers_of_before(rig, "sk-a")
        await rig.warm()


@pytest.mark.parametrize("reader", [0, 1])
async def test_c13_a_restored_snapshot_is_noticed_by_who_wrote_and_by_who_did_not(reader: int) -> None:
    with RedisServer() as server:
        async with running(Vendor(), server.url, server.url) as rig:
            await rig.warm()
            await rig.embedded("sk-a", "one")
            server.command("SAVE")
            await rig.write(0)
            await rig.refuse("sk-a", 0)
            server.kill()
            server.start()
            for at in (reader, 1 - reader):
                await rig.query(at)
                assert (await rig.embed("sk-a", "one", at)).status == 401
            await rig.warm()


async def test_c13_data_put_back_under_open_connections_are_noticed_without_a_request(
    redis_server: RedisServer, record_property
) -> None:
    async with running(Vendor(), redis_server.url, redis_server.url) as rig:
        await rig.warm()
        await rig.embedded("sk-a", "one")
        before = [len(proxy.logs) for proxy in rig.proxies]
        names = redis_server.command("KEYS", "*")
        # A claim may end between the two commands.
        dump = {name: value for name in names if (value := redis_server.command("DUMP", name)) is not None}
        await rig.write(0)
        await rig.refuse("sk-a", 0)
        redis_server.command("FLUSHALL")
        for name, value in dump.items():
            redis_server.command("RESTORE", name, 60_000, value)
        started_s = asyncio.get_running_loop().time()
        await wait_until(
            lambda: all(events(proxy, at)[WENT_BACK] for proxy, at in zip(rig.proxies, before, strict=True)),
            10.0,
            "both to notice",
        )
        took_s = asyncio.get_running_loop().time() - started_s
        for at in (1, 0):
            await rig.query(at)
            assert (await rig.embed("sk-a", "one", at)).status == 401
        assert took_s < BOUND_S
        record_property("figure", f"noticed without a request after {took_s:.1f} s")


async def test_r22_a_name_that_moves_with_open_connections_is_followed(record_property) -> None:
    with RedisServer() as old, RedisServer() as new:
        new.command("REPLICAOF", "127.0.0.1", old.port)
        async with FaultProxy(old.url) as line, running(Vendor(), line.instead_of(old.url)) as rig:
            await rig.warm()
            await rig.embedded("sk-a", "one")
            await wait_until(lambda: new.count_entries() == old.count_entries(), 10.0, "the replica")
            before = len(rig.proxies[0].logs)
            new.command("REPLICAOF", "NO", "ONE")
            old.command("REPLICAOF", "127.0.0.1", new.port)
            line.lead_to(new.url)
            moved_s = asyncio.get_running_loop().time()
            await rig.write()
            for _ in range(3):
                await rig.query()
            await rig.warm("xyz")
            await rig.warm()
            took_s = asyncio.get_running_loop().time() - moved_s
            await rig.write()
            await rig.query()
            assert took_s < 5.0
            await wait_until(rig.has_told, 5.0, "what the old one did not take to be told")
            assert state(await rig.embed("sk-a", "two")) == "miss"
            await rig.embedded("sk-a", "two")
            assert events(rig.proxies[0], before)["redis_read_only"] == 1, "one line"
            record_property("figure", f"kept again {took_s:.1f} s after the name moved, every socket left open")


async def test_c13_a_replica_that_lags_and_is_promoted_gives_no_answer_of_before() -> None:
    with RedisServer() as old, RedisServer() as new:
        new.command("REPLICAOF", "127.0.0.1", old.port)
        async with (
            FaultProxy(old.url) as line,
            running(Vendor(), line.instead_of(old.url), line.instead_of(old.url)) as rig,
        ):
            await rig.warm()
            await rig.embedded("sk-a", "one")
            await wait_until(lambda: new.count_entries() == old.count_entries(), 10.0, "the replica")
            new.command("REPLICAOF", "NO", "ONE")  # what comes now, it never hears of
            await rig.write(0)
            await rig.refuse("sk-a", 0)
            line.lead_to(new.url)
            old.kill()
            for at in (1, 0):
                await rig.query(at)
                assert (await rig.embed("sk-a", "one", at)).status == 401
            await rig.warm()
