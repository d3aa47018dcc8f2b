"""The fast lane: what it learns, what it never learns, and what becomes of heads that it holds back."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy.core.errors import ErrorCode, UpstreamError
from proxy.core.found import Found
from proxy.core.outcome import CacheState, Outcome
from proxy.server.http.fast_lane import HOLD_S, Lane
from tests.support import fake_loop
from tests.support.memory_wire import HEADER_WAIT_S, KEEPALIVE_S, MemoryPort, Wire, plain

MIB = 2**20


def request(body: bytes = b"{}", lines: bytes = b"", version: bytes = b"1.1", target: bytes = b"/hit") -> bytes:
    return b"POST %b HTTP/%b\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (target, version, lines, len(body), body)


ONE, TWO = request(b'{"a":1}'), request(b'{"a":2}')
HEAD, BODY = ONE[:-7], ONE[-7:]


class Again:
    """Answers nothing."""

    def __call__(self, outcome: Outcome) -> None:
        return None

    def lacks_entries(self) -> bool:
        return False

    async def look_up(self, outcome: Outcome) -> Found:
        return Found()

    def same_until_unix_s(self) -> float:
        return 0.0


def scene(play: Callable[[MemoryPort], Awaitable[None]]) -> None:
    async def whole() -> None:
        port = MemoryPort(has_lane=True)
        await play(port)
        for connection in tuple(port.server.open):
            connection.watch.abort()
        await settled()
        assert port.clients.count == 0

    fake_loop.run(whole())


async def settled() -> None:
    await asyncio.sleep(0.05)


async def warm(port: MemoryPort, *requests: bytes) -> tuple[Wire, list[bytes]]:
    """A connection on which *requests* were answered, and the answers."""
    wire, answers = port.connect(), []
    for data in requests or (ONE,):
        assert port.lane is not None
        port.lane._seen.add(hash(data))  # nothing is learnt the first time
        before = len(wire.sent)
        wire.receive(data)
        await settled()
        answers.append(plain(wire.sent[before:]))
    assert port.at_once == 0
    wire.sent = b""
    return wire, answers


def knows(port: MemoryPort, data: bytes) -> bool:
    assert port.lane is not None
    return port.lane.find(data) is not None


def test_a_known_request_is_answered_in_the_call_that_brings_it() -> None:
    async def play(port: MemoryPort) -> None:
        wire, (answer,) = await warm(port)
        wire.receive(ONE)
        assert plain(wire.sent) == answer
        other = port.connect()
        await settled()
        other.receive(ONE)
        assert plain(other.sent) == answer
        assert [told.state for told in port.observed.outcomes] == [CacheState.HIT] * 3
        assert {(told.status, told.bytes_in, told.bytes_out) for told in port.observed.outcomes} == {(200, 7, 64)}

    scene(play)


def test_a_known_head_waits_for_its_body() -> None:
    async def play(port: MemoryPort) -> None:
        wire, (answer,) = await warm(port)
        wire.receive(HEAD)
        await asyncio.sleep(HOLD_S / 2)
        assert not wire.sent
        assert port.front.running == 0
        wire.receive(BODY)
        assert plain(wire.sent) == answer
        assert port.at_once == 1

    scene(play)


def test_a_body_that_comes_later_is_read_by_the_parser() -> None:
    async def play(port: MemoryPort) -> None:
        wire, (answer,) = await warm(port)
        wire.receive(HEAD)
        await asyncio.sleep(HOLD_S * 2)
        assert port.front.running == 1
        for at in range(len(BODY)):
            await asyncio.sleep(1)
            wire.receive(BODY[at : at + 1])
        await settled()
        assert plain(wire.sent) == answer
        assert port.at_once == 0
        wire.sent = b""
        wire.receive(ONE)
        assert plain(wire.sent) == answer

    scene(play)


def test_a_body_that_never_comes_ends_as_ever() -> None:
    async def play(port: MemoryPort) -> None:
        wire, _ = await warm(port)
        wire.receive(HEAD)
        await asyncio.sleep(8)
        assert wire.sent.startswith(b"HTTP/1.1 408 ")
        assert wire.is_lost

    scene(play)


def test_who_leaves_while_a_head_is_held_back_leaves_nothing() -> None:
    async def play(port: MemoryPort) -> None:
        wire, _ = await warm(port)
        wire.receive(HEAD)
        wire.receive_eof()
        await settled()
        assert wire.is_lost
        assert not wire.sent
        assert port.front.running == port.clients.count == 0

    scene(play)


def test_an_idle_connection_is_not_closed_under_a_head_that_is_held_back() -> None:
    async def play(port: MemoryPort) -> None:
        wire, (answer,) = await warm(port)
        began_s = asyncio.get_running_loop().time()
        wire.receive(ONE)
        wire.sent = b""
        await asyncio.sleep(began_s + KEEPALIVE_S - HOLD_S / 2 - asyncio.get_running_loop().time())
        wire.receive(HEAD)
        await asyncio.sleep(HOLD_S * 3)
        assert not wire.is_lost
        wire.receive(BODY)
        await settled()
        assert plain(wire.sent) == answer

    scene(play)


def test_a_connection_that_the_lane_answered_last_is_closed_when_it_has_been_idle() -> None:
    async def play(port: MemoryPort) -> None:
        wire, _ = await warm(port)
        for _ in range(3):
            await asyncio.sleep(KEEPALIVE_S / 2)
            wire.receive(ONE)
        assert port.at_once == 3
        await asyncio.sleep(KEEPALIVE_S * 0.9)
        assert not wire.is_lost
        await asyncio.sleep(KEEPALIVE_S * 0.2)
        assert wire.is_lost

    scene(play)


def test_a_client_whose_first_request_was_known_has_sent_its_head() -> None:
    async def play(port: MemoryPort) -> None:
        await warm(port)
        wire = port.connect()
        await settled()
        wire.receive(ONE)
        assert port.at_once == 1
        await asyncio.sleep(KEEPALIVE_S * 0.9)
        assert not wire.is_lost

    scene(play)


def test_what_comes_behind_a_head_that_was_held_back_does_not_undo_its_request() -> None:
    async def play(port: MemoryPort) -> None:
        wire, (answer,) = await warm(port)
        wire.receive(HEAD)
        wire.receive(BODY + b"\0\0\0")
        await settled()
        assert plain(wire.sent).startswith(answer + b"HTTP/1.1 400 ")

    scene(play)


def test_while_the_port_drains_every_answer_says_that_it_is_the_last() -> None:
    async def play(port: MemoryPort) -> None:
        wire, _ = await warm(port)
        wire.receive(HEAD)
        port.front.is_draining = True
        wire.receive(BODY)
        await settled()
        assert b"\r\nConnection: close\r\n" in wire.sent
        assert wire.is_lost
        assert port.at_once == 0

    scene(play)


@pytest.mark.parametrize("waits_s", [0, HOLD_S * 2])
def test_a_head_held_back_when_the_port_is_shut_down_is_answered(waits_s: float) -> None:
    async def play(port: MemoryPort) -> None:
        wire, _ = await warm(port)
        wire.receive(HEAD)
        port.front.is_draining = True
        port.server.pre_shutdown()
        ending = asyncio.ensure_future(port.server.shutdown(30))
        await asyncio.sleep(waits_s)
        wire.receive(BODY)
        await ending
        await settled()
        assert wire.sent.startswith(b"HTTP/1.1 200 ")

    scene(play)


def test_what_is_no_hit_any_more_goes_the_long_way() -> None:
    async def play(port: MemoryPort) -> None:
        wire, (answer,) = await warm(port)
        port.flow.is_on = False
        wire.receive(ONE)
        assert not wire.sent
        await settled()
        assert b"sent on" in wire.sent
        port.flow.is_on, wire.sent = True, b""
        wire.receive(ONE)
        assert plain(wire.sent) == answer

    scene(play)


def test_a_fault_of_ours_is_told_and_the_request_goes_the_long_way() -> None:
    async def play(port: MemoryPort) -> None:
        wire, (answer,) = await warm(port)
        port.flow.fault = ValueError()
        wire.receive(ONE)
        await settled()
        assert plain(wire.sent) == answer
        assert port.observed.faults == [port.flow.fault]

    scene(play)


@pytest.mark.parametrize("is_split", [False, True])
def test_no_answer_is_learnt_for_the_bytes_of_a_request_that_came_meanwhile(is_split: bool) -> None:
    async def play(port: MemoryPort) -> None:
        wire, other = port.connect(), request(target=b"/x")
        await asyncio.sleep(0)
        wire.receive(ONE)
        for piece in (other[:-2], other[-2:]) if is_split else (other,):
            await asyncio.sleep(0)
            wire.receive(piece)
        assert not wire.sent
        await settled()
        first, second = plain(wire.sent).split(b"HTTP/1.1")[1:]
        assert b"sent on" not in first
        assert b"sent on" in second
        assert not knows(port, ONE)  # by then it was not the last message any more
        assert not knows(port, other)
        wire.sent = b""
        wire.receive(other)
        await settled()
        assert plain(wire.sent) == b"HTTP/1.1" + second

    scene(play)


def test_what_comes_while_a_request_is_being_answered_keeps_its_place() -> None:
    async def play(port: MemoryPort) -> None:
        wire, (one,) = await warm(port)
        wire.receive(request(target=b"/slow"))
        await settled()
        wire.receive(ONE)
        assert not wire.sent
        await asyncio.sleep(1)
        assert b"sent on" in wire.sent.split(b"HTTP/1.1")[1]
        assert plain(wire.sent).endswith(one)
        assert port.at_once == 0

    scene(play)


FAR_S = 0.02


def test_what_memory_lacks_is_looked_up_and_answered_without_the_parser() -> None:
    async def play(port: MemoryPort) -> None:
        wire, (answer,) = await warm(port)
        port.flow.far_s = FAR_S
        for piece in (ONE, HEAD, BODY):
            wire.receive(piece)
            assert not wire.sent
            await asyncio.sleep(FAR_S * 2 if piece is not HEAD else HOLD_S / 2)
            assert plain(wire.sent) == (answer if piece is not HEAD else b"")
            wire.sent = b""
        assert (port.soon, len(port.flow.found)) == (2, 1)
        last = port.observed.outcomes[-1]
        assert (last.state, last.bytes_in, last.bytes_out, last.status) == (CacheState.HIT, 7, 64, 200)
        wire.receive(request(target=b"/x"))
        await settled()
        assert b"sent on" in wire.sent

    scene(play)


@pytest.mark.parametrize("more", [ONE, ONE[:9], TWO, b"\0\0\0\r\n\r\n"], ids=["same", "part", "other", "broken"])
def test_what_comes_while_redis_is_asked_sends_both_the_long_way(more: bytes) -> None:
    async def play(port: MemoryPort) -> None:
        wire, (answer,) = await warm(port)
        port.flow.far_s = FAR_S
        wire.receive(ONE)
        await asyncio.sleep(FAR_S / 2)
        wire.receive(more)
        await settled()
        assert plain(wire.sent).startswith(answer)
        assert wire.sent.count(b"HTTP/1.1 ") == (1 if more == ONE[:9] else 2)
        assert port.soon == 0
        assert port.flow.found == [None] * len(port.flow.found)

    scene(play)


def test_who_leaves_while_redis_is_asked_leaves_nothing() -> None:
    async def play(port: MemoryPort) -> None:
        wire, _ = await warm(port)
        port.flow.far_s = FAR_S
        wire.receive(ONE)
        await asyncio.sleep(FAR_S / 2)
        wire.receive_eof()
        await settled()
        assert wire.is_lost
        assert not wire.sent
        assert port.soon == port.front.running == port.clients.count == 0
        told = port.observed.outcomes[1:]
        assert [(each.client_gone, each.bytes_in, each.status) for each in told] == [(True, 7, 0)]

    scene(play)


def test_an_answer_that_cannot_be_written_is_told_and_ends_the_connection() -> None:
    async def play(port: MemoryPort) -> None:
        wire, _ = await warm(port)
        port.flow.far_s = FAR_S

        def write(data: bytes) -> None:
            raise RuntimeError

        wire.receive(ONE)
        wire.write = write  # type: ignore[method-assign]
        await settled()
        assert [type(fault) for fault in port.observed.faults] == [RuntimeError]
        assert wire.is_lost

    scene(play)


def test_a_look_up_may_take_longer_than_a_connection_may_be_idle() -> None:
    async def play(port: MemoryPort) -> None:
        wire, (answer,) = await warm(port)
        port.flow.far_s = KEEPALIVE_S + 5
        wire.receive(ONE)
        await asyncio.sleep(KEEPALIVE_S + 10)
        assert plain(wire.sent) == answer
        port.flow.far_s = FAR_S
        await asyncio.sleep(KEEPALIVE_S * 2 + 70)
        assert wire.is_lost

    scene(play)


def test_a_request_under_way_to_redis_when_the_port_is_shut_down_is_answered() -> None:
    async def play(port: MemoryPort) -> None:
        wire, _ = await warm(port)
        port.flow.far_s = FAR_S
        wire.receive(ONE)
        port.front.is_draining = True
        port.server.pre_shutdown()
        await port.server.shutdown(30)
        await settled()
        assert wire.sent.startswith(b"HTTP/1.1 200 ")
        assert wire.sent.count(b"HTTP/1.1 ") == 1
        assert b"\r\nConnection: close\r\n" in wire.sent

    scene(play)


def test_when_a_drain_begins_while_redis_is_asked_the_answer_says_that_it_is_the_last() -> None:
    async def play(port: MemoryPort) -> None:
        wire, _ = await warm(port)
        port.flow.far_s = FAR_S
        wire.receive(ONE)
        await asyncio.sleep(FAR_S / 2)
        port.front.is_draining = True
        await settled()
        assert wire.sent.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in wire.sent
        assert wire.is_lost

    scene(play)


def test_what_redis_lacks_too_goes_the_long_way_with_what_was_found() -> None:
    async def play(port: MemoryPort) -> None:
        wire, _ = await warm(port)
        port.flow.far_s, port.flow.is_on = FAR_S, False
        wire.receive(ONE)
        await settled()
        assert b"sent on" in wire.sent
        wire.receive(request(target=b"/x"))
        await settled()
        assert port.flow.found == [None, Found(redis_s=FAR_S), None]
        told = port.observed.outcomes[1]
        assert (told.state, told.total_ms >= FAR_S * 1000) == (CacheState.MISS, True)
        assert port.soon == 0

    scene(play)


def test_a_fault_of_ours_behind_redis_is_told_and_the_request_goes_the_long_way() -> None:
    async def play(port: MemoryPort) -> None:
        wire, (answer,) = await warm(port)
        again = port.lane._known[ONE][0] if port.lane is not None else None
        assert again is not None

        async def look_up(outcome: Outcome) -> Found:
            raise ValueError

        broken = Again()
        broken.lacks_entries = lambda: True  # type: ignore[method-assign]
        broken.look_up = look_up  # type: ignore[method-assign]
        port.lane._known[ONE] = (broken, len(BODY))  # type: ignore[union-attr]
        wire.receive(ONE)
        await settled()
        assert plain(wire.sent) == answer
        assert [type(fault) for fault in port.observed.faults] == [ValueError]
        assert port.flow.found == [None, None]

    scene(play)


def test_an_idle_connection_is_not_closed_while_redis_is_asked() -> None:
    async def play(port: MemoryPort) -> None:
        wire, (answer,) = await warm(port)
        port.flow.far_s = FAR_S
        await asyncio.sleep(KEEPALIVE_S - 0.05 - FAR_S / 2)
        wire.receive(ONE)
        await asyncio.sleep(FAR_S * 2)
        assert plain(wire.sent) == answer
        assert (port.soon, wire.is_lost) == (1, False)

    scene(play)


def test_a_request_that_came_while_another_was_answered_leaves_an_idle_connection() -> None:
    async def play(port: MemoryPort) -> None:
        wire = port.connect()
        await asyncio.sleep(0)
        wire.receive(request(target=b"/slow"))
        await settled()
        wire.receive(HEAD)
        await asyncio.sleep(2)
        wire.receive(BODY)
        await settled()
        assert wire.sent.count(b"HTTP/1.1 200 ") == 2
        await asyncio.sleep(HEADER_WAIT_S * 2)
        assert not wire.is_lost

    scene(play)


def test_after_an_error_of_ours_another_request_is_as_welcome_as_after_any_answer() -> None:
    async def play(port: MemoryPort) -> None:
        wire, (answer,) = await warm(port)
        port.flow.refusal = UpstreamError(ErrorCode.UPSTREAM_TIMEOUT, "too late", 504)
        wire.receive(request(target=b"/x"))
        await settled()
        assert wire.sent.startswith(b"HTTP/1.1 504 ")
        port.flow.refusal, wire.sent = None, b""
        wire.receive(ONE)
        assert plain(wire.sent) == answer
        wire.sent = b""
        port.flow.refusal = UpstreamError(ErrorCode.UPSTREAM_TIMEOUT, "too late", 504)
        wire.receive(request(target=b"/x"))
        await settled()
        wire.receive(b"POST /x HTTP")  # and no more, for which there is a limit as ever
        await asyncio.sleep(HEADER_WAIT_S * 1.5)
        assert wire.is_lost

    scene(play)


FORMS = {
    "HTTP/1.0": request(version=b"1.0"),
    "HTTP/1.0 that stays": request(version=b"1.0", lines=b"Connection: keep-alive\r\n"),
    "closing": request(lines=b"Connection: close\r\n"),
    "expecting": request(lines=b"Expect: 100-continue\r\n"),
    "upgrading": request(lines=b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    "chunked": b"POST /hit HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "empty lines before": b"\r\n\r\n" + request(b"x" * 100),
    "two at once": ONE + ONE,
    "one and a part of another": ONE + ONE[:10],
    "long": request(b"x" * 16_384),
    "no hit": request(target=b"/x"),
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in FORMS.items()])
@pytest.mark.parametrize("cut", [0, 1, 4, 60, -2])
def test_what_is_not_beyond_doubt_is_not_learnt(data: bytes, cut: int) -> None:
    async def play(port: MemoryPort) -> None:
        assert port.lane is not None
        for _ in range(2):
            wire = port.connect()
            await asyncio.sleep(0)
            for piece in (data[:cut], data[cut:]) if cut else (data,):
                wire.receive(piece)
                await settled()
            assert b" 200 " in wire.sent
        assert not port.lane._known
        assert not port.lane._heads
        assert port.at_once == 0

    scene(play)


def test_bytes_behind_a_part_of_a_head_are_no_request() -> None:
    """They belong to the message that has begun, whatever they look like."""

    async def play(port: MemoryPort) -> None:
        wire, _ = await warm(port)
        wire.receive(b"POST /x HTTP/1.1\r\nX-Last: ")
        await settled()
        wire.receive(ONE)
        await settled()
        assert port.at_once == 0
        assert plain(wire.sent).count(b"HTTP/1.1") == 1
        assert b"sent on" in wire.sent

    scene(play)


def test_a_body_that_looks_like_a_request_is_none() -> None:
    async def play(port: MemoryPort) -> None:
        wire, _ = await warm(port)
        wire.receive(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (2 * len(ONE)))
        for _ in range(2):
            await settled()
            assert not wire.sent
            wire.receive(ONE)
        await settled()
        assert port.at_once == 0
        assert plain(wire.sent).count(b"HTTP/1.1") == 1
        assert b"sent on" in wire.sent

    scene(play)


def test_an_answer_that_comes_before_the_body_leaves_the_lane_shut() -> None:
    async def play(port: MemoryPort) -> None:
        wire, _ = await warm(port)
        wire.receive(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(ONE))
        await settled()
        assert b"sent on" in wire.sent
        wire.sent = b""
        wire.receive(ONE)  # the body
        await settled()
        assert not wire.sent
        wire.receive(ONE)
        assert port.at_once == 1

    scene(play)


def test_a_slow_reader_that_goes_on_asking_is_not_answered_into_memory() -> None:
    async def play(port: MemoryPort) -> None:
        port.flow.padding = bytes(10_000)
        await warm(port)
        wire = port.connect(room=30_000)
        await asyncio.sleep(0)
        for _ in range(500):
            wire.receive(ONE)
            await asyncio.sleep(0.001)
        assert len(wire.sent) < 60_000
        for _ in range(600):
            wire.read()
            await asyncio.sleep(0.001)
        assert wire.sent.count(b"HTTP/1.1 200 ") == 500
        assert 0 < port.at_once < 20

    scene(play)


def test_the_lane_is_bounded_in_bytes_whatever_comes() -> None:
    lane, again = Lane(), Again()
    for at in range(3_000):
        for _ in range(2):
            lane.learn(request(b"{}", b"X: %d%b\r\n" % (at, b"x" * 3_000)), 2, again)
            lane.learn(request(b"%d" % at + b"x" * 15_000), 15_000 + len(str(at)), again)
    assert sum(map(len, lane._known)) <= 6 * MIB
    assert sum(map(len, lane._heads)) <= MIB
    assert lane.find(request(b"2999" + b"x" * 15_000)) == (again, 15_004)


@pytest.mark.parametrize(
    ("data", "body_bytes"), [(request(b"x" * 16_384), 16_384), (request(b"", b"X: %b\r\n" % (b"x" * 4_096)), 0)]
)
def test_what_is_long_is_not_learnt(data: bytes, body_bytes: int) -> None:
    lane = Lane()
    for _ in range(3):
        lane.learn(data, body_bytes, Again())
    assert lane.find(data) is None


def test_what_comes_once_is_not_learnt() -> None:
    lane = Lane()
    for at in range(100):
        lane.learn(request(b"%d" % at), 2, Again())
    assert not lane._known
    lane.learn(request(b"7"), 1, Again())
    assert lane.find(request(b"7")) is not None
