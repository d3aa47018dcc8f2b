"""Every refusal of the simulated DashVector that a request can provoke: status 200, the code, and nothing executed."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.vendor_sim import DashVectorSim
from tests.vendor_sim.dashvector_errors import CODES
from tests.vendor_sim.dashvector_model import CollectionSpec, VectorSpec

TOKEN = {"dashvector-auth-token": "sk-dv-a"}
QUICK = "/v1/collections/quickstart"
SCHEMA = {"age": "INT", "weight": "FLOAT", "tags": "ARRAY_STRING"}


@pytest.fixture
async def sim() -> AsyncIterator[DashVectorSim]:
    async with DashVectorSim() as running:
        running.store.create(CollectionSpec("quickstart", {"": VectorSpec(2)}, fields=SCHEMA))
        yield running


@pytest.fixture
async def client(sim: DashVectorSim) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(sim.http_url, headers=TOKEN) as session:
        yield session


def doc(doc_id: str, *vector: float, **fields: Any) -> dict[str, Any]:
    return {"id": doc_id, "vector": list(vector or (0.1, 0.2)), "fields": fields}


def collection(**changes: Any) -> dict[str, Any]:
    return {"name": "another", "dimension": 2, **changes}


REFUSALS: list[tuple[str, str, str, Any]] = [
    ("EmptyCollectionName", "POST", "/v1/collections", collection(name="")),
    ("InvalidCollectionName", "POST", "/v1/collections", collection(name="a b")),
    ("DuplicateCollection", "POST", "/v1/collections", collection(name="quickstart")),
    ("EmptyColumns", "POST", "/v1/collections", {"name": "another"}),
    ("InvalidDimension", "POST", "/v1/collections", collection(dimension=1)),
    ("InvalidDataType", "POST", "/v1/collections", collection(dtype="DOUBLE")),
    ("InvalidFeature", "POST", "/v1/collections", collection(metric="manhattan")),
    ("MismatchedDataType", "POST", "/v1/collections", collection(dtype="INT")),
    ("InvalidField", "POST", "/v1/collections", collection(fields_schema={"age": "DATE"})),
    ("InvalidFieldName", "POST", "/v1/collections", collection(fields_schema={"a b": "INT"})),
    ("InvalidExtraParam", "POST", "/v1/collections", collection(extra_params={"a": 1})),
    ("EmptyIndexField", "POST", "/v1/collections", collection(indexes={"": {"index_type": "INVERT"}})),
    ("MismatchedIndexColumn", "POST", "/v1/collections", collection(indexes={"a": {"index_type": "INVERT"}})),
    (
        "InvalidIndexType",
        "POST",
        "/v1/collections",
        collection(fields_schema={"age": "INT"}, indexes={"age": {"index_type": "TREE"}}),
    ),
    (
        "DuplicateField",
        "POST",
        "/v1/collections",
        {"name": "another", "vectors_schema": {"age": {"dimension": 2}}, "fields_schema": {"age": "INT"}},
    ),
    ("InvalidJson", "POST", "/v1/collections", []),
    ("InexistentCollection", "GET", "/v1/collections/nope", None),
    ("InexistentPartition", "GET", f"{QUICK}/partitions/nope", None),
    ("EmptyPartitionName", "POST", f"{QUICK}/partitions", {}),
    ("InvalidPartitionName", "POST", f"{QUICK}/partitions", {"name": "a b"}),
    ("DuplicatePartition", "POST", f"{QUICK}/partitions", {"name": "default"}),
    ("InvalidPartitionName", "DELETE", f"{QUICK}/partitions/default", None),
    ("EmptyDocList", "POST", f"{QUICK}/docs", {"docs": []}),
    ("InvalidWriteRequest", "POST", f"{QUICK}/docs", {"docs": "1"}),
    ("InvalidBatchSize", "POST", f"{QUICK}/docs", {"docs": [doc("1")] * 1025}),
    ("InvalidRecord", "POST", f"{QUICK}/docs", {"docs": [{"id": "1"}]}),
    ("InvalidPrimaryKey", "POST", f"{QUICK}/docs", {"docs": [doc("a b")]}),
    ("InvalidVectorFormat", "POST", f"{QUICK}/docs", {"docs": [{"id": "1", "vector": ["a", "b"]}]}),
    ("MismatchedDimension", "POST", f"{QUICK}/docs", {"docs": [doc("1", 0.1)]}),
    ("MismatchedDataType", "POST", f"{QUICK}/docs", {"docs": [doc("1", age="old")]}),
    ("InvalidField", "POST", f"{QUICK}/docs", {"docs": [doc("1", free=[1])]}),
    ("InvalidField", "POST", f"{QUICK}/docs", {"docs": [doc("1", tags=["a"] * 33)]}),
    ("InvalidSparseValues", "POST", f"{QUICK}/docs", {"docs": [{**doc("1"), "sparse_vector": {"1": 0.5}}]}),
    ("InexistentColumn", "POST", f"{QUICK}/docs", {"docs": [{"id": "1", "vectors": {"nope": [0.1, 0.2]}}]}),
    ("EmptyPrimaryKey", "PUT", f"{QUICK}/docs", {"docs": [{"vector": [0.1, 0.2]}]}),
    ("EmptyDocFields", "PUT", f"{QUICK}/docs", {"docs": [{"id": "1"}]}),
    ("EmptyPrimaryKey", "DELETE", f"{QUICK}/docs", {"ids": []}),
    ("ExceedIdsLimit", "DELETE", f"{QUICK}/docs", {"ids": ["1"] * 1025}),
    ("InvalidFilter", "DELETE", f"{QUICK}/docs", {"filter": "age"}),
    ("EmptyPrimaryKey", "GET", f"{QUICK}/docs?ids=", None),
    ("InvalidTopk", "POST", f"{QUICK}/query", {"topk": 0}),
    ("InvalidTopk", "POST", f"{QUICK}/query", {"topk": 1025}),
    ("InvalidQuery", "POST", f"{QUICK}/query", {"include_vector": 1}),
    ("InexistentKey", "POST", f"{QUICK}/query", {"id": "nope"}),
    ("ExistVectorAndId", "POST", f"{QUICK}/query", {"id": "1", "vector": [0.1, 0.2]}),
    ("InvalidFilter", "POST", f"{QUICK}/query", {"filter": "age >"}),
    ("InexistentColumn", "POST", f"{QUICK}/query", {"order_by_fields": [{"field": "nope"}]}),
    (
        "OrderbyNotInSelectItems",
        "POST",
        f"{QUICK}/query",
        {"order_by_fields": [{"field": "age"}], "output_fields": ["weight"]},
    ),
    ("InvalidRadius", "POST", f"{QUICK}/query", {"vectors": {"": {"vector": [0.1, 0.2], "param": {"radius": "1"}}}}),
    ("InvalidLinear", "POST", f"{QUICK}/query", {"vectors": {"": {"vector": [0.1, 0.2], "param": {"is_linear": 1}}}}),
    ("InvalidGroupBy", "POST", f"{QUICK}/query_group_by", {"vector": [0.1, 0.2], "group_by_field": "free"}),
    ("UnsupportedCondition", "POST", f"{QUICK}/query_group_by", {"group_by_field": "age"}),
]


@pytest.mark.parametrize(("name", "method", "path", "body"), REFUSALS)
async def test_refusals(
    sim: DashVectorSim, client: aiohttp.ClientSession, name: str, method: str, path: str, body: Any
) -> None:
    async with client.request(method, path, json=body) as response:
        answer = json.loads(await response.read())
    assert (response.status, answer["code"]) == (200, CODES[name])
    assert answer["message"].startswith(name)
    assert list(answer) == ["request_id", "code", "message"]
    assert sim.requests[0].code == CODES[name]
    assert not sim.requests[0].is_executed


async def test_sparse_refusals(sim: DashVectorSim, client: aiohttp.ClientSession) -> None:
    sim.store.create(CollectionSpec("another", {"": VectorSpec(2, metric="dotproduct")}))
    for sparse, name in (({"-1": 0.5}, "InvalidSparseIndices"), ({"1": "a"}, "InvalidSparseValues")):
        body = {"vector": [0.1, 0.2], "sparse_vector": sparse}
        async with client.post("/v1/collections/another/query", json=body) as response:
            assert (await response.json())["code"] == CODES[name]
