"""The simulator's own promises: numbers that tests can know beforehand, refusals, faults, limits, and its controls."""

import asyncio
import hashlib
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest

from tests.support.gate import Gate
from tests.support.waiting import wait_until
from tests.vendor_sim import Fault, VendorSim, answer, compatible_answer, sim_process, vector
from tests.vendor_sim.app import COMPATIBLE_EMBEDDING, NATIVE_EMBEDDING
from tests.vendor_sim.models import EMBEDDING_MODELS
from tests.vendor_sim.vectors import plain_decimal, spelled_vector

KEY = {"Authorization": "Bearer sk-a"}


@pytest.fixture
async def sim() -> AsyncIterator[VendorSim]:
    async with VendorSim() as running:
        yield running


@pytest.fixture
async def client(sim: VendorSim) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(sim.url, headers=KEY) as session:
        yield session


def native_body(texts: Any, model: str = "text-embedding-v4", **parameters: Any) -> dict[str, Any]:
    return {"model": model, "input": {"texts": texts}, "parameters": parameters}


async def post(client: aiohttp.ClientSession, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    async with client.post(path, json=body, headers=headers) as response:
        return response.status, json.loads(await response.read())


@pytest.mark.parametrize("model", EMBEDDING_MODELS)
def test_vectors_are_of_length_one_and_spelled_as_the_model_spells(model: str) -> None:
    text = spelled_vector(model, None, "风急天高")
    values = json.loads(text)
    assert len(values) == EMBEDDING_MODELS[model].dimensions[0]
    assert np.linalg.norm(values) == pytest.approx(1.0, abs=1e-6)
    are_float32 = [float(np.float32(value)) == value for value in values]
    if EMBEDDING_MODELS[model].is_float64:
        assert not any(are_float32)
        assert "e" not in text
    else:
        assert all(are_float32)
        assert text == json.dumps(values, separators=(",", ":"))
        assert "e-05" in "".join(spelled_vector(model, None, str(number)) for number in range(20))


def test_plain_decimals_have_no_exponent() -> None:
    assert plain_decimal(-2.131348367563013e-05) == "-0.00002131348367563013"


def test_everything_that_matters_changes_the_vector_and_nothing_else() -> None:
    v4 = "text-embedding-v4"
    base = vector(v4, 64, "a")
    assert np.array_equal(base, vector(v4, 64, "a", "document", "instruct"))
    assert np.array_equal(vector(v4, None, "a"), vector(v4, 1024, "a"))
    others = [
        vector(v4, 64, "b"),
        vector(v4, 64, "a", "query"),
        vector(v4, 64, "a", "query", "instruct"),
        vector("text-embedding-v3", 64, "a"),
        vector(v4, 128, "a")[:64],
    ]
    assert not any(np.array_equal(base, other) for other in others)
    assert not np.array_equal(others[1], others[2])


async def test_answers_are_those_of_the_pure_functions(sim: VendorSim, client: aiohttp.ClientSession) -> None:
    texts = ["é", "b", "é"]
    options: dict[str, Any] = {"dimension": 64, "text_type": "query", "instruct": "x", "output_type": "dense&sparse"}
    async with client.post(NATIVE_EMBEDDING, json=native_body(texts, **options)) as response:
        request_id = response.headers["x-request-id"]
        assert await response.read() == answer("text-embedding-v4", texts, request_id=request_id, **options)
    body = {"model": "text-embedding-v2", "input": texts}
    async with client.post(COMPATIBLE_EMBEDDING, json=body) as response:
        request_id = response.headers["x-request-id"]
        assert await response.read() == compatible_answer("text-embedding-v2", texts, request_id=request_id)
    assert sim.texts_asked == {"é": 4, "b": 2} == sim.texts_answered
    assert json.loads(sim.requests[0].body) == native_body(texts, **options)
    assert sim.requests[0].header("authorization") == "Bearer sk-a"
    sim.clear()
    assert not sim.requests
    assert not sim.texts_asked


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (native_body(["t"] * 11), 400, "InvalidParameter"),
        (native_body(["t"], model="nobody"), 404, "ModelNotFound"),
        (native_body([]), 400, "BadRequest.EmptyInput"),
        (native_body(["t"], dimension=65), 400, "InvalidParameter"),
        (native_body(["t"], "text-embedding-v2", output_type="sparse"), 400, "InvalidParameter"),
        (native_body([["t"]]), 400, "InvalidParameter"),
        ({"input": {"texts": ["t"]}}, 400, "BadRequest.EmptyModel"),
        ({"model": "text-embedding-v4"}, 400, "BadRequest.EmptyInput"),
        ([1], 400, "InvalidParameter"),
        (native_body(["t"], model="text-embedding-async-v2"), 403, "AccessDenied"),
    ],
)
async def test_native_refusals(client: aiohttp.ClientSession, body: Any, status: int, code: str) -> None:
    got, answered = await post(client, NATIVE_EMBEDDING, body)
    assert (got, answered["code"]) == (status, code)


async def test_compatible_refusals(client: aiohttp.ClientSession) -> None:
    for value in ([[1, 2]], [1], ["t"] * 11, []):
        status, answered = await post(client, COMPATIBLE_EMBEDDING, {"model": "text-embedding-v4", "input": value})
        assert (status, answered["error"]["code"]) == (400, "invalid_parameter_error")
    status, answered = await post(client, COMPATIBLE_EMBEDDING, {"model": "nobody", "input": "t"})
    assert (status, answered["error"]["code"]) == (404, "model_not_found")
    async with client.post(NATIVE_EMBEDDING, data=b'{"model":') as response:
        assert response.status == 400
        assert list(await response.json()) == ["code", "message", "request_id"]


async def test_keys(sim: VendorSim) -> None:
    sim.configure(api_keys=["sk-one"])
    async with aiohttp.ClientSession(sim.url) as client:
        body = native_body(["t"])
        assert (await post(client, NATIVE_EMBEDDING, body))[0] == 401
        assert (await post(client, NATIVE_EMBEDDING, body, Authorization="Bearer sk-two"))[0] == 401
        assert (await post(client, NATIVE_EMBEDDING, body, Authorization="Bearer sk-one"))[0] == 200
        assert (await post(client, NATIVE_EMBEDDING, body, **{"X-DashScope-ApiKey": "sk-one"}))[0] == 200
        status, answered = await post(client, COMPATIBLE_EMBEDDING, {})
        assert (status, answered["error"]["code"]) == (401, "invalid_api_key")


async def test_base64_is_honoured_when_told_to(sim: VendorSim, client: aiohttp.ClientSession) -> None:
    body = {"model": "text-embedding-v4", "input": "t", "dimensions": 64, "encoding_format": "base64"}
    _, answered = await post(client, COMPATIBLE_EMBEDDING, body)
    assert answered["data"][0]["embedding"] == vector("text-embedding-v4", 64, "t").tolist()
    sim.configure(honours_base64=True)
    async with client.post(COMPATIBLE_EMBEDDING, json=body) as response:
        request_id = response.headers["x-request-id"]
        expected = compatible_answer("text-embedding-v4", ["t"], request_id=request_id, dimensions=64, is_base64=True)
        assert await response.read() == expected


async def test_shuffled_answers_tell_their_order(sim: VendorSim, client: aiohttp.ClientSession) -> None:
    sim.configure(shuffles_embeddings=True)
    texts = [str(number) for number in range(10)]
    _, answered = await post(client, NATIVE_EMBEDDING, native_body(texts, dimension=64))
    items = answered["output"]["embeddings"]
    order = [item["text_index"] for item in items]
    assert order != sorted(order) == list(range(10))
    assert all(
        item["embedding"] == vector("text-embedding-v4", 64, texts[item["text_index"]]).tolist() for item in items
    )


async def test_faults_come_as_often_as_told_and_only_where_told(sim: VendorSim, client: aiohttp.ClientSession) -> None:
    sim.faults.add(
        Fault(error="rate_quota", times=2, model="text-embedding-v4", headers={"retry-after": "1"}),
        Fault(error="data_inspection_failed", text="bad"),
        Fault(error="compat_error_429_insufficient_quota", status=400, path="/compatible-mode/"),
    )
    statuses = [(await post(client, NATIVE_EMBEDDING, native_body(["t"])))[0] for _ in range(3)]
    assert statuses == [429, 429, 200]
    assert (await post(client, NATIVE_EMBEDDING, native_body(["t", "bad"])))[0] == 400
    status, answered = await post(client, COMPATIBLE_EMBEDDING, {"model": "text-embedding-v3", "input": "t"})
    assert (status, answered["error"]["code"]) == (400, "insufficient_quota")
    assert (await post(client, NATIVE_EMBEDDING, native_body(["t"], "text-embedding-v3")))[0] == 200
    assert sim.texts_asked["t"] == 6
    assert sim.texts_answered["t"] == 2


async def test_a_fault_can_be_drawn_by_lot(sim: VendorSim, client: aiohttp.ClientSession) -> None:
    sim.faults.add(Fault(error="internal", probability=0.5))
    statuses = {(await post(client, NATIVE_EMBEDDING, native_body(["t"])))[0] for _ in range(40)}
    assert statuses == {200, 500}


@pytest.mark.parametrize(
    ("wrong", "indices"),
    [("drop_index", [0]), ("duplicate_index", [0, 0]), ("extra_index", [0, 1, 2])],
)
async def test_wrong_indices(sim: VendorSim, client: aiohttp.ClientSession, wrong: Any, indices: list[int]) -> None:
    sim.faults.add(Fault(wrong=wrong))
    _, answered = await post(client, NATIVE_EMBEDDING, native_body(["a", "b"], dimension=64))
    assert [item["text_index"] for item in answered["output"]["embeddings"]] == indices
    _, answered = await post(client, COMPATIBLE_EMBEDDING, {"model": "text-embedding-v4", "input": ["a", "b"]})
    assert [item["index"] for item in answered["data"]] == indices


async def test_wrong_vectors_and_bodies(sim: VendorSim, client: aiohttp.ClientSession) -> None:
    body = native_body(["a"], dimension=64)
    for wrong in ("wrong_dimension", "null_value", "code_in_200", "truncated_body", "disconnect"):
        sim.faults.add(Fault(wrong=wrong, times=1))
    assert len((await post(client, NATIVE_EMBEDDING, body))[1]["output"]["embeddings"][0]["embedding"]) == 63
    assert (await post(client, NATIVE_EMBEDDING, body))[1]["output"]["embeddings"][0]["embedding"][0] is None
    status, answered = await post(client, NATIVE_EMBEDDING, body)
    assert (status, answered["code"]) == (200, "InternalError")
    with pytest.raises(aiohttp.ClientPayloadError):
        await post(client, NATIVE_EMBEDDING, body)
    # A POST is not sent again by this client.
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await post(client, NATIVE_EMBEDDING, body)
    assert (await post(client, NATIVE_EMBEDDING, body))[0] == 200


async def test_unknown_faults_are_refused() -> None:
    with pytest.raises(KeyError):
        Fault(error="nothing")
    with pytest.raises(ValueError, match="unknown kind"):
        Fault(wrong="nothing")  # type: ignore[arg-type]


async def test_capacity_and_rate(sim: VendorSim, client: aiohttp.ClientSession) -> None:
    gate = Gate()
    sim.before_answer = lambda _: gate.wait()
    sim.configure(capacity=1)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(post(client, NATIVE_EMBEDDING, native_body(["t"])))
        await gate.wait_arrived()
        status, answered = await post(client, NATIVE_EMBEDDING, native_body(["t"]))
        assert (status, answered["code"]) == (429, "Throttling")
        gate.open()
    assert first.result()[0] == 200
    assert (sim.in_flight, sim.peak_in_flight) == (0, 2)
    sim.configure(capacity=None, rpm=2)
    statuses = [(await post(client, NATIVE_EMBEDDING, native_body(["t"])))[0] for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_a_client_that_leaves_is_noticed(sim: VendorSim, client: aiohttp.ClientSession) -> None:
    gate = Gate()
    sim.before_answer = lambda _: gate.wait()
    asking = asyncio.ensure_future(post(client, NATIVE_EMBEDDING, native_body(["t"])))
    await gate.wait_arrived()
    asking.cancel()
    await wait_until(lambda: sim.requests[0].is_aborted)
    assert sim.in_flight == 0


async def test_batch_tasks(sim: VendorSim, client: aiohttp.ClientSession) -> None:
    body = {"model": "text-embedding-async-v2", "parameters": {}, "input": {"url": "https://files.example.com/t"}}
    asynchronous = {"X-DashScope-Async": "enable"}
    _, answered = await post(client, NATIVE_EMBEDDING, body, **asynchronous)
    path = f"/api/v1/tasks/{answered['output']['task_id']}"
    states = []
    for _ in range(4):
        async with client.get(path) as response:
            states.append((await response.json())["output"]["task_status"])
    assert states == ["PENDING", "RUNNING", "SUCCEEDED", "SUCCEEDED"]
    assert (await post(client, f"{path}/cancel", None))[1]["code"] == "UnsupportedOperation"
    _, answered = await post(client, NATIVE_EMBEDDING, body, **asynchronous)
    assert (await post(client, f"/api/v1/tasks/{answered['output']['task_id']}/cancel", None))[0] == 200
    async with client.get("/api/v1/tasks?page_no=1&page_size=1") as response:
        listed = await response.json()
    assert (listed["total"], listed["total_page"], listed["data"][0]["status"]) == (2, 2, "CANCELED")
    status, answered = await post(client, NATIVE_EMBEDDING, native_body(["t"]), **asynchronous)
    assert (status, answered["code"]) == (403, "AccessDenied")


async def test_streams_come_frame_by_frame_even_when_packed(sim: VendorSim) -> None:
    gate = Gate()

    async def hold_second(_: object, number: int) -> None:
        if number == 1:
            await gate.wait()

    sim.before_frame = hold_second
    body = {"model": "qwen-plus", "input": {"prompt": "hi"}, "parameters": {}}
    path = "/api/v1/services/aigc/text-generation/generation"
    asked = {**KEY, "X-DashScope-SSE": "enable"}
    async with (
        aiohttp.ClientSession(sim.url, auto_decompress=False) as client,
        client.post(path, json=body, headers=asked) as response,
    ):
        assert response.headers["content-encoding"] == "gzip"
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        text = ""
        while not text.endswith("\n\n"):
            text += unpacker.decompress(await response.content.readany()).decode()
        assert text.startswith("id:1\nevent:result\n:HTTP_STATUS/200\ndata:{")
        assert "id:2" not in text
        gate.open()
        rest = unpacker.decompress(await response.content.read()).decode()
        assert rest.startswith("id:2\n")
        assert unpacker.eof


async def test_other_operations(sim: VendorSim, client: aiohttp.ClientSession) -> None:
    body = {"model": "qwen-plus", "messages": [{"role": "user", "content": "hi"}]}
    assert (await post(client, "/compatible-mode/v1/chat/completions", body))[1]["object"] == "chat.completion"
    for path in ("/api/v1/models", "/compatible-mode/v1/models", "/api/v1/uploads?action=getPolicy&model=m"):
        async with client.get(path) as response:
            assert response.status == 200
    secret = {"X-DashScope-EncryptionKey": '{"public_key_id":"1","encrypt_key":"k","iv":"i"}'}
    sealed = {"model": "text-embedding-v4", "input": "c2VhbGVk", "parameters": {}}
    _, answered = await post(client, NATIVE_EMBEDDING, sealed, **secret)
    assert isinstance(answered["output"], str)
    content = bytes(range(256)) * 4096
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", content, filename="a.jsonl")
    async with client.post("/compatible-mode/v1/files", data=form) as response:
        stored = await response.json()
    digest = hashlib.sha256(content).hexdigest()
    assert (stored["bytes"], stored["sha256"], stored["purpose"]) == (len(content), digest, "batch")
    assert sim.requests[-1].file_sha256 == [digest]
    async with client.delete(f"/compatible-mode/v1/files/{stored['id']}") as response:
        assert (await response.json())["deleted"] is True


async def test_rerank_scores_belong_to_the_whole_request(client: aiohttp.ClientSession) -> None:
    path = "/compatible-api/v1/reranks"
    body = {"model": "qwen3-rerank", "query": "q", "documents": ["a", "b", "c"], "return_documents": True}
    _, whole = await post(client, path, body)
    _, again = await post(client, path, body)
    _, fewer = await post(client, path, body | {"documents": ["a", "b"]})
    assert whole["results"] == again["results"]
    scores = {item["document"]["text"]: item["relevance_score"] for item in whole["results"]}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert all(scores[item["document"]["text"]] != item["relevance_score"] for item in fewer["results"])


async def test_websocket(sim: VendorSim) -> None:
    path = "/api-ws/v1/inference"
    async with aiohttp.ClientSession(sim.url) as client:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await client.ws_connect(path)
        assert refusal.value.status == 401
        async with client.ws_connect(path, headers=KEY) as socket:
            header = {"task_id": "1", "streaming": "duplex"}

            async def send(action: str) -> None:
                await socket.send_json({"header": header | {"action": action}, "payload": {"input": {"text": "t"}}})

            await send("run-task")
            assert (await socket.receive_json())["header"]["event"] == "task-started"
            await socket.send_bytes(b"\0\1")
            assert await socket.receive_bytes() == b"\0\1"
            await send("continue-task")
            assert (await socket.receive_json())["header"]["event"] == "result-generated"
            await send("finish-task")
            assert (await socket.receive_json())["header"]["event"] == "task-finished"
    assert len(sim.requests[-1].messages) == 4


async def test_it_comes_back_on_its_port(sim: VendorSim, client: aiohttp.ClientSession) -> None:
    assert (await post(client, NATIVE_EMBEDDING, native_body(["t"])))[0] == 200
    port = sim.port
    await sim.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await post(client, NATIVE_EMBEDDING, native_body(["t"]))
    await sim.start(port)
    assert (await post(client, NATIVE_EMBEDDING, native_body(["t"])))[0] == 200
    assert sim.texts_asked["t"] == 2


async def test_another_process_is_controlled_by_endpoints() -> None:
    with sim_process("--latency-ms", "1", "--jitter-ms", "1") as process:
        async with aiohttp.ClientSession(process.url, headers=KEY) as client:
            process.set_faults({"error": "error_429_throttling", "times": 1})
            assert (await post(client, NATIVE_EMBEDDING, native_body(["t"])))[0] == 429
            process.configure(refused_keys=["sk-a"])
            assert (await post(client, NATIVE_EMBEDDING, native_body(["t"])))[0] == 401
        assert process.texts_asked == {"t": 2}
        assert json.loads(process.requests[0].body) == native_body(["t"])
        assert process.stats["requests"] == 2
        process.reset()
        assert process.requests == []
        assert process.stop() == 0
