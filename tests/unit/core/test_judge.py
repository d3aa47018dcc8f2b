"""Which heads of answers allow their rows to be kept (RFC 9111 §3)."""

import pytest

from proxy.core.judge import refusal
from proxy.core.plan import Refusal

JSON = (b"content-type", b"application/json")


def test_the_vendors_usual_head_is_kept():
    head = (
        JSON,
        (b"x-request-id", b"fde7fe45"),
        (b"vary", b"Accept-Encoding"),
        (b"content-encoding", b"gzip"),
        (b"set-cookie", b"acw_tc=0a0c;path=/;HttpOnly;Max-Age=1800"),
        (b"server", b"istio-envoy"),
    )
    assert refusal(200, head) is None


@pytest.mark.parametrize("status", [201, 202, 203, 204, 206, 301, 304, 400, 401, 403, 404, 413, 429, 500, 502, 503])
def test_only_status_200_is_kept(status):
    assert refusal(status, (JSON,)) is Refusal.STATUS


@pytest.mark.parametrize("value", [b"no-store", b"No-Store", b"private", b'private="x"', b"max-age=5, no-store"])
def test_answers_that_forbid_storing_are_not_kept(value):
    assert refusal(200, (JSON, (b"Cache-Control", value))) is Refusal.NO_STORE


def test_a_second_line_can_forbid_too():
    head = (JSON, (b"cache-control", b"max-age=5"), (b"CACHE-CONTROL", b"no-store"))
    assert refusal(200, head) is Refusal.NO_STORE


@pytest.mark.parametrize("value", [b"*", b"User-Agent", b"Accept-Encoding, X-Tenant", b"cookie"])
def test_answers_that_vary_with_unkeyed_fields_are_not_kept(value):
    assert refusal(200, (JSON, (b"Vary", value))) is Refusal.VARY


def test_the_vendors_long_vary_is_harmless():
    value = b"Origin,Access-Control-Request-Method,Access-Control-Request-Headers, Accept-Encoding"
    assert refusal(200, (JSON, (b"vary", value))) is None


@pytest.mark.parametrize("cookie", [b"session=1", b"ACW_TC=1", b"xacw_tc=1", b" acw_tc=1", b""])
def test_any_cookie_but_affinity_says_that_the_answer_is_personal(cookie):
    head = (JSON, (b"set-cookie", b"acw_tc=1"), (b"Set-Cookie", cookie))
    assert refusal(200, head) is Refusal.SET_COOKIE


@pytest.mark.parametrize(
    "kind",
    [
        None,
        b"text/event-stream",
        b"text/plain",
        b"",
        b"text/html; application/json",
        b"application/jsonl",
        b"application/json-seq; x",
    ],
)
def test_only_json_is_kept(kind):
    head = () if kind is None else ((b"content-type", kind),)
    assert refusal(200, head) is Refusal.CONTENT_TYPE


def test_of_two_kinds_nobody_knows_which_one_is_meant():
    assert refusal(200, (JSON, (b"Content-Type", b"text/html"))) is Refusal.CONTENT_TYPE
    assert refusal(200, (JSON, JSON)) is Refusal.CONTENT_TYPE
    assert refusal(200, ((b"Content-Type", b"Application/JSON ;charset=utf-8"),)) is None


@pytest.mark.parametrize(
    "kind", [b"application/json", b"Application/JSON; charset=utf-8", b"application/json;charset=UTF-8"]
)
def test_json_may_name_its_charset(kind):
    assert refusal(200, ((b"Content-Type", kind),)) is None
