"""The simulator against the stored samples: same status, structure and key order, same headers, same refusals."""

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.vendor_sim import Fault, VendorSim
from tests.vendor_sim.errors import named_error

SAMPLES = Path(__file__).parents[1] / "samples" / "dashscope"
INDEX = json.loads((SAMPLES / "index.json").read_bytes())
EXCHANGES: dict[str, dict[str, Any]] = INDEX["exchanges"]
TASK_ID = "7f6ea2c1-0d3b-4c0e-9a53-6b1f1f6a2f10"
ERRORS = [name for name in EXCHANGES if "error_" in name and name != "generation_sse_error_in_200"]
# How a text falls into tokens is the model's affair.
VARYING_COUNTS = {"text_embedding_dense_sparse", "text_embedding_sparse_only"}


@pytest.fixture
async def sim() -> AsyncIterator[VendorSim]:
    async with VendorSim() as running:
        yield running


@pytest.fixture
async def client(sim: VendorSim) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(sim.url, auto_decompress=False, skip_auto_headers=["User-Agent"]) as session:
        yield session


class Received:
    """One answer: the headers as they came, the body unpacked."""

    def __init__(self, response: aiohttp.ClientResponse, raw: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = gzip.decompress(raw) if response.headers.get("content-encoding") == "gzip" else raw

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def replay(client: aiohttp.ClientSession, name: str) -> Received:
    exchange = EXCHANGES[name]
    method, path = exchange["request"].split(" ", 1)
    overrides = exchange.get("request_headers_override", {})
    headers = INDEX["request_headers"][exchange["request_headers_base"]] | overrides
    headers = {key: value for key, value in headers.items() if value is not None}
    body = (SAMPLES / exchange["request_body"]).read_bytes() if exchange["request_body"] else None
    async with client.request(method, path, data=body, headers=headers) as response:
        return Received(response, await response.read())


def shape(value: Any) -> Any:
    """Keys in order, kinds of leaves; a list of numbers is one leaf, because the samples cut vectors."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        if value and all(isinstance(item, float) for item in value):
            return "vector"
        return [shape(item) for item in value]
    return type(value).__name__


def merged(value: Any) -> Any:
    """The same with equal neighbours in lists merged, where their number is not the point."""
    if not isinstance(value, list):
        return value
    items: list[Any] = []
    for item in value:
        one = (item[0], merged(item[1])) if isinstance(item, tuple) else merged(item)
        if not items or items[-1] != one:
            items.append(one)
    return items


def frames(text: str) -> list[Any]:
    """The frames of an event stream: every line's name, and the shape of its data."""
    return [
        [shape(json.loads(line[5:])) if line.startswith("data:") and "[DONE]" not in line else line for line in lines]
        for lines in (block.split("\n") for block in text.split("\n\n"))
    ]


@pytest.mark.parametrize("name", EXCHANGES)
async def test_every_sample_is_answered_in_its_shape(sim: VendorSim, client: aiohttp.ClientSession, name: str) -> None:
    exchange = EXCHANGES[name]
    prepare(sim, name)
    received = await replay(client, name)
    assert received.status == exchange["status"]
    sample = (SAMPLES / exchange["response_body"]).read_text()
    if exchange["response_body"].endswith(".txt"):
        assert frames(received.body.decode()) == frames(sample)
        return
    ours, theirs = shape(received.json), shape(json.loads(sample))
    assert (merged(ours) == merged(theirs)) if name in VARYING_COUNTS else (ours == theirs)


def prepare(sim: VendorSim, name: str) -> None:
    """What must have happened before a sample's answer comes."""
    sim.configure(honours_base64=name == "compat_embeddings_base64")
    if name == "task_fetch_running":
        sim.tasks.add(["RUNNING"], task_id=TASK_ID)
    if name == "task_fetch_succeeded":
        sim.tasks.add(["SUCCEEDED"], task_id=TASK_ID)
    if name == "generation_sse_error_in_200":
        sim.configure(generation_pieces=("你",))
        sim.faults.add(Fault(wrong="error_in_stream"))
    by_itself = {"error_400_batch_size", "error_400_invalid_parameter", "error_401_invalid_api_key"}
    if name in ERRORS and name not in by_itself:
        sim.faults.add(Fault(error=name, times=1))


@pytest.mark.parametrize("name", ERRORS)
def test_error_bodies_are_the_samples_bytes(name: str) -> None:
    sample = (SAMPLES / EXCHANGES[name]["response_body"]).read_bytes()
    error = named_error(name)
    body = error.spec.body(json.loads(sample).get("request_id", ""), is_compatible=bool(error.is_compatible))
    assert body == sample
    assert error.spec.status == EXCHANGES[name]["status"]


@pytest.mark.parametrize("name", ["error_400_batch_size", "error_400_invalid_parameter", "error_401_invalid_api_key"])
async def test_bad_requests_get_the_samples_words(client: aiohttp.ClientSession, name: str) -> None:
    received = await replay(client, name)
    expected = json.loads((SAMPLES / EXCHANGES[name]["response_body"]).read_bytes())
    assert received.json == expected | {"request_id": received.headers["x-request-id"]}


async def test_headers_are_those_of_the_captures(client: aiohttp.ClientSession) -> None:
    first = await replay(client, "text_embedding_dense")
    for name, value in INDEX["response_headers"].items():
        assert first.headers[name] == value
    for name in EXCHANGES["text_embedding_dense"]["response_headers_extra"]:
        assert name in first.headers
    assert "content-length" not in first.headers
    assert first.headers["x-request-id"] == first.json["request_id"]
    second = await replay(client, "compat_embeddings_float")
    assert second.headers["x-request-id"] == second.json["id"] != first.json["request_id"]
    assert "set-cookie" not in second.headers, "the cookie comes once per connection"


async def test_identity_answers_are_chunked_too(client: aiohttp.ClientSession) -> None:
    headers = {"Authorization": "Bearer sk-a", "Accept-Encoding": "gzip;q=0, identity"}
    async with client.get("/nowhere", headers=headers) as response:
        assert response.status == 404
        assert "content-encoding" not in response.headers
        assert "content-length" not in response.headers
        assert response.headers["transfer-encoding"] == "chunked"
        assert list(json.loads(await response.read())) == ["code", "message", "request_id"]
