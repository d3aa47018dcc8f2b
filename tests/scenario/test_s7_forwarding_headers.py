"""S7: what a client says of where it comes from, and of what it really wants, moves nothing."""

import json

import pytest

from tests.scenario.telling import NATIVE, bearer, heard, native, telling, told
from tests.scenario.wire_rig import WireRig
from tests.support.canary import assert_absent, make_secret
from tests.support.raw_client import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="module")

LINES = bearer("sk-1")
FORGED = (
    b"Forwarded",
    b"X-Forwarded-For",
    b"X-Forwarded-Host",
    b"X-Forwarded-Proto",
    b"X-Forwarded-Port",
    b"X-Forwarded-Prefix",
    b"X-Forwarded-Uri",
    b"X-Real-IP",
    b"X-Client-IP",
    b"True-Client-IP",
    b"Via",
    b"X-Original-URL",
    b"X-Original-Host",
    b"X-Rewrite-URL",
    b"X-HTTP-Method-Override",
    b"X-HTTP-Method",
    b"X-Method-Override",
)


@pytest.mark.parametrize("name", FORGED)
async def test_s7_a_forged_line_changes_neither_route_nor_key_nor_log(rig: WireRig, name: bytes) -> None:
    rig.upstream.answer = telling()
    canary = make_secret("forged-").encode()
    text = native(f"under {name.decode()}")
    forged = (*LINES, (name, b"DELETE" if b"ethod" in name else b"/admin/" + canary))
    async with await rig.client() as client:
        for lines in (forged, LINES, forged):
            response = await client.request("POST", NATIVE, lines, text)
            # Kept apart or kept together: what comes is what the upstream says to just this request.
            assert response.status == 200
            assert heard(response) == told(NATIVE, lines, text)
    for request in rig.upstream.requests:
        assert (request.method, request.target.decode()) == (b"POST", NATIVE)
        assert request.header("Host") == rig.upstream.url.removeprefix("http://").encode()
    assert_absent(json.dumps(rig.proxy.logs), canary.decode(), where="the log")
    assert_absent(rig.proxy.metrics(), canary.decode(), where="the metrics")


@pytest.mark.parametrize("name", FORGED)
async def test_s7_a_forged_line_opens_no_admin_api(rig: WireRig, name: bytes) -> None:
    """On the data port there is none, whoever one says one is; on its own port the token decides."""
    async with await rig.client() as client:
        response = await client.request("GET", "/healthz", ((name, b"127.0.0.1"),))
        assert response.header("X-Dashcache-Error") is None
    assert rig.upstream.requests[-1].target == b"/healthz", "it went to the upstream like any other path"
    host, _, port = rig.proxy.admin_address.rpartition(":")
    async with await RawClient.connect(int(port)) as admin:
        lines = ((b"Host", f"{host}:{port}".encode()), (name, b"127.0.0.1"), (b"Authorization", b"Bearer wrong"))
        response = await admin.request("PUT", "/v1/mode", (*lines, (b"Content-Type", b"application/json")), b"{}")
        assert response.status in (400, 401, 403)


async def test_s7_the_limit_of_connections_counts_connections(rig: WireRig) -> None:
    """A client that says it is somebody else each time is still one client; see S13 for the limit itself."""
    async with await rig.client() as client:
        for number in range(20):
            forged = ((b"X-Forwarded-For", b"10.0.0.%d" % number),)
            assert (await client.request("GET", f"/{number}", forged)).status == 200
    assert "dashcache_connections" in rig.proxy.metrics()
