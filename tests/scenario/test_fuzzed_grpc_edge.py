"""Frames of no client at a real proxy's gRPC port, some here and many at night; see ``tests/fuzz/grpc_edge.py``."""

import random

import pytest

from tests.consistency.calls import Call
from tests.fuzz.grpc_edge import grpc_edge
from tests.fuzz.grpc_input import may_be_read, messages, sound
from tests.support.http2 import DATA, END_STREAM, PREFACE, frame, grpc_message


@pytest.mark.parametrize("inputs", [80, pytest.param(5_000, marks=[pytest.mark.slow, pytest.mark.timeout(1_200)])])
async def test_frames_of_no_client_hurt_nobody_else_and_store_nothing_wrong(inputs, record_property):
    async with grpc_edge() as edge:
        for number in range(inputs):
            await edge.one_input(random.Random(number))
        edge.check_whole()
        assert edge.hits > inputs / 2, "there was no cache to attack"
    record_property("figure", edge.summary())


def test_the_reader_finds_messages_by_stream_however_they_are_cut():
    whole = grpc_message(b"one") + grpc_message(b"two")
    data = frame(DATA, 0, 1, whole[:7]) + frame(DATA, END_STREAM, 3, grpc_message(b"x")) + frame(DATA, 0, 1, whole[7:])
    assert messages(data) == {1: [b"one", b"two"], 3: [b"x"]}
    padded = frame(DATA, 8 | END_STREAM, 5, b"\x02" + grpc_message(b"p") + b"\0\0")
    assert messages(padded) == {5: [b"p"]}
    assert messages(frame(DATA, 0, 1, b"\x01" + grpc_message(b"c")[1:])) == {1: []}
    kept = frame(DATA, 0, 1, grpc_message(b"kept"))
    assert may_be_read(frame(DATA, 0, 1, b"lost") + kept) == {b"", b"kept"}, "an l is neither 0 nor 1"
    assert may_be_read(frame(DATA, 0, 1, b"\x01ost") + kept) == {b"kept"}


def test_good_calls_are_read_back():
    said = sound([Call("query_doc", "c"), Call("fetch_doc", "c")], b"t")
    assert list(messages(said.data[len(PREFACE) :])) == list(said.asked) == [1, 3]
