"""
R7: stale answers come in their window and for their causes only; refreshes cannot storm, nor leave credentials behind.

Entries are made by a replica with a lifetime of a millisecond, and asked for at one with a long lifetime.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.faults.flock import asked_texts, cache_status
from tests.faults.observed import settings, stats
from tests.scenario.telling import NATIVE, Lines, bearer, heard, native, told
from tests.scenario.telling import telling as telling_vendor
from tests.support import answers
from tests.support.canary import assert_absent, make_secret
from tests.support.gate import Gate
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient, RawResponse
from tests.support.raw_upstream import Answer, RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

LINES = bearer("sk-grace")
SECRET = "one secret for all replicas"
WHILE_REFRESH, IF_ERROR = "detail=stale-while-revalidate", "detail=stale-if-error"
NEW = "the vendor of today"


@dataclass
class Rig:
    """One vendor, a replica whose entries are stale at once, and the one that is asked."""

    upstream: RawUpstream
    redis: RedisServer
    filler: ProxyProcess
    proxy: ProxyProcess
    client: RawClient

    async def make_stale(self, *texts: str, lines: Lines = LINES) -> None:
        """Have *texts* stored, past their lifetime; from now on the vendor answers something else."""
        self.upstream.answer = telling_vendor()
        known = len(self.redis.entries())
        async with await RawClient.connect(self.filler.http_port) as client:
            for first in range(0, len(texts), 10):
                response = await client.request("POST", NATIVE, lines, native(*texts[first : first + 10]))
                assert response.status == 200
        await wait_until(lambda: len(self.redis.entries()) == known + len(texts), what="all entries")
        self.upstream.answer = telling_vendor(name=NEW)
        self.upstream.requests.clear()

    async def ask(self, *texts: str, wish: str = "", lines: Lines = LINES) -> RawResponse:
        wishes = ((b"Cache-Control", wish.encode()),) if wish else ()
        return await self.client.request("POST", NATIVE, (*lines, *wishes), native(*texts))

    async def is_fresh(self, text: str) -> bool:
        """Whether the replica has a new entry by now."""
        status = cache_status(await self.ask(text, wish="only-if-cached"))
        return "; hit; ttl=" in status and "stale" not in status

    def texts_asked(self) -> Counter[str]:
        """What the vendor was asked for, how often."""
        return asked_texts(self.upstream)


def is_old(response: RawResponse, *texts: str, lines: Lines = LINES) -> bool:
    """Whether the vectors are those that were stored."""
    return response.status == 200 and heard(response) == told(NATIVE, lines, native(*texts))


def is_new(response: RawResponse, *texts: str, lines: Lines = LINES) -> bool:
    return response.status == 200 and heard(response) == told(NATIVE, lines, native(*texts), by=NEW)


@contextlib.asynccontextmanager
async def rig(redis: RedisServer, workers: int = 1, **changes: object) -> AsyncIterator[Rig]:
    """*changes* are settings of the replica that is asked; by default grace of ten minutes in both ways."""
    grace = {"grace_while_refresh_s": 600, "grace_if_error_s": 600, "redis_deadline_ms": 3000}
    brief = settings(lifetimes_embedding_s=0.001, lifetimes_jitter=0, **grace)
    long = settings(**{**grace, **changes})
    async with (
        RawUpstream(telling_vendor()) as upstream,
        ProxyProcess(dashscope_url=upstream.url, redis_url=redis.url, key_secret=SECRET, env=brief) as filler,
        ProxyProcess(
            dashscope_url=upstream.url, redis_url=redis.url, key_secret=SECRET, workers=workers, env=long
        ) as proxy,
        await RawClient.connect(proxy.http_port) as client,
    ):
        yield Rig(upstream, redis, filler, proxy, client)


def error(status: int, code: str) -> Answer:
    body = json.dumps({"code": code, "message": "no", "request_id": "vendor-x"}).encode()
    return answers.respond_json(body, status)


async def test_r7a_stale_is_served_at_once_while_one_refresh_runs(redis_server: RedisServer) -> None:
    async with rig(redis_server) as made:
        await made.make_stale("a", "b")
        gate = Gate()
        made.upstream.answer = answers.after(gate, telling_vendor(name=NEW))
        for _ in range(3):
            response = await made.ask("a", "b")
            assert is_old(response, "a", "b")
            assert "; hit; ttl=-" in cache_status(response)
            assert WHILE_REFRESH in cache_status(response)
            assert response.header("X-Dashcache-Items") == b"2/2"
            assert response.header("Age") is not None
        await wait_until(lambda: len(made.upstream.requests) == 1)
        text = await asyncio.to_thread(made.proxy.metrics)
        assert 'dashcache_stale_total{operation="embedding",reason="stale-while-revalidate"} 3.0' in text
        gate.open()
        await wait_until(lambda: made.is_fresh("a"), what="the refreshed entry")
        assert is_new(await made.ask("a", "b"), "a", "b")
        assert made.texts_asked() == {"a": 1, "b": 1}
        text = await asyncio.to_thread(made.proxy.metrics)
        assert 'dashcache_refreshes_total{result="fresh"} 1.0' in text
        assert (await stats(made.proxy))["operations"]["embedding"]["upstream_calls"] == 1


async def test_r7a_what_is_missing_is_fetched_with_what_is_stale(redis_server: RedisServer) -> None:
    """And nothing old is joined with something new."""
    async with rig(redis_server) as made:
        await made.make_stale("a")
        response = await made.ask("a", "never seen")
        assert is_new(response, "a", "never seen")
        assert "fwd=miss" in cache_status(response)
        assert made.texts_asked() == {"a": 1, "never seen": 1}


FAILURES = {
    "500": error(500, "InternalError"),
    "503": error(503, "ModelServingError"),
    "429": error(429, "Throttling.RateQuota"),
    "reset": answers.reset(),
    "cut short": answers.truncated(b"x" * 100, 10, headers=[(b"Content-Type", b"application/json")]),
    "late": answers.hang(),
}
REFUSALS = {
    400: error(400, "InvalidParameter"),
    401: error(401, "InvalidApiKey"),
    403: error(403, "AccessDenied"),
}


async def test_r7a_stale_stands_in_for_failures(redis_server: RedisServer) -> None:
    async with rig(redis_server, grace_while_refresh_s=0, grace_wait_s=1) as made:
        await made.make_stale(*FAILURES, *map(str, REFUSALS), "down", "a", "b")
        for failure, answer in FAILURES.items():
            made.upstream.answer = answer
            response = await made.ask(failure)
            assert is_old(response, failure), (failure, response.raw)
            assert "fwd=stale" in cache_status(response), failure
            assert IF_ERROR in cache_status(response), failure
            assert "; ttl=-" in cache_status(response), failure
            # For a moment the vendor is left alone.
            calls = len(made.upstream.requests)
            assert "; hit" in cache_status(again := await made.ask(failure)), failure
            assert IF_ERROR in cache_status(again)
            assert len(made.upstream.requests) == calls
        # All or nothing: what has no entry cannot be stood in for.
        made.upstream.answer = FAILURES["500"]
        assert (await made.ask("a", "never seen")).status == 500
        assert is_old(await made.ask("a", "b"), "a", "b")
        await made.upstream.down()
        assert is_old(await made.ask("down"), "down")
        text = await asyncio.to_thread(made.proxy.metrics)
        expected = 2 * len(FAILURES) + 2
        assert f'dashcache_stale_total{{operation="embedding",reason="stale-if-error"}} {expected}.0' in text


async def test_r7a_a_refusal_is_never_answered_from_grace(redis_server: RedisServer) -> None:
    async with rig(redis_server, grace_while_refresh_s=0, grace_wait_s=60) as made:
        for status, answer in REFUSALS.items():
            lines = bearer(f"sk-{status}")
            await made.make_stale("a", lines=lines)
            made.upstream.answer = answer
            for _ in range(2):
                response = await made.ask("a", lines=lines)
                assert response.status == status, cache_status(response)
                assert b"vendor-x" in response.body


async def test_r7a_only_the_causes_that_are_set_count(redis_server: RedisServer) -> None:
    async with rig(
        redis_server, grace_while_refresh_s=0, grace_if_error_for="server-error, timeout", grace_wait_s=3
    ) as made:
        await made.make_stale("429", "reset", "500", "late")
        for text in ("429", "reset"):
            made.upstream.answer = FAILURES[text]
            for _ in range(2):
                response = await made.ask(text)
                assert response.status == (429 if text == "429" else 502)
        for text in ("500", "late"):
            made.upstream.answer = FAILURES[text]
            assert is_old(await made.ask(text), text)


async def test_r7a_a_refused_refresh_ends_the_grace(redis_server: RedisServer) -> None:
    """A credential for each, as one that is refused (401, 403) gets nothing at all from the cache afterwards."""
    async with rig(redis_server) as made:
        for status, answer in REFUSALS.items():
            lines = bearer(f"sk-{status}")
            await made.make_stale("a", lines=lines)
            made.upstream.answer = answer
            assert WHILE_REFRESH in cache_status(await made.ask("a", lines=lines))

            async def is_told(status: int = status, lines: Lines = lines) -> bool:
                return (await made.ask("a", lines=lines)).status == status

            await wait_until(is_told, what="the refusal")
            assert await is_told()


async def test_r7a_after_its_window_nothing_stale_is_served(redis_server: RedisServer) -> None:
    async with rig(redis_server, grace_while_refresh_s=1, grace_if_error_s=2) as made:
        await made.make_stale("a")
        made.upstream.answer = FAILURES["500"]
        seen = []

        async def is_over() -> bool:
            response = await made.ask("a")
            seen.append((response.status, cache_status(response).rpartition("=")[2]))
            return response.status == 500

        await wait_until(is_over, 10, what="the end of grace")
        order = list(dict.fromkeys(seen))
        assert order == [(200, "stale-while-revalidate"), (200, "stale-if-error"), (500, "status")], order


async def test_r7a_clients_say_what_they_take(redis_server: RedisServer) -> None:
    async with rig(redis_server) as made:
        await made.make_stale("a", "b", "c", "d", "e", "f")
        made.upstream.answer = FAILURES["500"]
        assert (await made.ask("a", wish="no-cache")).status == 500
        assert (await made.ask("b", wish="max-age=600")).status == 500
        assert (await made.ask("c", wish="min-fresh=1")).status == 500
        assert (await made.ask("d", wish="max-stale=0")).status == 500
        assert is_old(await made.ask("e", wish="max-age=600, max-stale"), "e")
        assert is_old(await made.ask("f", wish="only-if-cached, max-stale=600"), "f")


async def test_r7a_without_grace_set_there_is_none(redis_server: RedisServer) -> None:
    async with rig(redis_server, grace_while_refresh_s=0, grace_if_error_s=0) as made:
        await made.make_stale("a")
        made.upstream.answer = FAILURES["500"]
        assert (await made.ask("a")).status == 500


@pytest.mark.parametrize("texts", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
async def test_r7b_refreshes_do_not_storm(redis_server: RedisServer, texts: int, record_property) -> None:
    """Many entries past their lifetime, asked for at two workers: few refreshes at a time, one for each text."""
    async with rig(redis_server, workers=2, upstream_max_inflight=40) as made:
        names = [f"text {number}" for number in range(texts)]
        await made.make_stale(*names)
        inflight, most = Counter[str](), Counter[str]()

        async def counted(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
            (text,) = json.loads(request.body)["input"]["texts"]
            inflight[text] += 1
            most[text] = max(most[text], inflight[text])
            most["all"] = max(most["all"], inflight.total())
            try:
                await answers.after(0.02, telling_vendor(name=NEW))(request, writer)
            finally:
                inflight[text] -= 1

        made.upstream.answer = counted
        clients = [await RawClient.connect(made.proxy.http_port) for _ in range(8)]

        async def ask_on(client: RawClient, share: list[str]) -> None:
            while share:
                for text in tuple(share):
                    response = await client.request("POST", NATIVE, LINES, native(text))
                    assert is_old(response, text) or is_new(response, text)
                    if is_new(response, text):
                        share.remove(text)

        await asyncio.gather(*(ask_on(client, names[at % 4 :: 4]) for at, client in enumerate(clients)))
        await asyncio.gather(*(client.close() for client in clients))
        at_once = most.pop("all")
        assert at_once <= 2 * 4, "a tenth of what may be in flight, in each of two workers"
        assert max(most.values()) == 1
        # One that has just ended may be unknown to a worker that looked before.
        repeats = sum(made.texts_asked().values()) - texts
        assert repeats <= texts / 10
        record_property(
            "figure", f"{texts} stale texts, 2 workers: at most {at_once} refreshes at once, {repeats} twice"
        )


async def test_r7b_a_failing_refresh_rests(redis_server: RedisServer) -> None:
    async with rig(redis_server) as made:
        await made.make_stale("a")
        made.upstream.answer = FAILURES["500"]
        for _ in range(50):
            assert is_old(await made.ask("a"), "a")
        assert len(made.upstream.requests) <= 2
        made.upstream.answer = telling_vendor(name=NEW)

        async def is_renewed() -> bool:
            return is_new(await made.ask("a"), "a")

        await wait_until(is_renewed, 10)


async def test_r7c_a_refresh_has_its_credential_in_memory_only(redis_server: RedisServer) -> None:
    key = make_secret()
    lines = bearer(key)
    async with rig(redis_server) as made:
        await made.make_stale("a", lines=lines)
        made.upstream.answer = answers.hang()
        assert is_old(await made.ask("a", lines=lines), "a", lines=lines)
        await wait_until(lambda: len(made.upstream.requests) == 1)
        assert dict(made.upstream.requests[0].headers)[b"Authorization"] == b"Bearer " + key.encode()
        for name, value in redis_server.dump().items():
            assert_absent(name + value, key, where="Redis")
        # And so it is over with the process, be it killed or stopped, and a stop does not wait for it.
        assert await asyncio.to_thread(made.proxy.stop, 10) == 0
        connection = made.upstream.requests[0].connection
        await asyncio.wait_for(connection.peer_closed.wait(), 5)
        with ProxyProcess(
            dashscope_url=made.upstream.url, redis_url=redis_server.url, key_secret=SECRET, env=settings()
        ):
            assert len(made.upstream.requests) == 1
