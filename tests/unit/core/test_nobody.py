"""Which errors are true for everybody: about a credential, a quota, or the vendor's own state, and of no position."""

import json

import pytest

from proxy.core.nobody import speaks_of_nobody


def native(message: str, **members: object) -> bytes:
    return json.dumps({"code": "X", "message": message, "request_id": "1-2-3", **members}, ensure_ascii=False).encode()


GENERAL = (
    b"",
    b"busy",
    b"<html><h1>502 Bad Gateway</h1><hr><center>nginx/1.2.3</center></html>",
    native("Requests rate limit exceeded, please try again later."),
    native("You exceeded 1200 requests per second."),
    native("Invalid API-key provided.", error={"id": 2, "param": None, "retryable": True}),
    native("Internal error of text-embedding-v2, request id: 1f0c3a52-0001-4b1e-9c55-111111111111"),
    native("See https://help.example/v1/errors", status=503),
)
OF_AN_ITEM = (
    b"input[1] failed",
    b"<p>input 3</p>",
    native("input[0] failed"),
    native("texts.2: cannot be served"),
    native("item #3"),
    native("item1"),
    native("the second text"),
    native("the Twenty-first text"),
    native("text two"),
    native("the last text"),
    native("第二条"),
    native("input[１]"),  # noqa: RUF001  a digit all the same
    native("failed", index=1),
    native("failed", failed=[2]),
    native("failed", error={"request_id": {"position": 1}}),
    native("failed", **{"input[1]": "bad"}),
    json.dumps({"message": "x"}).replace("x", "\\u0069nput\\u005b\\u0031\\u005d").encode(),
    b"\xff\xfe1",
    b"[" * 100_000,
    b'{"message": "no JSON"',
)


@pytest.mark.parametrize("body", GENERAL)
@pytest.mark.parametrize("status", [401, 403, 429, 500, 503, 599])
def test_an_error_that_names_no_position_is_true_for_everybody(status: int, body: bytes) -> None:
    assert speaks_of_nobody(status, body, 3)


@pytest.mark.parametrize("body", OF_AN_ITEM)
@pytest.mark.parametrize("status", [401, 429, 500])
def test_one_that_may_name_a_position_is_not(status: int, body: bytes) -> None:
    assert not speaks_of_nobody(status, body, 3)


@pytest.mark.parametrize("status", [200, 201, 206, 302, 400, 404, 408, 413, 422, 499])
def test_nor_is_any_other_status_whatever_it_says(status: int) -> None:
    assert not speaks_of_nobody(status, b"", 3)


def test_a_number_beyond_the_items_is_no_position() -> None:
    assert speaks_of_nobody(500, native("failed after 4 s"), 3)
    assert not speaks_of_nobody(500, native("failed after 4 s"), 4)
