"""Everything that is not cached, by the SDKs' own means: streams, tasks, rerank, multimodal, WebSocket."""

from typing import Any

import dashscope
import openai
from dashscope import BatchTextEmbedding, Generation, MultiModalEmbedding, TextReRank

from tests.sdk.rig import Rig

MESSAGES: Any = [{"role": "user", "content": "你好"}]


def at(url: str) -> None:
    dashscope.base_http_api_url = f"{url}/api/v1"


def test_a_native_stream_arrives_whole_and_in_order(rig: Rig) -> None:
    def ask(url: str) -> list[Any]:
        at(url)
        frames = Generation.call(model="qwen-plus", messages=MESSAGES, api_key="sk-sdk", stream=True)
        return [(frame.status_code, frame.output) for frame in frames]

    assert len(rig.three_ways(ask, is_cached=False)[0]) >= 2


def test_an_openai_stream_arrives_whole_and_in_order(rig: Rig) -> None:
    def ask(url: str) -> list[Any]:
        with openai.OpenAI(api_key="sk-sdk", base_url=f"{url}/compatible-mode/v1", max_retries=0) as client:
            stream = client.chat.completions.create(model="qwen-plus", messages=MESSAGES, stream=True)
            return [choice.delta.content for chunk in stream for choice in chunk.choices]

    assert "".join(text for text in rig.three_ways(ask, is_cached=False)[0] if text)


def test_rerank_passes(rig: Rig) -> None:
    def ask(url: str) -> Any:
        at(url)
        answer = TextReRank.call(
            model="qwen3-rerank", query="q", documents=["a", "b", "c"], return_documents=True, api_key="sk-sdk"
        )
        return answer.status_code, answer.output, answer.usage

    assert rig.three_ways(ask, is_cached=False)[0][0] == 200


def test_multimodal_embedding_passes(rig: Rig) -> None:
    def ask(url: str) -> Any:
        at(url)
        answer = MultiModalEmbedding.call(
            model="multimodal-embedding-v1",
            input=[{"text": "a"}, {"image": "https://example.com/a.png"}],
            api_key="sk-sdk",
        )
        return answer.status_code, answer.output

    assert rig.three_ways(ask, is_cached=False)[0][0] == 200


def test_an_asynchronous_task_is_submitted_polled_and_never_cached(rig: Rig) -> None:
    """Same path as the cached operation: only a header and the body tell them apart."""
    at(rig.proxy.http_url)
    submitted = BatchTextEmbedding.async_call(
        model=BatchTextEmbedding.Models.text_embedding_async_v2, url="https://example.com/t.txt", api_key="sk-sdk"
    )
    assert submitted.output["task_status"] == "PENDING"
    states = [BatchTextEmbedding.fetch(submitted, api_key="sk-sdk").output["task_status"] for _ in range(3)]
    assert states == ["PENDING", "RUNNING", "SUCCEEDED"]
    again = BatchTextEmbedding.async_call(
        model=BatchTextEmbedding.Models.text_embedding_async_v2, url="https://example.com/t.txt", api_key="sk-sdk"
    )
    assert again.output["task_id"] != submitted.output["task_id"]


async def test_the_asynchronous_classes_pass(rig: Rig) -> None:
    answers = []
    for url in rig.urls:
        at(url)
        answer = await dashscope.AioTextReRank.call(model="qwen3-rerank", query="q", documents=["a"], api_key="sk-sdk")
        answers.append((answer.status_code, answer.output))
    await dashscope.close_shared_aio_session()
    assert answers[0] == answers[1]
    assert answers[0][0] == 200


def test_a_file_is_uploaded_whole(rig: Rig, tmp_path: Any) -> None:
    given = tmp_path / "texts.jsonl"
    given.write_bytes(b'{"text": "a"}\n' * 50_000)

    def upload(url: str) -> Any:
        at(url)
        answer = dashscope.Files.upload(str(given), purpose="fine-tune", api_key="sk-sdk")
        return answer.status_code

    rig.three_ways(upload, is_cached=False)
    files = [record for record in rig.sim.requests if record.file_sha256]
    assert len(files) == 3
    assert files[0].file_sha256 == files[1].file_sha256 == files[2].file_sha256
