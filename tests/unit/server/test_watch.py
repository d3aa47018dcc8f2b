"""A connection's watch, on a clock of the test's: which silence ends a connection, and which does not."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy.core.errors import ErrorCode
from proxy.server.http.client_timers import Clients, Watch
from tests.support import fake_loop


class Line(asyncio.Transport):
    """A transport whose buffer the test fills."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.ended_s: float | None = None

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def abort(self) -> None:
        self.ended_s = asyncio.get_running_loop().time()


class Socketless(Line):
    """Without a socket to ask what is in the kernel."""

    def get_extra_info(self, name: str, default: object = None) -> object:
        class Closed:
            def fileno(self) -> int:
                return -1

        return Closed()


def clients(ended: list[str] | None = None) -> Clients:
    told = ended if ended is not None else []
    return Clients(max_connections=10, header_wait_s=10, write_idle_s=60, on_ended=told.append)


def run(scene: Callable[[Watch, Line], Awaitable[None]], lasts_s: float = 300) -> tuple[Line, list[str]]:
    ended: list[str] = []

    async def play() -> Line:
        line, count = Socketless(), clients(ended)
        watch = Watch(line, count)
        assert count.count == 1
        await scene(watch, line)
        await asyncio.sleep(lasts_s)
        watch.end()
        assert count.count == 0
        return line

    return fake_loop.run(play()), ended


async def nothing(watch: Watch, line: Line) -> None:
    """The client sends nothing."""


def test_a_connection_without_a_head_ends() -> None:
    line, ended = run(nothing)
    assert line.ended_s is not None
    assert 10 <= line.ended_s <= 12.5
    assert ended == [ErrorCode.REQUEST_TIMEOUT]


def test_bytes_do_not_buy_a_head_more_time() -> None:
    async def drip(watch: Watch, line: Line) -> None:
        for _ in range(30):
            watch.head_begins()
            await asyncio.sleep(1)

    line, _ = run(drip, 0)
    assert line.ended_s is not None
    assert line.ended_s <= 12.5


def test_a_connection_between_requests_is_left_alone_and_a_later_half_head_is_not() -> None:
    async def one_request(watch: Watch, line: Line) -> None:
        watch.head_ends()
        await asyncio.sleep(100)
        assert line.ended_s is None
        watch.head_begins()

    line, _ = run(one_request)
    assert line.ended_s is not None
    assert 110 <= line.ended_s <= 112.5


def test_a_client_that_takes_nothing_is_broken_off() -> None:
    async def stuck(watch: Watch, line: Line) -> None:
        watch.head_ends()
        line.waiting = 70_000

    line, ended = run(stuck)
    assert line.ended_s is not None
    assert 60 <= line.ended_s <= 65
    assert ended == [ErrorCode.CLIENT_TOO_SLOW]


@pytest.mark.parametrize("how", ["less is left", "resumed"])
def test_a_client_that_takes_something_now_and_then_is_not(how: str) -> None:
    async def slow(watch: Watch, line: Line) -> None:
        watch.head_ends()
        line.waiting = 70_000
        for _ in range(20):
            await asyncio.sleep(50)
            if how == "less is left":
                line.waiting -= 1
            else:  # and filled again to the very same byte
                watch.wrote()
        line.waiting = 0

    line, ended = run(slow)
    assert line.ended_s is None
    assert ended == []


def test_silence_while_nothing_waits_to_be_sent_is_not_the_client_s() -> None:
    async def idle(watch: Watch, line: Line) -> None:
        watch.head_ends()

    line, _ = run(idle, 10_000)
    assert line.ended_s is None
