"""What an HTTP client could never mean: pipelined requests with odd framing, lines and targets, and bytes astray."""

import json
import random

from proxy.vendors.dashscope.embedding_request import COMPATIBLE, NATIVE

_METHODS = (
    b"GET",
    b"GET",
    b"POST",
    b"POST",
    b"POST",
    b"PUT",
    b"HEAD",
    b"OPTIONS",
    b"DELETE",
    b"CONNECT",
    b"get",
    b"PRI",
)
_TARGETS = (
    *(b"/x", b"/x?", b"/x?a=%2f", b"//x", b"/../x", b"/%zz", b"/x#f", b"*", b"x", b"/v1/collections"),
    *(b"http://proxy.test/x", b"http://evil.test/x", b"/x\x80", b"/x y", b"/\xc3\xa9", b"/x?a?b?", b"/" + b"y" * 9_000),
)
_VERSIONS = (b"HTTP/1.1",) * 8 + (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.2", b"HTP/1.1")
_LINES = (
    *(b"Connection: close", b"Connection: keep-alive", b"Connection: Content-Length", b"Connection: X-Odd, Host"),
    *(b"Expect: 100-continue", b"Upgrade: websocket", b"Upgrade: h2c", b"TE: trailers", b"Trailer: X-T"),
    *(b"X-Odd: \x00", b"X-Odd: a\rb", b"X-Odd: a\nb", b"X Odd: a", b"X-Odd : a", b" X-Odd: a", b": a", b"X-Odd"),
    *(
        b"X-Odd: \xff",
        b"X-Odd: \xc3\xa9",
        b"X-Odd: " + b"y" * 9_000,
        b"Host: two",
        b"Cookie: a=b",
        b"Accept-Encoding: gzip",
    ),
    *(
        b"Authorization: Bearer sk",
        b"Content-Type: application/json",
        b"Content-Encoding: gzip",
        b"Cache-Control: no-store",
    ),
    *(b"Cache-Control: only-if-cached, max-age=x", b"Cache-Control: max-age=99999999999999999999", b"Range: bytes=0-0"),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: xchunked"),
    *(b"Transfer-Encoding:\x0bchunked", b"Content-Length: 5", b"Content-Length: +5", b"Content-Length: 5, 5"),
    *(
        b"Content-Length: 0x5",
        b"Content-Length: 99999999999999999999",
        b"Content_Length: 5",
        b"X-DashScope-Async: enable",
    ),
)
_ASTRAY = (
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"0\r\n\r\n",
    b"5\r\n",
    b"\xff",
    b";a=b",
    b"\x0b",
)


def drawn(chance: random.Random) -> bytes:
    """One to four requests, most of them nearly right."""
    data = b"".join(_request(chance) for _ in range(chance.choice((1, 1, 2, 3, 4))))
    for _ in range(chance.choice((0, 0, 0, 1, 2, 5))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            data = data[:at] + chance.choice(_ASTRAY) + data[at:]
        elif kind == 1:
            data = data[:at] + data[at + chance.randint(1, 3) :]
        elif kind == 2:
            data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        elif kind == 3:
            data = data[:at] + data[max(0, at - chance.randint(1, 60)) :]
        elif chance.random() < 0.3:
            data = data[:at]
    return data


def _request(chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return _embedding(chance)
    method = chance.choice(_METHODS)
    target = b"/n%d" % chance.randrange(1 << 30) if chance.random() < 0.75 else chance.choice(_TARGETS)
    body = chance.choice((b"", b"hello", b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n\r\n", b"0\r\n\r\n"))
    return _framed(chance, method + b" " + target + b" " + chance.choice(_VERSIONS), [], body)


def _embedding(chance: random.Random) -> bytes:
    is_compatible = chance.random() < 0.5
    path = (COMPATIBLE if is_compatible else NATIVE).path.encode()
    texts = [str(chance.randrange(400)) for _ in range(chance.randint(1, 4))]
    tree = {"model": "m", "input": texts if is_compatible else {"texts": texts}}
    body = json.dumps(tree).encode()
    if chance.random() < 0.2:
        body = chance.choice(
            (body[:-1], body + body, b"{}", b'{"model":"m","input":["a"],"input":["b"]}', b"\xff" + body)
        )
    lines = [b"Authorization: Bearer sk", b"Content-Type: application/json", b"X-Fuzz-Odd: 1"]
    return _framed(chance, b"POST " + path + b" HTTP/1.1", lines, body)


def _framed(chance: random.Random, start: bytes, lines: list[bytes], body: bytes) -> bytes:
    kind = chance.randrange(10)
    sent = body
    if kind < 5:
        lines = [*lines, b"Content-Length: %d" % len(body)] if body or chance.random() < 0.5 else lines
    elif kind < 8:
        lines = [*lines, b"Transfer-Encoding: chunked"]
        sent = _chunks(chance, body)
    elif kind == 8:
        lines = [*lines, b"Content-Length: %d" % max(0, len(body) + chance.randint(-3, 3))]
    host = [] if chance.random() < 0.02 else [b"Host: proxy.test"]
    more = [chance.choice(_LINES) for _ in range(chance.choice((0, 0, 0, 0, 0, 1, 2)))]
    every = [*host, *lines, *more]
    chance.shuffle(every)
    return start + b"\r\n" + b"".join(line + b"\r\n" for line in every) + b"\r\n" + sent


def _chunks(chance: random.Random, body: bytes) -> bytes:
    at, parts = 0, []
    while at < len(body):
        length = chance.randint(1, len(body) - at)
        spelled = chance.choice((b"%x", b"%x", b"%x", b"%X", b"0%x", b"%x;a=b", b"%x ")) % length
        parts.append(spelled + b"\r\n" + body[at : at + length] + b"\r\n")
        at += length
    trailers = chance.choice((b"", b"", b"X-T: a\r\n", b"Content-Length: 3\r\n", b"bad\r\n"))
    return b"".join(parts) + b"0\r\n" + trailers + b"\r\n"
