"""S1: no answer crosses credentials, workspaces, upstreams or connections (RFC 9111 §3.5; LiteLLM #29955)."""

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.scenario.telling import COMPATIBLE, JSON, NATIVE, Lines, bearer, heard, native, post, state, telling, told
from tests.support import answers
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient
from tests.support.raw_upstream import Answer, RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

CREDENTIALS = (b"authorization", b"x-dashscope-apikey", b"x-dashscope-workspace")
OWNER = bearer("sk-a", (b"X-DashScope-WorkSpace", b"ws-1"))
WORKSPACE = OWNER[-1]
WELCOME = {b"Bearer sk-a", b"Bearer sk-b", b"sk-a", b"sk-b"}

# Who asks for the owner's text, and may not be given the owner's answer.
STRANGERS: dict[str, Lines] = {
    "another key": bearer("sk-b", WORKSPACE),
    "no key": (JSON, WORKSPACE),
    "no key and no workspace": (JSON,),
    "a wrong key": bearer("sk-wrong", WORKSPACE),
    "a revoked key": bearer("sk-revoked", WORKSPACE),
    "an empty key": ((b"Authorization", b""), JSON, WORKSPACE),
    "a blank bearer": ((b"Authorization", b"Bearer "), JSON, WORKSPACE),
    "the scheme in lower case": ((b"Authorization", b"bearer sk-a"), JSON, WORKSPACE),
    "the scheme in upper case": ((b"Authorization", b"BEARER sk-a"), JSON, WORKSPACE),
    "another scheme": ((b"Authorization", b"Basic sk-a"), JSON, WORKSPACE),
    "no scheme": ((b"Authorization", b"sk-a"), JSON, WORKSPACE),
    "two blanks": ((b"Authorization", b"Bearer  sk-a"), JSON, WORKSPACE),
    "the key in another case": bearer("SK-A", WORKSPACE),
    "a longer key": bearer("sk-a1", WORKSPACE),
    "a shorter key": bearer("sk-", WORKSPACE),
    "the key in the other header": ((b"X-DashScope-ApiKey", b"sk-a"), JSON, WORKSPACE),
    "the key in both headers": ((b"X-DashScope-ApiKey", b"sk-a"), *OWNER),
    "the owner's key beside one's own": ((b"X-DashScope-ApiKey", b"sk-a"), *bearer("sk-b", WORKSPACE)),
    "one's own key beside the owner's": ((b"X-DashScope-ApiKey", b"sk-b"), *OWNER),
    "the key twice": ((b"Authorization", b"Bearer sk-a"), *OWNER),
    "the owner's key after one's own": ((b"Authorization", b"Bearer sk-b"), *OWNER),
    "the owner's key before one's own": (*OWNER, (b"authorization", b"Bearer sk-b")),
    "both keys in one line": ((b"Authorization", b"Bearer sk-a, Bearer sk-b"), JSON, WORKSPACE),
    "no workspace": bearer("sk-a"),
    "another workspace": bearer("sk-a", (b"X-DashScope-WorkSpace", b"ws-2")),
    "an empty workspace": bearer("sk-a", (b"X-DashScope-WorkSpace", b"")),
    "two workspaces": (*OWNER, (b"X-DashScope-WorkSpace", b"ws-2")),
    "the workspace in another case": bearer("sk-a", (b"X-DashScope-WorkSpace", b"WS-1")),
    "the workspace where the key belongs": ((b"X-DashScope-ApiKey", b"ws-1"), *bearer("sk-a")),
    "a key for the proxy alone": ((b"Proxy-Authorization", b"Bearer sk-a"), JSON, WORKSPACE),
    "the key as a cookie": ((b"Cookie", b"Authorization=Bearer sk-a"), JSON, WORKSPACE),
    "Connection takes the key away": (*OWNER, (b"Connection", b"close, Authorization")),
    "Connection takes the workspace away": (*OWNER, (b"Connection", b"X-DASHSCOPE-WORKSPACE")),
    "Connection takes one's own key away": (
        *OWNER,
        (b"X-DashScope-ApiKey", b"sk-b"),
        (b"Connection", b"Authorization"),
    ),
    "a gateway's user": (*OWNER, (b"X-Forwarded-User", b"bob")),
    "a gateway's certificate": (*OWNER, (b"X-Forwarded-Client-Cert", b"Subject=bob")),
    "a session": (*OWNER, (b"Cookie", b"session=bob")),
    "bytes beyond ASCII": ((b"Authorization", "Bearer sk-ä".encode()), JSON, WORKSPACE),
    "bytes of no encoding": ((b"Authorization", b"Bearer sk-a\xff"), JSON, WORKSPACE),
}
# The same caller, spelled otherwise.
OWNERS: dict[str, Lines] = {
    "as before": OWNER,
    "other order": OWNER[::-1],
    "names in upper case": tuple((name.upper(), value) for name, value in OWNER),
    "blanks around": tuple((name, b" " + value + b" \t") for name, value in OWNER),
    "Connection names nothing of the kind": (*OWNER, (b"Connection", b"x-authorization, keep-alive")),
}


def is_welcome(request: RecordedRequest) -> bool:
    given = request.head.all("Authorization") + request.head.all("X-DashScope-ApiKey")
    return bool(given) and set(given) <= WELCOME


def sent_as(lines: Lines) -> list[tuple[bytes, bytes]]:
    """The identity that the upstream must see of a request with *lines*."""
    named = {word.strip().lower() for name, value in lines if name == b"Connection" for word in value.split(b",")}
    found = [(name.lower(), value.strip()) for name, value in lines if name.lower() in CREDENTIALS]
    return sorted(line for line in found if line[0] not in named)


@contextlib.asynccontextmanager
async def replicas(upstreams: list[RawUpstream], **env: str) -> AsyncIterator[tuple[RedisServer, list[ProxyProcess]]]:
    """A proxy for each upstream, all with one Redis and one secret."""
    with RedisServer() as redis:
        async with contextlib.AsyncExitStack() as stack:
            yield (
                redis,
                [
                    await stack.enter_async_context(
                        ProxyProcess(
                            dashscope_url=upstream.url,
                            redis_url=redis.url,
                            key_secret="one secret for all",
                            env={"DASHCACHE_REDIS_DEADLINE_MS": "2000", **env},
                        )
                    )
                    for upstream in upstreams
                ],
            )


async def wait_stored(redis: RedisServer, entries: int) -> None:
    await wait_until(lambda: redis.count_entries() >= entries, what=f"{entries} entries in Redis")


def body_for(target: str, *texts: str) -> bytes:
    return native(*texts) if target == NATIVE else json.dumps({"model": "m", "input": texts}).encode()


@pytest.mark.parametrize("target", [NATIVE, COMPATIBLE])
async def test_s1_no_answer_crosses_credentials(target: str) -> None:
    async with RawUpstream(telling(is_welcome)) as upstream, replicas([upstream] * 2) as (redis, (near, far)):
        texts = [f"{name}, {place}" for name in STRANGERS for place in ("memory", "Redis")]
        for number, text in enumerate(texts, 1):
            assert state(await post(near.http_port, target, OWNER, body_for(target, text))) == "miss"
            await wait_stored(redis, number)
        for name, lines in STRANGERS.items():
            for proxy, place in ((near, "memory"), (far, "Redis")):
                body = body_for(target, f"{name}, {place}")
                upstream.requests.clear()
                response = await post(proxy.http_port, target, lines, body)
                if name == "bytes of no encoding" or name.startswith("Connection takes"):  # refused at the door
                    assert (response.status, len(upstream.requests)) == (400, 0)
                    continue
                (request,) = upstream.requests
                arrived = sorted((n.lower(), v) for n, v in request.headers if n.lower() in CREDENTIALS)
                assert (name, arrived) == (name, sent_as(lines))
                expected = told(target, lines, body) if is_welcome(request) else None
                assert expected != told(target, OWNER, body)
                assert (name, heard(response)) == (name, expected)
                assert response.status == (200 if expected else 401)
        for proxy in (near, far):
            for lines in OWNERS.values():
                body = body_for(target, texts[0])
                response = await post(proxy.http_port, target, lines, body)
                assert (state(response), heard(response)) == ("hit", told(target, OWNER, body))


async def test_s1_a_batch_of_ones_own_and_anothers_texts_is_answered_with_ones_own_answers() -> None:
    async with RawUpstream(telling(is_welcome)) as upstream, replicas([upstream]) as (_, (proxy,)):
        theirs, mine = native("a", "b", "c", "d"), native("b", "x", "a", "b", "d")
        await post(proxy.http_port, NATIVE, OWNER, theirs)
        await post(proxy.http_port, NATIVE, bearer("sk-b"), native("b", "e"))
        upstream.requests.clear()
        response = await post(proxy.http_port, NATIVE, bearer("sk-b"), mine)
        assert (state(response), heard(response)) == ("partial", told(NATIVE, bearer("sk-b"), mine))
        assert json.loads(upstream.requests[0].body)["input"]["texts"] == ["x", "a", "d"]


async def test_s1_callers_at_the_same_moment_get_their_own_answers() -> None:
    """Twelve callers, one text, all at once and over again: connections upstream are shared, answers are not."""
    callers = [bearer(f"sk-{number}") for number in range(12)]

    async with RawUpstream(answers.after(0.005, telling())) as upstream, replicas([upstream]) as (_, (proxy,)):

        async def ask(lines: Lines, text: str) -> None:
            async with await RawClient.connect(proxy.http_port) as client:
                for _ in range(3):
                    response = await client.request("POST", NATIVE, lines, native(text))
                    assert heard(response) == told(NATIVE, lines, native(text))

        for round_ in range(5):
            await asyncio.gather(*(ask(lines, f"text {round_}") for lines in callers))
        assert len(upstream.requests) == 5 * len(callers)


def unasked(first: bytes, second: bytes, pause_s: float) -> Answer:
    """The answer, and behind it another one that nobody asked for."""

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        # Else the second would wait for the acknowledgement of the first, which comes with the next request.
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer.write(first)
        await writer.drain()
        await asyncio.sleep(pause_s)
        writer.write(second)

    return answer


def spelled_answer(vector: list[float]) -> bytes:
    document = {"output": {"embeddings": [{"embedding": vector, "text_index": 0}]}, "usage": {"total_tokens": 1}}
    body = json.dumps({**document, "request_id": "x"}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


UNASKED = {
    "an answer": spelled_answer([6.0]),
    "a timeout": b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "half an answer": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Le",
    "a line": b"\r\n",
    "garbage": b"garbage",
}


async def test_s1_what_an_upstream_says_unasked_answers_nobody() -> None:
    """RFC 9112 §9.2: else it would answer the next request on that connection, and be stored as its answer."""
    async with RawUpstream(telling()) as upstream, replicas([upstream]) as (_, (proxy,)):
        for (kind, second), pause_s, number in itertools.product(UNASKED.items(), (0.0, 0.05), range(3)):
            upstream.answer = unasked(spelled_answer([1.0]), second, pause_s)
            first = await post(proxy.http_port, NATIVE, bearer("sk-a"), native(f"{kind} {pause_s} {number}, first"))
            assert heard(first) in ([[1.0]], None)  # garbage in one read with the answer makes that one 502
            await asyncio.sleep(pause_s + 0.02)
            upstream.answer = telling()
            for _ in range(2):
                body = native(f"{kind} {pause_s} {number}, second")
                response = await post(proxy.http_port, NATIVE, bearer("sk-b"), body)
                assert (kind, heard(response)) == (kind, told(NATIVE, bearer("sk-b"), body))


def two_upstreams(folder: Path, one: RawUpstream, other: RawUpstream) -> Path:
    """Settings with three upstreams in two places: by Host, and by a port of its own."""
    file = folder / "upstreams.toml"
    file.write_text(f"""
        dashscope_url = "{one.url}"
        [[upstreams]]
        name = "by-host"
        url = "{other.url}"
        hosts = ["other.internal", "second.internal"]
        [[upstreams]]
        name = "by-port"
        url = "{other.url}"
        listen = "127.0.0.1:0"
    """)
    return file


async def test_s1_upstreams_never_share(tmp_path: Path) -> None:
    """By Host, by port, in absolute form, and by replica: the answer is always that of the place that was asked."""
    async with RawUpstream(telling(name="one")) as one, RawUpstream(telling(name="other")) as other:
        settings = {"DASHCACHE_CONFIG": str(two_upstreams(tmp_path, one, other))}
        async with replicas([one, other], **settings) as (redis, (proxy, replica)):
            own_port = int(proxy.wait_log(event="ready")["http"][1].rpartition(":")[2])
            port = proxy.http_port
            ways = [
                (port, NATIVE, b"localhost", "one"),
                (port, NATIVE, b"nobody.internal", "one"),
                (port, NATIVE, b"other.internal", "other"),
                (port, NATIVE, b"SECOND.internal:80", "other"),
                (port, f"http://other.internal{NATIVE}", b"localhost", "other"),
                (port, f"http://localhost{NATIVE}", b"other.internal", "one"),
                (own_port, NATIVE, b"localhost", "other"),
                (replica.http_port, NATIVE, b"localhost", "other"),
            ]
            stored = 0
            for fill_number, (fill_port, fill_target, fill_host, filled) in enumerate(ways):
                for ask_number, (ask_port, ask_target, ask_host, asked) in enumerate(ways):
                    body = native(f"text {fill_number} {ask_number}")
                    lines = bearer("sk-a")
                    first = await post(fill_port, fill_target, (*lines, (b"Host", fill_host)), body)
                    assert heard(first) == told(NATIVE, lines, body, by=filled)
                    stored += 1
                    await wait_stored(redis, stored)
                    second = await post(ask_port, ask_target, (*lines, (b"Host", ask_host)), body)
                    assert heard(second) == told(NATIVE, lines, body, by=asked)
                    assert state(second) == ("hit" if filled == asked else "miss")
                    stored += filled != asked
                    await wait_stored(redis, stored)
        assert {request.header("Host") for request in one.requests} == {f"127.0.0.1:{one.port}".encode()}
