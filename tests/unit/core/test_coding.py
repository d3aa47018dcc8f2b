"""Content codings of answers: what is asked for, and bounded undoing."""

import gzip
import tracemalloc
import zlib

import pytest

from proxy.core.coding import decoded, narrowed_codings
from proxy.core.plan import NotStorable, Refusal
from proxy.core.request import Request

TEXT = b'{"output":{}}' * 50
LIMIT = 10_000


def refusal_of(body: bytes, *codings: bytes, limit: int = LIMIT) -> Refusal:
    with pytest.raises(NotStorable) as caught:
        decoded(body, codings, limit)
    return caught.value.refusal


def test_plain_answers_are_taken_as_they_are():
    assert decoded(TEXT, (), LIMIT) == TEXT
    assert decoded(TEXT, (b"identity",), LIMIT) == TEXT
    assert decoded(b"", (b" Identity , identity",), LIMIT) == b""


@pytest.mark.parametrize("name", [b"gzip", b"GZIP", b"x-gzip", b" gzip "])
def test_gzip_is_undone(name):
    assert decoded(gzip.compress(TEXT), (name,), LIMIT) == TEXT


def test_deflate_is_undone():
    assert decoded(zlib.compress(TEXT), (b"deflate",), LIMIT) == TEXT


@pytest.mark.parametrize("names", [(b"br",), (b"zstd",), (b"gzip, gzip",), (b"gzip", b"br"), (b"x",), (b"gzip;q=1",)])
def test_other_codings_are_not_kept(names):
    assert refusal_of(gzip.compress(TEXT), *names) is Refusal.CONTENT_CODING


def test_a_text_of_exactly_the_limit_is_kept_and_one_byte_more_is_not():
    assert decoded(gzip.compress(b"x" * LIMIT), (b"gzip",), LIMIT) == b"x" * LIMIT
    assert refusal_of(gzip.compress(b"x" * (LIMIT + 1)), b"gzip") is Refusal.TOO_LARGE


def test_a_bomb_does_not_go_off():
    bomb = gzip.compress(bytes(100 << 20), 9)
    tracemalloc.start()
    try:
        assert refusal_of(bomb, b"gzip", limit=1 << 16) is Refusal.TOO_LARGE
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_every_truncation_is_refused():
    whole = gzip.compress(TEXT)
    for length in range(len(whole)):
        assert refusal_of(whole[:length], b"gzip") is Refusal.CONTENT_CODING


def test_damage_and_trailing_bytes_are_refused():
    whole = gzip.compress(TEXT)
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 0x40
    assert refusal_of(bytes(damaged), b"gzip") is Refusal.CONTENT_CODING
    assert refusal_of(whole + b"x", b"gzip") is Refusal.CONTENT_CODING
    assert refusal_of(whole + whole, b"gzip") is Refusal.CONTENT_CODING
    assert refusal_of(TEXT, b"gzip") is Refusal.CONTENT_CODING


@pytest.mark.parametrize(
    ("accepted", "asked"),
    [
        ((), b"identity"),
        ((b"gzip, deflate",), b"gzip"),
        ((b"br, GZIP;q=0.5",), b"gzip"),
        ((b"br", b"gzip"), b"gzip"),
        ((b"br",), b"identity"),
        ((b"*",), b"identity"),
        ((b"gzip;q=0",), b"identity"),
        ((b"gzip; q=0",), b"identity"),
        ((b"gzip;q=0.000",), b"identity"),
        ((b"gzip ; Q = 0.0",), b"identity"),
        ((b"gzip;q=0.001",), b"gzip"),
        ((b"gzip;q=1.0",), b"gzip"),
        ((b"gzipped",), b"identity"),
        ((b"x-gzip",), b"identity"),
    ],
)
def test_only_codings_that_we_can_undo_and_the_client_takes_are_asked_for(accepted, asked):
    lines = tuple((b"accept-Encoding", value) for value in accepted)
    request = Request("POST", "/", ((b"X-A", b"1"), *lines, (b"X-B", b"2")), "default")
    assert narrowed_codings(request) == ((b"X-A", b"1"), (b"X-B", b"2"), (b"Accept-Encoding", asked))


def test_what_grows_beyond_all_measure_is_not_opened_to_its_end() -> None:
    with pytest.raises(NotStorable) as caught:
        decoded(gzip.compress(b" " * 2**24), (b"gzip",), 2**25)
    assert caught.value.refusal is Refusal.TOO_LARGE
    small = b" " * 2**20  # as much is always opened, however well it packs
    assert decoded(gzip.compress(small), (b"gzip",), 2**25) == small
