"""
Plans of DashVector's gRPC operations: any method, message and answer, judged by the SDK's own protobuf classes.

Two messages under one key must be one message to protobuf, and a search that was made wider and cut again must give
what the narrow one would have. Input: flags, method and collection as a line, length of the message (2 bytes, little
endian), message, answer.
"""

import base64
import hashlib
import json
import random
from collections.abc import Hashable, Iterator
from typing import Any

from google.protobuf.message import DecodeError

from proxy.core.plan import NotStorable, Pass
from proxy.core.request import GRPC, Request
from proxy.vendors.dashvector.common import VectorRead
from proxy.vendors.dashvector.over_grpc import SERVICE, DashVectorGrpc
from tests.fuzz.dashvector_http import LIMIT, SAMPLES
from tests.fuzz.mutation import message_changed
from tests.fuzz.oracles import OURS, Meanings, keys_of, stored
from tests.vendor_sim.dashvector_package import pb
from tests.vendor_sim.dashvector_proto import message_types

# Spelled out a second time, on purpose: what is not here may change something.
READS = (
    "get_version",
    "list_collections",
    "describe_collection",
    "stats_collection",
    "list_partitions",
    "describe_partition",
    "stats_partition",
    "query_doc",
    "query_doc_group_by",
    "fetch_doc",
)
_PARTITIONED = ("query_doc", "query_doc_group_by", "fetch_doc")
_MEANINGS = Meanings()
_ADAPTERS = {False: DashVectorGrpc(), True: DashVectorGrpc(overfetch_topk=LIMIT)}


def seeds() -> Iterator[bytes]:
    """Every sampled call, with and without a wider search; and searches of all kinds."""
    for name, call in json.loads((SAMPLES / "grpc_exchanges.json").read_text("utf-8"))["exchanges"].items():
        method = call["method"].rpartition("/")[2]
        message = base64.b64decode(call["request_base64"])
        answer = base64.b64decode(call.get("response_base64") or "")
        for flags in b"\x00\x01":
            yield packed(flags, method, message, answer)
            if name == "query_doc":
                for search in _searches(message):
                    yield packed(flags, method, search, answer)


def packed(flags: int, method: str, message: bytes, answer: bytes, collection: str = "quickstart") -> bytes:
    """An input."""
    line = f"{method} {collection}\n".encode()
    return bytes([flags]) + line + len(message).to_bytes(2, "little") + message + answer


def _searches(message: bytes) -> Iterator[bytes]:
    search = pb.QueryDocRequest.FromString(message)
    search.partition = "default"
    yield search.SerializeToString()
    search.sparse_vector[3] = 0.5
    search.sparse_vector[1] = 0.25
    yield search.SerializeToString()
    several = pb.QueryDocRequest(topk=3)
    for name in ("a", "b"):
        several.vectors[name].vector.float_vector.values.extend([1.0, 2.0])
        several.vectors[name].param.num_candidates = 3
        several.sparse_vectors[name].sparse_vector.sparse_vector[2] = 0.5
    several.rerank.ranker_name = "rrf"
    several.rerank.ranker_params["k"] = "1"
    several.rerank.ranker_params["n"] = "2"
    yield several.SerializeToString()


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Another message, or another answer."""
    line, end, rest = data.partition(b"\n")
    length = int.from_bytes(rest[:2], "little")
    message, answer = rest[2 : 2 + length], rest[2 + length :]
    if chance.random() < 0.6:
        message = message_changed(message, chance)
    else:
        answer = message_changed(answer, chance)
    return line + end + (len(message) & 0xFFFF).to_bytes(2, "little") + message + answer


def one_input(data: bytes) -> None:
    """Raise AssertionError if what is planned for *data*, or made of its answer, is wrong."""
    line, _, rest = data[1:].partition(b"\n")
    method, _, collection = line.decode("latin-1").partition(" ")
    length = int.from_bytes(rest[:2], "little")
    if data and method:
        check(method, collection, rest[2 : 2 + length], rest[2 + length :], is_wide=bool(data[0] & 1))


def check(method: str, collection: str, message: bytes, answer: bytes, *, is_wide: bool) -> bool:
    """Plan a call and, if it is one to read, its answers; whether it was."""
    adapter = _ADAPTERS[is_wide]
    lines = ((b"dashvector-auth-token", b"sk-one"), (b"collection-name", collection.encode("latin-1")))
    request = Request(GRPC, SERVICE + method, lines, "vectors", message)
    assert adapter.operation_of(GRPC, request.path)
    write = adapter.write_of(GRPC, request.path, lines)
    if write is not None:
        assert write.scopes
        write.verdict(200, 0, answer)
        return False
    assert method in READS, "a read that is none"
    plan = adapter.plan(request)
    if isinstance(plan, Pass):
        return False
    plain = plan.plain or plan
    assert plain.narrowed((0,)) == message
    _MEANINGS.check(*keys_of(plain), (method, collection, meaning(method, message)))
    check_answer(plain, method, answer)
    if plan.plain is not None:
        _check_wide(plan, message)
    return True


def meaning(method: str, message: bytes) -> Hashable:
    """What protobuf reads, in its own order; ``None`` for what it refuses, as the vendor then does."""
    try:
        read = message_types(method)[0].FromString(message)
    except DecodeError:
        return None
    if method in _PARTITIONED and read.partition == "default":
        read.partition = ""
    return told_of(read)


def told_of(message: Any) -> tuple[bytes, bytes]:
    """All that is known of *message* in protobuf's own order, and what else is in it, in any."""
    everything = sorted(message.SerializeToString(deterministic=True))
    message.DiscardUnknownFields()
    return bytes(message.SerializeToString(deterministic=True)), bytes(everything)


def check_answer(plan: VectorRead, method: str, answer: bytes) -> bool:
    """Whether *answer* is kept, in which case it comes back as it was but for its id."""
    try:
        (row,) = plan.split(answer, (0,))
    except NotStorable:
        return False
    assert stored(row) == row
    ids = [bytes.fromhex("0a") + bytes([length]) for length in range(128)]
    joined = plan.join((row,), OURS)
    ours = b"\x0a" + bytes([len(OURS)]) + OURS.encode()
    place = int.from_bytes(row.envelope[:4], "little")
    around = row.envelope[4:]
    assert joined == around[:place] + ours + around[place:]
    taken = len(answer) - len(around)
    assert answer == around[:place] + answer[place : place + taken] + around[place:]
    kind = message_types(method)[1]
    try:
        before, after = kind.FromString(answer), kind.FromString(joined)
    except DecodeError:
        return True
    if before.request_id and answer[place : place + 2] in ids:
        assert before.code == 0
        before.request_id = OURS
        assert _same(before, after)
    return True


def _check_wide(plan: VectorRead, message: bytes) -> None:
    try:
        given, asked = (pb.QueryDocRequest.FromString(each) for each in (message, plan.narrowed((0,))))
    except DecodeError:
        return
    _MEANINGS.check(*keys_of(plan), _ranked_by(given))
    (row,) = plan.split(_answer(asked), (0,))
    joined, expected = pb.QueryDocResponse.FromString(plan.join((stored(row),), OURS)), _answered(given)
    expected.request_id = OURS
    assert _same(joined, expected), given


def _same(one: Any, other: Any) -> bool:
    return bool(one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True))


def _ranked_by(search: Any) -> bytes:
    """What decides which documents are found, and in which order."""
    copy = pb.QueryDocRequest()
    copy.CopyFrom(search)
    for entry in copy.vectors.values():
        # As many candidates as documents are what SDKs fill in.
        if entry.HasField("param") and entry.param.num_candidates == copy.topk:
            entry.param.num_candidates = -1
    copy.topk = 0
    if copy.partition == "default":
        copy.partition = ""
    return bytes(copy.SerializeToString(deterministic=True))


def _answer(search: Any) -> bytes:
    return bytes(_answered(search).SerializeToString())


def _answered(search: Any) -> Any:
    """The vendor's answer."""
    digest = hashlib.sha256(_ranked_by(search)).digest()
    answer = pb.QueryDocResponse(request_id="one", message="Success")
    for at in range(min(search.topk, digest[1])):
        answer.output.add(id=f"{digest[at % 32]}-{at}", score=at // 2 + digest[0] / 7)
    answer.usage.read_units = 4
    return answer
