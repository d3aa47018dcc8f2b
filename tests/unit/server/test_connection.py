"""What a connection does when aiohttp fails it."""

import asyncio

from tests.support import fake_loop
from tests.support.memory_wire import MemoryPort


def test_a_request_that_aiohttp_stumbles_over_ends_its_connection_and_is_told_of() -> None:
    async def play() -> None:
        port = MemoryPort(has_lane=False)
        stumbled = AttributeError("as over a request without a target")

        def stumble(*_: object) -> None:
            raise stumbled

        port.server.request_factory = stumble  # type: ignore[assignment]
        wire = port.connect()
        wire.receive(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.05)
        assert wire.is_lost
        assert port.clients.count == 0
        assert port.observed.faults == [stumbled]

    fake_loop.run(play())
