"""The simulated DashVector's own promises: when writes show, what is refused, faults, hooks, records, controls."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from yarl import URL

from tests.support.gate import Gate
from tests.support.waiting import wait_until
from tests.vendor_sim import (
    DashVectorFault,
    DashVectorRecord,
    DashVectorSettings,
    DashVectorSim,
    TlsFiles,
    dashvector_thread,
    sim_process,
)
from tests.vendor_sim.dashvector_clients import sdk_client, sdk_endpoints
from tests.vendor_sim.dashvector_errors import CODES
from tests.vendor_sim.dashvector_model import CollectionSpec, DeleteRequest, Field, RawDoc, VectorSpec, WriteRequest
from tests.vendor_sim.dashvector_package import pb
from tests.vendor_sim.dashvector_store import DashVectorStore
from tests.vendor_sim.dashvector_writes import delete, insert, upsert

TOKEN = {"dashvector-auth-token": "sk-dv-a"}
QUICK = "/v1/collections/quickstart"
SERVICE = "/proxima.dashvector.proto.DashVectorService/"
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


async def ask(client: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> dict[str, Any]:
    async with client.request(method, path, json=body) as response:
        answer: dict[str, Any] = json.loads(await response.read())
        return answer


def doc(doc_id: str, *vector: float, **fields: Any) -> dict[str, Any]:
    return {"id": doc_id, "vector": list(vector or (0.1, 0.2)), "fields": fields}


async def put(client: aiohttp.ClientSession, *docs: dict[str, Any]) -> dict[str, Any]:
    return await ask(client, "POST", f"{QUICK}/docs/upsert", {"docs": docs})


async def ids(client: aiohttp.ClientSession) -> list[str]:
    found = await ask(client, "POST", f"{QUICK}/query", {"topk": 100})
    return [hit["id"] for hit in found["output"]]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def manual_store(**settings: Any) -> tuple[DashVectorStore, Clock]:
    clock = Clock()
    store = DashVectorStore(DashVectorSettings(**settings), clock)
    store.create(CollectionSpec("quickstart", {"": VectorSpec(2)}))
    return store, clock


def write(store: DashVectorStore, *doc_ids: str) -> list[int]:
    docs = [RawDoc(doc_id, {"": [0.1, 0.2]}) for doc_id in doc_ids]
    return [result.code for result in insert(store, "quickstart", WriteRequest(docs)).output]


def visible(store: DashVectorStore) -> list[str]:
    return list(store.readable("quickstart", "").visible)


def test_writes_show_after_the_delay_in_their_order() -> None:
    store, clock = manual_store(visibility_ms=250.0)
    write(store, "1")
    clock.now = 0.125
    delete(store, "quickstart", DeleteRequest(["1"]))
    assert write(store, "2") == [0]
    assert write(store, "2") == [CODES["DuplicateKey"]], "writes judge by what was acknowledged"
    assert visible(store) == []
    clock.now = 0.25
    assert visible(store) == ["1"]
    assert store.doc_counts("quickstart") == {"default": 1}
    clock.now = 0.375
    assert visible(store) == ["2"], "deleted documents stay visible for as long"


def test_holds_end_when_the_last_is_released() -> None:
    store, _ = manual_store()
    write(store, "1")
    first, second = store.hold_visibility(), store.hold_visibility("quickstart")
    write(store, "2")
    with store.hold_visibility("another"):
        first.release()
        assert visible(store) == ["1"]
    second.release()
    second.release()
    assert visible(store) == ["1", "2"]


def test_states_take_their_time() -> None:
    store, clock = manual_store(creation_ms=250.0, dropping_ms=125.0)
    assert store.info("quickstart").status == "INITIALIZED"
    with pytest.raises(Exception, match="UnreadyCollection"):
        write(store, "1")
    clock.now = 0.25
    assert store.info("quickstart").partitions == {"default": "SERVING"}
    store.create_partition("quickstart", "shoes")
    with pytest.raises(Exception, match="UnreadyPartition"):
        store.readable("quickstart", "shoes")
    store.delete("quickstart")
    assert store.info("quickstart").status == "DROPPING"
    with pytest.raises(Exception, match="DuplicateCollection"):
        store.create(CollectionSpec("quickstart", {"": VectorSpec(2)}))
    clock.now = 0.375
    assert store.names() == []
    store.create(CollectionSpec("quickstart", {"": VectorSpec(2)}))
    clock.now = 1.0
    assert visible(store) == [], "a new collection of the same name is empty"


async def test_reads_see_the_old_state_while_held(sim: DashVectorSim, client: aiohttp.ClientSession) -> None:
    await put(client, doc("1", age=1))
    with sim.hold_visibility():
        assert (await put(client, doc("1", age=2), doc("2")))["code"] == 0
        await ask(client, "DELETE", f"{QUICK}/docs", {"ids": ["1"]})
        fetched = await ask(client, "GET", f"{QUICK}/docs?ids=1,2")
        assert fetched["output"]["1"]["fields"] == {"age": 1}
        assert await ids(client) == ["1"]
        assert (await ask(client, "GET", f"{QUICK}/stats"))["output"]["total_doc_count"] == "1"
    assert await ids(client) == ["2"]


async def test_updates_keep_vectors_and_null_other_fields(client: aiohttp.ClientSession) -> None:
    await put(client, doc("1", 1.0, 0.0, age=1, weight=0.1))
    await ask(client, "PUT", f"{QUICK}/docs", {"docs": [{"id": "1", "fields": {"age": 2}}]})
    fetched = await ask(client, "GET", f"{QUICK}/docs?ids=1")
    assert fetched["output"]["1"]["fields"] == {"age": 2, "weight": None}
    assert fetched["output"]["1"]["vector"] == [1.0, 0.0]


async def test_ids_are_made_up_and_plus_is_no_blank(sim: DashVectorSim, client: aiohttp.ClientSession) -> None:
    answer = await ask(client, "POST", f"{QUICK}/docs", {"docs": [{"vector": [0.1, 0.2]}]})
    assert answer["output"][0]["id"].isdigit()
    await put(client, doc("a+b%c"))
    url = URL(f"{sim.http_url}{QUICK}/docs?ids=a+b%25c,a%2Bb%25c", encoded=True)
    async with aiohttp.ClientSession(headers=TOKEN) as session, session.get(url) as response:
        assert list((await response.json())["output"]) == ["a+b%c"]


async def test_deleting_by_condition(client: aiohttp.ClientSession) -> None:
    await put(client, *(doc(str(number), age=number) for number in range(4)))
    answer = await ask(client, "DELETE", f"{QUICK}/docs", {"filter": "age >= 2"})
    assert [result["id"] for result in answer["output"]] == ["2", "3"]
    assert answer["usage"] == {"write_units": 2}
    await ask(client, "DELETE", f"{QUICK}/docs", {"delete_all": True})
    assert await ids(client) == []


async def test_tokens(sim: DashVectorSim, client: aiohttp.ClientSession) -> None:
    for headers in ({"dashvector-auth-token": "sk-dv-wrong"}, {"dashvector-auth-token": ""}):
        async with client.get("/v1/collections", headers=headers) as response:
            assert (response.status, (await response.json())["code"]) == (401, 401)
    sim.configure(tokens=["mine"], unauthorized_status=200, unauthorized_code=-2999)
    async with client.get("/v1/collections") as response:
        assert (response.status, (await response.json())["code"]) == (200, -2999)
    async with client.get("/v1/collections", headers={"dashvector-auth-token": "mine"}) as response:
        assert (await response.json())["output"] == ["quickstart"]


async def test_rate_and_size_limits(sim: DashVectorSim, client: aiohttp.ClientSession) -> None:
    sim.configure(calls_per_second=2, max_request_bytes=100)
    await ask(client, "GET", QUICK)
    assert (await put(client, *[doc("1")] * 9))["code"] == CODES["ExceedRequestSize"]
    assert (await ask(client, "GET", QUICK))["code"] == CODES["ExceedRateLimit"]


async def test_a_fault_before_executes_nothing_and_one_after_does(
    sim: DashVectorSim, client: aiohttp.ClientSession
) -> None:
    fault = {"code": -2034, "times": 1, "operation": "upsert_doc", "collection": "quickstart", "protocol": "http"}
    sim.faults.add(DashVectorFault.from_json(fault), DashVectorFault.from_json({**fault, "stage": "after"}))
    assert (await put(client, doc("1")))["code"] == -2034
    assert await ids(client) == []
    assert (await put(client, doc("1")))["code"] == -2034
    assert await ids(client) == ["1"]
    assert (sim.asked["upsert_doc"], sim.executed["upsert_doc"]) == (2, 1)
    sim.faults.add(DashVectorFault(doc_code=CODES["InvalidRecord"], times=1))
    answer = await put(client, doc("8"), doc("9"))
    assert [result["code"] for result in answer["output"]] == [CODES["InvalidRecord"], 0]
    assert answer["usage"] == {"write_units": 1}
    assert await ids(client) == ["1", "9"]


async def test_http_faults(sim: DashVectorSim, client: aiohttp.ClientSession) -> None:
    sim.faults.add(DashVectorFault(wrong="disconnect", stage="after", operation="upsert_doc"))
    with pytest.raises(aiohttp.ClientError):
        await put(client, doc("1"))
    assert await ids(client) == ["1"]
    sim.faults.clear()
    sim.faults.add(DashVectorFault(wrong="truncated_body"))
    with pytest.raises(aiohttp.ClientPayloadError):
        await put(client, doc("1"))
    sim.faults.clear()
    sim.faults.add(DashVectorFault(http_status=503, times=1), DashVectorFault(wrong="empty_body", times=1))
    async with client.get(QUICK) as response:
        assert response.status == 503
    async with client.get(QUICK) as response:
        assert await response.read() == b""


async def test_timeouts_end_when_the_asker_leaves(sim: DashVectorSim, client: aiohttp.ClientSession) -> None:
    sim.faults.add(DashVectorFault(wrong="timeout", stage="after"))
    with pytest.raises(asyncio.TimeoutError):
        await client.post(f"{QUICK}/docs/upsert", json={"docs": [doc("1")]}, timeout=aiohttp.ClientTimeout(0.1))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await grpc_call(sim, "list_collections", b"", timeout=0.1)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await wait_until(lambda: all(record.is_aborted for record in sim.requests))
    assert sim.in_flight == 0
    sim.faults.clear()
    assert await ids(client) == ["1"]


async def grpc_call(sim: DashVectorSim, method: str, body: bytes, **options: Any) -> bytes:
    metadata = [(*TOKEN.keys(), *TOKEN.values()), ("collection-name", "quickstart")]
    async with grpc.aio.insecure_channel(sim.grpc_address) as channel:
        answer: bytes = await channel.unary_unary(f"{SERVICE}{method}")(body, metadata=metadata, **options)
        return answer


async def test_hooks_stand_around_the_execution(sim: DashVectorSim, client: aiohttp.ClientSession) -> None:
    before, after = Gate("before"), Gate("after")

    async def before_execute(record: DashVectorRecord) -> None:
        if record.operation == "upsert_doc":
            await before.wait()

    async def before_answer(record: DashVectorRecord) -> None:
        if record.operation == "upsert_doc":
            await after.wait()

    sim.before_execute, sim.before_answer = before_execute, before_answer
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(put(client, doc("1")))
        await before.wait_arrived()
        assert await ids(client) == []
        before.open()
        await after.wait_arrived()
        assert await ids(client) == ["1"]
        assert not call.done()
        after.open()
    assert (await call)["code"] == 0


async def test_grpc_failures(sim: DashVectorSim) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await grpc_call(sim, "no_such_method", b"")
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert sim.requests[-1].operation == "unknown"
    answer = pb.QueryDocResponse.FromString(await grpc_call(sim, "query_doc", b"\xff"))
    assert answer.code == CODES["PbToSqlInfoError"]
    sim.configure(grpc_refusals="status", grpc_failure_metadata=["initial", "trailing"])
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await grpc_call(sim, "fetch_doc", b"")
    expected = {"request-id": sim.requests[-1].request_id, "extra-code": str(CODES["EmptyPrimaryKey"])}
    assert dict(failed.value.initial_metadata()) == dict(failed.value.trailing_metadata()) == expected
    sim.faults.add(DashVectorFault(grpc_status="UNAVAILABLE", has_trailers=False, times=1))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await grpc_call(sim, "fetch_doc", b"")
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not list(failed.value.trailing_metadata())


async def test_grpc_messages_may_be_large(sim: DashVectorSim) -> None:
    docs = [pb.Doc(id=str(number), vector=pb.Vector(float_vector={"values": [0.1, 0.2]})) for number in range(2)]
    docs[0].fields["name"].string_value = "x" * 9_000_000
    body = pb.UpsertDocRequest(docs=docs).SerializeToString()
    assert pb.UpsertDocResponse.FromString(await grpc_call(sim, "upsert_doc", body)).usage.write_units == 2
    assert sim.requests[-1].body == body


@pytest.mark.slow
async def test_keep_alive_pings_are_allowed(sim: DashVectorSim) -> None:
    sim.faults.add(DashVectorFault(latency_ms=40_000))
    options = [("grpc.keepalive_time_ms", 11_000), ("grpc.http2.max_pings_without_data", 0)]
    async with grpc.aio.insecure_channel(sim.grpc_address, options=options) as channel:
        # The third ping would be one too many for a server with gRPC's own limits.
        answer = await channel.unary_unary(f"{SERVICE}get_version")(b"", metadata=list(TOKEN.items()))
    assert pb.GetVersionResponse.FromString(answer).version


async def test_unknown_paths_and_restarts(sim: DashVectorSim, client: aiohttp.ClientSession) -> None:
    async with client.get("/v2/nowhere") as response:
        assert response.status == 404
    ports = sim.http_port, sim.grpc_port
    await sim.stop()
    await sim.stop()
    await sim.start(*ports)
    assert sim.store.names() == ["quickstart"]
    assert await ids(client) == []


def test_equal_fields_keep_their_kinds(sim: DashVectorSim) -> None:
    docs = [RawDoc("1", {"": [0.1, 0.2]}, fields={"big": Field("", 2**40), "age": Field("LONG", 2**40)})]
    upsert(sim.store, "quickstart", WriteRequest(docs))
    fields = sim.store.readable("quickstart", "").visible["1"].fields
    assert fields == {"big": Field("LONG", 2**40), "age": Field("INT", 2**40)}


def test_tls(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    files = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run(
        [*command, "-keyout", str(files.key), "-out", str(files.certificate)], check=True, capture_output=True
    )
    with dashvector_thread(tls=files) as sim:
        assert sim.http_url.startswith("https://")
        credentials = grpc.ssl_channel_credentials(files.certificate.read_bytes())
        with grpc.secure_channel(f"localhost:{sim.sim.grpc_port}", credentials) as channel:
            answer = channel.unary_unary(f"{SERVICE}get_version")(b"", metadata=list(TOKEN.items()), timeout=10)
        assert pb.GetVersionResponse.FromString(answer).version == "1.0.15"


def test_the_process_serves_both_vendors() -> None:
    with sim_process("--dashvector-grpc-port", "0", "--dashvector-token", "mine") as sim, sdk_endpoints():
        with sdk_client("http", sim.url, token="mine") as client:
            assert client.create("quickstart", 2, timeout=-1).code == 0
        with sdk_client("grpc", sim.grpc_address, token="mine") as client:
            assert client.list().output == ["quickstart"]
            sim.control("PUT", "dashvector/faults", [{"code": -2034}])
            assert client.list().code == -2034
            sim.control("PUT", "dashvector/settings", {"counts_are_text": False})
            sim.control("PUT", "dashvector/faults", [])
            quick = client.get("quickstart")
            sim.control("POST", "dashvector/hold", {"collection": "quickstart"})
            quick.insert(("1", [0.1, 0.2]))
            assert quick.stats().output.total_doc_count == 0
            sim.control("POST", "dashvector/release")
            assert quick.stats().output.total_doc_count == 1
        assert [record.protocol for record in sim.dashvector_requests[:3]] == ["http", "http", "grpc"]
        assert sim.control("GET", "dashvector/stats")["asked"]["create_collection"] == 1
        assert sim.requests == [], "DashScope's records are its own"
        sim.control("POST", "dashvector/reset")
        assert sim.dashvector_requests == []
