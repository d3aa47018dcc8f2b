"""Text generation, native and compatible, whole and streamed. The words are canned; the frames are the point."""

import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from tests.vendor_sim.answers import compact
from tests.vendor_sim.errors import refuse
from tests.vendor_sim.exchange import Answer, Call, Stream, json_answer
from tests.vendor_sim.models import GENERATION_MODELS
from tests.vendor_sim.vectors import token_count


async def native(call: Call) -> Answer | Stream:
    """Text and multimodal generation on the native path."""
    if call.is_enabled("X-DashScope-Async"):
        raise refuse("access_denied")
    _check_model(call)
    asked = call.input
    if not asked.get("messages") and not asked.get("prompt"):
        raise refuse("empty_input")
    if call.is_enabled("X-DashScope-SSE"):
        return Stream(_native_frames(call))
    pieces = call.state.settings.generation_pieces
    return Answer(compact(_native_message(call, "".join(pieces), len(pieces), is_last=True)))


async def chat(call: Call) -> Answer | Stream:
    """Chat completions on the compatible path."""
    _check_model(call)
    if not call.body.get("messages"):
        raise refuse("empty_input")
    if call.body.get("stream") is True:
        return Stream(_chat_frames(call))
    message = {"content": "".join(call.state.settings.chat_pieces), "role": "assistant"}
    return json_answer(
        {
            "choices": [{"message": message, "finish_reason": "stop", "index": 0, "logprobs": None}],
            "object": "chat.completion",
            "usage": _chat_usage(call),
            "created": int(time.time()),
            "system_fingerprint": None,
            "model": call.model,
            "id": f"chatcmpl-{call.request_id}",
        }
    )


def _check_model(call: Call) -> None:
    if call.model not in GENERATION_MODELS:
        raise refuse("model_not_found")


def _input_tokens(call: Call) -> int:
    asked = call.body if call.is_compatible else call.input
    return token_count(json.dumps(asked.get("messages") or asked.get("prompt"), ensure_ascii=False))


async def _pace(call: Call, number: int) -> None:
    """What comes before every frame: a test's hook, and the delay."""
    if call.state.before_frame is not None:
        await call.state.before_frame(call.record, number)
    if number:
        await call.pause(call.state.settings.frame_delay_ms)


async def _native_frames(call: Call) -> AsyncGenerator[bytes, None]:
    pieces = call.state.settings.generation_pieces
    is_incremental = call.parameters.get("incremental_output") is True
    for number, piece in enumerate(pieces):
        await _pace(call, number)
        # The second frame, or the only one there is.
        if call.wrong == "error_in_stream" and number == min(1, len(pieces) - 1):
            yield _error_frame(call, number + 1)
            return
        text = piece if is_incremental else "".join(pieces[: number + 1])
        data = _native_message(call, text, number + 1, is_last=number == len(pieces) - 1)
        yield _native_frame(number + 1, "result", 200, compact(data))


def _native_frame(number: int, event: str, status: int, data: bytes) -> bytes:
    return f"id:{number}\nevent:{event}\n:HTTP_STATUS/{status}\ndata:".encode() + data + b"\n\n"


def _error_frame(call: Call, number: int) -> bytes:
    """The status line of a stream stays 200; its error is told in a frame."""
    error = refuse("invalid_parameter", "Range of input length should be [1, 30720]").spec
    return _native_frame(number, "error", error.status, error.body(call.request_id, is_compatible=False))


def _native_message(call: Call, text: str, output_tokens: int, *, is_last: bool) -> dict[str, Any]:
    reason = "stop" if is_last else "null"
    is_multimodal = "/multimodal-generation/" in call.record.path
    if is_multimodal or call.parameters.get("result_format") == "message":
        message = {"content": [{"text": text}] if is_multimodal else text, "role": "assistant"}
        output: dict[str, Any] = {"choices": [{"message": message, "finish_reason": reason}]}
    else:
        output = {"text": text, "finish_reason": reason}
    asked = _input_tokens(call)
    usage = {"total_tokens": asked + output_tokens, "output_tokens": output_tokens, "input_tokens": asked}
    return {"output": output, "usage": usage, "request_id": call.request_id}


def _chat_usage(call: Call) -> dict[str, int]:
    asked = _input_tokens(call)
    made = sum(token_count(piece) for piece in call.state.settings.chat_pieces)
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


async def _chat_frames(call: Call) -> AsyncGenerator[bytes, None]:
    for number, frame in enumerate(_chat_data(call)):
        await _pace(call, number)
        if call.wrong == "error_in_stream" and number == 1:
            error = refuse("internal").spec
            yield b"data: " + error.body(call.request_id, is_compatible=True) + b"\n\n"
            return
        # Unlike everything else, these frames come with blanks.
        yield f"data: {json.dumps(frame, ensure_ascii=False)}\n\n".encode()
    yield b"data: [DONE]\n\n"


def _chat_data(call: Call) -> list[dict[str, Any]]:
    created = int(time.time())
    deltas: list[dict[str, Any]] = [{"content": "", "role": "assistant"}]
    deltas += [{"content": piece} for piece in call.state.settings.chat_pieces]
    deltas += [{"content": ""}]
    choices: list[list[dict[str, Any]]] = [
        [{"finish_reason": None, "delta": delta, "index": 0, "logprobs": None}] for delta in deltas
    ]
    choices[-1][0]["finish_reason"] = "stop"
    usages: list[dict[str, int] | None] = [None] * len(choices)
    if (call.body.get("stream_options") or {}).get("include_usage"):
        choices.append([])
        usages.append(_chat_usage(call))
    return [
        {
            "choices": choice,
            "object": "chat.completion.chunk",
            "usage": usage,
            "created": created,
            "system_fingerprint": None,
            "model": call.model,
            "id": f"chatcmpl-{call.request_id}",
        }
        for choice, usage in zip(choices, usages, strict=True)
    ]
