"""S17: a credential that the upstream has refused gets nothing from the cache until the upstream accepts it again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from tests.scenario.telling import NATIVE, bearer, heard, native, post, state, telling
from tests.support import answers
from tests.support.gate import Gate
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawResponse, ask
from tests.support.raw_upstream import RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

MEMORY_S = 0.4


@dataclass
class Rig:
    """Two replicas, of one worker each, before one Redis; the upstream refuses whoever is in *revoked*."""

    upstream: RawUpstream
    redis: RedisServer
    proxies: list[ProxyProcess]
    revoked: set[str]
    status: int = 401
    gates: dict[str, Gate] = field(default_factory=dict)
    """Texts whose answers are held, as they were when the request came."""

    async def ask(self, key: str, *texts: str, at: int = 0) -> RawResponse:
        return await post(self.proxies[at].http_port, NATIVE, bearer(key), native(*texts))

    async def warm(self, key: str, *texts: str) -> None:
        """Kept in the first proxy's memory and in Redis."""
        before = self._names()
        assert state(await self.ask(key, *texts)) == "miss"
        await wait_until(lambda: self._names() == before + len(texts) + 1, what="entries and standing in Redis")
        assert state(await self.ask(key, *texts)) == "hit"

    def lasting_names(self) -> list[bytes]:
        """What is in Redis but claims, which end after seconds."""
        return sorted(name for name in self.redis.command("KEYS", "*") if b":c:" not in name)

    def _names(self) -> int:
        return sum(b":e:" in name or b":s:" in name for name in self.redis.command("KEYS", "*"))

    async def is_refused(self, key: str, *texts: str, at: int = 0) -> bool:
        """Whether the answer is the upstream's refusal and nothing else."""
        response = await self.ask(key, *texts, at=at)
        assert response.status == self.status or state(response) == "hit"
        return response.status == self.status and heard(response) is None


@contextlib.asynccontextmanager
async def replicas(count: int = 2) -> AsyncIterator[Rig]:
    revoked: set[str] = set()
    env = {"DASHCACHE_REDIS_DEADLINE_MS": "2000", "DASHCACHE_MEMORY_MAX_AGE_S": str(MEMORY_S)}
    secret = "one secret for all"

    def key_of(request: RecordedRequest) -> str:
        return (request.head.get("Authorization") or b"").decode().removeprefix("Bearer ")

    tell = telling()

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        is_refused = key_of(request) in rig.revoked
        for text, gate in rig.gates.items():
            if text.encode() in request.body:
                await gate.wait()
        if is_refused:
            await answers.respond_json(b'{"code":"InvalidApiKey","message":"no","request_id":"v"}', rig.status)(
                request, writer
            )
        elif request.method == b"GET":
            await answers.respond_json(b"{}")(request, writer)
        else:
            await tell(request, writer)

    with RedisServer() as redis:
        async with RawUpstream(answer) as upstream, contextlib.AsyncExitStack() as stack:
            made = [
                ProxyProcess(dashscope_url=upstream.url, redis_url=redis.url, key_secret=secret, env=env)
                for _ in range(count)
            ]
            rig = Rig(upstream, redis, made, revoked)
            for proxy in made:
                await stack.enter_async_context(proxy)
            yield rig


@pytest.mark.parametrize("status", [401, 403])
async def test_s17_after_the_first_refusal_seen_there_are_no_hits(status: int, record_property) -> None:
    async with replicas() as rig:
        rig.status = status
        await rig.warm("sk-b", "kept")
        asked = 0
        for number, seen in enumerate(("a miss", "a part", "another route")):
            key, texts = f"sk-{number}", [f"{number} one", f"{number} two"]
            await rig.warm(key, *texts)
            assert state(await rig.ask(key, texts[0], at=1)) == "hit", "the other replica has it in memory too"
            rig.revoked.add(key)
            if seen == "another route":
                refusal = await ask(rig.proxies[0].http_port, "GET", "/api/v1/models", bearer(key))
            else:
                refusal = await rig.ask(key, *(["new"] if seen == "a miss" else [*texts, "new"]))
            assert refusal.status == status
            for text in (texts, texts[:1], texts[1:]):
                assert await rig.is_refused(key, *text)
                asked += 1
            assert await rig.is_refused(key, texts[1], at=1), "what the other replica must ask Redis for"
            assert await rig.is_refused(key, texts[0], at=1), "and then what it has in memory"
        assert state(await rig.ask("sk-b", "kept")) == "hit"
        assert not [record for proxy in rig.proxies for record in proxy.logs if record.get("level") == "error"]
        record_property("figure", f"0 hits in {asked} requests after the first {status} seen, 2 replicas")


async def test_s17_what_another_replica_has_in_memory_ends_with_its_time_there() -> None:
    async with replicas() as rig:
        await rig.warm("sk-a", "one")
        assert state(await rig.ask("sk-a", "one", at=1)) == "hit"
        rig.revoked.add("sk-a")
        assert await rig.is_refused("sk-a", "new")
        await wait_until(
            lambda: rig.is_refused("sk-a", "one", at=1), MEMORY_S + 5, "the other replica to look into Redis"
        )


async def test_s17_hits_are_back_once_the_upstream_accepts() -> None:
    async with replicas() as rig:
        await rig.warm("sk-a", "one", "two")
        rig.revoked.add("sk-a")
        assert await rig.is_refused("sk-a", "new")
        assert await rig.is_refused("sk-a", "one", at=1)
        rig.revoked.clear()
        assert state(await rig.ask("sk-a", "one")) == "miss"
        assert state(await rig.ask("sk-a", "two")) == "hit"

        async def hits_there() -> bool:
            return state(await rig.ask("sk-a", "two", at=1)) == "hit"

        await wait_until(hits_there, what="hits in the other replica")


async def test_s17_an_answer_from_before_the_refusal_does_not_lift_it() -> None:
    async with replicas(1) as rig:
        await rig.warm("sk-a", "one")
        rig.gates["late"] = Gate()
        late = asyncio.ensure_future(rig.ask("sk-a", "late"))
        await rig.gates["late"].wait_arrived()
        rig.revoked.add("sk-a")
        assert await rig.is_refused("sk-a", "new")
        rig.gates["late"].open()
        assert (await late).status == 200
        for text in ("one", "late", "one"):
            assert await rig.is_refused("sk-a", text)


async def test_s17_a_refusal_outlives_a_restart() -> None:
    async with replicas(1) as rig:
        await rig.warm("sk-a", "one")
        rig.revoked.add("sk-a")
        assert await rig.is_refused("sk-a", "new")
        first = rig.proxies[0]
        await asyncio.to_thread(first.stop)
        async with ProxyProcess(
            dashscope_url=rig.upstream.url, redis_url=rig.redis.url, key_secret=first.key_secret, env=first.env
        ) as again:
            rig.proxies = [again]
            assert await rig.is_refused("sk-a", "one")


async def test_s17_strangers_leave_no_trace() -> None:
    async with replicas(1) as rig:
        await rig.warm("sk-a", "one")
        names = rig.lasting_names()
        # Who guesses at the owner's credential, or adds a workspace to it, is somebody else.
        strangers = [f"sk-wrong-{number}" for number in range(200)] + ["sk-a ", "SK-A"]
        rig.revoked.update(strangers)
        for number in range(0, len(strangers), 20):
            asked = await asyncio.gather(*(rig.ask(key, "one") for key in strangers[number : number + 20]))
            assert {response.status for response in asked} <= {200, 401}
        assert state(await rig.ask("sk-a", "one")) == "hit"
        assert await rig.is_refused("sk-wrong-1", "one")
        assert rig.lasting_names() == names
