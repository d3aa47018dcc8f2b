"""The plain request, and the headers that end at each hop (RFC 9110 §7.6.1)."""

import pytest

from proxy.core.request import HOP_BY_HOP, Request, end_to_end, list_items

PROXY = {b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization", b"proxy-connection", b"proxy-x"}


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP | PROXY))
def test_s6_hop_by_hop_lines_end_here(name):
    kept = (b"X-Kept", b"1")
    for spelled in (name, name.upper(), name.title()):
        assert end_to_end(((spelled, b"x"), kept)) == (kept,)


def test_s6_what_connection_names_ends_here_too():
    headers = (
        (b"Connection", b"X-One, close"),
        (b"connection", b" x-TWO ,,"),
        (b"x-one", b"1"),
        (b"X-Two", b"2"),
        (b"X-Three", b"3"),
        (b"X-one", b"4"),
    )
    assert end_to_end(headers) == ((b"X-Three", b"3"),)


def test_order_case_duplicates_and_bytes_stay():
    headers = ((b"B", b"2"), (b"a", b"\xff\x80"), (b"B", b"1"), (b"empty", b""))
    assert end_to_end(headers) == headers


def test_s6_connection_may_name_a_credential_and_then_it_is_not_sent():
    """Keys are made of what is sent: a request that strips its own credential has none."""
    assert end_to_end(((b"Connection", b"Authorization"), (b"Authorization", b"Bearer k"))) == ()


@pytest.mark.parametrize("name", [b"Cache-Control", b"Set-Cookie", b"vary"])
def test_s6_connection_cannot_take_away_what_forbids_to_keep_an_answer(name):
    lines = ((name, b"x"), (b"X-Named", b"1"))
    assert end_to_end(((b"Connection", b"close, %b, x-named" % name.upper()), *lines)) == lines[:1]


def test_values_are_found_in_any_case_and_in_order():
    request = Request("GET", "/", ((b"X-A", b"1"), (b"x-b", b"2"), (b"x-a", b"3")), "default")
    assert request.values(b"x-a") == (b"1", b"3")
    assert request.value(b"x-a") == b"1"
    assert request.value(b"x-c") is None


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a", "/a", ""),
        ("/a?", "/a", ""),
        ("/a?b=1?c", "/a", "b=1?c"),
        ("//a/../b%2f", "//a/../b%2f", ""),
        ("*", "*", ""),
    ],
)
def test_the_target_is_cut_at_its_first_question_mark_only(target, path, query):
    request = Request("GET", target, (), "default")
    assert (request.path, request.query) == (path, query)


def test_list_items_are_lower_case_without_blanks_and_never_empty():
    assert list_items((b" A ,b;q=1", b"", b",C,")) == ("a", "b;q=1", "c")
    assert list_items((b"\xe9",)) == ("é",)
    assert list_items(()) == ()
