"""The vendor's errors reach the client exactly as they were sent, whether or not the route is ours to cache."""

import json
from pathlib import Path

import pytest

from tests.scenario.wire_rig import WireRig, by_name
from tests.support import answers
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAMPLES = Path(__file__).parents[1] / "samples" / "dashscope"
EXCHANGES = json.loads((SAMPLES / "index.json").read_text())["exchanges"]
ERRORS = [name for name, exchange in EXCHANGES.items() if exchange["status"] >= 400]

NATIVE = "/api/v1/services/embeddings/text-embedding/text-embedding"
COMPATIBLE = "/compatible-mode/v1/embeddings"
BODIES = {
    NATIVE: b'{"model":"text-embedding-v4","input":{"texts":["%b"]}}',
    COMPATIBLE: b'{"model":"text-embedding-v4","input":["%b"]}',
    "/api/v1/services/aigc/text-generation/generation": b'{"model":"qwen","input":{"prompt":"%b"}}',
}
CREDENTIALS = [(b"Authorization", b"Bearer sk-1")]


@pytest.mark.parametrize("target", BODIES)
@pytest.mark.parametrize("name", ERRORS)
async def test_s3_an_error_comes_back_as_it_was_sent_and_is_not_kept(rig: WireRig, name: str, target: str) -> None:
    exchange = EXCHANGES[name]
    body = (SAMPLES / exchange["response_body"]).read_bytes()
    extra = exchange.get("response_headers_extra", {}).items()
    lines = [(key.encode(), value.encode()) for key, value in extra if key.lower() != "content-length"]
    sent = [(b"content-type", b"application/json"), *lines, (b"content-length", b"%d" % len(body))]
    rig.upstream.answer = answers.raw(
        answers.status_line(exchange["status"]) + b"".join(b"\r\n%b: %b" % line for line in sent) + b"\r\n\r\n" + body
    )
    request = BODIES[target] % name.encode()
    async with await rig.client() as client:
        for _ in range(2):
            response = await client.post(target, request, CREDENTIALS)
            assert (response.status, response.body) == (exchange["status"], body)
            received = by_name(response.headers, b"date", b"cache-status", b"x-dashcache-items")
            assert received == by_name(sent)
    assert [each.body for each in rig.upstream.requests] == [request, request]


async def test_s3_an_error_within_a_200_is_passed_on_and_not_kept(rig: WireRig) -> None:
    body = b'{"code":"InternalError","message":"later","request_id":"r-1"}'
    rig.upstream.answer = answers.respond_json(body)
    request = BODIES[NATIVE] % b"error in 200"
    async with await rig.client() as client:
        for count in (1, 2):
            response = await client.post(NATIVE, request, CREDENTIALS)
            assert (response.status, response.body) == (200, body)
            await wait_until(lambda wanted=count: len(rig.upstream.requests) == wanted)
