"""Over-fetch: plain searches share one larger answer, cut to what each client asked for; others stay as they are."""

import json
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.plan import NotStorable, Refusal
from proxy.core.request import Request
from proxy.vendors.dashvector._pb import wire
from proxy.vendors.dashvector.common import VectorRead
from proxy.vendors.dashvector.over_grpc import SERVICE, DashVectorGrpc
from proxy.vendors.dashvector.over_http import DashVectorHttp

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the SDK, as released, warns while it is compiled
    from dashvector.core.proto import dashvector_pb2 as pb

LINES = ((b"dashvector-auth-token", b"sk-one"), (b"collection-name", b"abc"), (b"content-type", b"application/json"))
LIMIT = 50


def http(body: bytes, *, path="query", limit=LIMIT) -> VectorRead:
    plan = DashVectorHttp(overfetch_topk=limit).plan(
        Request("POST", f"/v1/collections/abc/{path}", LINES, "vectors", body)
    )
    assert isinstance(plan, VectorRead), plan
    return plan


def grpc(message, *, limit=LIMIT) -> VectorRead:
    body = message if isinstance(message, bytes) else message.SerializeToString()
    plan = DashVectorGrpc(overfetch_topk=limit).plan(Request("GRPC", SERVICE + "query_doc", LINES, "vectors", body))
    assert isinstance(plan, VectorRead), plan
    return plan


def asked(**members) -> bytes:
    document = {"vector": [0.1, 0.2], "topk": 3, **members}
    return json.dumps({name: value for name, value in document.items() if value is not ...}).encode()


def search(topk=3, candidates=None, **fields):
    message = pb.QueryDocRequest(topk=topk, **fields)
    message.vectors["proxima_vector"].vector.float_vector.values.extend([0.1, 0.2])
    if candidates is not None:
        message.vectors["proxima_vector"].param.num_candidates = candidates
    return message


def identity(plan: VectorRead):
    return plan.operation, plan.identity, plan.items


# --- HTTP -------------------------------------------------------------------------------------------------------------

PLAIN = {
    "the documented form": {},
    "with a filter": {"filter": "age > 18", "partition": "one", "output_fields": ["a"], "include_vector": True},
    "as the SDK sends it": {"vector": ..., "vectors": {"proxima_vector": {"vector": [0.1]}}, "sparse_vectors": {}},
    "candidates as documents": {"vector": ..., "vectors": {"v": {"vector": [1], "param": {"num_candidates": 3}}}},
    "unused members": {"id": None, "rerank": None, "order_by_fields": [], "sparse_vector": {}},
}
SPECIAL = {
    "more than the limit": {"topk": LIMIT + 1},
    "none": {"topk": 0},
    "a negative number": {"topk": -1},
    "a fraction": {"topk": 3.0},
    "a text": {"topk": "3"},
    "an endless number": {"topk": 10**30},
    "reranked": {"rerank": {"ranker_name": "rrf"}},
    "ordered otherwise": {"order_by_fields": [{"field": "age"}]},
    "by id": {"vector": ..., "id": "1"},
    "by id and vector": {"id": "1"},
    "by filter only": {"vector": ..., "filter": "age>1", "id": None},
    "an empty vector": {"vector": []},
    "a vector of another kind": {"vector": "AAAA"},
    "both forms": {"vectors": {"a": {"vector": [1]}}},
    "two vectors": {"vector": ..., "vectors": {"a": {"vector": [1]}, "b": {"vector": [1]}}},
    "no vectors": {"vector": ..., "vectors": {"a": {}}},
    "a radius": {"vector": ..., "vectors": {"a": {"vector": [1], "param": {"radius": 0.5}}}},
    "other candidates": {"vector": ..., "vectors": {"a": {"vector": [1], "param": {"num_candidates": 7}}}},
    "candidates as a text": {"vector": ..., "vectors": {"a": {"vector": [1], "param": {"num_candidates": "3x"}}}},
    "candidates spelled as a text": {
        "vector": ...,
        "vectors": {"a": {"vector": [1], "param": {"num_candidates": "3"}}},
    },
    "something new inside": {"vector": ..., "vectors": {"a": {"vector": [1], "new": 1}}},
    "sparse": {"sparse_vector": {"1": 0.5}},
    "sparse ones": {"sparse_vectors": {"a": {"sparse_vector": {"1": 0.5}}}},
    "something new": {"consistency": "strong"},
}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_search_asks_for_more_and_nothing_else_changes(kind):
    body = asked(**PLAIN[kind])
    plan = http(body)
    sent = json.loads(plan.narrowed([0]))
    assert sent["topk"] == LIMIT
    expected = json.loads(body.replace(b'"num_candidates": 3', b'"num_candidates": %d' % LIMIT))
    assert sent == {**expected, "topk": LIMIT}
    assert plan.topk == 3
    assert plan.plain is not None
    assert plan.plain.narrowed([0]) == body
    assert plan.plain.topk is None
    assert identity(plan.plain) == identity(http(body, limit=0)) != identity(plan)


@pytest.mark.parametrize("kind", SPECIAL)
def test_any_other_search_stays_as_it_is(kind):
    body = asked(**SPECIAL[kind])
    plan = http(body)
    assert (plan.plain, plan.topk) == (None, None)
    assert plan.narrowed([0]) == body
    assert identity(plan) == identity(http(body, limit=0))


def test_grouped_queries_and_a_limit_of_nothing_stay_as_they_are():
    assert http(asked(), path="query_group_by").plain is None
    assert http(asked(), limit=0).plain is None


def test_all_numbers_up_to_the_limit_share_an_entry():
    plans = [http(asked(topk=topk)) for topk in (1, 3, 10, LIMIT)]
    assert len({repr(identity(plan)) for plan in [*plans, http(asked(topk=...))]}) == 1
    assert identity(http(asked(topk=LIMIT + 1))) != identity(plans[0])
    assert identity(http(asked(filter="a"))) != identity(plans[0])
    assert http(asked(topk=...)).topk == 10


def test_no_client_can_name_the_common_entry():
    assert identity(http(asked(topk=LIMIT), limit=0)) != identity(http(asked(topk=3)))


def answer(scores, *, blanks="") -> bytes:
    documents = f"{blanks},{blanks}".join(
        f'{{"id":"{at}","fields":{{"x":"]}},{{"}},"score":{score}}}' for at, score in enumerate(scores)
    )
    output = f"[{blanks}{documents}{blanks}]"
    return f'{{"request_id":"vendor","code":0,"output":{output},"usage":{{"read_units":4}}}}'.encode()


@pytest.mark.parametrize("blanks", ["", " ", "\r\n\t "])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 50])
def test_the_answer_is_cut_to_what_was_asked_for(count, blanks):
    body = answer([at / 10 for at in range(count)], blanks=blanks)
    plan = http(asked(topk=3))
    told = plan.join(plan.split(body, [0]), "ours")
    whole = json.loads(body)
    assert json.loads(told) == {**whole, "request_id": "ours", "output": whole["output"][:3]}
    assert told.startswith(body[: body.index(b"[")].replace(b"vendor", b"ours"))
    if count <= 3:
        assert told == body.replace(b"vendor", b"ours")


def test_one_answer_serves_every_number():
    rows = http(asked(topk=3)).split(answer(range(20)), [0])
    for topk in (1, 7, 20, 40):
        told = json.loads(http(asked(topk=topk)).join(rows, "ours"))
        assert [document["id"] for document in told["output"]] == [str(at) for at in range(min(topk, 20))]


@pytest.mark.parametrize("scores", [[1, 3, 2], [3, 1, 2], ['"1"', '"2"'], ["null", 1]])
def test_an_answer_out_of_order_is_not_kept(scores):
    body = answer(scores)
    with pytest.raises(NotStorable) as verdict:
        http(asked()).split(body, [0])
    assert verdict.value.refusal is Refusal.INCOMPLETE
    plain = http(asked()).plain
    assert plain is not None
    assert plain.join(plain.split(body, [0]), "vendor") == body


@pytest.mark.parametrize("scores", [[], [1], [1, 1, 2.5], [3, 2, 2, -1], [0, 0.1]])
def test_rising_and_falling_scores_are_both_orders(scores):
    assert http(asked()).split(answer(scores), [0])


# --- gRPC -------------------------------------------------------------------------------------------------------------

UNKNOWN = wire.bytes_field(13, b"new")


@pytest.mark.parametrize("candidates", [None, 0, 3])
def test_a_plain_grpc_search_asks_for_more_and_nothing_else_changes(candidates):
    message = search(candidates=candidates, filter="age > 18", partition="one", output_fields=["a", "b"])
    plan = grpc(message)
    sent = pb.QueryDocRequest.FromString(plan.narrowed([0]))
    expected = pb.QueryDocRequest()
    expected.CopyFrom(message)
    expected.topk = LIMIT
    if candidates:
        expected.vectors["proxima_vector"].param.num_candidates = LIMIT
    assert sent == expected
    assert plan.topk == 3
    assert plan.plain is not None
    assert plan.plain.narrowed([0]) == message.SerializeToString()


def test_the_older_form_of_a_grpc_search_is_plain_too():
    plan = grpc(pb.QueryDocRequest(topk=3, vector=pb.Vector(byte_vector=b"\x01")))
    assert pb.QueryDocRequest.FromString(plan.narrowed([0])).topk == LIMIT


def two_vectors():
    message = search()
    message.vectors["other"].vector.byte_vector = b"1"
    return message


def with_radius():
    message = search(candidates=3)
    message.vectors["proxima_vector"].param.radius = 0.5
    return message


def with_unknown_inside():
    message = search()
    message.vectors["proxima_vector"].MergeFromString(UNKNOWN)
    return message


@pytest.mark.parametrize(
    "message",
    [
        search(LIMIT + 1),
        search(0),
        search(-1),
        search(candidates=7),
        search(rerank=pb.Ranker(ranker_name="rrf")),
        search(order_by_fields=[pb.OrderByField(field="a")]),
        search(sparse_vector={1: 0.5}),
        search(id="1"),
        search(vector=pb.Vector(byte_vector=b"1")),
        pb.QueryDocRequest(topk=3, id="1"),
        pb.QueryDocRequest(topk=3, filter="a"),
        pb.QueryDocRequest(topk=3, vector=pb.Vector()),
        two_vectors(),
        with_radius(),
        with_unknown_inside(),
        search().SerializeToString() + UNKNOWN,
        search().SerializeToString() + wire.varint_field(2, 4),
    ],
)
def test_any_other_grpc_search_stays_as_it_is(message):
    plan = grpc(message)
    assert plan.plain is None
    assert plan.narrowed([0]) == (message if isinstance(message, bytes) else message.SerializeToString())
    assert identity(plan) == identity(grpc(message, limit=0))


def test_all_grpc_numbers_up_to_the_limit_share_an_entry():
    plans = [grpc(search(topk, candidates=topk)) for topk in (1, 3, LIMIT)]
    assert len({repr(identity(plan)) for plan in plans}) == 1
    assert identity(grpc(search(3))) != identity(plans[0])


@given(st.integers(0, 8), st.integers(1, 8), st.booleans())
def test_the_grpc_answer_is_cut_to_what_was_asked_for(count, topk, is_late):
    documents = [pb.Doc(id=str(at), score=at / 10) for at in range(count)]
    whole = pb.QueryDocResponse(message="Success", output=documents, usage=pb.RequestUsage(read_units=4))
    own = wire.bytes_field(1, b"vendor")
    body = whole.SerializeToString() + own if is_late else own + whole.SerializeToString()
    plan = grpc(search(topk))
    told = plan.join(plan.split(body, [0]), "ours")
    expected = pb.QueryDocResponse(
        request_id="ours", message="Success", output=documents[:topk], usage=pb.RequestUsage(read_units=4)
    )
    assert pb.QueryDocResponse.FromString(told) == expected


def test_a_grpc_answer_out_of_order_is_not_kept():
    for scores in ([1, 3, 2], [0.5, float("nan")]):
        documents = [pb.Doc(id="x", score=score) for score in scores]
        body = pb.QueryDocResponse(request_id="vendor", output=documents).SerializeToString()
        with pytest.raises(NotStorable):
            grpc(search()).split(body, [0])
