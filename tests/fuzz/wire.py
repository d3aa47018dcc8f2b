"""
The wire format of protocol buffers against protobuf itself: same fields, and one canonical form for one message only.

Input: method (1 byte), message.
"""

import base64
import itertools
import json
import random
from collections.abc import Iterator

from google.protobuf.message import DecodeError

from proxy.vendors.dashvector._pb import wire
from proxy.vendors.dashvector._pb.wire import BYTES, Malformed
from proxy.vendors.dashvector.over_grpc import _READS
from tests.fuzz.dashvector_grpc import READS, _searches, told_of
from tests.fuzz.dashvector_http import SAMPLES
from tests.fuzz.mutation import message_changed
from tests.fuzz.oracles import Meanings
from tests.vendor_sim.dashvector_proto import message_types

_MEANINGS = Meanings()


def seeds() -> Iterator[bytes]:
    """All sampled messages, questions and answers, as questions of every method."""
    calls = json.loads((SAMPLES / "grpc_exchanges.json").read_text("utf-8"))["exchanges"].values()
    for call in calls:
        messages = [base64.b64decode(call.get(name) or "") for name in ("request_base64", "response_base64")]
        if call["method"].endswith("/query_doc"):
            messages += _searches(messages[0])
        for at in range(len(READS)):
            yield from (bytes([at]) + message for message in messages)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Another message."""
    return data[:1] + message_changed(data[1:], chance)


def one_input(data: bytes) -> None:
    """Raise AssertionError if the message in *data* is read or compared wrongly."""
    if data:
        check(READS[data[0] % len(READS)], data[1:])


def check(method: str, message: bytes) -> bool:
    """Read *message* as *method*'s question; whether it is one."""
    kind, shape = message_types(method)[0], _READS[method].shape
    try:
        parsed = kind.FromString(message)
    except DecodeError:
        parsed = None
    try:
        found = wire.fields(message)
        canonical = wire.canonical(message, shape)
    except Malformed:
        return False
    assert b"".join(message[each.start : each.end] for each in found) == message
    assert all(before.end == after.start for before, after in itertools.pairwise(found))
    for each in found:
        assert message[each.start : each.end].endswith(each.data)
        if each.kind == BYTES:
            assert wire.fields(wire.bytes_field(each.number, each.data))[0].data == each.data
        elif each.kind == wire.VARINT:
            assert wire.fields(wire.varint_field(each.number, each.varint))[0].varint == each.varint
    meaning = None if parsed is None else told_of(parsed)
    _MEANINGS.check(method.encode() + b"\0" + canonical, meaning)
    # Map entries in another order are the same message; they may also stand anywhere between the others.
    maps = [message[each.start : each.end] for each in found if each.number in shape.maps and each.kind == BYTES]
    others = [message[each.start : each.end] for each in found if each.number not in shape.maps or each.kind != BYTES]
    random.Random(len(message)).shuffle(maps)
    assert wire.canonical(b"".join(others + maps), shape) == canonical
    assert wire.canonical(b"".join(maps + others), shape) == canonical
    return True
