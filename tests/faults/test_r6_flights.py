"""R6: a miss storm is one call; nobody in it is special; what goes wrong neither spreads nor stampedes."""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.flock import (
    LINES,
    all_wait,
    ask_all,
    asked_texts,
    cache_status,
    collapsed,
    flock,
    is_right,
    make_warm,
)
from tests.faults.observed import settings
from tests.scenario.telling import NATIVE, native, telling
from tests.support import answers
from tests.support.gate import Gate
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient, request_bytes
from tests.support.raw_upstream import Answer, RawUpstream
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

LATENCY_S = 0.5
WARM = "warm"
SECRET = "one secret for all replicas"


@contextlib.asynccontextmanager
async def proxies(
    redis: RedisServer, upstream: RawUpstream, count: int = 1, *, workers: int = 1, **changes: object
) -> AsyncIterator[list[ProxyProcess]]:
    """Replicas that share a Redis; slow enough a deadline that a busy machine is no trouble with Redis."""
    env = settings(**{"redis_deadline_ms": 3000, "flights_lock_s": 60, **changes})
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                ProxyProcess(
                    dashscope_url=upstream.url, redis_url=redis.url, key_secret=SECRET, workers=workers, env=env
                )
            )
            for _ in range(count)
        ]


def late(answer: Answer | None = None) -> Answer:
    """*answer* after the upstream's latency."""
    return answers.after(LATENCY_S, answer or telling())


async def test_r6a_one_worker_and_500_at_once_are_one_call(redis_server: RedisServer) -> None:
    async with RawUpstream(late()) as upstream, proxies(redis_server, upstream) as (proxy,):
        bodies = [native("cold")] * 500
        responses = await ask_all(bodies, proxy.http_port)
        assert all(map(is_right, responses, bodies))
        assert len(upstream.requests) == 1
        hits = sum("; hit" in cache_status(response) for response in responses)
        assert collapsed(responses) == 499 - hits
        assert collapsed(responses) > 250, "else they came too late to prove anything"
        # Who had to wait can name the vendor's request, too.
        origins = {response.header("X-Dashcache-Origin") for response in responses}
        assert origins <= {None, b"vendor-0"}
        assert sum(response.header("X-Dashcache-Origin") is None for response in responses) == 1
        stats = (await asyncio.to_thread(proxy.stats))["operations"]["embedding"]
        assert (stats["upstream_calls"], stats["coalesced"]) == (1, collapsed(responses))


@pytest.mark.parametrize(("workers", "clients"), [(2, 200), pytest.param(4, 1_000, marks=pytest.mark.slow)])
async def test_r6a_all_workers_of_two_replicas_at_once_are_one_call(
    redis_server: RedisServer, workers: int, clients: int
) -> None:
    async with RawUpstream(late()) as upstream, proxies(redis_server, upstream, 2, workers=workers) as replicas:
        bodies = [native("cold")] * clients
        responses = await ask_all(bodies, *(proxy.http_port for proxy in replicas))
        assert all(map(is_right, responses, bodies))
        assert len(upstream.requests) == 1
        await wait_until(lambda: not claims(redis_server), what="no claim left")


@pytest.mark.parametrize(("replicas", "workers"), [(1, 1), (2, 2)])
async def test_r6a_overlapping_batches_ask_for_each_text_once(
    redis_server: RedisServer, replicas: int, workers: int
) -> None:
    chance = random.Random(6)
    texts = [f"text {number}" for number in range(120)]
    bodies = [native(*chance.choices(texts, k=chance.randrange(1, 11))) for _ in range(991)]
    bodies += [native(*pair) for pair in itertools.permutations(["a", "b", "c"], 2)] + [native("a", "b", "c")] * 3
    async with (
        RawUpstream(answers.after(0.1, telling())) as upstream,
        proxies(redis_server, upstream, replicas, workers=workers) as running,
    ):
        responses = await ask_all(bodies, *(proxy.http_port for proxy in running))
        assert all(map(is_right, responses, bodies))
        assert set(asked_texts(upstream).values()) == {1}
        assert set(asked_texts(upstream)) >= {"a", "b", "c"}
        await wait_until(lambda: not claims(redis_server), what="no claim left")


async def test_r6b_the_first_may_leave(redis_server: RedisServer) -> None:
    gate = Gate()
    async with RawUpstream(telling()) as upstream, proxies(redis_server, upstream) as (proxy,):
        await make_warm(proxy, upstream, WARM)
        upstream.answer = answers.after(gate, telling())
        first = await RawClient.connect(proxy.http_port)
        await first.send(request_bytes("POST", NATIVE, LINES, native("cold")))
        await upstream.wait_requests()
        async with flock(200, proxy.http_port) as followers:
            await followers.send([native("cold")] * 200)
            await all_wait(proxy, WARM)
            first.abort()
            await wait_until(lambda: any(record.get("client_gone") for record in proxy.logs), what="its leaving")
            gate.open()
            responses = await followers.read()
        assert all(is_right(response, native("cold")) for response in responses)
        assert collapsed(responses) == 200
        assert len(upstream.requests) == 1


FAILURES = {
    "502": answers.respond_json(b'{"code":"BadGateway","message":"no","request_id":"r"}', 502),
    "reset": answers.reset(),
    "broken off": answers.truncated(b"{}" * 50, 20, headers=[(b"Content-Type", b"application/json")]),
    "timeout": answers.hang(),
}


@pytest.mark.parametrize(
    ("failure", "lasts"),
    [
        *(pytest.param(failure, False, id=f"{failure}-once") for failure in FAILURES),
        pytest.param("502", True, id="502-always"),
        pytest.param("timeout", True, id="timeout-always"),
        pytest.param("reset", True, id="reset-always", marks=pytest.mark.slow),
        pytest.param("broken off", True, id="broken off-always", marks=pytest.mark.slow),
    ],
)
async def test_r6c_a_failed_flight_neither_spreads_nor_stampedes(
    redis_server: RedisServer, failure: str, lasts: bool
) -> None:
    gate = Gate()
    async with (
        RawUpstream(telling()) as upstream,
        proxies(redis_server, upstream, upstream_read_timeout_s=1.0) as (proxy,),
    ):
        await make_warm(proxy, upstream, WARM)
        failing = answers.after(gate, FAILURES[failure])
        upstream.answer = failing if lasts else answers.in_turn(failing, telling())
        async with flock(201, proxy.http_port) as clients:
            await clients.send([native("cold")] * 201)
            await upstream.wait_requests()
            await all_wait(proxy, WARM)
            gate.open()
            responses = await clients.read()
        assert len(upstream.requests) <= 4
        right = sum(is_right(response, native("cold")) for response in responses)
        failed = [response for response in responses if response.status != 200]
        assert right + len(failed) == 201
        if lasts:
            assert right == 0
            assert {response.status for response in failed} == {504 if failure == "timeout" else 502}
        else:
            assert right >= 200
        assert (await ask_all([native(WARM)], proxy.http_port))[0].status == 200
        assert "dashcache_background_failures_total 0.0" in await asyncio.to_thread(proxy.metrics)


UNCACHEABLE = {
    "too large": answers.respond_json(b"[%b]" % (b" " * 20_000)),
    "no-store": answers.respond_json(b"{}", headers=[(b"Cache-Control", b"no-store")]),
    "429": answers.respond_json(b'{"code":"Throttling","message":"slow down","request_id":"r"}', 429),
}


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("too large", 1),
        ("429", 2),
        *(
            pytest.param(*way, marks=pytest.mark.slow)
            for way in (("no-store", 1), ("429", 1), ("too large", 4), ("no-store", 4))
        ),
    ],
)
async def test_r6d_uncacheable_answers_do_not_queue_people(redis_server: RedisServer, kind: str, workers: int) -> None:
    async with (
        RawUpstream(late(UNCACHEABLE[kind])) as upstream,
        proxies(redis_server, upstream, workers=workers, limits_max_answer_bytes=10_000) as (proxy,),
    ):
        for batch in (1, 2):
            async with flock(50, proxy.http_port) as clients:
                gate = Gate()
                began_s = time.monotonic()
                if batch == 2 and workers == 1:
                    # None of them waits for another: all are at the upstream before it has answered one.
                    upstream.answer = answers.after(gate, UNCACHEABLE[kind])
                    await clients.send([native("cold")] * 50)
                    await upstream.wait_requests(100)
                    gate.open()
                else:
                    await clients.send([native("cold")] * 50)
                responses = await clients.read()
                took_s = time.monotonic() - began_s
            assert {response.status for response in responses} == {429 if kind == "429" else 200}
            assert collapsed(responses) == 0
            assert took_s <= 25 * LATENCY_S, "one after the other they would take 50 times as long as one"
        assert len(upstream.requests) == 100


async def test_r6e_a_killed_holder_delays_the_others_by_its_lease(redis_server: RedisServer) -> None:
    lease_s = 1.0
    gate = Gate()
    async with (
        RawUpstream(telling()) as upstream,
        proxies(redis_server, upstream, 3, flights_lease_s=lease_s) as (holder, *others),
    ):
        await make_warm(others[0], upstream, WARM)
        upstream.answer = answers.in_turn(answers.after(gate, telling()), late())
        async with flock(1, holder.http_port) as lost, flock(100, *(proxy.http_port for proxy in others)) as waiting:
            await lost.send([native("cold")])
            await upstream.wait_requests()
            await waiting.send([native("cold")] * 100)
            for proxy in others:
                await all_wait(proxy, WARM)
            began_s = time.monotonic()
            await asyncio.to_thread(holder.kill)
            responses = await waiting.read()
            took_s = time.monotonic() - began_s
        gate.open()
        assert all(is_right(response, native("cold")) for response in responses)
        assert took_s <= lease_s + LATENCY_S + 0.5, took_s
        assert len(upstream.requests) == 2
        await wait_until(lambda: not claims(redis_server), what="no claim left")


async def test_a_holder_that_is_slow_is_waited_for_beyond_its_lease(redis_server: RedisServer) -> None:
    """As long as two of them: after that its request is taken for one that hangs (R17)."""
    slow = answers.after(1.2, telling())
    async with RawUpstream(slow) as upstream, proxies(redis_server, upstream, 2, flights_lease_s=1.0) as replicas:
        bodies = [native("cold")] * 20
        responses = await ask_all(bodies, *(proxy.http_port for proxy in replicas))
        assert all(map(is_right, responses, bodies))
        assert len(upstream.requests) == 1


async def test_r5_without_redis_each_process_still_asks_once(redis_server: RedisServer) -> None:
    async with RawUpstream(late()) as upstream, proxies(redis_server, upstream, 2) as replicas:
        redis_server.kill()
        bodies = [native("cold")] * 400
        responses = await ask_all(bodies, *(proxy.http_port for proxy in replicas))
        assert all(map(is_right, responses, bodies))
        assert len(upstream.requests) == 2
        assert collapsed(responses) == 398


async def test_redis_may_die_while_one_process_waits_for_another(redis_server: RedisServer) -> None:
    gate = Gate()
    async with RawUpstream(telling()) as upstream, proxies(redis_server, upstream, 2) as (holder, other):
        await make_warm(other, upstream, WARM)
        upstream.answer = answers.after(gate, telling())
        async with flock(1, holder.http_port) as first, flock(20, other.http_port) as waiting:
            await first.send([native("cold")])
            await upstream.wait_requests()
            await waiting.send([native("cold")] * 20)
            await all_wait(other, WARM)
            redis_server.kill()
            await upstream.wait_requests(2)  # nobody waits for a claim that nobody can see
            gate.open()
            responses = [*await first.read(), *await waiting.read()]
        assert all(is_right(response, native("cold")) for response in responses)
        assert len(upstream.requests) == 2


async def test_r8_when_the_last_leaves_the_upstream_is_let_go(redis_server: RedisServer) -> None:
    connections = 8
    async with (
        RawUpstream(telling()) as upstream,
        proxies(redis_server, upstream, redis_max_connections=connections) as (proxy,),
    ):
        await make_warm(proxy, upstream, WARM)
        (worker,) = proxy.worker_pids()
        descriptors = open_files(worker)
        upstream.answer = answers.hang()
        for round_number in range(5):
            text = f"cold {round_number}"
            async with flock(200, proxy.http_port) as clients:
                await clients.send([native(text, f"{text} {number % 3}") for number in range(200)])
                await all_wait(proxy, WARM)
                asked = [request.connection for request in upstream.requests if request.connection.is_open]
                assert 1 <= len(asked) <= 3
                *most, last = clients.clients
                for client in most:
                    client.abort()
                left_s = time.monotonic()
                last.abort()
                await wait_until(lambda asked=asked: all(c.peer_closed_at for c in asked), what="the closings")
                assert max(c.peer_closed_at or 0 for c in asked) - left_s <= 0.25
        assert set(asked_texts(upstream).values()) == {1}
        await wait_until(lambda: open_files(worker) <= descriptors + connections + 2, what="the worker's sockets")
        await wait_until(lambda: not claims(redis_server), what="no claim left")
        upstream.answer = telling()
        assert is_right((await ask_all([native("cold 0")], proxy.http_port))[0], native("cold 0"))


async def test_no_cache_does_not_join_what_is_on_its_way(redis_server: RedisServer) -> None:
    gate = Gate()
    async with RawUpstream(answers.after(gate, telling())) as upstream, proxies(redis_server, upstream) as (proxy,):
        async with flock(1, proxy.http_port) as first, flock(1, proxy.http_port) as fresh:
            await first.send([native("cold")])
            await upstream.wait_requests()
            await fresh.send([native("cold")], (b"Cache-Control", b"no-cache"))
            await upstream.wait_requests(2)
            gate.open()
            responses = [*await first.read(), *await fresh.read()]
        assert all(is_right(response, native("cold")) for response in responses)
        assert collapsed(responses) == 0


async def test_c9_flights_do_not_cross_credentials(redis_server: RedisServer) -> None:
    gate = Gate()
    other = ((b"Authorization", b"Bearer sk-refused"), *LINES[1:])
    answer = telling(lambda request: request.header("Authorization") == LINES[0][1])
    async with RawUpstream(answers.after(gate, answer)) as upstream, proxies(redis_server, upstream) as (proxy,):
        async with flock(1, proxy.http_port) as first, await RawClient.connect(proxy.http_port) as stranger:
            await first.send([native("cold")])
            await upstream.wait_requests()
            await stranger.send(request_bytes("POST", NATIVE, other, native("cold")))
            await upstream.wait_requests(2)
            gate.open()
            (response,) = await first.read()
            assert is_right(response, native("cold"))
            assert (await stranger.read_response(method="POST")).status == 401
        assert {request.header("Authorization") for request in upstream.requests} == {LINES[0][1], other[0][1]}


async def test_an_answer_to_a_part_is_not_taken_for_the_whole(redis_server: RedisServer) -> None:
    """*a* is on its way for another, and what the upstream says of *b* alone cannot be kept."""
    gate = Gate()
    of_b = answers.respond_json(b'{"output":{"embeddings":[]}}', headers=[(b"Cache-Control", b"no-store")])
    async with RawUpstream(answers.in_turn(answers.after(gate, telling()), of_b, telling())) as upstream:
        async with proxies(redis_server, upstream) as (proxy,), flock(1, proxy.http_port) as first:
            await first.send([native("a")])
            await upstream.wait_requests()
            (response,) = await ask_all([native("a", "b")], proxy.http_port)
            assert is_right(response, native("a", "b"))
            gate.open()
            assert is_right((await first.read())[0], native("a"))
        assert asked_texts(upstream) == {"a": 2, "b": 2}


def claims(redis: RedisServer) -> list[bytes]:
    """What is claimed just now."""
    return [key for key in redis.dump() if b":c:" in key]


def open_files(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
