"""gRPC messages on their way: whose bytes count, and for how long."""

import asyncio
from typing import Any

import pytest

from proxy.core.errors import ErrorCode, ProxyError
from proxy.core.held_bytes import HeldBytes
from proxy.server.grpc import unfinished
from proxy.server.grpc.unfinished import Unfinished
from proxy.server.http.body import Patience
from tests.support.waiting import wait_until

PEER = "ipv4:127.0.0.1:50000"
BUDGET = 100_000


class Call:
    """A call over the one connection, whose message comes when it is told to."""

    def __init__(self, looked_at: Unfinished) -> None:
        self._message: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.task = asyncio.ensure_future(looked_at.message(self))

    def peer(self) -> str:
        return PEER

    async def read(self) -> bytes:
        return await self._message

    async def ends(self, message: bytes) -> None:
        self._message.set_result(message)
        assert await self.task == message

    async def code(self) -> ErrorCode:
        with pytest.raises(ProxyError) as told:
            await self.task
        return told.value.code


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many bytes the connection has brought."""
    bytes_of = {"bytes": 0}
    monkeypatch.setattr(unfinished, "connections_from", lambda peers: dict.fromkeys(peers, 7))
    monkeypatch.setattr(unfinished, "_received", lambda _number: bytes_of["bytes"])
    return bytes_of


def line(looked_at: Unfinished) -> Any:
    return looked_at._lines.get(PEER)


async def test_what_has_no_room_is_given_up_and_a_call_that_came_later_is_not(came: dict[str, int]) -> None:
    held = HeldBytes(BUDGET)
    looked_at = Unfinished(held, Patience(30))
    large = Call(looked_at)
    await wait_until(lambda: line(looked_at) is not None)
    came["bytes"] = 2 * BUDGET
    later = Call(looked_at)
    await asyncio.sleep(0)
    looked_at._look()
    (*_, young) = looked_at._calls
    young.began_s -= 1
    looked_at._look()
    assert await large.code() is ErrorCode.TOO_MUCH_HELD
    assert held.now == 0
    await later.ends(b"small")


async def test_a_message_that_was_compressed_makes_no_room_for_others(came: dict[str, int]) -> None:
    looked_at = Unfinished(HeldBytes(BUDGET), Patience(30))
    bomb, large = Call(looked_at), Call(looked_at)
    await wait_until(lambda: line(looked_at) is not None)
    came["bytes"] = 1_000
    await bomb.ends(bytes(50 * BUDGET))
    looked_at._look()
    came["bytes"] += 2 * BUDGET
    assert await large.code() is ErrorCode.TOO_MUCH_HELD


async def test_what_has_come_to_its_end_counts_no_more(came: dict[str, int]) -> None:
    held = HeldBytes(BUDGET)
    looked_at = Unfinished(held, Patience(30))
    one, other = Call(looked_at), Call(looked_at)
    await wait_until(lambda: line(looked_at) is not None)
    came["bytes"] = 60_000
    looked_at._look()
    assert held.now > 50_000
    await one.ends(bytes(60_000))
    came["bytes"] += 60_000
    looked_at._look()
    assert held.now < 70_000
    await other.ends(bytes(60_000))
    await wait_until(lambda: held.now == 0)
