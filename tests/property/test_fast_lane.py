"""
The fast lane changes nothing but time: what clients get with it and without it is equal, byte for byte.

A real port (aiohttp's parser, connection, intake, front) on a wire in memory, before a flow whose answers are digests
of what it was asked. Few requests, often repeated, written whole, in pieces, several at once, between malformed ones.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scenario.test_door import REFUSED
from tests.support import fake_loop
from tests.support.memory_wire import MemoryPort, plain

TURNS, SHORT_S, SETTLED_S = 0, 0.002, 0.05
LINES = (
    b"",
    b"X-Request-Id: 1\r\n",
    b"X-Request-Id: 2\r\n",
    b"User-Agent: a\r\nCache-Control: max-age=5\r\n",
    b"Accept-Encoding: gzip\r\n",
    b"Connection: keep-alive, User-Agent\r\nUser-Agent: b\r\n",
    b"X-HTTP-Method-Override: PUT\r\n",
    b"Host: \r\n",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
)
BODIES = (
    b"{}",
    b'{"a":1}',
    b'{"a":2}',
    b"",
    b"POST /hit HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
    b"\r\n\r\n",
)
MALFORMED = tuple(data for data, _, _ in REFUSED.values() if len(data) < 2_000)


def post(target: bytes, lines: bytes, body: bytes, version: bytes = b"1.1", *, beyond: int = 0) -> bytes:
    head = b"POST %b HTTP/%b\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n"
    return head % (target, version, lines, max(0, len(body) + beyond)) + body


def chunked(target: bytes, lines: bytes, body: bytes) -> bytes:
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (target, lines) + chunks


@dataclass(frozen=True)
class Send:
    """*data*, cut at these places, with such a pause between the pieces and behind them."""

    data: bytes
    cuts: tuple[int, ...]
    between_s: float
    behind_s: float


@dataclass(frozen=True)
class Switch:
    """Hits become misses, or the reverse."""


@dataclass(frozen=True)
class Move:
    """What hits are made of is so far away from now on; ``None``: at hand."""

    far_s: float | None


@dataclass(frozen=True)
class Reconnect:
    """The client leaves, and another comes."""


@dataclass(frozen=True)
class Wait:
    """Nobody says anything for so long."""

    seconds: float


Step = Send | Switch | Move | Reconnect | Wait

known = st.builds(post, st.just(b"/hit"), st.sampled_from(LINES[:4]), st.sampled_from(BODIES[:3]))
others = st.one_of(
    st.builds(
        post, st.sampled_from((b"/hit", b"/early", b"/slow", b"/x")), st.sampled_from(LINES), st.sampled_from(BODIES)
    ),
    st.builds(post, st.just(b"/hit"), st.just(b""), st.sampled_from(BODIES), st.sampled_from((b"1.0", b"1.2"))),
    st.builds(
        lambda body, beyond: post(b"/hit", b"", body, beyond=beyond), st.sampled_from(BODIES), st.integers(-2, 90)
    ),
    st.builds(chunked, st.just(b"/hit"), st.sampled_from(LINES), st.sampled_from(BODIES)),
    st.sampled_from(
        (b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /hit HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    ),
    st.sampled_from((b"POST /x HTTP/1.1\r\nX-Last: ", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n")),
    st.sampled_from(MALFORMED),
)


@st.composite
def altered(draw: st.DrawFn) -> bytes:
    """A known request with a few bytes more, less or other than it should have."""
    data = draw(known)
    at = draw(
        st.one_of(st.just(0), st.just(data.index(b"\r\n\r\n") + draw(st.integers(0, 4))), st.integers(0, len(data)))
    )
    piece = draw(
        st.sampled_from((b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\n\n", b" ", b"\t", b"\0", b"x", b"0", b": ", b""))
    )
    return data[:at] + piece + data[at + draw(st.sampled_from((0, 0, 1, 2))) :]


@st.composite
def sends(draw: st.DrawFn, favourites: Sequence[bytes]) -> Send:
    """Mostly one of *favourites*, whole, or its head and then its body."""
    one = st.sampled_from(favourites)
    messages = [draw(one)]
    if draw(st.integers(0, 9)) == 9:
        one = draw(st.sampled_from((one, known, others, altered())))
        messages = draw(st.lists(st.one_of(st.sampled_from(favourites), one), min_size=1, max_size=3))
    data = b"".join(messages)
    how = draw(st.integers(0, 5))
    if how < 3:
        cuts: Sequence[int] = ()
    elif how < 5:
        end = data.find(b"\r\n\r\n")
        cuts = (end + 4,) if end >= 0 else ()
    else:
        cuts = sorted(draw(st.sets(st.integers(0, len(data)), max_size=4)))
    between_s = draw(st.sampled_from((TURNS, TURNS, TURNS, SHORT_S, SETTLED_S)))
    behind_s = draw(st.sampled_from((SETTLED_S, SETTLED_S, SETTLED_S, SETTLED_S, TURNS, SHORT_S)))
    return Send(data, tuple(cuts), between_s, behind_s)


@st.composite
def scripts(draw: st.DrawFn) -> list[Step]:
    """What a few clients do, one after another."""
    send = sends(draw(st.lists(known, min_size=1, max_size=2)))
    script: list[Step] = []
    for _ in range(draw(st.integers(3, 14))):
        what = draw(st.integers(0, 14))
        if what < 11:
            script.append(draw(send))
        elif what == 11:
            script.append(Switch())
        elif what == 12:
            script.append(Reconnect())
        elif what == 13:
            script.append(Move(draw(st.sampled_from((None, 0.0, SHORT_S, SETTLED_S)))))
        else:
            script.append(Wait(draw(st.sampled_from((4.0, 40.0, 100.0)))))
        if what < 2:  # after which it may have been closed
            script.append(Reconnect())
    return script


class _Everything(set[int]):
    def __contains__(self, _: object) -> bool:
        return True


async def pause(seconds: float) -> None:
    for _ in range(3):
        await asyncio.sleep(0)
    await asyncio.sleep(seconds)


async def play(script: Sequence[Step], *, has_lane: bool, recalls: bool = False) -> tuple[Any, int]:
    """What each client got, and what the observer was told; and how many answers were given past the parser."""
    port = MemoryPort(has_lane=has_lane, recalls=recalls)
    if port.lane is not None:
        port.lane._seen = _Everything()  # or scripts would have to be twice as long
    wires = [port.connect()]
    for step in script:
        if isinstance(step, Send):
            ends = (*step.cuts, len(step.data))
            for start, end in zip((0, *step.cuts), ends, strict=True):
                if start < end:
                    wires[-1].receive(step.data[start:end])
                    await (pause(step.between_s) if end < len(step.data) and step.between_s else asyncio.sleep(0))
            if step.behind_s:
                await pause(step.behind_s)
        elif isinstance(step, Wait):
            await pause(step.seconds)
        else:
            # What is being answered when a client leaves or a switch turns is a matter of time, which is what differs.
            await pause(2.0)
            if isinstance(step, Switch):
                port.flow.is_on = not port.flow.is_on
            elif isinstance(step, Move):
                port.flow.far_s = step.far_s
            else:
                wires[-1].receive_eof()
                wires.append(port.connect())
    await pause(2.0)
    got = [(plain(wire.sent), wire.is_lost) for wire in wires]
    wires[-1].receive_eof()
    await pause(30.0)
    assert all(wire.is_lost for wire in wires)
    assert not port.observed.faults
    assert port.clients.count == port.front.running == 0
    told = [
        (told.state, told.detail, told.status, told.bytes_in, told.bytes_out, told.client_gone)
        for told in port.observed.outcomes
    ]
    # Who has left is told of a few turns of the loop later: whether before or after who came next is a matter of time.
    return (got, sorted(told, key=repr)), port.at_once + port.soon


@pytest.mark.parametrize("recalls", [False, True], ids=["bytes only", "bytes and meaning"])
def test_with_and_without_the_lane_clients_get_the_same(recalls: bool) -> None:
    examples, used, at_once = 0, 0, 0

    @given(scripts())
    def check(script: list[Step]) -> None:
        nonlocal examples, used, at_once
        without, never = fake_loop.run(play(script, has_lane=False))
        with_lane, count = fake_loop.run(play(script, has_lane=True, recalls=recalls))
        assert with_lane == without
        assert never == 0
        examples, used, at_once = examples + 1, used + (count > 0), at_once + count

    check()
    print(f"{examples} scripts, {used} of them used the lane, {at_once} times")
    assert used >= examples / 10, "the lane was hardly used, so nothing was compared"
