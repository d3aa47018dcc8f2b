"""R20: an upstream that is the proxy itself, or leads back to it, is seen at once, and nothing hangs."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio
import pytest

from tests.support import answers, wire
from tests.support.ports import PortReservation
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient, RawResponse, request_bytes
from tests.support.raw_upstream import RawUpstream

EMBEDDINGS = "/api/v1/services/embeddings/text-embedding/text-embedding"
COMPATIBLE = "/compatible-mode/v1/embeddings"
LINES = [
    (b"Authorization", b"Bearer k"),
    (b"dashvector-auth-token", b"k"),
    (b"Content-Type", b"application/json"),
]
HANDSHAKE = [
    (b"Connection", b"Upgrade"),
    (b"Upgrade", b"websocket"),
    (b"Sec-WebSocket-Key", base64.b64encode(bytes(16))),
    (b"Sec-WebSocket-Version", b"13"),
]
ANSWER = (
    b'{"output":{"embeddings":[{"text_index":0,"embedding":[0.5,0.25]}]},"usage":{"total_tokens":3},"request_id":"u"}'
)
QUESTION = json.dumps({"model": "text-embedding-v4", "input": {"texts": ["a"]}, "parameters": {"dimension": 2}})
WAYS = {
    "passed": request_bytes("GET", "/x", LINES),
    "uploaded": request_bytes("POST", "/x", LINES, b"x" * 100_000),
    "embedding": request_bytes("POST", EMBEDDINGS, LINES, QUESTION.encode()),
    "compatible": request_bytes("POST", COMPATIBLE, LINES, b'{"model":"text-embedding-v4","input":"a"}'),
    "query": request_bytes("POST", "/v1/collections/c/query", LINES, b'{"vector":[0.5]}'),
    "write": request_bytes("POST", "/v1/collections/c/docs", LINES, b'{"docs":[]}'),
    "websocket": request_bytes("GET", "/api-ws/v1/inference", [*LINES, *HANDSHAKE]),
}
AT_MOST_S = 0.1
ON_A_BUSY_MACHINE = 20


def free_port() -> int:
    """One that the proxy is told of before it listens there."""
    reservation = PortReservation()
    reservation.close()
    return reservation.port


@contextlib.asynccontextmanager
async def proxy_at(port: int, upstream: int, **env: str) -> AsyncIterator[ProxyProcess]:
    url = f"http://127.0.0.1:{upstream}"
    listen = {"DASHCACHE_HTTP_LISTEN": f"127.0.0.1:{port}", **env}
    async with ProxyProcess(dashscope_url=url, dashvector_url=url, env=listen) as proxy:
        yield proxy


async def asked(port: int, way: str) -> tuple[RawResponse, float]:
    began_s = time.monotonic()
    async with await RawClient.connect(port) as client:
        await client.send(WAYS[way])
        response = await client.read_response(timeout=5)
    return response, time.monotonic() - began_s


async def all_are_refused(port: int) -> float:
    """Each way, several times and several at once; the longest that one took."""
    longest_s = 0.0
    for way in WAYS:
        for response, took_s in await asyncio.gather(*(asked(port, way) for _ in range(4))):
            assert response.status == 508, way
            assert response.header("X-Dashcache-Error") == b"LoopDetected"
            assert b"leads back to this proxy" in response.body
            longest_s = max(longest_s, took_s)
    return longest_s


def circles_told(proxy: ProxyProcess) -> list[str]:
    found = [record for record in proxy.logs if record["event"] == "upstream_is_a_circle"]
    assert all(record["level"] == "error" and "hosts file" in record["hint"] for record in found)
    return [record["upstream"] for record in found]


async def test_r20_a_proxy_that_is_its_own_upstream(record_property: Callable[[str, object], None]) -> None:
    port = free_port()
    async with proxy_at(port, port) as proxy:
        longest_s = await all_are_refused(port)
        assert longest_s <= AT_MOST_S * ON_A_BUSY_MACHINE
        assert len(circles_told(proxy)) == 1
        began_s = time.monotonic()
        assert await asyncio.to_thread(proxy.stop) == 0
        assert time.monotonic() - began_s < 15
    record_property("figure", f"{4 * len(WAYS)} requests to itself: 508 after at most {longest_s * 1000:.0f} ms")


async def test_r20_two_proxies_in_a_circle() -> None:
    one, other = free_port(), free_port()
    async with proxy_at(one, other) as first, proxy_at(other, one):
        assert await all_are_refused(one) <= AT_MOST_S * ON_A_BUSY_MACHINE
        assert len(circles_told(first)) == 1


async def test_r20_two_in_a_row_are_no_circle() -> None:
    """Also where they share their secret, and all their settings but the address."""
    async with RawUpstream(answers.respond_json(ANSWER)) as upstream:
        second, first = free_port(), free_port()
        secret = {"DASHCACHE_KEY_SECRET": "k" * 32}
        async with proxy_at(second, upstream.port, **secret), proxy_at(first, second, **secret):
            for way in ("passed", "uploaded", "embedding", "query", "write"):
                response, _ = await asked(first, way)
                assert response.status == 200, way
            names = [item for request in upstream.requests for item in request.head.all("CDN-Loop")]
            assert len(names) == 2 * len(upstream.requests)
            assert len(set(names)) == 2


async def test_r20_what_came_through_others_goes_on_and_is_part_of_no_key() -> None:
    async with RawUpstream(answers.respond_json(ANSWER)) as upstream:
        port = free_port()
        async with proxy_at(port, upstream.port), await RawClient.connect(port) as client:
            for states, said in ((b"miss", b"a.test; x=1"), (b"hit", b"dashcache-0000"), (b"hit", b"a, b")):
                lines = [*LINES, (b"cdn-loop", said)]
                response = await client.request("POST", EMBEDDINGS, lines, QUESTION.encode())
                assert states in (response.header("Cache-Status") or b"")
            (request,) = upstream.requests
            first, own = request.head.all("CDN-Loop")
            assert first == b"a.test; x=1"
            assert own.startswith(b"dashcache-")
            assert sum(name.lower() == b"cdn-loop" for name, _ in request.headers) == 2
            await client.send(request_bytes("POST", EMBEDDINGS, [*LINES, (b"CDN-LOOP", b"x, %b;y=1" % own)], b"{}"))
            assert (await client.read_response(method="POST")).status == 508


async def test_r20_grpc_calls_in_a_circle() -> None:
    port, calls = free_port(), free_port()
    env = {
        "DASHCACHE_GRPC_LISTEN": f"127.0.0.1:{calls}",
        "DASHCACHE_DASHVECTOR_GRPC_URL": f"http://127.0.0.1:{calls}",
    }
    async with proxy_at(port, port, **env) as proxy, grpc.aio.insecure_channel(f"127.0.0.1:{calls}") as channel:
        for method in ("/dashvector.proto.DashVectorService/query", "/dashvector.proto.DashVectorService/upsert_doc"):
            for _ in range(3):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await channel.unary_unary(method)(b"", metadata=(("dashvector-auth-token", "k"),), timeout=5)
                assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                assert "leads back to this proxy" in (error.value.details() or "")
        assert circles_told(proxy) == ["dashvector"]


@pytest.mark.parametrize("named", [b"CDN-Loop", b"cdn-loop"])
async def test_r20_a_circle_cannot_be_hidden_by_naming_its_line(named: bytes) -> None:
    port = free_port()
    async with proxy_at(port, port), await RawClient.connect(port) as client:
        await client.send(wire.head_bytes(b"GET /x HTTP/1.1", [(b"Host", b"a"), (b"Connection", named)]))
        assert (await client.read_response()).status == 508
