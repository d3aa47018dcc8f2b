"""S3: whatever was refused before, by us or by the vendor, the next good request is answered well."""

import json

import pytest

from tests.scenario.telling import NATIVE, bearer, heard, native, telling, told
from tests.scenario.wire_rig import WireRig
from tests.support import answers
from tests.support.raw_client import RawClient, request_bytes

pytestmark = pytest.mark.asyncio(loop_scope="module")

LINES = bearer("sk-1")
BODY = native("one")


def with_line(name: bytes, value: bytes) -> bytes:
    return request_bytes("POST", NATIVE, (*LINES, (name, value)), BODY)


# What our own parser and limits refuse; a cache that kept that answer would deny the text to everybody (CPDoS).
REFUSED_BY_US = {
    "a line too long": (with_line(b"X-Oversized", b"y" * 70_000), 431),
    "too many lines": (request_bytes("POST", NATIVE, (*LINES, *[(b"X-Many", b"y")] * 300), BODY), 431),
    "a control character": (with_line(b"X-Meta", b"a\x01b"), 400),
    "two lengths": (with_line(b"Content-Length", b"3"), 400),
    "a method nobody knows": (request_bytes("FROBNICATE", NATIVE, LINES, BODY), 400),
    "an expectation": (with_line(b"Expect", b"a-miracle"), 417),
}


async def assert_good(rig: WireRig, client: RawClient) -> None:
    """Asked twice: from the upstream, and then from the cache."""
    rig.upstream.answer = telling()
    for _ in range(2):
        response = await client.request("POST", NATIVE, LINES, BODY)
        assert response.status == 200
        assert heard(response) == told(NATIVE, LINES, BODY)


@pytest.mark.parametrize(("data", "status"), [pytest.param(*case, id=name) for name, case in REFUSED_BY_US.items()])
async def test_s3_what_we_refuse_is_not_kept(rig: WireRig, data: bytes, status: int) -> None:
    rig.upstream.answer = telling()
    async with await rig.client() as client:
        await client.send(data)
        assert (await client.read_response(method="POST")).status == status
    async with await rig.client() as client:
        await assert_good(rig, client)


@pytest.mark.parametrize(
    "status", [300, 301, 304, 400, 401, 403, 404, 408, 409, 413, 418, 429, 431, 500, 502, 503, 504]
)
@pytest.mark.parametrize("is_right", [False, True], ids=["error", "with a right body"])
async def test_s3_no_status_but_200_is_kept(rig: WireRig, status: int, is_right: bool) -> None:
    """However right the body, and even if it says that it may be kept."""
    body = json.dumps({"code": "InternalError", "message": "no", "request_id": "v"}).encode()
    if is_right:
        rig.upstream.answer = telling()
        async with await rig.client() as client:
            body = (await client.request("POST", NATIVE, bearer("sk-other"), native(f"for {status}"))).body
    text = native(f"status {status} {is_right}")
    rig.upstream.answer = answers.respond_json(
        b"" if status == 304 else body, status, [(b"Cache-Control", b"max-age=60")]
    )
    async with await rig.client() as client:
        # A credential of its own: what is refused with 401 or 403 ends all hits of whoever asked.
        lines = bearer(f"sk-{status}-{is_right}")
        assert (await client.request("POST", NATIVE, lines, text)).status == status
        rig.upstream.answer = telling()
        response = await client.request("POST", NATIVE, lines, text)
        assert response.status == 200
        assert heard(response) == told(NATIVE, lines, text)
