"""Heads of answers as bytes: what is odd in one is found wherever the network cuts it."""

import pytest

from proxy.transport.heads import Heads

HEAD = b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
SOUND = {
    "a head": HEAD,
    "without a line": b"HTTP/1.1 200 OK\r\n\r\n",
    "a body like an odd head": HEAD + b"\n\n \n x\nX: y\n\n",
    "a body like an end": HEAD + b"\r\n\r\n\n",
    "interim heads": INTERIM + INTERIM + HEAD + b"\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\n\r\n\n\n \n",
    "a status like an interim one": b"HTTP/1.1 201 Created\r\n\r\n\n",
    "blanks inside a line": b"HTTP/1.1 200 OK\r\nX:  y \t z \r\n\r\n",
}
ODD = {
    "LF in a value": b"HTTP/1.1 200 OK\r\nX: a\nY: b\r\n\r\n",
    "LF in the reason": b"HTTP/1.1 200 a\nY: b\r\n\r\n",
    "lines that end in LF": b"HTTP/1.1 200 OK\nX: y\n\n",
    "LF before the empty line": b"HTTP/1.1 200 OK\r\nX: y\n\r\n",
    "LF as the empty line": b"HTTP/1.1 200 OK\r\nX: y\r\n\n",
    "folded by a blank": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
    "folded by a tab": b"HTTP/1.1 200 OK\r\nX: a\r\n\tb\r\n\r\n",
    "folded at the start": b"HTTP/1.1 200 OK\r\n X: a\r\n\r\n",
    "an empty line first": b"\r\n" + HEAD,
    "LF first": b"\n" + HEAD,
    "no line at all": b"\r\n\r\n",
    "behind an interim head": INTERIM + b"HTTP/1.1 200 OK\r\nX: a\nb\r\n\r\n",
    "an empty line behind an interim head": INTERIM + b"\r\n" + HEAD,
}


def cuts(data: bytes) -> list[list[bytes]]:
    """*data* whole, byte by byte, and in two at every place."""
    return [[data], [bytes([byte]) for byte in data], *([data[:at], data[at:]] for at in range(1, len(data)))]


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in SOUND.items()])
def test_s8_what_everybody_reads_alike_is_not_odd(data):
    for pieces in cuts(data):
        heads = Heads()
        assert not any(heads.are_odd(piece) for piece in pieces)


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in ODD.items()])
def test_s8_lines_that_may_be_read_otherwise_are_odd(data):
    for pieces in cuts(data):
        heads = Heads()
        assert any(heads.are_odd(piece) for piece in pieces)
