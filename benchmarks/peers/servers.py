"""
Servers in Python, as bare as they can be: ``python -m benchmarks.peers.servers KIND PORT``.

- ``upstream``: the vendor's stand-in; an answer to any POST, after a delay, and ten million bytes for ``/large``;
- ``aiohttp``: aiohttp's low-level server on uvloop: read the body, hash it, look into a dictionary;
- ``pipelined``: the same with values in Redis, read by GETs pipelined on one connection, written to the transport;
- ``protocol``: an asyncio.Protocol that takes requests apart by hand, hashes and looks into a dictionary.
"""

import argparse
import asyncio
import hashlib
from collections import deque
from typing import Any

import hiredis
import uvloop
from aiohttp import web

from benchmarks.peers.content import OPENAI_TARGET, answer, openai_answer

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_LARGE = b"x" * 10_000_000
_SMALL = b'{"output":{"text":"small"},"request_id":"vendor-1"}'


class Plain(asyncio.Protocol):
    """Requests with Content-Length, one after the other; *delay_s* before each answer."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self._delay_s = delay_s
        self._data = b""
        self._kept: dict[bytes, bytes] = {}
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: Any) -> None:  # uvloop's are no subclasses of asyncio's
        """Called by the event loop."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._data) < end + 4 + length:
                return
            body, self._data = self._data[end + 4 : end + 4 + length], self._data[end + 4 + length :]
            content = self.content(head, body)
            if self._delay_s:
                asyncio.get_running_loop().call_later(self._delay_s, self._write, content)
            else:
                self._write(content)

    def content(self, head: bytes, body: bytes) -> bytes:  # noqa: ARG002
        """What is answered."""
        key = hashlib.sha256(body).digest()
        if key not in self._kept:
            self._kept[key] = answer(body)
        return self._kept[key]

    def _write(self, content: bytes) -> None:
        self._transport.write(_HEAD % len(content) + content)


class Upstream(Plain):
    """The vendor's stand-in."""

    def content(self, head: bytes, body: bytes) -> bytes:
        """An embedding, or one of two bodies that mean nothing."""
        if head.startswith(b"post " + OPENAI_TARGET.encode()):
            return openai_answer(body)
        if b"/embeddings/" in head:
            return answer(body)
        return _LARGE if head.startswith(b"get /large") else _SMALL


class Gets(asyncio.Protocol):
    """GETs pipelined on one connection to Redis."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[bytes | None]] = deque()
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: Any) -> None:  # uvloop's are no subclasses of asyncio's
        """Called by the event loop."""
        self._transport = transport

    def get(self, key: bytes) -> "asyncio.Future[bytes | None]":
        """The value under *key*."""
        return self._ask(b"GET", key)

    def set(self, key: bytes, value: bytes) -> "asyncio.Future[bytes | None]":
        """Keep *value*."""
        return self._ask(b"SET", key, value)

    def _ask(self, *words: bytes) -> "asyncio.Future[bytes | None]":
        asked: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(asked)
        self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]
        return asked

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            self._waiting.popleft().set_result(reply if isinstance(reply, bytes) else None)


class _Written(web.StreamResponse):
    """Says that the answer is out, and another request may come."""

    @property
    def keep_alive(self) -> bool:
        """Always."""
        return True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to do."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to do."""


async def _serve_aiohttp(port: int) -> None:
    kept: dict[bytes, bytes] = {}

    async def handle(raw: web.BaseRequest) -> web.StreamResponse:
        body = await raw.read()
        key = hashlib.sha256(body).digest()
        if key not in kept:
            kept[key] = answer(body)
        return web.Response(body=kept[key], content_type="application/json")

    await _listen(web.Server(handle), port)


async def _serve_pipelined(port: int, redis_port: int) -> None:
    _, gets = await asyncio.get_running_loop().create_connection(Gets, "127.0.0.1", redis_port)

    async def handle(raw: web.BaseRequest) -> web.StreamResponse:
        body = await raw.read()
        key = hashlib.sha256(body).digest()
        content = await gets.get(key)
        if content is None:
            content = answer(body)
            await gets.set(key, content)
        assert raw.transport is not None
        raw.transport.write(_HEAD % len(content) + content)
        return _Written()

    await _listen(web.Server(handle), port)


async def _listen(server: web.Server, port: int) -> None:
    runner = web.ServerRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def _serve_plain(kind: type[Plain], port: int, delay_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: kind(delay_s), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("upstream", "aiohttp", "pipelined", "protocol"))
    parser.add_argument("port", type=int)
    parser.add_argument("--redis-port", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    given = parser.parse_args()
    serving = {
        "upstream": lambda: _serve_plain(Upstream, given.port, given.delay_ms / 1000),
        "protocol": lambda: _serve_plain(Plain, given.port, 0.0),
        "aiohttp": lambda: _serve_aiohttp(given.port),
        "pipelined": lambda: _serve_pipelined(given.port, given.redis_port),
    }[given.kind]
    uvloop.run(serving())


if __name__ == "__main__":
    main()
