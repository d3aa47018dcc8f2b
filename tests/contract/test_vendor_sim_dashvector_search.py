"""The simulated DashVector's filter grammar, scores and orders, against values worked out here."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vendor_sim import DashVectorSettings
from tests.vendor_sim.dashvector_docs import stored_doc
from tests.vendor_sim.dashvector_errors import CODES, DashVectorRefusal
from tests.vendor_sim.dashvector_filter import compiled
from tests.vendor_sim.dashvector_model import (
    CollectionSpec,
    Field,
    GroupRequest,
    QueryRequest,
    RawDoc,
    VectorAsk,
    VectorSpec,
    WriteRequest,
)
from tests.vendor_sim.dashvector_query import query, query_group_by
from tests.vendor_sim.dashvector_schema import checked_spec
from tests.vendor_sim.dashvector_search import dense_scores
from tests.vendor_sim.dashvector_store import DashVectorStore
from tests.vendor_sim.dashvector_writes import upsert

SCHEMA = {"age": "INT", "name": "STRING", "weight": "FLOAT", "tags": "ARRAY_STRING", "marks": "ARRAY_FLOAT"}
SPEC = checked_spec(CollectionSpec("quickstart", {"": VectorSpec(2)}, fields=SCHEMA))
FIELDS = {"age": 20, "name": "zhang'san", "weight": 55.1, "tags": ["a", "b"], "marks": [0.1], "nil": None, "ok": True}


def stored_fields(fields: dict[str, Any]) -> Any:
    raw = RawDoc("1", {"": [0.1, 0.2]}, fields={name: Field("", value) for name, value in fields.items()})
    return stored_doc(SPEC, raw).fields


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("age = 20", True),
        ("age == 20 AND age != 21", True),
        ("age<>20", False),
        ("age > 19.5 and age >= 20 and age <= 20 and not age < 20", True),
        ("weight = 55.1", True),
        ("weight > 55.1", False),
        ("weight in (1, 55.1)", True),
        ("age in [1, 2]", False),
        ("age not in (1, 2)", True),
        ("name = 'zhang''san' and name = \"zhang'san\" and name = 'zhang\\'san'", True),
        ("name like 'zhang%' and name like 'zhang'", True),
        ("name not like 'li%'", True),
        ("name = 20", None),
        ("ok = true and ok != false", True),
        ("ok = 1", None),
        ("nil is null and absent is null", True),
        ("age is not null", True),
        ("nil = 1", None),
        ("not nil = 1", None),
        ("nil = 1 or age = 20", True),
        ("nil = 1 and age = 21", False),
        ("age = 1 and age = 2 or age = 20", True),
        ("age = 1 and (age = 2 or age = 20)", False),
        ("tags contain_any ('b', 'c')", True),
        ("tags contain_all ('a', 'c')", False),
        ("tags not contain_all ('a', 'c')", True),
        ("marks contain_any (0.1)", True),
        ("age contain_any (20)", None),
        ("`age` = +20", True),
    ],
)
def test_conditions(text: str, expected: bool | None) -> None:
    assert compiled(text)(stored_fields(FIELDS)) is expected


MALFORMED = """
age
age >
> 1
age =
(age = 1
age = 1)
age = 1 age = 2
age in ()
age like '%a'
age ~ 1
age = 'a
and
age is 1
age = name
"""


@pytest.mark.parametrize(
    "text", [*MALFORMED.split("\n")[1:-1], "(" * 100 + "age = 1" + ")" * 100, "a = " + "1" * 40_960]
)
def test_malformed_conditions(text: str) -> None:
    with pytest.raises(DashVectorRefusal) as refused:
        compiled(text)
    assert refused.value.code == CODES["InvalidFilter"]


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        condition = compiled(text)
    except DashVectorRefusal:
        return
    assert condition(stored_fields(FIELDS)) in (True, False, None)


def test_scores_are_float32_and_do_not_depend_on_company() -> None:
    rng = np.random.default_rng(1)
    vectors = list(rng.standard_normal((40, 333)).astype(np.float32))
    asked = rng.standard_normal(333).astype(np.float32)
    wide, many = asked.astype(np.float64), np.stack(vectors).astype(np.float64)
    products = many @ wide
    expected = {
        "dotproduct": products,
        "euclidean": ((many - wide) ** 2).sum(axis=1),
        "cosine": 1 - products / (np.linalg.norm(many, axis=1) * np.linalg.norm(wide)),
    }
    for metric, values in expected.items():
        scores = dense_scores(metric, asked, vectors)
        assert scores.dtype == np.float32
        assert scores == pytest.approx(values, rel=1e-4, abs=1e-4)
        alone = [dense_scores(metric, asked, [vector])[0] for vector in vectors]
        assert np.array_equal(scores, alone)
    assert dense_scores("cosine", asked, [asked])[0] == pytest.approx(0.0, abs=1e-6)
    assert dense_scores("cosine", asked * 0, [asked])[0] == 1.0


def store_with(metric: str = "euclidean", count: int = 5) -> DashVectorStore:
    store = DashVectorStore(DashVectorSettings())
    store.create(CollectionSpec("quickstart", {"": VectorSpec(2, metric=metric)}, fields=SCHEMA))
    docs = [
        RawDoc(str(n), {"": [float(n), 1.0]}, fields={"age": Field("", n % 2), "name": Field("", f"n{n}")})
        for n in range(count)
    ]
    upsert(store, "quickstart", WriteRequest(docs))
    return store


def found(store: DashVectorStore, **options: Any) -> list[tuple[str, float]]:
    result = query(store, "quickstart", QueryRequest(**options))
    return [(hit.doc.id, float(hit.score)) for hit in result.output]


def near(vector: list[float], **parameters: Any) -> dict[str, VectorAsk]:
    return {"": VectorAsk(vector, **parameters)}


def test_nearest_first_by_metric() -> None:
    assert found(store_with(), vectors=near([3.0, 1.0]), topk=3) == [("3", 0.0), ("2", 1.0), ("4", 1.0)]
    products = found(store_with("dotproduct"), vectors=near([1.0, 1.0]), topk=2)
    assert products == [("4", 5.0), ("3", 4.0)]
    assert found(store_with("cosine"), vectors=near([0.0, 2.0]), topk=1) == [("0", 0.0)]


def test_radius_id_and_filter() -> None:
    assert found(store_with(), vectors=near([3.0, 1.0], radius=0.5)) == [("3", 0.0)]
    assert len(found(store_with("dotproduct"), vectors=near([1.0, 1.0], radius=4.0))) == 2
    assert found(store_with(), id="3", topk=1) == [("3", 0.0)]
    assert found(store_with(), vectors=near([3.0, 1.0]), filter="age = 0", topk=1) == [("2", 1.0)]
    assert found(store_with(), filter="name = 'n4'") == [("4", 0.0)]


def test_order_by() -> None:
    ordered = found(store_with(), order_by=[("age", True), ("name", False)])
    assert [doc_id for doc_id, _ in ordered] == ["1", "3", "0", "2", "4"]
    nearest = found(store_with(), vectors=near([0.0, 1.0]), topk=2, order_by=[("name", True)])
    assert [doc_id for doc_id, _ in nearest] == ["1", "0"], "the nearest are chosen first"


def test_groups_follow_their_best_hit() -> None:
    request = GroupRequest(QueryRequest(vectors=near([3.0, 1.0])), "age", group_count=2, group_topk=2)
    groups = query_group_by(store_with(), "quickstart", request).output
    assert [(group.group_id, [hit.doc.id for hit in group.hits]) for group in groups] == [
        ("1", ["3", "1"]),
        ("0", ["2", "4"]),
    ]


def test_fusion() -> None:
    store = DashVectorStore(DashVectorSettings())
    specs = {"one": VectorSpec(2, metric="euclidean"), "two": VectorSpec(2, metric="dotproduct")}
    store.create(CollectionSpec("multi", specs, {"words": VectorSpec(0, metric="dotproduct")}))
    docs = [
        RawDoc("a", {"one": [0.0, 0.0], "two": [1.0, 0.0]}, {"words": {1: 1.0}}),
        RawDoc("b", {"one": [1.0, 0.0], "two": [2.0, 0.0]}, {"words": {2: 1.0}}),
    ]
    upsert(store, "multi", WriteRequest(docs))
    asked = {"one": VectorAsk([0.0, 0.0]), "two": VectorAsk([1.0, 0.0])}

    def scores(**options: Any) -> dict[str, float]:
        result = query(store, "multi", QueryRequest(vectors=asked, **options))
        return {hit.doc.id: float(hit.score) for hit in result.output}

    assert scores(topk=1) == {"a": pytest.approx(1 / 61)}, "each vector has its own best, equals keep their order"
    assert scores() == {"a": pytest.approx(1 / 61 + 1 / 62), "b": pytest.approx(1 / 61 + 1 / 62)}
    words = {"words": VectorAsk({"1": 2.0})}
    assert list(scores(sparse=words, ranker="rrf", ranker_params={"rank_constant": "1"})) == ["a", "b"]
    weights = {"weights": json.dumps({"one": 1.0, "two": 0.0})}
    assert scores(ranker="weighted", ranker_params=weights) == {"a": 1.0, "b": pytest.approx(0.5)}
    result = query(store, "multi", QueryRequest(vectors=asked, sparse=words))
    assert result.read_units == 12
