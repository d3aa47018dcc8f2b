"""Raw bytes at a real proxy, some here and many at night; what must hold is in ``tests/fuzz/http_edge.py``."""

import asyncio
import itertools
import random

import pytest

from tests.fuzz.edge_input import drawn
from tests.fuzz.http_edge import LIMITS, Edge, read
from tests.scenario.wire_rig import wire_rig


@pytest.mark.parametrize("inputs", [150, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_bytes_of_no_client_are_answered_or_ended_and_forwarded_once(inputs, record_property):
    async with wire_rig(**LIMITS) as rig:
        edge = Edge(rig)
        for number in range(inputs):
            chance = random.Random(number)
            await edge.one_input(drawn(chance), chance)
        edge.check_log()
        assert edge.forwarded > inputs / 20
    record_property("figure", f"{inputs} inputs, {edge.answers} answers, {edge.forwarded} requests at the upstream")


async def test_the_oracle_reads_requests_as_they_stand_on_the_wire():
    chunked = b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    data = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n\r\n" + chunked
    came, is_whole = await read(data)
    assert ([each.identity for each in came], is_whole) == ([(b"/a", b""), (b"/b", b"x")], True)
    assert (await read(data + b"GET"))[1] is False


async def test_a_broken_body_is_no_error_in_the_log():
    broken = (b"z\r\n", b"1\r\nx\r\nz\r\n", b"1\r\nxy\r\n0\r\n\r\n")
    async with wire_rig(**LIMITS) as rig:
        edge = Edge(rig)
        for method, pause, sent in itertools.product((b"POST", b"CONNECT", b"OPTIONS"), (0, 0.02), broken):
            async with await rig.client() as client:
                await client.send(method + b" /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
                await asyncio.sleep(pause)  # the body breaks before or after the handler has begun
                await client.send(sent)
                await client.read_until_closed()
            edge.check_log()
