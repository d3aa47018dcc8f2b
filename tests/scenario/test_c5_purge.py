"""
C5: a purge beats whatever is being fetched while it comes, and nothing that was kept before is answered again.

Old and new are told apart without counting: an embedding's answer names the vendor's request that paid for it, and a
document has a version.
"""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import pytest

from tests.consistency.calls import PROTOCOLS, Call, Clients, Door, Protocol
from tests.consistency.vendor import Vendor
from tests.support.gate import Gate
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.vendor_sim import VendorSim

PATH = "/compatible-mode/v1/embeddings"
MODEL, OTHER_MODEL = "text-embedding-v4", "text-embedding-v3"
HEADERS = {"Authorization": "Bearer sk-purge", "Content-Type": "application/json"}
TOKEN = "sk-dv-purge"
# Enough for both workers to answer: each call is a connection of its own, which the kernel gives to either.
CALLS = 16
CALM = {
    "DASHCACHE_VECTOR_SETTLE_S": "0.05",
    # A busy machine must not look like a slow Redis where nothing is wrong with it.
    "DASHCACHE_REDIS_DEADLINE_MS": "2000",
    "DASHCACHE_LIMITS_DRAIN_S": "1",
}
EMBEDDING_SCOPES: list[dict[str, Any]] = [
    {"model": MODEL},
    {"operation": "embedding"},
    {"upstream": "dashscope", "operation": "embedding", "model": MODEL},
    {"all": True},
]


@dataclass
class Asked:
    """What an answer says of its origin: *payers* are the vendor's requests that it was made of."""

    state: str
    payers: set[str]

    @property
    def is_hit(self) -> bool:
        return self.state == "hit"


@dataclass
class Rig:
    """Both vendors in the test's own loop, one Redis, and proxies of two workers each."""

    sim: VendorSim
    vendor: Vendor
    redis: RedisServer
    session: aiohttp.ClientSession
    clients: Clients
    stack: contextlib.AsyncExitStack
    proxies: list[ProxyProcess] = field(default_factory=list)

    async def start(self, **options: Any) -> ProxyProcess:
        proxy = ProxyProcess(
            dashscope_url=self.sim.url,
            dashvector_url=self.vendor.http_url,
            dashvector_grpc_url=self.vendor.grpc_url,
            redis_url=self.redis.url,
            key_secret="0123456789abcdef" * 4,
            **{"workers": 2, "env": CALM, **options},
        )
        await self.stack.enter_async_context(proxy)
        self.proxies.append(proxy)
        return proxy

    async def ask(self, *texts: str, model: str = MODEL, proxy: ProxyProcess | None = None) -> Asked:
        url = (proxy or self.proxies[0]).http_url + PATH
        body = orjson.dumps({"model": model, "input": texts, "encoding_format": "float"})
        async with self.session.post(url, data=body, headers=HEADERS) as response:
            assert response.status == 200, await response.read()
            status, told = response.headers["Cache-Status"], orjson.loads(await response.read())
            assert [row["index"] for row in told["data"]] == list(range(len(texts)))
            payers = set(filter(None, response.headers.get("X-Dashcache-Origin", "").split(", ")))
            state = "hit" if "; hit" in status else status.partition("fwd=")[2].partition(";")[0]
            return Asked(state, payers if state in ("hit", "partial") else {told["id"]})

    async def warm(self, *texts: str, **where: Any) -> set[str]:
        """Ask until many answers in a row are hits, so that both workers have them in memory; who paid for them."""
        hits: list[Asked] = []
        while len(hits) < CALLS:
            answer = await self.ask(*texts, **where)
            hits = [*hits, answer] if answer.is_hit else []
        return set().union(*(hit.payers for hit in hits))

    async def assert_gone(self, old: set[str], *texts: str, **where: Any) -> None:
        """The next answer is fetched anew, and soon all are hits again, none of them an old one."""
        asked = self.sim.texts_asked.copy()
        assert (await self.ask(*texts, **where)).state == "miss"
        assert self.sim.texts_asked - asked == Counter(texts)
        assert not await self.warm(*texts, **where) & old

    def door(self, protocol: Protocol, proxy: ProxyProcess | None = None) -> Door:
        where = proxy or self.proxies[0]
        return Door(self.clients, protocol, where.http_url, where.grpc_address, TOKEN)


@pytest.fixture
async def rig(redis_server: RedisServer) -> AsyncIterator[Rig]:
    async with contextlib.AsyncExitStack() as stack:
        sim = await stack.enter_async_context(VendorSim())
        vendor = await stack.enter_async_context(Vendor())
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        )
        clients = Clients()
        stack.push_async_callback(clients.close)
        yield Rig(sim, vendor, redis_server, session, clients, stack)


async def purge(proxy: ProxyProcess, *, replicas: str = "shared", is_unknown: bool | None = None, **scope: Any) -> str:
    """Purge, insist that all is told, and whether something *is_unknown*, and give the token."""
    answer = await asyncio.to_thread(proxy.admin, "POST", "/v1/purge", scope)
    told = answer.json()
    assert answer.status == 200, told
    workers = len(proxy.worker_pids())
    assert told == {
        "token": told["token"],
        "scope": scope,
        "unknown": told["unknown"] if is_unknown is None else scope if is_unknown else {},
        "unconfirmed": [],
        "confirmed": workers,
        "workers": workers,
        "persisted": True,
        "replicas": replicas,
    }
    return str(told["token"])


def entries(redis: RedisServer) -> list[bytes]:
    return [key for key in redis.dump() if b":e:" in key]


# --- what is on its way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_partial", [False, True], ids=["single", "partial"])
async def test_c5_embeddings_that_are_being_fetched_are_not_found_after_a_purge(rig: Rig, is_partial: bool) -> None:
    proxy = await rig.start()
    gate = Gate("the vendor's answer")

    async def hold(_request: object) -> None:
        await gate.wait()

    for number, scope in enumerate(EMBEDDING_SCOPES):
        fresh, known = f"fresh {number}", f"known {number}"
        texts = (known, fresh) if is_partial else (fresh,)
        old = await rig.warm(known) if is_partial else set()
        arrived, rig.sim.before_answer = gate.arrived, hold
        gate.close()
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(rig.ask(*texts))
            await gate.wait_arrived(arrived + 1)
            await purge(proxy, **scope)
            gate.open()
        answer = asking.result()
        assert answer.state == ("partial" if is_partial else "miss")  # it was asked before the purge
        rig.sim.before_answer = None
        await rig.assert_gone(old | answer.payers | {rig.sim.requests[-1].request_id}, *texts)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_c5_queries_that_are_being_fetched_are_not_found_after_a_purge(rig: Rig, protocol: Protocol) -> None:
    proxy = await rig.start()
    door = rig.door(protocol)
    for operation in ("query_doc", "fetch_doc"):
        name = rig.vendor.create(version=1)
        call = Call(operation, name)
        scopes = ({"collection": name}, {"operation": "vector-query"}, {"upstream": "dashvector"}, {"all": True})
        for version, scope in enumerate(scopes, 1):
            with rig.vendor.holding("answer", operation, name) as held:
                async with asyncio.TaskGroup() as group:
                    asking = group.create_task(door.ask(call))
                    await held.wait_arrived()
                    await purge(proxy, **scope)
                    rig.vendor.put(name, version + 1)  # past the proxy: no write tells it
                    held.release()
                assert (asking.result().version, asking.result().is_hit) == (version, False)
            await warm_vectors(door, call, version + 1)
            await purge(proxy, collection=name)  # for the next round, which has to fetch again


async def warm_vectors(door: Door, call: Call, version: int) -> None:
    """Ask until it is a hit, which the first answer is not; every answer is of this version."""
    states = []
    while not states or not states[-1]:
        answer = await door.ask(call)
        assert answer.is_success
        assert answer.version == version
        states.append(answer.is_hit)
    assert len(states) > 1


# --- what was kept ----------------------------------------------------------------------------------------------------


async def test_c5_a_purge_takes_what_it_names_and_leaves_the_rest(rig: Rig) -> None:
    proxy = await rig.start()
    one, other = rig.vendor.create(version=1), rig.vendor.create(version=1)
    door = rig.door("http")
    stats = Call("stats_collection", one)
    old, kept = await rig.warm("text"), await rig.warm("text", model=OTHER_MODEL)
    for call in (Call("query_doc", one), Call("query_doc", other)):
        await warm_vectors(door, call, 1)
    await wait_until(lambda: _is_hit(door, stats), 10.0, "a hit for the statistics")

    await purge(proxy, is_unknown=False, model=MODEL)
    await rig.assert_gone(old, "text")
    assert await rig.warm("text", model=OTHER_MODEL) == kept
    assert (await door.ask(Call("query_doc", one))).is_hit

    await purge(proxy, is_unknown=False, collection=one)
    assert not (await door.ask(Call("query_doc", one))).is_hit
    assert not (await door.ask(stats)).is_hit
    assert (await door.ask(Call("query_doc", other))).is_hit
    assert (await rig.ask("text", model=OTHER_MODEL)).is_hit

    await purge(proxy, is_unknown=True, model=MODEL + "x")
    await purge(proxy, is_unknown=True, collection="nosuch")
    await purge(proxy, upstream="dashvector", operation="vector-query")
    assert not (await door.ask(Call("query_doc", other))).is_hit
    assert (await rig.ask("text", model=OTHER_MODEL)).is_hit

    token = await purge(proxy, all=True)
    await rig.assert_gone(kept, "text", model=OTHER_MODEL)
    last = (await asyncio.to_thread(proxy.stats))["purges"]["last"]
    assert (last["scope"], last["token"]) == ({"all": True}, token)
    assert proxy.wait_log("purged", token=token)["all"] is True


async def _is_hit(door: Door, call: Call) -> bool:
    return (await door.ask(call)).is_hit


async def test_c5_purging_twice_is_purging_twice(rig: Rig) -> None:
    proxy = await rig.start()
    tokens, old = set(), await rig.warm("text")
    for _ in range(3):
        tokens.add(await purge(proxy, model=MODEL))
        tokens.add(await purge(proxy, model=MODEL))
        await rig.assert_gone(old, "text")
        old |= await rig.warm("text")
    assert len(tokens) == 6


async def test_purging_all_frees_redis_of_entries_and_of_nothing_else(rig: Rig) -> None:
    proxy = await rig.start(workers=1, env={**CALM, "DASHCACHE_MEMORY_MAX_BYTES": "0"})
    await rig.warm("text")
    name = rig.vendor.create()
    await warm_vectors(rig.door("grpc"), Call("query_doc", name), 1)
    rig.redis.command("SET", b"another:e:x", b"1")
    before = set(rig.redis.dump())
    assert len(entries(rig.redis)) == 3
    await purge(proxy, all=True)
    removed = await asyncio.to_thread(proxy.wait_log, "purged_entries_removed")
    assert removed["removed"] == 2
    assert entries(rig.redis) == [b"another:e:x"]
    lasting = {key for key in before if b":e:" not in key and b":c:" not in key}  # claims end by themselves
    assert lasting <= set(rig.redis.dump())


async def test_a_worker_that_starts_later_knows_of_the_purge(rig: Rig) -> None:
    proxy = await rig.start()
    old = await rig.warm("text")
    await purge(proxy, model=MODEL)
    for pid in proxy.worker_pids():
        before = len(proxy.logs)
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(proxy.wait_log, "worker_ended", after=before)
    await wait_until(lambda: _serves(proxy, 2), 20.0, "both workers to be replaced")
    await rig.assert_gone(old, "text")


async def _serves(proxy: ProxyProcess, workers: int) -> bool:
    return bool((await asyncio.to_thread(proxy.stats))["workers"]["serving"] == workers)


# --- replicas, restarts, Redis ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scope", [{"model": MODEL}, pytest.param({"all": True}, marks=pytest.mark.slow)], ids=["model", "all"]
)
async def test_c5_a_purge_reaches_the_other_replica(rig: Rig, scope: dict[str, Any]) -> None:
    one, other = await rig.start(), await rig.start()
    old = await rig.warm("text", proxy=one) | await rig.warm("text", proxy=other)
    await purge(one, **scope)
    await asyncio.to_thread(other.wait_log, "purges_taken_over", 5.0)
    await wait_until(lambda: _is_new(rig, other, old), 5.0, "the other replica to fetch anew")
    assert not await rig.warm("text", proxy=other) & old
    assert not await rig.warm("text", proxy=one) & old


async def _is_new(rig: Rig, proxy: ProxyProcess, old: set[str]) -> bool:
    return not (await rig.ask("text", proxy=proxy)).payers & old


async def test_c5_a_purge_without_redis_holds_here_at_once_and_elsewhere_when_it_is_back(rig: Rig) -> None:
    # A Redis that hangs keeps what it has, so that all the old entries are there again when it goes on.
    one, other = await rig.start(), await rig.start()
    old = await rig.warm("text", proxy=one) | await rig.warm("text", proxy=other)
    rig.redis.hang()
    await purge(one, model=MODEL, replicas="pending")
    assert (await rig.ask("text", proxy=one)).state == "miss"
    assert (await rig.ask("text", proxy=other)).payers <= old  # from memory; it cannot know
    rig.redis.resume()
    assert not await rig.warm("text", proxy=one) & old
    await asyncio.to_thread(other.wait_log, "purges_taken_over", 5.0)
    await wait_until(lambda: _is_new(rig, other, old), 5.0, "the other replica to know")
    assert not await rig.warm("text", proxy=other) & old


async def test_c5_a_restart_keeps_the_purge(rig: Rig, data_dir: Any) -> None:
    proxy = await rig.start(data_dir=data_dir)
    old = await rig.warm("text")
    await purge(proxy, model=MODEL)
    await asyncio.to_thread(proxy.kill)
    # Redis has been set back to a time before the purge; the entries are all there.
    rig.redis.command("DEL", *[key for key in rig.redis.dump() if b":purges:" in key])
    assert entries(rig.redis)
    again = await rig.start(data_dir=data_dir)
    await rig.assert_gone(old, "text", proxy=again)
    await wait_until(lambda: any(b":purges:" in key for key in rig.redis.dump()), 5.0, "Redis to be told again")


async def test_c5_a_replica_that_was_away_learns_of_the_purge_before_it_serves(rig: Rig, data_dir: Any) -> None:
    one, away = await rig.start(), await rig.start(data_dir=data_dir)
    old = await rig.warm("text", proxy=one) | await rig.warm("text", proxy=away)
    await asyncio.to_thread(away.stop)
    await purge(one, model=MODEL)
    assert entries(rig.redis)
    again = await rig.start(data_dir=data_dir)
    events = [line["event"] for line in again.logs]
    assert events.index("purges_taken_over") < events.index("ready")
    await rig.assert_gone(old, "text", proxy=again)
