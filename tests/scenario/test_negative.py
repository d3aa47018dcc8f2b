"""Negative caching: a vendor's error is repeated to the very same content, for moments, and only the kinds set."""

import asyncio
import json

import pytest

from tests.scenario.telling import COMPATIBLE, NATIVE, Lines, bearer, native, telling
from tests.support import answers
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient, RawResponse
from tests.support.raw_upstream import Answer, RawUpstream
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

LINES = bearer("sk-one")
ALL_ON = {
    f"DASHCACHE_NEGATIVE_{kind}_S": "60" for kind in ("INVALID_PARAMETER", "EMPTY_INPUT", "ILLEGAL_INPUT", "TOO_LARGE")
}
LASTING = ("InvalidParameter", "BadRequest.EmptyInput", "BadRequest.IllegalInput", "BadRequest.TooLarge")
# With the status that the vendor gives it, and with 400, lest one look at the status alone.
PASSING = {
    "Arrearage": 400,
    "DataInspectionFailed": 400,
    "InvalidParameter.DataInspection": 400,
    "Throttling.AllocationQuota": 400,
    "BadRequest.InputDownloadFailed": 400,
    "UnsupportedOperation": 400,
    "InvalidApiKey": 401,
    "AccessDenied": 403,
    "ModelNotFound": 404,
    "Throttling": 429,
    "InternalError": 500,
    "ModelUnavailable": 503,
}


def error(code: str, status: int = 400, **lines: str) -> Answer:
    body = json.dumps({"code": code, "message": "no", "request_id": "vendor-1"}).encode()
    headers = [(name.encode().replace(b"_", b"-"), value.encode()) for name, value in lines.items()]
    return answers.respond_json(body, status, headers)


async def ask(client: RawClient, text: str, lines: Lines = LINES, target: str = NATIVE) -> RawResponse:
    body = native(text) if target == NATIVE else json.dumps({"model": "text-embedding-v4", "input": text}).encode()
    return await client.request("POST", target, lines, body)


def status_of(response: RawResponse) -> str:
    return (response.header("Cache-Status") or b"").decode()


async def test_lasting_errors_are_repeated_and_no_others() -> None:
    async with (
        RawUpstream(telling()) as upstream,
        ProxyProcess(dashscope_url=upstream.url, env=ALL_ON) as proxy,
        await RawClient.connect(proxy.http_port) as client,
    ):
        for code in LASTING:
            upstream.answer = error(code)
            first, second = await ask(client, code), await ask(client, code)
            assert (first.status, second.status) == (400, 400)
            assert second.body == first.body
            assert second.header("Content-Type") == b"application/json"
            assert "fwd=miss; fwd-status=400" in status_of(first)
            assert status_of(second) == "dashcache; hit; detail=negative"
        assert len(upstream.requests) == len(LASTING)
        upstream.requests.clear()
        for code, status in PASSING.items():
            for told in (status, 400):
                upstream.answer = error(code, told)
                assert [(await ask(client, code)).status for _ in range(2)] == [told] * 2
        assert len(upstream.requests) == 4 * len(PASSING)
        text = await asyncio.to_thread(proxy.metrics)
        assert 'dashcache_requests_total{operation="embedding",state="negative"} 4.0' in text


async def test_in_the_other_dialect_too() -> None:
    body = json.dumps({"error": {"code": "invalid_parameter_error", "message": "no"}}).encode()
    async with (
        RawUpstream(answers.respond_json(body, 400)) as upstream,
        ProxyProcess(dashscope_url=upstream.url, env=ALL_ON) as proxy,
        await RawClient.connect(proxy.http_port) as client,
    ):
        told = [await ask(client, "a", target=COMPATIBLE) for _ in range(3)]
        assert [(response.status, response.body) for response in told] == [(400, body)] * 3
        assert len(upstream.requests) == 1


async def test_an_error_is_of_one_content_one_credential_and_one_moment(redis_server: RedisServer) -> None:
    env = {**ALL_ON, "DASHCACHE_NEGATIVE_INVALID_PARAMETER_S": "1"}
    async with (
        RawUpstream(error("InvalidParameter")) as upstream,
        ProxyProcess(dashscope_url=upstream.url, redis_url=redis_server.url, env=env) as proxy,
        await RawClient.connect(proxy.http_port) as client,
    ):
        assert (await ask(client, "a")).status == 400
        for other in (("b", LINES), ("a", bearer("sk-two")), ("a", bearer("sk-one", (b"Cache-Control", b"no-cache")))):
            calls = len(upstream.requests)
            assert "negative" not in status_of(await ask(client, *other))
            assert len(upstream.requests) == calls + 1
        upstream.answer = telling()

        async def is_good() -> bool:
            return (await ask(client, "a")).status == 200

        await wait_until(is_good, what="the end of the error")
        await wait_until(lambda: len(redis_server.entries()) == 1, what="the entry of a good answer, and no other")


@pytest.mark.parametrize(
    ("env", "refusals"),
    [
        ({}, [error("InvalidParameter")]),
        ({"DASHCACHE_NEGATIVE_TOO_LARGE_S": "60"}, [error("InvalidParameter")]),
        (
            ALL_ON,
            [
                error("InvalidParameter" + " " * 5_000),
                error("InvalidParameter", Set_Cookie="who=you"),
                answers.respond_json(b"InvalidParameter", 400),
                answers.respond_json(b'{"code":["InvalidParameter"]}', 400),
            ],
        ),
    ],
    ids=["off", "on for others", "on"],
)
async def test_what_is_not_repeated(env: dict[str, str], refusals: list[Answer]) -> None:
    async with (
        RawUpstream(telling()) as upstream,
        ProxyProcess(dashscope_url=upstream.url, env=env) as proxy,
        await RawClient.connect(proxy.http_port) as client,
    ):
        for number, refusal in enumerate(refusals):
            upstream.answer = refusal
            assert [(await ask(client, f"text {number}")).status for _ in range(2)] == [400, 400]
            assert len(upstream.requests) == 2 * (number + 1)
