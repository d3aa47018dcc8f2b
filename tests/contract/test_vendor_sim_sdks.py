"""The vendors' clients, as released, against the simulator: they must see what they would see from DashScope."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dashscope
import openai
import pytest

from tests.vendor_sim import Fault, ThreadSim, sim_thread, vector

V4 = "text-embedding-v4"
KEY = "sk-0123456789abcdef0123456789abcdef"


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadSim]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with sim_thread() as running:
        monkeypatch.setattr(dashscope, "base_http_api_url", f"{running.url}/api/v1")
        yield running


def expected(text: str, dimension: int | None = None, **options: Any) -> list[float]:
    values: list[float] = vector(V4, dimension, text, **options).tolist()
    return values


def test_dashscope_embeddings(sim: ThreadSim) -> None:
    texts = ["风急天高", "渚清沙白"]
    response = dashscope.TextEmbedding.call(V4, texts, api_key=KEY, text_type="query", dimension=512, instruct="x")
    assert response.status_code == 200
    assert response.request_id == sim.requests[0].request_id
    for text, item in zip(texts, response.output["embeddings"], strict=True):
        assert item["embedding"] == expected(text, 512, text_type="query", instruct="x")
    assert sim.texts_asked == dict.fromkeys(texts, 1)


async def test_dashscope_async(sim: ThreadSim) -> None:
    embedded = await dashscope.AioMultiModalEmbedding.call("qwen3-vl-embedding", ["t"], api_key=KEY, dimension=256)
    assert embedded.status_code == 200
    assert len(embedded.output["embeddings"][0]["embedding"]) == 256
    ranked = await dashscope.AioTextReRank.call("qwen3-rerank", "q", ["a", "b"], api_key=KEY)
    assert len(ranked.output.results) == 2
    await dashscope.close_shared_aio_session()


def test_dashscope_errors(sim: ThreadSim) -> None:
    sim.add_faults(Fault(error="burst_rate", times=1))
    refused = dashscope.TextEmbedding.call(V4, ["t"], api_key=KEY)
    assert (refused.status_code, refused.code) == (429, "Throttling.BurstRate")
    wrong = dashscope.TextEmbedding.call(V4, ["t"], api_key="sk-wrong")
    assert (wrong.status_code, wrong.code) == (401, "InvalidApiKey")


def test_dashscope_batch(sim: ThreadSim) -> None:
    sim.configure(task_states=("SUCCEEDED",))
    response = dashscope.BatchTextEmbedding.call(
        "text-embedding-async-v2", "https://files.example.com/texts.txt", api_key=KEY
    )
    assert response.status_code == 200
    assert response.output["task_status"] == "SUCCEEDED"


def test_dashscope_generation_and_rerank(sim: ThreadSim) -> None:
    messages = [{"role": "user", "content": "hi"}]
    frames = dashscope.Generation.call(
        "qwen-plus", messages=messages, api_key=KEY, result_format="message", stream=True, incremental_output=True
    )
    assert "".join(frame.output.choices[0].message.content for frame in frames) == "你好"
    ranked = dashscope.TextReRank.call("gte-rerank-v2", "q", ["a", "b"], top_n=1, return_documents=True, api_key=KEY)
    assert len(ranked.output.results) == 1


def test_dashscope_multimodal_and_files(sim: ThreadSim, tmp_path: Path) -> None:
    contents = [{"text": "a red dress"}, {"image": "https://images.example.com/dress.png"}]
    embedded = dashscope.MultiModalEmbedding.call("tongyi-embedding-vision-plus", contents, api_key=KEY)
    assert embedded.status_code == 200
    assert len(embedded.output["embeddings"][1]["embedding"]) == 1152
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789")
    uploaded = dashscope.Files.upload(str(path), purpose="inference", api_key=KEY)
    assert uploaded.output["uploaded_files"][0]["size"] == 10


@pytest.mark.parametrize("honours_base64", [False, True])
def test_openai_embeddings(sim: ThreadSim, honours_base64: bool) -> None:
    sim.configure(honours_base64=honours_base64)
    with openai.OpenAI(base_url=f"{sim.url}/compatible-mode/v1", api_key=KEY, max_retries=0) as client:
        response = client.embeddings.create(model=V4, input=["a", "b"], dimensions=64)
        assert [item.embedding for item in response.data] == [expected("a", 64), expected("b", 64)]
        named = client.embeddings.create(model=V4, input="a", dimensions=64, encoding_format="float")
        assert named.data[0].embedding == expected("a", 64)


def test_openai_errors(sim: ThreadSim) -> None:
    sim.add_faults(Fault(error="rate_quota", times=1))
    with openai.OpenAI(base_url=f"{sim.url}/compatible-mode/v1", api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as refusal:
            client.embeddings.create(model=V4, input="a")
        assert refusal.value.code == "limit_requests"
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model=V4, input=[[1, 2, 3]])


async def test_openai_chat_async(sim: ThreadSim) -> None:
    async with openai.AsyncOpenAI(base_url=f"{sim.url}/compatible-mode/v1", api_key=KEY, max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="qwen-plus", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        pieces = [chunk.choices[0].delta.content async for chunk in stream]
        assert "".join(piece or "" for piece in pieces) == "你好"
