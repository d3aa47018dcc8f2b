"""Plans of DashVector's operations, both protocols: what is forwarded, cut and joined, and which calls share a key."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.jsontext import Number
from proxy.core.request import GRPC, Request
from proxy.vendors.dashvector.over_grpc import SERVICE, DashVectorGrpc
from proxy.vendors.dashvector.over_http import DashVectorHttp
from tests.fuzz import dashvector_grpc, dashvector_http, wire
from tests.fuzz.mutation import json_changed, message_changed
from tests.fuzz.oracles import Meanings, keys_of
from tests.property.test_json_documents import NUMBERS, TREES, spelled
from tests.vendor_sim.dashvector_package import pb

CHANCES = st.randoms(use_true_random=False)
TOPK = st.sampled_from([*["1", "3", "10", "49", "50"] * 4, "51", "0", "-1", "3.0", "1e0"])
ANSWER = b'{"code":0,"request_id":"r","output":[{"id":"a","score":0.5},{"id":"b","score":0.75}]}'
MORE = st.fixed_dictionaries(
    {},
    optional={
        "filter": st.sampled_from(["", "a>1", None]),
        "partition": st.sampled_from(["", "default", None, "p"]),
        "output_fields": st.sampled_from([[], None, ["a"], ["a", "b"]]),
        "include_vector": st.sampled_from([True, False, None]),
        "rerank": st.sampled_from([{}, None]) | TREES,
    },
)


@st.composite
def searches(draw) -> bytes:
    """A query's body, in any spelling; most are plain searches by one vector."""
    topk = draw(TOPK)
    number = {"topk": Number(topk)}
    tree = {**draw(st.one_of(*[st.just({})] * 3, MORE)), **draw(st.sampled_from([*[number] * 6, {}, {"topk": topk}]))}
    vector = draw(st.lists(NUMBERS, min_size=1, max_size=2))
    candidates = [Number(topk), topk, Number("7"), Number("7")]
    params = [{}, {"param": {}}, *({"param": {"num_candidates": each}} for each in candidates)]
    one = {"vectors": {draw(st.sampled_from(["", "v"])): {"vector": vector, **draw(st.sampled_from(params))}}}
    return spelled(
        {**tree, **draw(st.sampled_from([*[one] * 6, {"vector": vector}, {"id": "a"}]))}, draw(CHANCES)
    ).encode()


ROUTES = st.sampled_from([*["query"] * 7, "query_group_by"])


WIDE = st.sampled_from([True, True, True, False])


@given(searches(), ROUTES, WIDE, CHANCES)
def test_searches_over_http_and_those_that_are_nearly_the_same(body, route, is_wide, chance):
    answer = ANSWER
    for _ in range(4):
        dashvector_http.check("POST", f"/v1/collections/one/{route}", body, answer, is_wide=is_wide)
        body, answer = json_changed(body, chance), json_changed(ANSWER, chance)


SEGMENTS = st.sampled_from(
    [
        "v1",
        "collections",
        "one",
        "o%6ee",
        "",
        ".",
        "..",
        "stats",
        "docs",
        "partitions",
        "p-1",
        "query",
        "query_group_by",
    ]
)
TARGETS = st.lists(SEGMENTS, max_size=7).map(lambda parts: "/" + "/".join(parts)) | st.sampled_from(
    [
        "/service_version",
        "/service_version/",
        "/v1/collections",
        "/v1/collections?a=b",
        "/v1/collections/one/docs?i=1",
    ]
)


@given(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]), TARGETS, st.booleans())
def test_what_is_not_known_to_be_a_read_is_a_write(method, target, is_wide):
    dashvector_http.check(method, target, b"" if method == "GET" else b"{}", ANSWER, is_wide=is_wide)


@st.composite
def messages(draw) -> bytes:
    """A search as a message."""
    message = pb.QueryDocRequest(topk=draw(st.sampled_from([0, 1, 3, 50, 51, -1])))
    message.filter = draw(st.sampled_from(["", "a>1"]))
    message.partition = draw(st.sampled_from(["", "default", "p"]))
    message.output_fields.extend(draw(st.lists(st.sampled_from(["a", "b"]), max_size=2)))
    message.id = draw(st.sampled_from(["", "", "", "x"]))
    for at in draw(st.sampled_from([[], [], [1], [1, 2]])):
        message.sparse_vector[at] = 0.5
    names = draw(st.sampled_from([[], ["v"], ["v"], ["v", "w"]]))
    for name in names:
        search = message.vectors[name]
        search.vector.float_vector.values.extend(draw(st.lists(st.floats(width=32), min_size=1, max_size=2)))
        candidates = draw(st.sampled_from([None, message.topk, 7]))
        if candidates is not None:
            search.param.num_candidates = candidates
            search.param.is_linear = draw(st.sampled_from([False, False, True]))
    if not names:
        message.vector.byte_vector = draw(st.binary(max_size=3))
    return message.SerializeToString()


@given(messages(), st.sampled_from([*["query_doc"] * 20, *dashvector_grpc.READS]), WIDE, CHANCES)
def test_messages_and_those_that_are_nearly_the_same(message, method, is_wide, chance):
    response = pb.QueryDocResponse(request_id="r")
    response.output.add(id="a", score=0.5)
    answer = response.SerializeToString()
    for _ in range(4):
        wire.check(method, message)
        dashvector_grpc.check(method, "one", message, answer, is_wide=is_wide)
        message, answer = message_changed(message, chance), message_changed(answer, chance)


NAMES = st.sampled_from([b"dashvector-auth-token", b"Authorization", b"authorization", b"X-Odd", b"x-odd"])
LINES = st.lists(st.tuples(NAMES, st.sampled_from([b"", b"a", b"b", b"A", b"a,b", b"a, b"])), max_size=5).map(tuple)
MEANINGS = Meanings()


@given(LINES, st.sampled_from(["", "?", "?a=1", "?a=%31"]))
def test_lines_and_targets_that_differ_do_not_share_a_key(lines, query):
    by_name = {}
    for name, value in lines:
        by_name.setdefault(name.lower(), []).append(value)
    told = tuple(sorted((name, tuple(values)) for name, values in by_name.items()))
    token = ((b"dashvector-auth-token", b"sk"), (b"content-type", b"application/json"))
    http = Request("POST", "/v1/collections/one/query" + query, (*token, *lines), "v", b'{"vector":[1]}')
    MEANINGS.check(*keys_of(DashVectorHttp().plan(http)), (query, told))
    named = (*token[:1], (b"collection-name", b"one"))
    message = pb.QueryDocRequest(topk=3).SerializeToString()
    grpc = Request(GRPC, SERVICE + "query_doc", (*named, *lines), "v", message)
    MEANINGS.check(*keys_of(DashVectorGrpc().plan(grpc)), told)


@pytest.mark.parametrize("target", [dashvector_http, dashvector_grpc, wire])
@given(seed=st.integers(0, 2**32))
def test_what_was_sampled_a_little_changed(target, seed):
    chance = random.Random(seed)
    for data in chance.sample(sorted(target.seeds()), 10):
        target.one_input(target.mutated(data, chance))
