"""Misses that share a request, and large ones that are cut, while texts are bad, clients leave and things break."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable

import pytest

from tests.faults.flock import LINES, all_wait, ask_all, asked_texts, cache_status, flock, is_right, make_warm
from tests.faults.observed import settings
from tests.scenario.telling import NATIVE, bearer, heard, native, telling, told
from tests.support import answers
from tests.support.gate import Gate
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient, RawResponse, request_bytes
from tests.support.raw_upstream import Answer, RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

WINDOW_MS = 100
CAP = 10
WARM = "warm"
SINGLES = [native(f"text {number}") for number in range(200)]


@contextlib.asynccontextmanager
async def batching(
    redis: RedisServer, upstream: RawUpstream, *, workers: int = 1, **changes: object
) -> AsyncIterator[ProxyProcess]:
    """A proxy that batches and cuts; a busy machine is no trouble with Redis."""
    usual = {"redis_deadline_ms": 3000, "batching_window_ms": WINDOW_MS, "batching_cut": "true"}
    proxy = ProxyProcess(
        dashscope_url=upstream.url, redis_url=redis.url, workers=workers, env=settings(**{**usual, **changes})
    )
    async with proxy:
        yield proxy


def refusing(bad: str, status: int = 400) -> Answer:
    """The vendor, who refuses any request with the *bad* text in it; with status 400 he says what else was."""

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        texts = json.loads(request.body)["input"]["texts"]
        told = str(texts) if status == 400 else "Requests rate limit exceeded"
        error = json.dumps({"code": "DataInspectionFailed", "message": told, "request_id": "r"}).encode()
        await (answers.respond_json(error, status) if bad in texts else telling())(request, writer)

    return answer


def failing_the_first_batch(failure: Answer) -> Answer:
    """The vendor, who fails once, at a request for several; one that went alone would be its client's to ask again."""
    left = iter([failure])

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        is_batch = len(json.loads(request.body)["input"]["texts"]) > 1
        await (next(left, telling()) if is_batch else telling())(request, writer)

    return answer


async def metric(proxy: ProxyProcess, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", await asyncio.to_thread(proxy.metrics), re.MULTILINE)
    assert found, name
    return float(found[1])


def sizes(upstream: RawUpstream) -> list[int]:
    return [len(json.loads(request.body)["input"]["texts"]) for request in upstream.requests]


@pytest.mark.parametrize(("workers", "has_redis"), [(2, True), (1, False)])
async def test_misses_of_one_moment_are_few_calls_and_right(
    redis_server: RedisServer, workers: int, has_redis: bool
) -> None:
    async with (
        RawUpstream(answers.after(0.05, telling())) as upstream,
        batching(redis_server, upstream, workers=workers) as proxy,
    ):
        if not has_redis:
            redis_server.kill()
        responses = await ask_all([*SINGLES, *SINGLES[:20]], proxy.http_port)
        assert all(map(is_right, responses, [*SINGLES, *SINGLES[:20]]))
        calls, asked = len(upstream.requests), asked_texts(upstream)
        assert calls <= 150, "unbatched, they would be 200"
        if has_redis:  # else, with the memory tier off, there is nothing to find for who comes later
            assert set(asked.values()) == {1}
        assert len(asked) == 200
        assert max(sizes(upstream)) <= CAP
        stats = (await asyncio.to_thread(proxy.stats))["operations"]["embedding"]
        assert stats["upstream_calls"] == calls
        batches = sum(size > 1 for size in sizes(upstream))
        assert await metric(proxy, "dashcache_batch_items_count") == batches
        assert await metric(proxy, "dashcache_batch_items_sum") == sum(size for size in sizes(upstream) if size > 1)
        assert await metric(proxy, "dashcache_batches_undone_total") == 0
        if has_redis:
            await wait_until(lambda: len(redis_server.entries()) >= 200, what="the entries")
            again = await ask_all(SINGLES, proxy.http_port)
            assert all(map(is_right, again, SINGLES))
            assert len(upstream.requests) == calls


async def test_s1_batches_hold_one_credential_and_nobodys_request_id(redis_server: RedisServer) -> None:
    async with RawUpstream(telling()) as upstream, batching(redis_server, upstream) as proxy:

        async def ask(number: int) -> tuple[RawResponse, object]:
            lines = bearer(f"sk-{number % 3}", (b"X-Request-Id", b"%d" % number), (b"X-Kind", b"%d" % (number % 2)))
            body = native(f"text {number}")
            async with await RawClient.connect(proxy.http_port) as client:
                response = await client.request("POST", NATIVE, lines, body)
            return response, told(NATIVE, lines, body)

        # What the vendor tells hangs on every header that may change an answer.
        for response, expected in await asyncio.gather(*(ask(number) for number in range(60))):
            assert heard(response) == expected
        assert max(sizes(upstream)) > 1
        for request in upstream.requests:
            numbers = {int(text.split()[1]) for text in json.loads(request.body)["input"]["texts"]}
            assert len({(number % 3, number % 2) for number in numbers}) == 1
            assert (request.header("X-Request-Id") is None) == (len(numbers) > 1)


async def test_one_bad_text_makes_nobody_else_suffer(redis_server: RedisServer) -> None:
    bodies = [native(f"text {number}") for number in range(7)]
    async with (
        RawUpstream(refusing("bad")) as upstream,
        # One slot: what came of the batch must have let go of it before anybody asks again.
        batching(redis_server, upstream, upstream_max_inflight=1) as proxy,
    ):
        bad, *others = await ask_all([native("bad"), *bodies], proxy.http_port)
        assert all(map(is_right, others, bodies))
        assert (bad.status, json.loads(bad.body)["message"]) == (400, "['bad']"), "its own answer, and no other's text"
        assert "stored" not in cache_status(bad)
        assert len(upstream.requests) <= 2 + 8
        assert await metric(proxy, "dashcache_batches_undone_total") == sum(size > 1 for size in sizes(upstream))
        assert "dashcache_background_failures_total 0.0" in await asyncio.to_thread(proxy.metrics)


@pytest.mark.parametrize("lasts", [False, True], ids=["once", "always"])
async def test_r5_a_failing_upstream_is_not_asked_more_than_without_batches(
    redis_server: RedisServer, lasts: bool, record_property: Callable[[str, object], None]
) -> None:
    failing = answers.respond_json(b'{"code":"InternalError","message":"no","request_id":"r"}', 500)
    bodies = SINGLES[: 4 * CAP]
    async with (
        RawUpstream(failing if lasts else failing_the_first_batch(failing)) as upstream,
        # Full batches go at once, so however late some of the requests are, nearly all of them go together.
        batching(redis_server, upstream, batching_window_ms=1000) as proxy,
    ):
        responses = await ask_all(bodies, proxy.http_port)
        if lasts:
            assert {response.status for response in responses} == {500}
            assert len(upstream.requests) <= len(bodies) // 2
            record_property("figure", f"{len(upstream.requests)} upstream calls for {len(bodies)} batched requests")
        else:
            assert all(map(is_right, responses, bodies))
            assert max(sizes(upstream)) > 1
            assert len(upstream.requests) <= len(bodies)


async def test_r6b_the_first_of_a_batch_may_leave(redis_server: RedisServer) -> None:
    gate = Gate()
    async with RawUpstream(telling()) as upstream, batching(redis_server, upstream) as proxy:
        await make_warm(proxy, upstream, WARM)
        upstream.answer = answers.after(gate, telling())
        first = await RawClient.connect(proxy.http_port)
        async with flock(CAP - 1, proxy.http_port) as others:
            await first.send(request_bytes("POST", NATIVE, LINES, native("cold")))
            await others.send(SINGLES[: CAP - 1])
            await upstream.wait_requests()
            await all_wait(proxy, WARM)
            first.abort()
            await wait_until(lambda: any(record.get("client_gone") for record in proxy.logs), what="its leaving")
            gate.open()
            responses = await others.read()
        assert all(map(is_right, responses, SINGLES))
        assert sum(sizes(upstream)) == CAP


async def test_r8_when_all_of_a_batch_have_left_the_upstream_is_let_go(redis_server: RedisServer) -> None:
    async with RawUpstream(telling()) as upstream, batching(redis_server, upstream) as proxy:
        await make_warm(proxy, upstream, WARM)
        upstream.answer = answers.hang()
        async with flock(CAP, proxy.http_port) as clients:
            await clients.send(SINGLES[:CAP])
            await wait_until(lambda: sum(sizes(upstream)) == CAP, what="all texts asked for")
            asked = [request.connection for request in upstream.requests]
            left_s = time.monotonic()
            for client in clients.clients:
                client.abort()
            await wait_until(lambda: all(c.peer_closed_at for c in asked), what="the closings")
            assert max(c.peer_closed_at or 0 for c in asked) - left_s <= 0.25
        upstream.answer = telling()
        assert is_right((await ask_all(SINGLES[:1], proxy.http_port))[0], SINGLES[0])


async def test_a_large_request_is_cut_and_rejoined(redis_server: RedisServer) -> None:
    body = native(*(f"text {number % 37}" for number in range(50)))
    async with RawUpstream(telling()) as upstream, batching(redis_server, upstream) as proxy:
        (response,) = await ask_all([body], proxy.http_port)
        assert is_right(response, body)
        assert sorted(sizes(upstream)) == [7, 10, 10, 10]
        assert set(asked_texts(upstream).values()) == {1}
        assert json.loads(response.body)["usage"]["total_tokens"] >= 37 * 7
        await wait_until(lambda: len(redis_server.entries()) >= 37, what="the entries")
        (again,) = await ask_all([body], proxy.http_port)
        assert heard(again) == heard(response)
        assert "hit" in cache_status(again)
        assert len(upstream.requests) == 4


async def test_after_a_piece_was_refused_only_the_rest_is_asked_for(redis_server: RedisServer) -> None:
    body = native(*(f"text {number}" for number in range(25)))
    async with (
        RawUpstream(refusing("text 15", 429)) as upstream,
        batching(redis_server, upstream, batching_parallel=1) as proxy,
    ):
        (response,) = await ask_all([body], proxy.http_port)
        assert response.status == 429
        assert sizes(upstream) == [10, 10]
        await wait_until(lambda: len(redis_server.entries()) >= 10, what="the entries")
        upstream.answer = telling()
        (response,) = await ask_all([body], proxy.http_port)
        assert is_right(response, body)
        assert sizes(upstream)[2:] == [10, 5]


async def test_without_the_settings_nothing_is_put_together_or_cut(redis_server: RedisServer) -> None:
    large = native(*(f"text {number}" for number in range(11)))
    off = {"batching_window_ms": 0, "batching_cut": "false"}
    async with RawUpstream(telling()) as upstream, batching(redis_server, upstream, **off) as proxy:
        responses = await ask_all([*SINGLES[:20], large], proxy.http_port)
        assert all(map(is_right, responses, [*SINGLES[:20], large]))
        assert sorted(sizes(upstream)) == [1] * 20 + [11]
        assert "over-cap" in cache_status(responses[-1])
