"""The end of a call is told of once: by its head, its body's end, or what the body broke off with."""

import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from proxy.core.errors import ErrorCode, UpstreamError
from proxy.core.grpc_status import GrpcStatus
from proxy.core.request import HeaderLines
from proxy.core.trouble import Trouble
from proxy.request.watched import Watched

TIMEOUT = UpstreamError(ErrorCode.UPSTREAM_TIMEOUT, "late", 504, trouble=Trouble.TIMEOUT)
CLOSED = UpstreamError(ErrorCode.UPSTREAM_UNREACHABLE, "closed", trouble=Trouble.CLOSED)


def room(_size: int) -> bool:
    return True


class Reply:
    reason, length = "", None
    headers: HeaderLines = ()

    def __init__(self, status: int = 200, error: Exception | None = None, *, is_grpc: bool = False) -> None:
        self.status = status
        self.grpc_status = GrpcStatus() if is_grpc else None
        self.error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"part"
        if self.error is not None:
            raise self.error

    def at_hand(self) -> tuple[bytes, bool]:
        return b"part", False

    async def read(self, limit: int, has_room: Callable[[int], bool]) -> tuple[bytes, bool]:
        if self.error is not None:
            raise self.error
        return b"part", has_room(4) and limit > 1

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize("by_read", [False, True], ids=["iterated", "read"])
@pytest.mark.parametrize(
    ("error", "end"), [(None, 200), (TIMEOUT, Trouble.TIMEOUT), (CLOSED, Trouble.BROKEN_OFF)], ids=str
)
async def test_the_body_decides(error: Exception | None, end: int | Trouble, by_read: bool) -> None:
    told: list[int | Trouble] = []
    reply = Watched(Reply(error=error), 200, told.append)
    assert told == []
    with contextlib.nullcontext() if error is None else pytest.raises(UpstreamError):
        if by_read:
            await reply.read(9, room)
        else:
            assert [piece async for piece in reply] == [b"part"]
    assert told == [end]
    reply.close()
    assert told == [end]


@pytest.mark.parametrize("reply", [Reply(503), Reply(401), Reply(is_grpc=True)], ids=["503", "401", "grpc"])
def test_a_head_that_says_all_is_told_of_at_once(reply: Reply) -> None:
    told: list[int | Trouble] = []
    watched = Watched(reply, reply.status, told.append)
    assert told == [reply.status]
    watched.close()
    assert told == [reply.status]


async def test_who_does_not_read_on_says_nothing_of_the_rest() -> None:
    told: list[int | Trouble] = []
    reply = Watched(Reply(), 200, told.append)
    assert await reply.read(1, room) == (b"part", False)
    assert told == []
    reply.close()
    assert told == [200]
