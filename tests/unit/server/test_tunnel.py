"""A WebSocket whose upstream has ended before anybody listens to it: too rare a moment to be met with sockets."""

import asyncio
from typing import Any

from proxy.server.http.websocket import Bridge


class End:
    """One end's protocol, as aiohttp has it; *transport* is None once it has ended."""

    writing_paused = False

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.parser: Any = None

    def set_parser(self, parser: Any, *_payload: Any) -> None:
        self.parser = parser


class Writer:
    def __init__(self, transport: "Client") -> None:
        self._transport = transport

    async def write(self, data: bytes) -> None:
        self._transport.write(data)


class Client:
    """A client's request, its writer and its transport."""

    def __init__(self) -> None:
        self.protocol = End(self)
        self.writer = Writer(self)
        self.written: list[bytes] = []

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written.append(data)


class Upstream:
    status, headers = 101, ()
    protocol = End(None)


async def test_an_upstream_that_ended_before_it_was_listened_to_is_not_waited_for() -> None:
    client = Client()
    async with asyncio.timeout(10):
        await Bridge({})._bridged(client, Upstream())  # type: ignore[arg-type]
    assert client.written[0].startswith(b"HTTP/1.1 101 ")
    assert client.written[-1] == b"\x88\x02" + (1001).to_bytes(2, "big")
