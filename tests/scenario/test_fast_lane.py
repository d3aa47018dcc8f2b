"""
The fast lane in the real product: known requests in every way of sending them, and what ends or revokes it.

Each test says the same of a proxy without the lane where that tells that the lane changes nothing.
"""

import asyncio
import contextlib
import re
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.scenario.telling import NATIVE, bearer, heard, native, state, telling, told
from tests.support import wire
from tests.support.certificate import made_certificate
from tests.support.child import send_signal
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient, RawResponse, request_bytes
from tests.support.raw_upstream import RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEEPALIVE_S = 2.5  # and 3 seconds for a body: a busy machine may pause a client between its two writes
LIMITS = {"DASHCACHE_LIMITS_KEEPALIVE_S": f"{KEEPALIVE_S}", "DASHCACHE_LIMITS_BODY_IDLE_S": "3"}
_REQUESTS = re.compile(r'dashcache_requests_total\{operation="embedding",state="hit"\} ([\d.]+)')
_COUNTED = re.compile(r'dashcache_request_duration_seconds_count\{operation="embedding",state="hit"\} ([\d.]+)')


@dataclass
class Rig:
    """One worker before a Redis of its own and an upstream that refuses who is in `revoked`."""

    upstream: RawUpstream
    proxy: ProxyProcess
    revoked: set[str]
    redis: RedisServer

    async def client(self) -> RawClient:
        return await RawClient.connect(self.proxy.http_port)

    def asked(self, text: str) -> int:
        """How often the upstream was asked for *text*."""
        return sum(request.body == native(text) for request in self.upstream.requests)


@contextlib.asynccontextmanager
async def rig_with(**env: str) -> AsyncIterator[Rig]:
    revoked: set[str] = set()

    def is_welcome(request: RecordedRequest) -> bool:
        return (request.head.get("Authorization") or b"").decode().removeprefix("Bearer ") not in revoked

    with RedisServer() as redis:
        async with (
            RawUpstream(telling(is_welcome)) as upstream,
            ProxyProcess(dashscope_url=upstream.url, redis_url=redis.url, env={**LIMITS, **env}) as proxy,
        ):
            yield Rig(upstream, proxy, revoked, redis)


KINDS = {
    "lane": {},
    "lane to redis": {"DASHCACHE_MEMORY_MAX_BYTES": "0"},
    "no lane": {"DASHCACHE_MEMORY_FAST_LANE": "false"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with rig_with(**KINDS[request.param]) as made:
        yield made


def known(text: str, key: str = "sk-lane", *others: tuple[bytes, bytes]) -> bytes:
    return request_bytes("POST", NATIVE, bearer(key, *others), native(text))


def right(text: str, response: RawResponse, key: str = "sk-lane", *others: tuple[bytes, bytes]) -> bool:
    return heard(response) == told(NATIVE, bearer(key, *others), native(text))


async def ask(client: RawClient, *pieces: bytes, every_s: float | None = None) -> RawResponse:
    for at, piece in enumerate(pieces):
        if at and every_s is not None:
            await asyncio.sleep(every_s)  # for the proxy to see the piece by itself
        await client.send(piece)
    return await client.read_response(method="POST")


async def warm(client: RawClient, text: str, key: str = "sk-lane", *others: tuple[bytes, bytes]) -> bytes:
    """A request that was a hit twice."""
    data = known(text, key, *others)

    async def is_hit() -> bool:
        response = await ask(client, data)
        assert right(text, response, key, *others)
        return state(response) == "hit"

    assert not await is_hit()
    await wait_until(is_hit, what="the entry to be kept")  # for others to find: in Redis, a moment after the answer
    assert await is_hit()
    return data


def split(data: bytes) -> tuple[bytes, bytes]:
    end = data.index(b"\r\n\r\n") + 4
    return data[:end], data[end:]


def cut(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


WAYS: dict[str, tuple[Callable[[bytes], list[bytes]], float | None]] = {
    "in one write": (lambda data: [data], None),
    "head, then body": (lambda data: [*split(data)], None),
    "head, then body at once": (lambda data: [*split(data)], 0.001),
    "head, then body a while later": (lambda data: [*split(data)], 0.05),
    "byte by byte": (cut, None),
    "the body byte by byte": (lambda data: [split(data)[0], *cut(split(data)[1])], 0.0002),
    "a part of the head first": (lambda data: [data[:30], data[30:]], 0.01),
}


@pytest.mark.parametrize("way", WAYS)
async def test_however_a_known_request_comes_its_answer_is_the_same(rig: Rig, way: str) -> None:
    pieces, every_s = WAYS[way]
    text = way
    ids = set()
    async with await rig.client() as client:
        data = await warm(client, text)
        for _ in range(5):
            response = await ask(client, *pieces(data), every_s=every_s)
            assert (response.status, state(response)) == (200, "hit")
            assert right(text, response)
            assert response.header("X-Dashcache-Items") == b"1/1"
            assert response.header("Connection") is None
            ids.add(response.header("X-Request-Id"))
    assert len(ids) == 5
    assert sum(native(text) == request.body for request in rig.upstream.requests) == 1


async def test_pipelined_requests_are_answered_in_their_order(rig: Rig) -> None:
    async with await rig.client() as client:
        texts = ["first in line", "second in line"]
        data = [await warm(client, text) for text in texts]
        order = [0, 1, 1, 0, 0, 1] * 5
        await client.send(b"".join(data[at] for at in order[:10]))
        for at in order[10:]:
            await client.send(data[at])
        for at in order:
            assert right(texts[at], await client.read_response(method="POST"))


async def test_no_two_credentials_and_no_two_texts_are_mixed(rig: Rig) -> None:
    """Many connections at once, each repeating its own requests between those of others."""

    async def one(number: int) -> None:
        async with await rig.client() as client:
            asked = [(f"text {at} of {number % 3}", f"sk-{number % 4}") for at in range(3)]
            for at in range(40):
                text, key = asked[at % 3]
                response = await ask(client, *(split(known(text, key)) if at % 2 else (known(text, key),)))
                assert right(text, response, key)

    await asyncio.gather(*(one(number) for number in range(12)))


async def test_a_bypass_holds_for_known_requests(rig: Rig) -> None:
    async with await rig.client() as client:
        data = await warm(client, "bypassed")
        await asyncio.to_thread(rig.proxy.mode, "bypass")
        try:

            async def is_past() -> bool:
                return state(await ask(client, data)) == "bypass"

            await wait_until(is_past, what="the bypass")
            before = len(rig.upstream.requests)
            for _ in range(20):
                assert state(await ask(client, *split(data))) == "bypass"
            assert len(rig.upstream.requests) == before + 20
        finally:
            await asyncio.to_thread(rig.proxy.mode, "on")

        async def is_back() -> bool:
            return state(await ask(client, data)) == "hit"

        await wait_until(is_back, what="hits again")


async def test_a_purge_holds_for_known_requests(rig: Rig) -> None:
    async with await rig.client() as client:
        data = await warm(client, "purged")
        for _ in range(3):
            answer = await asyncio.to_thread(rig.proxy.admin, "POST", "/v1/purge", {"model": "text-embedding-v4"})
            assert answer.status == 200
            assert await warm(client, "purged") == data


async def test_s17_a_refused_credential_gets_no_known_answer(rig: Rig) -> None:
    key = "sk-refused"
    async with await rig.client() as client, await rig.client() as other:
        data = await warm(client, "refused", key)
        rig.revoked.add(key)
        assert (await ask(other, known("something else", key))).status == 401
        for _ in range(3):
            assert (await ask(client, data)).status == 401
        rig.revoked.clear()
        assert await warm(client, "refused", key) == data


async def bypass(rig: Rig, _key: str) -> None:
    await asyncio.to_thread(rig.proxy.mode, "bypass")


async def purge(rig: Rig, _key: str) -> None:
    await asyncio.to_thread(rig.proxy.admin, "POST", "/v1/purge", {"model": "text-embedding-v4"})


async def refuse(rig: Rig, key: str) -> None:
    rig.revoked.add(key)
    async with await rig.client() as other:
        assert (await ask(other, known("beside", key))).status == 401


async def test_what_changes_between_two_of_many_quick_answers_counts(rig: Rig) -> None:
    """A client asks without a pause, so that answers are ready; each change counts once it is said to hold."""
    async with await rig.client() as client:
        for change, status in ((bypass, 200), (purge, 200), (refuse, 401)):
            text, key = f"quick, then {change.__name__}", "sk-quick"
            data = await warm(client, text, key)
            for _ in range(200):
                assert state(await ask(client, data)) == "hit"
            assert rig.asked(text) == 1
            try:
                async with asyncio.TaskGroup() as group:
                    changing = group.create_task(change(rig, key))
                    while not changing.done():
                        await ask(client, data)
                assert (await ask(client, data)).status == status
                assert rig.asked(text) > 1, f"{change.__name__}: no request went on"
            finally:
                rig.revoked.clear()
                await asyncio.to_thread(rig.proxy.mode, "on")


async def test_a_wish_is_looked_at_each_time(rig: Rig) -> None:
    async with await rig.client() as client:
        await warm(client, "young", "sk-lane", (b"Cache-Control", b"max-age=1"))
        data, states = known("young", "sk-lane", (b"Cache-Control", b"max-age=1")), list[str]()

        async def is_too_old() -> bool:
            states.append(state(await ask(client, data)))
            return states[-1] == "miss"

        await wait_until(is_too_old, what="the entry to be too old")
        assert states.count("hit") >= 1


async def test_s2_what_goes_on_are_the_lines_of_the_request_itself(rig: Rig) -> None:
    """Lines that decide nothing are no part of what is remembered; those that came go to the upstream."""
    async with await rig.client() as client:
        for at in (b"1", b"2", b"3"):
            lines = ((b"X-Request-Id", b"mine-" + at), (b"User-Agent", b"agent-" + at))
            sent = known("present lines", "sk-lane", *lines, (b"Cache-Control", b"no-cache"))
            before = len(rig.upstream.requests)
            assert state(await ask(client, sent)) == "miss"
            (request,) = rig.upstream.requests[before:]
            assert (request.head.get("X-Request-Id"), request.head.get("User-Agent")) == (lines[0][1], lines[1][1])


async def test_s6_a_line_that_connection_names_ends_here_in_each_request(rig: Rig) -> None:
    async with await rig.client() as client:
        for named, expected in ((b"keep-alive", b"a"), (b"keep-alive, User-Agent", None), (b"keep-alive", b"a")):
            lines = ((b"Connection", named), (b"User-Agent", b"a"), (b"Cache-Control", b"no-cache"))
            before = len(rig.upstream.requests)
            await ask(client, known("named", "sk-lane", *lines))
            (request,) = rig.upstream.requests[before:]
            assert request.head.get("User-Agent") == expected


async def test_a_connection_whose_last_answers_were_known_is_closed_when_idle(rig: Rig) -> None:
    async with await rig.client() as client:
        data = await warm(client, "idle")
        began_s = time.monotonic()
        while time.monotonic() - began_s < KEEPALIVE_S * 1.2:  # kept open by what is asked
            assert state(await ask(client, *split(data))) == "hit"
            await asyncio.sleep(0.05)
        last_s = time.monotonic()
        assert await client.read_until_closed(60.0) == b""
        assert time.monotonic() - last_s > KEEPALIVE_S / 2


async def test_a_known_head_whose_body_never_comes_is_refused_in_time(rig: Rig) -> None:
    async with await rig.client() as client:
        data = await warm(client, "without an end")
        await client.send(split(data)[0])
        assert (await client.read_response(method="POST")).status == 408
        assert await client.read_until_closed() == b""


async def test_a_client_that_leaves_behind_a_known_head_leaves_nothing(rig: Rig) -> None:
    async with await rig.client() as client:
        data = await warm(client, "left")
        before = len(rig.upstream.requests)
        for leave in (RawClient.half_close, RawClient.abort):
            async with await rig.client() as other:
                assert state(await ask(other, data)) == "hit"
                await other.send(split(data)[0])
                leave(other)
                assert await other.read_until_closed() == b""
        assert state(await ask(client, data)) == "hit"
        assert len(rig.upstream.requests) == before


@pytest.mark.parametrize("kind", ["lane", "no lane", pytest.param("lane to redis", marks=pytest.mark.slow)])
async def test_a_draining_worker_answers_known_requests_and_says_goodbye(kind: str) -> None:
    async with rig_with(**KINDS[kind], DASHCACHE_LIMITS_NOTICE_S="3") as rig:
        async with await rig.client() as client, await rig.client() as other:
            data = await warm(client, "draining")
            assert state(await ask(other, data)) == "hit"
            send_signal(rig.proxy.pid, signal.SIGTERM)
            await wait_until(lambda: asyncio.to_thread(lambda: not rig.proxy.ready()), what="the notice")

            async def says_goodbye() -> bool:
                async with await rig.client() as asking:
                    return (await ask(asking, *split(data), every_s=0.001)).header("Connection") == b"close"

            await wait_until(says_goodbye, what="Connection: close")
            for asking in (client, other):
                response = await ask(asking, *split(data), every_s=0.001)
                assert state(response) == "hit"
                assert right("draining", response)
                assert response.header("Connection") == b"close"
                assert await asking.read_until_closed() == b""
        assert await asyncio.to_thread(rig.proxy.stop) == 0


@pytest.mark.parametrize("kind", ["lane", "no lane", pytest.param("lane to redis", marks=pytest.mark.slow)])
async def test_r11_a_body_on_its_way_is_read_to_its_end_while_the_worker_drains(kind: str) -> None:
    env = {"DASHCACHE_LIMITS_BODY_IDLE_S": "10", "DASHCACHE_LOG_HITS_SINGLY": "0"}
    async with rig_with(**KINDS[kind], **env) as rig:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(await rig.client()) for _ in range(3)]
            idle, *asking = clients
            data = [await warm(clients[0], "known before the end"), known("new at the end")]
            for client in clients:
                assert state(await ask(client, data[0])) == "hit"
            for client, request in zip(asking, data, strict=True):
                await client.send(split(request)[0])
            send_signal(rig.proxy.pid, signal.SIGTERM)
            assert await idle.read_until_closed() == b""  # by then aiohttp was told to close every connection
            for client, request, expected in zip(asking, data, ("hit", "miss"), strict=True):
                await client.send(split(request)[1])
                response = await client.read_response(method="POST")
                assert (response.status, state(response)) == (200, expected)
                assert response.header("Connection") == b"close"
                assert await client.read_until_closed() == b""
        assert await asyncio.to_thread(rig.proxy.stop) == 0
        # Also the last one, moments before the end, is told of.
        assert sum(line["requests"] for line in rig.proxy.logs if line["event"] == "hits") == 2 + 3 + 1


async def test_without_redis_a_known_request_is_sent_on_and_then_answered_as_before() -> None:
    async with rig_with(**KINDS["lane to redis"], DASHCACHE_BREAKER_RESET_S="0.1") as rig:
        async with await rig.client() as client:
            data = await warm(client, "while Redis is away")
            rig.redis.hang()
            for _ in range(8):  # a read of each fails, or none is tried any more
                response = await ask(client, data)
                assert state(response) == "miss"
                assert right("while Redis is away", response)
            rig.redis.resume()

            async def is_hit() -> bool:
                return state(await ask(client, data)) == "hit"

            await wait_until(is_hit, what="Redis to be asked again")
        asked = [line for line in rig.proxy.logs if line["event"] == "request" and not line["redis_ok"]]
        assert len(asked) >= 8
        assert all(line["redis_ms"] <= line["total_ms"] for line in asked)


async def test_the_same_bytes_at_another_port_are_another_request_however_often_they_come(tmp_path: Path) -> None:
    async with RawUpstream(telling(name="one")) as one, RawUpstream(telling(name="other")) as other:
        file = tmp_path / "upstreams.toml"
        own = f'[[upstreams]]\nname = "other"\nurl = "{other.url}"\nlisten = "127.0.0.1:0"'
        file.write_text(f'dashscope_url = "{one.url}"\n{own}')
        async with ProxyProcess(env={"DASHCACHE_CONFIG": str(file), "DASHCACHE_LOG_HITS_SINGLY": "0"}) as proxy:
            own_port = int(proxy.wait_log(event="ready")["http"][1].rpartition(":")[2])
            async with await RawClient.connect(proxy.http_port) as first, await RawClient.connect(own_port) as second:
                data, asked = known("at two ports"), (NATIVE, bearer("sk-lane"), native("at two ports"))
                for _ in range(400):
                    for client, name in ((first, "one"), (second, "other"), (second, "other"), (first, "one")):
                        assert heard(await ask(client, data)) == told(*asked, by=name)
        assert [len(upstream.requests) for upstream in (one, other)] == [1, 1]


async def test_over_tls_known_requests_are_answered_alike(tmp_path: Path) -> None:
    certificate, key = made_certificate(tmp_path)
    env = {"DASHCACHE_TLS_CERTIFICATE": str(certificate), "DASHCACHE_TLS_KEY": str(key)}
    async with rig_with(DASHCACHE_HTTPS_LISTEN="127.0.0.1:0", **env) as rig:
        trusting = ssl.create_default_context(cafile=str(certificate))
        port, loop = int(rig.proxy.https_url.rpartition(":")[2]), asyncio.get_running_loop()
        reader = wire.PatientReader(limit=wire.STREAM_LIMIT)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, "127.0.0.1", port, ssl=trusting)
        async with RawClient(reader, asyncio.StreamWriter(transport, protocol, reader, loop)) as client:
            data = await warm(client, "over TLS")
            for pieces, every_s in ((split(data), 0.001), ((data,), None), (cut(data), None)) * 3:
                response = await ask(client, *pieces, every_s=every_s)
                assert state(response) == "hit"
                assert right("over TLS", response)
        async with await rig.client() as plain:  # another port, the same memory
            assert state(await ask(plain, data)) == "hit"


async def test_quick_hits_are_counted_exactly_and_told_of_before_the_end() -> None:
    async with rig_with() as rig:
        hits = 0

        async def some(client: RawClient, data: bytes, count: int) -> None:
            nonlocal hits
            for at in range(count):
                assert state(await ask(client, *(split(data) if at % 3 == 0 else (data,)))) == "hit"
                hits += 1

        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(await rig.client()) for _ in range(4)]
            data = await warm(clients[0], "counted")
            hits += 2
            await asyncio.gather(*(some(client, data, 500) for client in clients))

            async def is_counted() -> bool:
                text = await asyncio.to_thread(rig.proxy.metrics)
                requests, counted = _REQUESTS.search(text), _COUNTED.search(text)
                assert requests is not None
                assert counted is not None
                assert float(requests[1]) <= hits
                return float(requests[1]) == float(counted[1]) == hits  # read while they are written, they may differ

            await wait_until(is_counted, what="2,002 hits to be counted")
            await some(clients[0], data, 300)
        assert await asyncio.to_thread(rig.proxy.stop) == 0
        lines = [line for line in rig.proxy.logs if line.get("state") == "hit"]
        together = [line for line in lines if line["event"] == "hits"]
        assert sum(line.get("requests", 1) for line in lines) == hits
        assert sum(line["hits_memory"] for line in lines) == hits
        assert together
        assert len(lines) < hits / 2
        assert {line["upstream"] for line in lines} == {"dashscope"}
