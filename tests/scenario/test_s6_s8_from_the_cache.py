"""S6 and S8 for what the cache gives: no line of one connection is kept, and no text of the vendor's becomes a line."""

import json

import pytest

from tests.scenario.telling import NATIVE, bearer, heard, native, telling, told
from tests.scenario.wire_rig import WireRig
from tests.support import answers
from tests.support.raw_upstream import RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

LINES = bearer("sk-1")
OF_ONE_CONNECTION = [
    (b"Connection", b"keep-alive, X-Named"),
    (b"Keep-Alive", b"timeout=5"),
    (b"Proxy-Authenticate", b"Basic"),
    (b"Proxy-Connection", b"keep-alive"),
    (b"Trailer", b"X-Sum"),
    (b"Upgrade", b"x/1"),
    (b"X-Named", b"secret"),
]


async def right_answer(request: RecordedRequest | None = None, *, request_id: str = "v-1", text: bytes) -> bytes:
    vectors = told(NATIVE, LINES, text)
    rows = [{"text_index": at, "embedding": vector} for at, vector in enumerate(vectors or [])]
    return json.dumps({"output": {"embeddings": rows}, "usage": {"total_tokens": 3}, "request_id": request_id}).encode()


async def test_s6_lines_of_one_connection_are_in_no_entry(rig: WireRig) -> None:
    text = native("hop by hop")
    rig.upstream.answer = answers.respond_json(await right_answer(text=text), headers=OF_ONE_CONNECTION)
    async with await rig.client() as client:
        live = await client.request("POST", NATIVE, LINES, text)
        kept = await client.request("POST", NATIVE, LINES, text)
    assert b"; hit" in (kept.header("Cache-Status") or b"")
    for response in (live, kept):
        assert heard(response) == told(NATIVE, LINES, text)
        for name, _ in OF_ONE_CONNECTION:
            assert response.header(name.decode()) is None
        assert b"secret" not in response.raw


@pytest.mark.parametrize(
    "evil", ["a\r\nSet-Cookie: b=c", "a\nX: y", "a\x00b", "a\u0085b", "ü", 'a"b', "a, b", "x" * 5_000]
)
async def test_s8_a_request_id_of_the_vendors_becomes_no_line(rig: WireRig, evil: str) -> None:
    text = native(f"id {evil!r}")
    rig.upstream.answer = answers.respond_json(await right_answer(request_id=evil, text=text))
    async with await rig.client() as client:
        await client.request("POST", NATIVE, LINES, text)
        kept = await client.request("POST", NATIVE, LINES, text)
    assert b"; hit" in (kept.header("Cache-Status") or b"")
    assert kept.header("X-Dashcache-Origin") is None
    assert kept.header("Set-Cookie") is None
    assert heard(kept) == told(NATIVE, LINES, text)


async def test_s8_an_answer_whose_lines_would_be_split_is_not_kept(rig: WireRig) -> None:
    text = native("split")
    body = await right_answer(text=text)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX: a\rSet-Cookie: b\r\nContent-Length: %d\r\n\r\n"
    rig.upstream.answer = answers.raw(head % len(body) + body)
    async with await rig.client() as client:
        assert (await client.request("POST", NATIVE, LINES, text)).status == 502
        rig.upstream.answer = telling()
        response = await client.request("POST", NATIVE, LINES, text)
        assert b"; hit" not in (response.header("Cache-Status") or b"")
        assert heard(response) == told(NATIVE, LINES, text)


async def test_s5_bytes_arrive_at_the_configured_upstream_alone_also_for_what_is_keyed(rig: WireRig) -> None:
    text = native("nowhere else")
    rig.upstream.answer = telling()
    async with RawUpstream(answers.respond()) as evil, await rig.client() as client:
        authority = evil.url.removeprefix("http://").encode()
        for lines in ((b"Host", authority), (b"X-Forwarded-Host", authority), (b"X-Original-Host", authority)):
            response = await client.request("POST", NATIVE, (*LINES, lines), text)
            assert response.status == 200
        await wait_until(lambda: rig.upstream.requests)
        assert not evil.connections
