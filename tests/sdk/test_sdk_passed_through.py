"""What is not cached, by the SDKs' own means: chats, streams, tasks, rerank, multimodal, files, WebSocket."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import dashscope
import openai
import pytest
from dashscope.audio import tts_v2
from dashscope.audio.qwen_omni.omni_realtime import OmniRealtimeCallback, OmniRealtimeConversation
from dashscope.client.base_api import BaseApi

from tests.sdk.asking import KEY, OpenAi, openai_error, told1, without_ids
from tests.sdk.rig import Rig, Told
from tests.support.waiting import wait_until_sync
from tests.vendor_sim import Fault

MESSAGES: Any = [{"role": "user", "content": "你好"}]
CHAT: dict[str, Any] = {"model": "qwen-plus", "messages": MESSAGES}
RERANK: dict[str, Any] = {"model": "qwen3-rerank", "query": "q", "documents": ["a", "b", "c"]}
MULTIMODAL: dict[str, Any] = {
    "model": "qwen3-vl-embedding",
    "input": [{"text": "a red dress"}, {"image": "https://example.com/dress.png"}],
}
ASYNC_MODEL = "text-embedding-async-v2"

STREAM_OPTIONS: list[dict[str, Any]] = [
    {},
    {"incremental_output": True},
    {"incremental_output": True, "result_format": "message"},
]


def at(url: str, call: Callable[..., Any], /, **options: Any) -> Any:
    """Call a function of the 1.x SDK, repointed to *url*."""
    dashscope.base_http_api_url = f"{url}/api/v1"
    dashscope.base_websocket_api_url = f"{url.replace('http', 'ws', 1)}/api-ws/v1/inference"
    return call(api_key=KEY, **options)


def at_async(url: str, call: Callable[..., Awaitable[Any]], /, **options: Any) -> Any:
    """The same for an asynchronous function; a stream comes back as a list."""

    async def work() -> Any:
        answer = await at(url, call, **options)
        answer = [part async for part in answer] if hasattr(answer, "__aiter__") else answer
        await dashscope.close_shared_aio_session()
        return answer

    return asyncio.run(work())


def frames_told(frames: list[Any]) -> Told:
    """A native stream, frame by frame."""
    return Told([told1(frame).said for frame in frames], headers=told1(frames[0]).headers)


# --- one question, one answer -----------------------------------------------------------------------------------------

QUESTIONS: list[tuple[Any, Any, dict[str, Any]]] = [
    (dashscope.Generation, dashscope.AioGeneration, CHAT),
    (dashscope.Generation, dashscope.AioGeneration, {**CHAT, "result_format": "message"}),
    (dashscope.MultiModalConversation, dashscope.AioMultiModalConversation, {**CHAT, "model": "qwen-vl-plus"}),
    (dashscope.TextReRank, dashscope.AioTextReRank, {**RERANK, "top_n": 2, "return_documents": True}),
    (dashscope.MultiModalEmbedding, dashscope.AioMultiModalEmbedding, MULTIMODAL),
    (dashscope.MultiModalEmbedding, dashscope.AioMultiModalEmbedding, {**MULTIMODAL, "dimension": 256}),
]
each_question = pytest.mark.parametrize(
    ("sync", "aio", "options"), QUESTIONS, ids=lambda value: getattr(value, "__name__", "options")
)


@each_question
def test_calls_pass(rig: Rig, sync: Any, aio: Any, options: dict[str, Any]) -> None:
    assert rig.passed(lambda url: told1(at(url, sync.call, **options))).value[1] == 200


@each_question
def test_asynchronous_calls_pass(rig: Rig, sync: Any, aio: Any, options: dict[str, Any]) -> None:
    assert rig.passed(lambda url: told1(at_async(url, aio.call, **options))).value[1] == 200


@each_question
@pytest.mark.parametrize("name", ["rate_quota", "data_inspection_failed", "invalid_api_key", "model_unavailable"])
def test_their_errors_pass(rig: Rig, sync: Any, aio: Any, options: dict[str, Any], name: str) -> None:
    rig.sim.add_faults(Fault(error=name))
    told = rig.passed(lambda url: told1(at(url, sync.call, **options)))
    assert told.value[1] >= 400
    assert rig.passed(lambda url: told1(at_async(url, aio.call, **options))).value[1] == told.value[1]


def test_models_pass(rig: Rig, openai_sync: OpenAi) -> None:
    told = rig.passed(lambda url: told1(at(url, dashscope.Models.list, page=1, page_size=5)))
    assert len(told.value[4]["models"]) == 5
    rig.passed(lambda url: Told([model.id for model in openai_sync.client(url).models.list()]))


def test_a_path_that_nobody_knows_passes(rig: Rig, openai_sync: OpenAi) -> None:
    def ask(url: str) -> Told:
        with pytest.raises(openai.NotFoundError) as raised:
            openai_sync.client(url).moderations.create(input="a")
        return openai_error(raised.value)

    rig.passed(ask)


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", STREAM_OPTIONS, ids=lambda options: ",".join(options) or "none")
@pytest.mark.parametrize("wrong", [None, "error_in_stream"])
def test_native_streams_pass(rig: Rig, options: dict[str, Any], wrong: Any) -> None:
    if wrong:
        rig.sim.add_faults(Fault(wrong=wrong))
    asked = {**CHAT, **options, "stream": True}
    told = rig.passed(lambda url: frames_told(list(at(url, dashscope.Generation.call, **asked))))
    again = rig.passed(lambda url: frames_told(at_async(url, dashscope.AioGeneration.call, **asked)))
    assert [frame[0][1] for frame in told.value] == [200, 400 if wrong else 200]
    assert len(again.value) == 2


@pytest.mark.parametrize("wrong", [None, "error_in_stream"])
def test_openai_streams_pass(rig: Rig, openai_sync: OpenAi, wrong: Any) -> None:
    if wrong:
        rig.sim.add_faults(Fault(wrong=wrong))
    asked = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}

    def collect(chunks: list[Any], error: openai.APIError | None) -> Told:
        shown = [
            (without_ids(chunk.model_dump()["choices"]), chunk.usage and chunk.usage.to_dict()) for chunk in chunks
        ]
        return Told((shown, error and (error.message, error.code, without_ids(error.body))))

    def ask(url: str) -> Told:
        chunks: list[Any] = []
        try:
            chunks.extend(openai_sync.client(url).chat.completions.create(**asked))
        except openai.APIError as error:
            return collect(chunks, error)
        return collect(chunks, None)

    async def ask_async(url: str) -> Told:
        chunks: list[Any] = []
        async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/compatible-mode/v1", max_retries=0) as client:
            try:
                async with await client.chat.completions.create(**asked) as stream:
                    async for chunk in stream:
                        chunks.append(chunk)  # noqa: PERF401  what came before an error counts
            except openai.APIError as error:
                return collect(chunks, error)
        return collect(chunks, None)

    told = rig.passed(ask)
    again = rig.passed(lambda url: asyncio.run(ask_async(url)))
    assert told.value[0][0] == again.value[0][0]
    assert bool(told.value[1]) == bool(again.value[1]) == bool(wrong)


def test_a_chat_without_a_stream_passes(rig: Rig, openai_sync: OpenAi) -> None:
    def ask(url: str) -> Told:
        answer = openai_sync.client(url).chat.completions.create(**CHAT)
        return Told([choice.to_dict() for choice in answer.choices], answer.usage and answer.usage.to_dict())

    assert rig.passed(ask).value[0]["message"]["content"] == "你好"


def test_a_frame_reaches_the_sdk_before_the_next_one_is_made(rig: Rig, openai_sync: OpenAi) -> None:
    read = asyncio.Event()

    async def hold(_: Any, number: int) -> None:
        if number == 1:
            await asyncio.wait_for(read.wait(), 10)

    rig.sim.call(lambda sim: setattr(sim, "before_frame", hold))
    try:
        native = at(rig.proxy.http_url, dashscope.Generation.call, **CHAT, stream=True)
        assert next(native).status_code == 200
        rig.sim.call(lambda _: read.set())
        assert len(list(native)) == 1
        rig.sim.call(lambda _: read.clear())
        compatible = iter(openai_sync.client(rig.proxy.http_url).chat.completions.create(**CHAT, stream=True))
        assert next(compatible).choices
        rig.sim.call(lambda _: read.set())
        assert list(compatible)
    finally:
        rig.sim.call(lambda sim: setattr(sim, "before_frame", None))


# --- tasks ------------------------------------------------------------------------------------------------------------


def submit(url: str) -> Any:
    return at(url, dashscope.BatchTextEmbedding.async_call, model=ASYNC_MODEL, url="https://example.com/texts.txt")


def test_a_task_is_submitted_polled_and_never_cached(rig: Rig) -> None:
    """Same path as the cached operation: only a header and the body tell them apart."""
    for url in rig.urls:
        submitted = submit(url)
        assert submitted.output["task_status"] == "PENDING"
        polls = [at(url, dashscope.BatchTextEmbedding.fetch, task=submitted) for _ in range(3)]
        assert [poll.output["task_status"] for poll in polls] == ["PENDING", "RUNNING", "SUCCEEDED"]
        assert polls[2].output["url"].startswith("https://")
        assert polls[2].usage["total_tokens"] == 384
        assert submit(url).output["task_id"] != submitted.output["task_id"]


def test_a_task_is_waited_for(rig: Rig) -> None:
    rig.sim.configure(task_states=("SUCCEEDED",))  # the SDK sleeps between polls
    for url in rig.urls:
        done = at(url, dashscope.BatchTextEmbedding.wait, task=submit(url))
        assert done.output["task_status"] == "SUCCEEDED"
        called = at(url, dashscope.BatchTextEmbedding.call, model=ASYNC_MODEL, url="https://example.com/texts.txt")
        assert called.output["task_status"] == "SUCCEEDED"


def test_tasks_are_cancelled_and_listed(rig: Rig) -> None:
    for url in rig.urls:
        rig.sim.reset()
        tasks = [submit(url) for _ in range(2)]
        assert at(url, dashscope.BatchTextEmbedding.cancel, task=tasks[0]).status_code == 200
        refused = at(url, dashscope.BatchTextEmbedding.cancel, task=tasks[0])
        assert (refused.status_code, refused.code) == (400, "UnsupportedOperation")
        listed = at(url, dashscope.BatchTextEmbedding.list)
        assert listed.status_code == 200
        assert [task["status"] for task in listed.output["data"]] == ["PENDING", "CANCELED"]
        unknown = at(url, dashscope.BatchTextEmbedding.fetch, task="nobody-knows-it")
        assert (unknown.status_code, unknown.output["task_status"]) == (200, "UNKNOWN")


def test_a_task_for_a_model_that_knows_none_is_refused_as_by_the_vendor(rig: Rig) -> None:
    asked: dict[str, Any] = {"model": "text-embedding-v4", "url": "https://example.com/texts.txt"}
    told = rig.refused(lambda url: told1(at(url, dashscope.BatchTextEmbedding.async_call, **asked)))
    assert told.value[1:3] == (403, "AccessDenied")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "texts.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 50_000)
    return path


def test_the_sdks_files_are_uploaded_whole_and_managed(rig: Rig, jsonl: Path) -> None:
    sizes = []
    for url in rig.urls:
        uploaded = at(url, dashscope.Files.upload, file_path=str(jsonl), purpose="fine-tune")
        file = uploaded.output["uploaded_files"][0]
        got = at(url, dashscope.Files.get, file_id=file["file_id"])
        assert at(url, dashscope.Files.list).status_code == 200
        assert at(url, dashscope.Files.delete, file_id=file["file_id"]).status_code == 200
        gone = at(url, dashscope.Files.get, file_id=file["file_id"])
        sizes.append((file["name"], got.output["size"], gone.status_code, gone.code))
    assert sizes[0] == sizes[1]
    assert sizes[0][1] == jsonl.stat().st_size
    assert len(set(_uploads(rig))) == 1
    assert len(_uploads(rig)) == 2


def test_openai_files_are_uploaded_whole_and_managed(rig: Rig, openai_sync: OpenAi, jsonl: Path) -> None:
    sizes = []
    for url in rig.urls:
        files = openai_sync.client(url).files
        uploaded = files.create(file=jsonl, purpose="batch")
        sizes.append((uploaded.filename, uploaded.bytes, uploaded.purpose))
        assert files.retrieve(uploaded.id).bytes == uploaded.bytes
        assert uploaded.id in [file.id for file in files.list()]
        assert files.delete(uploaded.id).deleted
    assert sizes == [("texts.jsonl", jsonl.stat().st_size, "batch")] * 2
    assert len(set(_uploads(rig))) == 1


def _uploads(rig: Rig) -> list[str]:
    return [digest for record in rig.sim.requests for digest in record.file_sha256]


# --- WebSocket --------------------------------------------------------------------------------------------------------


PIECES = [b"\x00" * 5, bytes(range(256)), b"\xff" * 70_000]
"""Audio, or what stands for it; a frame's length is written in three ways, and here is one piece for each."""


def pieces() -> Iterator[bytes]:
    """A generator, as the SDK takes no other iterator for a stream."""
    yield from PIECES


WEBSOCKET: dict[str, tuple[Any, Callable[[], dict[str, Any]]]] = {
    "one answer": (dashscope.Generation.call, lambda: {**CHAT, "ws_stream_mode": "none"}),
    "a stream": (dashscope.Generation.call, lambda: {**CHAT, "ws_stream_mode": "out", "stream": True}),
    "binary, both ways": (
        BaseApi.call,
        lambda: {
            "model": "paraformer-realtime-v2",
            "input": pieces(),
            "task_group": "audio",
            "task": "asr",
            "function": "recognition",
            "ws_stream_mode": "duplex",
            "is_binary_input": True,
            "stream": True,
        },
    ),
}


@pytest.mark.parametrize("name", WEBSOCKET)
def test_websockets_pass(rig: Rig, name: str) -> None:
    function, options = WEBSOCKET[name]

    def ask(url: str) -> Told:
        answer = at(url, function, api_protocol="websocket", **options())
        parts = [answer] if hasattr(answer, "status_code") else list(answer)
        return Told([(part.status_code, part.code, part.message, part.output, part.usage) for part in parts])

    told = rig.passed(ask)
    assert {part[0] for part in told.value} == {200}
    if name.startswith("binary"):
        assert [part[3] for part in told.value if isinstance(part[3], bytes)] == PIECES


class Heard(tts_v2.ResultCallback):
    """What a speech synthesizer's caller hears."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_open(self) -> None:
        self.events.append("open")

    def on_complete(self) -> None:
        self.events.append("complete")

    def on_error(self, message: Any) -> None:
        self.events.append(f"error: {message}")

    def on_close(self) -> None:
        self.events.append("close")

    def on_event(self, message: str) -> None:
        # The ids of the task are new with every call.
        self.events.append(message.partition('"payload":')[2])


def test_the_speech_synthesizers_websocket_passes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another WebSocket client than the other classes have, on threads of its own."""
    monkeypatch.setattr(dashscope, "api_key", KEY)

    def ask(url: str) -> Told:
        heard = Heard()
        where = f"{url.replace('http', 'ws', 1)}/api-ws/v1/inference"
        synthesizer = tts_v2.SpeechSynthesizer("cosyvoice-v3", "longxiaochun", url=where, callback=heard)
        for text in ("你好", "再见"):
            synthesizer.streaming_call(text)
        synthesizer.streaming_complete()
        return Told(heard.events)

    events = rig.passed(ask).value
    assert (events[0], events[-2:]) == ("open", ["complete", "close"])
    assert "再见" in events[2]


class HeardLive(OmniRealtimeCallback):
    """The events that a realtime conversation's caller hears; the simulated vendor says what it is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_event(self, message: Any) -> None:
        self.events.append({name: value for name, value in message.items() if name != "event_id"})


def test_the_realtime_websocket_passes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashscope, "api_key", KEY)

    def ask(url: str) -> Told:
        heard = HeardLive()
        where = f"{url.replace('http', 'ws', 1)}/api-ws/v1/realtime"
        conversation = OmniRealtimeConversation("qwen3-omni-flash-realtime", heard, url=where)
        conversation.connect()
        for audio in ("AAAA", "BBBB"):
            conversation.append_audio(audio)
        wait_until_sync(lambda: len(heard.events) == 2, what="both to be heard")
        conversation.close()
        return Told(heard.events)

    assert [event["audio"] for event in rig.passed(ask).value] == ["AAAA", "BBBB"]
