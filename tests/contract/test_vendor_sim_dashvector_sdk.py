"""The vendor's client, as released, against the simulator: both of its protocols must see the same service."""

import typing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.vendor_sim import DashVectorFault, DashVectorSettings, DashVectorThreadSim, dashvector_thread
from tests.vendor_sim.dashvector_clients import sdk_client, sdk_endpoints
from tests.vendor_sim.dashvector_errors import CODES
from tests.vendor_sim.dashvector_package import dashvector as sdk
from tests.vendor_sim.dashvector_recorder import Protocol

Doc = sdk.Doc
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")
READS_AND_WRITES = 18


@pytest.fixture
def sim() -> Iterator[DashVectorThreadSim]:
    with sdk_endpoints(), dashvector_thread() as running:
        yield running


def address(sim: DashVectorThreadSim, protocol: Protocol) -> str:
    return sim.grpc_address if protocol == "grpc" else sim.http_url


def plain(value: Any) -> Any:
    """An SDK object as plain data. Over HTTP the SDK leaves counts and sparse indices as the text they were."""
    if isinstance(value, Doc):
        members = ("id", "vector", "vectors", "fields", "score", "sparse_vector", "sparse_vectors")
        # Empty maps: {} over gRPC, None over HTTP.
        return {name: plain(getattr(value, name)) or None for name in members}
    if isinstance(value, sdk.Group):
        return [value.group_id, plain(value.docs)]
    if isinstance(value, dict):
        return {
            int(key) if str(key).isdigit() and isinstance(item, float) else key: plain(item)
            for key, item in value.items()
            if item not in (None, {})
        }
    if isinstance(value, list):
        return [plain(item) for item in value]
    if hasattr(value, "total_doc_count"):
        return [int(value.total_doc_count), plain(getattr(value, "partitions", {}))]
    if isinstance(value, sdk.CollectionMeta):
        return {**value.__dict__(), "fields_schema": dict(sorted(value.fields_schema.items()))}
    return value if isinstance(value, int | float | str | type(None)) else str(value)


def seen(response: Any) -> Any:
    usage = response.usage
    units = (usage.read_units, usage.write_units) if usage is not None else None
    return [response.code, response.message, plain(response.output), units]


def single_collection(client: Any) -> Iterator[Any]:
    # The SDK compares types by equality, and list[str] does not equal typing.List[str].
    schema = {"age": int, "name": str, "weight": float, "tags": typing.List[str]}  # noqa: UP006
    yield client.create("quickstart", 4, fields_schema=schema, timeout=-1)
    yield client.describe("quickstart")
    collection = client.get("quickstart")
    first = Doc(id="1", vector=[0.1, 0.2, 0.3, 0.4], fields={"age": 20, "name": "张三", "weight": 55.1, "tags": ["a"]})
    others = [
        Doc(id="a+b@c#d", vector=[0.2, 0.3, 0.4, 0.5], fields={"age": 30, "free": True, "large": 2**40}),
        Doc(id="7", vector=np.array([0.4, 0.3, 0.2, 0.1]), fields={"age": 20, "name": "lisi"}),
    ]
    yield collection.insert(first)
    yield collection.insert([first, *others])
    yield collection.update(Doc(id="nope", vector=[1.0, 0.0, 0.0, 0.0]))
    yield collection.update(Doc(id="7", vector=[1.0, 0.0, 0.0, 0.0], fields={"age": 21}))
    yield collection.upsert(Doc(id="9", vector=[0.0, 0.0, 0.0, 1.0]))
    yield collection.fetch(["1", "7", "a+b@c#d", "nope"])
    yield collection.query([0.1, 0.2, 0.3, 0.4], topk=3, include_vector=True)
    yield collection.query([0.1, 0.2, 0.3, 0.4], filter="age >= 20 and weight = 55.1", output_fields=["name"])
    yield collection.query(id="1", topk=2)
    yield collection.query(filter="tags contain_any ('a') or name is null", topk=5)
    yield collection.query(order_by_fields=[sdk.OrderByField("age", desc=True)], topk=5)
    yield collection.query_group_by([0.1, 0.2, 0.3, 0.4], group_by_field="age", group_count=2, group_topk=1)
    yield collection.query([0.1, 0.2, 0.3, 0.4], filter="age >")
    yield collection.query(id="nope")
    yield collection.stats()
    yield from partitions(collection)
    yield collection.delete("1")
    yield collection.fetch("1")
    yield client.list()
    yield client.delete("quickstart")
    yield client.describe("quickstart")
    yield client.list()


def partitions(collection: Any) -> Iterator[Any]:
    yield collection.create_partition("shoes", timeout=-1)
    yield collection.create_partition("shoes", timeout=-1)
    yield collection.upsert(Doc(id="1", vector=[0.1, 0.2, 0.3, 0.4]), partition="shoes")
    yield collection.query([0.1, 0.2, 0.3, 0.4], partition="shoes")
    yield collection.list_partitions()
    yield collection.describe_partition("shoes")
    yield collection.stats_partition("shoes")
    yield collection.delete(delete_all=True, ids=[], partition="shoes")
    yield collection.stats_partition("shoes")
    yield collection.delete_partition("shoes")
    yield collection.describe_partition("shoes")


def named_vectors(client: Any) -> Iterator[Any]:
    vectors = {"title": sdk.VectorParam(2), "content": sdk.VectorParam(3, metric="euclidean")}
    yield client.create("multi", vectors=vectors, fields_schema={"author": str}, timeout=-1)
    yield client.describe("multi")
    collection = client.get("multi")
    docs = [
        Doc(
            id=str(n), vectors={"title": [0.1 * n, 0.2], "content": [0.3, 0.1 * n, 0.5]}, fields={"author": "ab"[n % 2]}
        )
        for n in range(1, 6)
    ]
    yield collection.upsert(docs)
    asked = {"title": [0.1, 0.2], "content": [0.3, 0.4, 0.5]}
    yield collection.query(asked, topk=2, include_vector=True)
    yield collection.query(asked, topk=3, rerank=sdk.RrfRanker(rank_constant=10))
    yield collection.query(asked, topk=3, rerank=sdk.WeightedRanker({"title": 0.3, "content": 0.7}))
    yield collection.query({"content": [0.3, 0.4, 0.5]}, topk=2)
    yield collection.query_group_by([0.1, 0.2], group_by_field="author", vector_field="title")
    yield collection.fetch("1")


def named_sparse_vectors(client: Any) -> Iterator[Any]:
    words = sdk.VectorParam(0, metric="dotproduct")
    vectors = {"title": sdk.VectorParam(2, metric="dotproduct")}
    indexes = {"author": sdk.Index()}
    yield client.create(
        "words",
        vectors=vectors,
        sparse_vectors={"body": words},
        fields_schema={"author": str},
        indexes=indexes,
        timeout=-1,
    )
    yield client.describe("words")
    collection = client.get("words")
    docs = [
        Doc(id="1", vectors={"title": [0.1, 0.2]}, sparse_vectors={"body": {1: 0.5, 3: 0.25}}),
        Doc(id="2", vectors={"title": [0.2, 0.2]}, sparse_vectors={"body": {3: 0.5}}),
    ]
    yield collection.insert(docs)
    asked = {"body": sdk.SparseVectorQuery({3: 2.0})}
    yield collection.query(sparse_vectors=asked, include_vector=True)
    yield collection.query({"title": [0.1, 0.2]}, sparse_vectors=asked, rerank=sdk.RrfRanker())
    yield collection.fetch(["1", "2"])


def sparse_and_int(client: Any) -> Iterator[Any]:
    yield client.create("sparse", 4, metric="dotproduct", timeout=-1)
    sparse = client.get("sparse")
    yield sparse.insert(
        [
            Doc(id="1", vector=[0.1, 0.2, 0.3, 0.4], sparse_vector={5: 0.5, 1: 0.25}),
            Doc(id="2", vector=[0.4, 0.3, 0.2, 0.1], sparse_vector={7: 0.5}),
        ]
    )
    yield sparse.query([0.1, 0.2, 0.3, 0.4], sparse_vector={7: 4.0}, include_vector=True)
    yield client.create("bytes", 3, metric="euclidean", dtype=int, timeout=-1)
    numbers = client.get("bytes")
    yield numbers.insert([Doc(id="1", vector=[1, -2, 127]), Doc(id="2", vector=[3, 4, -128])])
    yield numbers.query([1, -2, 126], include_vector=True)
    yield numbers.fetch("2")


@pytest.mark.parametrize("scenario", [single_collection, named_vectors, named_sparse_vectors, sparse_and_int])
def test_both_protocols_see_the_same(sim: DashVectorThreadSim, scenario: Callable[[Any], Iterator[Any]]) -> None:
    answers = []
    for protocol in PROTOCOLS:
        sim.reset()
        with sdk_client(protocol, address(sim, protocol)) as client:
            assert client, client.message
            answers.append([seen(response) for response in scenario(client)])
        assert {record.protocol for record in sim.requests} == {protocol}
    for over_grpc, over_http in zip(*answers, strict=True):
        assert over_grpc == over_http
    codes = {answer[0] for answer in answers[0]}
    expected = {"DuplicatePartition", "InvalidFilter", "InexistentKey", "InexistentPartition", "InexistentCollection"}
    assert codes == ({0, *(CODES[name] for name in expected)} if scenario is single_collection else {0})


def test_every_operation_is_reached_over_both_protocols(sim: DashVectorThreadSim) -> None:
    for protocol in PROTOCOLS:
        sim.clear()
        with sdk_client(protocol, address(sim, protocol)) as client:
            for response in single_collection(client):
                response.get()
        assert len(sim.asked) == READS_AND_WRITES


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_creation_takes_its_time_and_the_client_waits(sim: DashVectorThreadSim, protocol: Protocol) -> None:
    sim.configure(creation_ms=30.0)
    with sdk_client(protocol, address(sim, protocol)) as client:
        created = client.create("quickstart", 4, timeout=-1)
        assert created.code == 0
        assert client.describe("quickstart").output.status == "INITIALIZED"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_wrong_tokens(sim: DashVectorThreadSim, protocol: Protocol) -> None:
    with sdk_client(protocol, address(sim, protocol), token="sk-dv-wrong") as client:
        assert not client
        assert client.code == ("401" if protocol == "grpc" else 401)
    sim.configure(unauthorized_status=200, unauthorized_code=-2999, unauthenticated_trailers=False)
    with sdk_client(protocol, address(sim, protocol), token="sk-dv-wrong") as client:
        assert not client
        assert client.code == (16 if protocol == "grpc" else -2999)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_refusals_reach_the_caller(sim: DashVectorThreadSim, protocol: Protocol) -> None:
    with sdk_client(protocol, address(sim, protocol), timeout=5.0) as client:
        for status in (None, "RESOURCE_EXHAUSTED"):
            sim.add_faults(DashVectorFault(code=-2034, grpc_status=status, times=1))
            assert int(client.list().code) == CODES["ExceedRateLimit"]
        for wrong in ("disconnect", "truncated_body", "not_json"):
            # Not once: aiohttp asks a second time by itself when a GET's connection was lost.
            sim.add_faults(DashVectorFault(wrong=wrong))  # type: ignore[arg-type]
            response = failed(client.list)
            assert response is None or response.code != 0
            sim.call(lambda running: running.faults.clear())
        assert client.list().code == 0


def failed(call: Callable[[], Any]) -> Any:
    """The response; None when the client let the transport's exception through, which HTTP mode does."""
    try:
        return call()
    except Exception:  # noqa: BLE001 (whatever the transport raises)
        return None


def test_grpc_refusals_as_statuses(sim: DashVectorThreadSim) -> None:
    sim.configure(grpc_refusals="status")
    with sdk_client("grpc", sim.grpc_address) as client:
        response = client.describe("nope")
        assert (response.code, response.message) == ("-2021", "InexistentCollection")
        assert response.request_id == sim.requests[-1].request_id
        assert sim.requests[-1].status == "NOT_FOUND"


def test_settings_reach_the_version() -> None:
    settings = DashVectorSettings(service_version="9.9", tokens=frozenset({"mine"}))
    with sdk_endpoints(), dashvector_thread(settings) as sim, sdk_client("http", sim.http_url, token="mine") as client:
        assert client.version == "9.9"
