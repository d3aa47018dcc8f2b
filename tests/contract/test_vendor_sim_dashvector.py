"""The simulated DashVector against the stored samples: bodies and messages of the same structure and order."""

import base64
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from tests.vendor_sim import DashVectorFault, DashVectorSim
from tests.vendor_sim.dashvector_errors import CODES
from tests.vendor_sim.dashvector_model import CollectionSpec, Field, RawDoc, VectorSpec, WriteRequest
from tests.vendor_sim.dashvector_package import pb
from tests.vendor_sim.dashvector_writes import upsert

SAMPLES = Path(__file__).parents[1] / "samples" / "dashvector"
INDEX = json.loads((SAMPLES / "index.json").read_bytes())
EXCHANGES: dict[str, dict[str, Any]] = INDEX["exchanges"]
GRPC_EXCHANGES: dict[str, dict[str, Any]] = json.loads((SAMPLES / "grpc_exchanges.json").read_bytes())["exchanges"]
FIELDS = {"name": "STRING", "age": "INT", "weight": "FLOAT", "id": "LONG"}
FIRST, SECOND, SEVENTH = [0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.5], [0.4, 0.3, 0.2, 0.1]
# The samples' answers have no fields although the request wants all and filters or groups by one.
WITHOUT_FIELDS = {"query_filter_only", "query_group_by"}


@pytest.fixture
async def sim() -> AsyncIterator[DashVectorSim]:
    async with DashVectorSim() as running:
        yield running


@pytest.fixture
async def client(sim: DashVectorSim) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(sim.http_url, auto_decompress=False, skip_auto_headers=["User-Agent"]) as session:
        yield session


def doc(doc_id: str, vector: list[float], **fields: Any) -> RawDoc:
    return RawDoc(doc_id, {"": vector}, fields={name: Field("", value) for name, value in fields.items()})


def put(sim: DashVectorSim, collection: str, *docs: RawDoc, partition: str = "") -> None:
    upsert(sim.store, collection, WriteRequest(docs, partition))


def prepare(sim: DashVectorSim, name: str) -> None:
    """What must be there before a sample's answer comes."""
    if name.startswith("create_collection"):
        return
    sim.store.create(CollectionSpec("quickstart", {"": VectorSpec(4)}, fields=FIELDS))
    sim.store.create_partition("quickstart", "shoes")
    sparse = CollectionSpec("quickstart_sparse", {"": VectorSpec(4, metric="dotproduct")})
    if name in ("list_collections", "query_sparse"):
        sim.store.create(sparse)
    put(sim, "quickstart", doc("3", FIRST), partition="shoes")
    if name == "query_sparse":
        put(sim, "quickstart_sparse", RawDoc("8", {"": FIRST}, {"": {"5": 0.5}}))
    if name == "create_partition":
        sim.store.delete_partition("quickstart", "shoes")
    if name.startswith("query_multi_vector"):
        sim.store.create(CollectionSpec("multi", {"title": VectorSpec(2), "content": VectorSpec(3)}))
        for doc_id, author, content in (("5", "a", [0.3, 0.4, 0.5]), ("6", "b", [0.5, 0.4, 0.3])):
            fields = {"author": Field("", author)}
            put(sim, "multi", RawDoc(doc_id, {"title": content[:2], "content": content}, fields=fields))
    put(sim, "quickstart", *docs_for(name))


def docs_for(name: str) -> list[RawDoc]:
    if name in ("insert_doc", "upsert_doc"):
        return [doc("x", FIRST)]
    if name == "query_by_id":
        return [doc("1", FIRST), doc("2", SECOND)]
    if name in ("query_by_vector_docs_style", "query_filter_only"):
        return [doc("1", FIRST, name="zhangsan", age=20)]
    docs = [doc("1", FIRST, name="zhangsan", age=20, weight=55.5), doc("2", SECOND, name=None, age=30)]
    return [*docs, doc("7", SEVENTH, name="lisi", age=44)] if name == "query_by_vector_sdk" else docs


def shape(value: Any) -> Any:
    """Keys in order, kinds of leaves; a score of 0 has no point, so all numbers are one kind."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return "vector" if value and isinstance(value[0], float) else [shape(item) for item in value]
    return "number" if isinstance(value, int | float) else type(value).__name__


def without_fields(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: {} if key == "fields" else without_fields(item) for key, item in value.items()}
    return [without_fields(item) for item in value] if isinstance(value, list) else value


async def replay(client: aiohttp.ClientSession, name: str) -> tuple[aiohttp.ClientResponse, bytes]:
    exchange = EXCHANGES[name]
    method, path = exchange["request"].split(" ", 1)
    headers = INDEX["request_headers"][exchange["request_headers_base"]]
    body = (SAMPLES / exchange["request_body"]).read_bytes() if exchange["request_body"] else None
    async with client.request(method, path, data=body, headers=headers) as response:
        return response, gzip.decompress(await response.read())


@pytest.mark.parametrize("name", EXCHANGES)
async def test_every_sample_is_answered_in_its_shape(
    sim: DashVectorSim, client: aiohttp.ClientSession, name: str
) -> None:
    prepare(sim, name)
    if name == "error_rate_limit":
        sim.faults.add(DashVectorFault(code=CODES["ExceedRateLimit"]))
    response, raw = await replay(client, name)
    ours, theirs = json.loads(raw), json.loads((SAMPLES / EXCHANGES[name]["response_body"]).read_bytes())
    assert response.status == EXCHANGES[name]["status"]
    assert response.headers["content-type"] == INDEX["response_headers"]["content-type"]
    assert (ours["code"], ours["message"]) == (theirs["code"], theirs["message"])
    if name in WITHOUT_FIELDS:
        ours = {**without_fields(ours), "output": without_fields(ours)["output"][: len(theirs["output"])]}
    assert shape(ours) == shape(theirs)
    assert raw == json.dumps(ours, separators=(",", ":"), ensure_ascii=False).encode() or name in WITHOUT_FIELDS
    assert sim.requests[0].request_id == ours["request_id"]


async def test_bodies_are_the_samples_where_nothing_is_invented(
    sim: DashVectorSim, client: aiohttp.ClientSession
) -> None:
    prepare(sim, "fetch_doc")
    for name in ("insert_doc_duplicate", "fetch_doc", "list_partitions", "delete_doc", "describe_partition"):
        _, raw = await replay(client, name)
        theirs = json.loads((SAMPLES / EXCHANGES[name]["response_body"]).read_bytes())
        assert json.loads(raw) == theirs | {"request_id": json.loads(raw)["request_id"]}


async def test_identity_answers_have_a_length(sim: DashVectorSim, client: aiohttp.ClientSession) -> None:
    async with client.get(
        "/service_version", headers={"dashvector-auth-token": "t", "Accept-Encoding": ""}
    ) as response:
        body = await response.read()
        assert response.headers["content-length"] == str(len(body))
        assert "content-encoding" not in response.headers


@pytest.mark.parametrize("name", GRPC_EXCHANGES)
async def test_every_grpc_sample_is_answered_in_its_shape(sim: DashVectorSim, name: str) -> None:
    exchange = GRPC_EXCHANGES[name]
    prepare(sim, name)
    if name == "query_doc_rate_limited":
        details, status = exchange["grpc_details"], exchange["grpc_status"]
        sim.faults.add(DashVectorFault(code=CODES["ExceedRateLimit"], grpc_status=status, message=details))
    body = base64.b64decode(exchange["request_base64"])
    metadata = [tuple(pair) for pair in exchange["metadata"]]
    async with grpc.aio.insecure_channel(sim.grpc_address) as channel:
        call = channel.unary_unary(exchange["method"])(body, metadata=metadata)
        assert (await call.code()).name == exchange["grpc_status"]
        trailers = [tuple(pair) for pair in await call.trailing_metadata()]
        raw = await call if exchange["grpc_status"] == "OK" else b""
        details = await call.details()
    assert (sim.requests[0].body, sim.requests[0].target) == (body, exchange["method"])
    if not raw:
        assert details == exchange["grpc_details"]
        request_id = sim.requests[0].request_id
        assert trailers == [("request-id", request_id), *map(tuple, exchange["trailing_metadata"][1:])]
        return
    ours, theirs = getattr(pb, exchange["response_message"])(), getattr(pb, exchange["response_message"])()
    ours.ParseFromString(raw)
    theirs.ParseFromString(base64.b64decode(exchange["response_base64"]))
    assert trailers == []
    assert ours.request_id == sim.requests[0].request_id
    assert known(ours) >= known(theirs)


def known(message: Any) -> set[str]:
    """The paths of all fields that are set; items of lists and maps count as one."""
    found: set[str] = set()

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{path}.{key}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                walk(item, path)
        else:
            found.add(path)

    walk(MessageToDict(message, preserving_proto_field_name=True), "")
    return found
