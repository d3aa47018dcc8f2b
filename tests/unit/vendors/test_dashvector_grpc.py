"""DashVector over gRPC: recorded calls byte for byte, map order, unknown fields, and which answers are not kept."""

import base64
import json
import random
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.plan import NotStorable, Pass, PassReason, Refusal
from proxy.core.request import HeaderLines, Request
from proxy.runtime.offload import LARGE_BYTES
from proxy.vendors.dashvector._pb import wire
from proxy.vendors.dashvector.common import VectorRead
from proxy.vendors.dashvector.over_grpc import SERVICE, DashVectorGrpc
from proxy.vendors.dashvector.over_http import DashVectorHttp

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the SDK, as released, warns while it is compiled
    from dashvector.core.proto import dashvector_pb2 as pb

SAMPLES = Path(__file__).parents[2] / "samples" / "dashvector"
CALLS = json.loads((SAMPLES / "grpc_exchanges.json").read_text("utf-8"))["exchanges"]
TOKEN, NAMED = (b"dashvector-auth-token", b"sk-one"), (b"collection-name", b"abc")
LINES: HeaderLines = (TOKEN, NAMED)

READS = {
    "get_version": (pb.GetVersionRequest(), pb.GetVersionResponse(version="1.0.15")),
    "list_collections": (pb.ListCollectionsRequest(), pb.ListCollectionsResponse(output=["abc", "other"])),
    "describe_collection": (
        pb.DescribeCollectionRequest(name="abc"),
        pb.DescribeCollectionResponse(
            output=pb.CollectionInfo(name="abc", status=pb.SERVING, partitions={"default": 1})
        ),
    ),
    "stats_collection": (
        pb.StatsCollectionRequest(),
        pb.StatsCollectionResponse(
            output=pb.StatsCollectionResponse.CollectionStats(total_doc_count=3, index_completeness=1)
        ),
    ),
    "list_partitions": (pb.ListPartitionsRequest(), pb.ListPartitionsResponse(output=["default"])),
    "describe_partition": (pb.DescribePartitionRequest(name="one"), pb.DescribePartitionResponse(output=pb.SERVING)),
    "stats_partition": (
        pb.StatsPartitionRequest(name="one"),
        pb.StatsPartitionResponse(output=pb.PartitionStats(total_doc_count=0)),
    ),
    "query_doc": (
        pb.QueryDocRequest(vector=pb.Vector(byte_vector=b"\x01\x02"), topk=2),
        pb.QueryDocResponse(
            output=[pb.Doc(id="1", score=0.5, fields={"code": pb.FieldValue(int_value=-1)})],
            usage=pb.RequestUsage(read_units=4),
        ),
    ),
    "query_doc_group_by": (
        pb.QueryDocGroupByRequest(group_by_field="age"),
        pb.QueryDocGroupByResponse(output=[pb.GroupResult(group_id="20", docs=[pb.Doc(id="1")])]),
    ),
    "fetch_doc": (pb.FetchDocRequest(ids=["1", "2"]), pb.FetchDocResponse(output={"1": pb.Doc(id="1", score=1)})),
}
"""Each read with a good answer."""


def call(name="query_doc", message=b"", lines=LINES) -> Request:
    return Request("GRPC", SERVICE + name, lines, "vectors", message)


def read(asked: Request) -> VectorRead:
    plan = DashVectorGrpc().plan(asked)
    assert isinstance(plan, VectorRead), plan
    return plan


def identity(message, name="query_doc", lines=LINES):
    plan = read(call(name, message, lines))
    return plan.operation, plan.identity, plan.items


def recorded(name: str) -> tuple[Request, bytes]:
    entry = CALLS[name]
    lines = tuple((key.encode(), value.encode()) for key, value in entry["metadata"])
    answer = base64.b64decode(entry.get("response_base64", ""))
    return Request("GRPC", entry["method"], lines, "vectors", base64.b64decode(entry["request_base64"])), answer


@pytest.mark.parametrize("name", ["get_version", "describe_collection", "query_doc", "fetch_doc", "stats_collection"])
def test_a_recorded_read_is_one_item_and_comes_back_byte_for_byte(name):
    asked, answer = recorded(name)
    plan = read(asked)
    assert plan.narrowed([0]) == asked.body
    (row,) = plan.split(answer, [0])
    vendor_id = CALLS[name]["response"]["request_id"]
    assert (row.origin, row.vector, row.usage) == (vendor_id, b"", ())
    assert vendor_id.encode() not in row.envelope
    assert plan.join([row], vendor_id) == answer
    message = getattr(pb, CALLS[name]["response_message"])
    told = message.FromString(answer)
    told.request_id = "ours, and longer than the vendor's was: " + "x" * 200
    assert message.FromString(plan.join([row], told.request_id)) == told


@pytest.mark.parametrize("name", READS)
def test_every_read_is_planned_kept_and_told_again(name):
    message, answer = READS[name]
    plan = read(call(name, message.SerializeToString()))
    body = type(answer)(request_id="vendor", message="Success").SerializeToString() + answer.SerializeToString()
    assert plan.join(plan.split(body, [0]), "vendor") == body
    scopes = {"get_version": (), "list_collections": (("catalog",),)}.get(name, (("collection", "abc"),))
    assert plan.scopes == (("endpoint",), *scopes)
    assert plan.operation == ("vector-query" if "doc" in name else "vector-stats")
    assert plan.operation == DashVectorGrpc().operation_of("GRPC", SERVICE + name)
    assert DashVectorGrpc().write_of("GRPC", SERVICE + name, LINES) is None


def test_all_reads_of_the_service_are_known():
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["DashVectorService"].methods}
    writes = {name for name in methods if DashVectorGrpc().write_of("GRPC", SERVICE + name, LINES) is not None}
    assert methods - writes == set(READS)
    assert len(writes) == 8


# --- who shares what --------------------------------------------------------------------------------------------------


def shuffled(message, order: random.Random) -> bytes:
    """*message* on the wire with its map entries, and those inside it, in another order."""
    maps: dict[int, list[bytes]] = {}
    rest = []
    for descriptor, value in message.ListFields():
        number = descriptor.number
        entry = descriptor.message_type
        if entry is not None and entry.GetOptions().map_entry:
            maps[number] = [_entry(entry, number, key, value[key], order) for key in value]
        elif entry is not None and not isinstance(value, list) and hasattr(value, "SerializeToString"):
            rest.append([wire.bytes_field(number, shuffled(value, order))])
        else:
            alone = type(message)()
            if hasattr(value, "extend"):
                getattr(alone, descriptor.name).extend(value)
            else:
                setattr(alone, descriptor.name, value)
            rest.append([alone.SerializeToString()])
    for entries in maps.values():
        order.shuffle(entries)
    return b"".join(piece for group in (*rest, *maps.values()) for piece in group)


def _entry(entry, number, key, value, order) -> bytes:
    if hasattr(value, "SerializeToString"):
        held = wire.bytes_field(2, shuffled(value, order))
    elif isinstance(value, str):
        held = wire.bytes_field(2, value.encode())
    else:
        held = pb.VectorQueryParam(radius=value).SerializeToString() or b"\x15\0\0\0\0"  # field 2, a float
    name = wire.bytes_field(1, key.encode()) if isinstance(key, str) else wire.varint_field(1, key)
    return wire.bytes_field(number, name + held)


WEIGHTS = st.dictionaries(st.integers(0, 2**32 - 1), st.floats(width=32, allow_nan=False), max_size=5)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=3)


@st.composite
def queries(draw):
    message = pb.QueryDocRequest(topk=draw(st.integers(0, 1024)), filter=draw(NAMES), partition=draw(NAMES))
    message.output_fields.extend(draw(st.lists(NAMES, max_size=3)))
    message.sparse_vector.update(draw(WEIGHTS))
    for name, values in draw(st.dictionaries(NAMES, FLOATS, max_size=4)).items():
        message.vectors[name].vector.float_vector.values.extend(values)
        message.vectors[name].param.num_candidates = 7
    for name, weights in draw(st.dictionaries(NAMES, WEIGHTS, max_size=3)).items():
        message.sparse_vectors[name].sparse_vector.sparse_vector.update(weights)
    message.rerank.ranker_params.update(draw(st.dictionaries(NAMES, NAMES, max_size=4)))
    return message


def in_another_order(message, order: random.Random):
    """An equal message of the vendor's own class, its maps filled in another order."""
    other = pb.QueryDocRequest()
    other.CopyFrom(message)
    for name in ("sparse_vector", "vectors", "sparse_vectors"):
        other.ClearField(name)
        keys = list(getattr(message, name))
        order.shuffle(keys)
        for key in keys:
            if name == "sparse_vector":
                other.sparse_vector[key] = message.sparse_vector[key]
            else:
                getattr(other, name)[key].CopyFrom(getattr(message, name)[key])
    return other


@given(queries(), st.randoms(use_true_random=False))
def test_the_order_of_maps_splits_nothing(message, order):
    plain = message.SerializeToString()
    for other in (
        in_another_order(message, order).SerializeToString(),
        pb.QueryDocRequest.FromString(plain).SerializeToString(),
        message.SerializeToString(deterministic=True),
    ):
        assert identity(other) == identity(plain)
    moved = shuffled(message, order)
    assert pb.QueryDocRequest.FromString(moved) == message
    assert identity(shuffled(message, order)) == identity(moved)


@given(queries(), queries())
def test_two_queries_share_an_entry_only_if_they_are_equal(one, two):
    for message in (one, two):
        if message.partition == "default":
            message.partition = ""
    is_same = one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)
    assert (identity(one.SerializeToString()) == identity(two.SerializeToString())) is is_same


@given(queries(), st.integers(13, 5000), st.binary(max_size=4))
def test_a_field_of_a_newer_client_is_part_of_the_key_wherever_it_stands(message, number, data):
    plain, unknown = message.SerializeToString(), wire.bytes_field(number, data)
    assert identity(plain + unknown) != identity(plain)
    assert identity(plain + unknown + unknown) != identity(plain + unknown)
    inside = pb.QueryDocRequest.FromString(plain)
    inside.vectors["v"].MergeFromString(unknown)
    assert identity(inside.SerializeToString()) != identity(plain)
    ranked = pb.QueryDocRequest.FromString(plain)
    ranked.rerank.MergeFromString(unknown)
    assert identity(ranked.SerializeToString()) != identity(plain)


@pytest.mark.parametrize(("name", "field"), [("query_doc", 5), ("query_doc_group_by", 7), ("fetch_doc", 2)])
def test_the_default_partition_has_three_spellings(name, field):
    base = wire.bytes_field(6, b"1")
    same = [base, base + wire.bytes_field(field, b""), wire.bytes_field(field, b"default") + base]
    assert len({repr(identity(each, name)) for each in same}) == 1
    other = [b"other", b"Default", b"default "]
    twice = wire.bytes_field(field, b"other") + wire.bytes_field(field, b"default")
    rest = [*(base + wire.bytes_field(field, each) for each in other), base + twice]
    assert len({repr(identity(each, name)) for each in [base, *rest]}) == 5


def test_the_later_member_of_a_oneof_counts_so_their_order_is_kept():
    one, two = wire.bytes_field(1, b"\x01"), wire.bytes_field(2, b"")
    messages = [wire.bytes_field(1, one + two), wire.bytes_field(1, two + one)]
    assert pb.QueryDocRequest.FromString(messages[0]) != pb.QueryDocRequest.FromString(messages[1])
    assert identity(messages[0]) != identity(messages[1])


@pytest.mark.parametrize(
    "lines",
    [
        ((b"dashvector-auth-token", b"sk-two"), NAMED),
        ((b"authorization", b"sk-one"), NAMED),
        (*LINES, (b"authorization", b"Bearer x")),
        (TOKEN, (b"collection-name", b"other")),
        (*LINES, (b"tenant-bin", b"\x01")),
        (*LINES, (b"x-new", b"1")),
    ],
)
def test_credentials_collections_and_unknown_metadata_split_entries(lines):
    assert identity(b"", lines=lines) != identity(b"")


@pytest.mark.parametrize("name", [b"grpc-timeout", b"grpc-trace-bin", b"user-agent", b"x-user-agent", b"content-type"])
def test_what_belongs_to_the_channel_splits_nothing(name):
    assert identity(b"", lines=(*LINES, (name, b"1"))) == identity(b"")


def test_the_protocols_share_nothing():
    target, lines = "/v1/collections/abc/stats", LINES
    http = DashVectorHttp().plan(Request("GET", target, lines, "vectors", b""))
    grpc = DashVectorGrpc().plan(Request("GRPC", SERVICE + "stats_collection", lines, "vectors", b""))
    assert isinstance(http, VectorRead)
    assert isinstance(grpc, VectorRead)
    assert http.identity != grpc.identity


# --- passed -----------------------------------------------------------------------------------------------------------


def test_without_a_credential_nothing_is_keyed():
    assert DashVectorGrpc().plan(call(lines=(NAMED,))) == Pass(PassReason.NO_CREDENTIAL, "vector-query")


@pytest.mark.parametrize("names", [(), (b"a b",), (b"",), (b"abc", b"abc"), (b"abc", b"other"), (b"..",)])
def test_a_read_that_does_not_say_which_collection_is_passed(names):
    lines = (TOKEN, *((b"collection-name", name) for name in names))
    assert DashVectorGrpc().plan(call(lines=lines)) == Pass(PassReason.UNKNOWN_SHAPE, "vector-query")


def test_a_description_says_it_in_its_message():
    message = pb.DescribeCollectionRequest(name="abc").SerializeToString()
    assert read(call("describe_collection", message, (TOKEN,))).scopes == (("endpoint",), ("collection", "abc"))
    for other, lines in ((b"", LINES), (wire.bytes_field(1, b"other"), LINES), (wire.bytes_field(1, b"a/b"), (TOKEN,))):
        plan = DashVectorGrpc().plan(call("describe_collection", other, lines))
        assert plan == Pass(PassReason.UNKNOWN_SHAPE, "vector-stats")
    twice = DashVectorGrpc().plan(call("describe_collection", message * 2))
    assert twice == Pass(PassReason.AMBIGUOUS, "vector-stats")


MALFORMED = {
    "truncated": b"\x0a\x05abc",
    "no value": b"\x10",
    "endless varint": b"\x10" + b"\xff" * 11,
    "a group": b"\x0b\x0c",
    "field zero": b"\x02\x00",
    "wire type 7": b"\x0f",
    "field number too large": b"\xff\xff\xff\xff\x7f\x00",
    "text": b"not a message",
    "short float": b"\x25\x00\x00",
    "a map key twice": (wire.bytes_field(7, b"\x08\x01")) * 2,
    "a default map key twice": wire.bytes_field(7, b"\x08\x00") + wire.bytes_field(7, b""),
    "a map key twice, longer": wire.bytes_field(7, b"\x08\x01") + wire.bytes_field(7, b"\x08\x81\x00"),
    "a map key twice, beyond 32 bits": wire.bytes_field(7, b"\x08\x01")
    + wire.bytes_field(7, b"\x08\x81\x80\x80\x80\x10"),
    "two keys in a map entry": wire.bytes_field(7, b"\x08\x01\x08\x02"),
    "two values in a map entry": wire.bytes_field(9, b"\x12\x00\x12\x00"),
    "more than key and value": wire.bytes_field(9, b"\x0a\x00\x1a\x00"),
    "key of another type": wire.bytes_field(9, b"\x08\x00"),
    "no map entry": wire.bytes_field(9, b"\xff"),
    "inside a map": wire.bytes_field(11, wire.bytes_field(2, b"\xff")),
    "inside a ranker": wire.bytes_field(10, b"\xff"),
}


@pytest.mark.parametrize("message", MALFORMED.values(), ids=MALFORMED)
def test_what_two_parsers_could_read_differently_is_passed(message):
    assert DashVectorGrpc().plan(call(message=message)) == Pass(PassReason.AMBIGUOUS, "vector-query")


@given(st.binary(max_size=60))
def test_any_bytes_are_planned_or_passed(message):
    for name in READS:
        plan = DashVectorGrpc(overfetch_topk=100).plan(call(name, message))
        assert isinstance(plan, VectorRead | Pass)
        if isinstance(plan, VectorRead):
            wire.fields(message)  # what is keyed is a message


# --- answers ----------------------------------------------------------------------------------------------------------

Info, Stats = pb.CollectionInfo, pb.StatsCollectionResponse.CollectionStats
DROPPED, STARTING = Info(status=pb.DROPPING), Info(name="abc")
HALF = Info(status=pb.SERVING, partitions={"default": pb.SERVING, "new": pb.INITIALIZED})
OK = {"request_id": "vendor"}

REFUSED = [
    ("describe_collection", pb.DescribeCollectionResponse(**OK, output=DROPPED), Refusal.INCOMPLETE),
    ("describe_collection", pb.DescribeCollectionResponse(**OK, output=STARTING), Refusal.INCOMPLETE),
    ("describe_collection", pb.DescribeCollectionResponse(**OK, output=HALF), Refusal.INCOMPLETE),
    ("describe_collection", pb.DescribeCollectionResponse(**OK), Refusal.SHAPE),
    ("describe_partition", pb.DescribePartitionResponse(**OK), Refusal.INCOMPLETE),
    ("describe_partition", pb.DescribePartitionResponse(**OK, output=pb.DROPPING), Refusal.INCOMPLETE),
    ("stats_collection", pb.StatsCollectionResponse(**OK), Refusal.SHAPE),
    ("stats_collection", pb.StatsCollectionResponse(**OK, output=Stats(index_completeness=0.5)), Refusal.INCOMPLETE),
    ("stats_partition", pb.StatsPartitionResponse(**OK), Refusal.SHAPE),
    ("get_version", pb.GetVersionResponse(**OK), Refusal.SHAPE),
    ("query_doc", pb.QueryDocResponse(output=[pb.Doc(id="1")]), Refusal.SHAPE),
    ("query_doc", pb.QueryDocResponse(**OK, code=-2034), Refusal.VENDOR_ERROR),
    ("query_doc", pb.QueryDocResponse(**OK, code=1, output=[pb.Doc(id="1")]), Refusal.VENDOR_ERROR),
    ("query_doc", pb.QueryDocResponse(**OK, output=[pb.Doc()]), Refusal.SHAPE),
    ("query_doc_group_by", pb.QueryDocGroupByResponse(**OK, output=[pb.GroupResult(docs=[pb.Doc()])]), Refusal.SHAPE),
    ("fetch_doc", pb.FetchDocResponse(**OK, output={"1": pb.Doc()}), Refusal.SHAPE),
]


@pytest.mark.parametrize(("name", "answer", "refusal"), REFUSED)
def test_an_answer_that_is_not_right_or_not_settled_is_not_kept(name, answer, refusal):
    plan = read(call(name, READS[name][0].SerializeToString()))
    with pytest.raises(NotStorable) as verdict:
        plan.split(answer.SerializeToString(), [0])
    assert verdict.value.refusal is refusal


@pytest.mark.parametrize(
    "answer", [b"", b"\xff", b"\x0a\x01a\x0a\x01b", b"\x0a\x01a\x22\x05", b"\x0a\x01a\x10\x00\x10\x01", b"\x08\x01"]
)
def test_bytes_that_are_no_clear_answer_are_not_kept(answer):
    with pytest.raises(NotStorable):
        read(call()).split(answer, [0])


@given(st.binary(max_size=80))
def test_any_answer_is_kept_as_it_is_or_refused(answer):
    for name, (message, _) in READS.items():
        plan = read(call(name, message.SerializeToString()))
        try:
            rows = plan.split(b"\x0a\x06vendor" + answer, [0])
        except NotStorable:
            continue
        assert plan.join(rows, "vendor") == b"\x0a\x06vendor" + answer


def test_the_request_id_is_put_back_where_it_was():
    answer = pb.QueryDocResponse(output=[pb.Doc(id="1")]).SerializeToString()
    for body in (answer + wire.bytes_field(1, b"vendor"), wire.bytes_field(1, b"vendor") + answer):
        plan = read(call())
        assert plan.join(plan.split(body, [0]), "vendor") == body


def test_only_an_ok_call_is_kept():
    plan = read(call())
    assert plan.refusal(200, ((b"content-type", b"application/grpc"),)) is None
    assert plan.refusal(502, ()) is Refusal.STATUS


# --- too much to be read ----------------------------------------------------------------------------------------------


DEAR = {
    "many fields": lambda count: b"\x10\x01" * count,
    "a sparse vector": lambda count: b"".join(
        wire.bytes_field(7, wire.varint_field(1, index + 1) + b"\x15\0\0\0\0") for index in range(count // 3)
    ),
    "one within a message": lambda count: wire.bytes_field(
        10, b"".join(wire.bytes_field(2, wire.bytes_field(1, b"%d" % index)) for index in range(count // 2))
    ),
}


@pytest.mark.parametrize("kind", DEAR)
def test_r13_a_message_of_many_fields_is_heavy_and_one_of_too_many_is_passed(kind: str):
    adapter = DashVectorGrpc()
    assert adapter.weight(DEAR[kind](120)) < LARGE_BYTES
    assert adapter.weight(DEAR[kind](3_000)) >= LARGE_BYTES
    plan = adapter.plan(call("query_doc", DEAR[kind](40_000)))
    assert isinstance(plan, Pass)
    assert plan.reason is PassReason.AMBIGUOUS


def test_r13_a_long_vector_is_one_field_and_not_heavy():
    assert DashVectorGrpc().weight(wire.bytes_field(1, wire.bytes_field(1, b"\0" * 16_000))) < LARGE_BYTES


def test_r13_what_is_no_message_is_not_heavy():
    assert DashVectorGrpc().weight(b"\xff" * 5_000) == 5_000
