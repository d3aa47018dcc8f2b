"""HTTP/1.1 as the rig reads it: strict, and byte-exact however the bytes arrive."""

import asyncio

import pytest

from tests.support import wire


def stream(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=wire.STREAM_LIMIT)
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def read(data: bytes, method: bytes = b"GET") -> tuple[wire.Head, wire.Body, bytes]:
    reader = stream(data)
    head = await wire.read_head(reader)
    assert head is not None
    body = wire.Body()
    await wire.read_body(reader, wire.response_framing(head, method), body)
    return head, body, await reader.read()


async def test_field_names_order_and_repeats_are_kept():
    head = wire.parse_head(b"GET / HTTP/1.1\r\nb: 1\r\nA:2 \r\nB:\t3\r\nempty:\r\n\r\n")
    assert head.headers == ((b"b", b"1"), (b"A", b"2"), (b"B", b"3"), (b"empty", b""))
    assert head.all("b") == [b"1", b"3"]
    assert head.get("a") == b"2"
    assert head.get("c") is None
    with pytest.raises(wire.WireError):
        head.get("b")


@pytest.mark.parametrize(
    "line", [b"a b: 1", b"a : 1", b" a: 1", b"nocolon", b": 1", b"a: 1\rb", b"a: \x00", b"a: 1\nb: 2"]
)
def test_malformed_fields_are_errors(line):
    with pytest.raises(wire.WireError):
        wire.parse_head(b"GET / HTTP/1.1\r\n" + line + b"\r\n\r\n")


async def test_a_chunked_body_keeps_its_raw_form_chunks_and_trailers():
    raw = b"3\r\nabc\r\n0A;x=y\r\n0123456789\r\n0\r\nT: v\r\n\r\n"
    _, body, rest = await read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + raw + b"next")
    assert (bytes(body.raw), bytes(body.data), rest) == (raw, b"abc0123456789", b"next")
    assert [data for _, data in body.pieces] == [b"abc", b"0123456789"]
    assert body.trailers == ((b"T", b"v"),)


@pytest.mark.parametrize(
    ("head", "method", "taken"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"GET", b"abc"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"HEAD", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", b"GET", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"GET", b""),
        (b"HTTP/1.1 200 \r\n\r\n", b"GET", b"abcdef"),
        (b"HTTP/1.0 200\r\n\r\n", b"GET", b"abcdef"),
    ],
)
async def test_a_body_ends_where_its_framing_says(head, method, taken):
    _, body, rest = await read(head + b"abcdef", method)
    assert (bytes(body.data), taken + rest) == (taken, b"abcdef")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
    ],
)
async def test_bad_framing_and_early_ends_are_errors(answer):
    with pytest.raises(wire.WireError):
        await read(answer)


async def test_what_came_of_a_cut_body_is_there():
    body = wire.Body()
    with pytest.raises(wire.WireError):
        await wire.read_body(stream(b"2\r\nab\r\n5\r\ncd"), (wire.Framing.CHUNKED, 0), body)
    assert (bytes(body.raw), bytes(body.data)) == (b"2\r\nab\r\n5\r\ncd", b"abcd")


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n", False),
    ],
)
def test_who_wants_the_connection_closed(head, expected):
    assert wire.closes(wire.parse_head(head)) is expected
