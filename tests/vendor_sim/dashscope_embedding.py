"""Text embeddings: the native path with its dense, sparse and asynchronous kinds, and the OpenAI-compatible path."""

from typing import Any, cast

from tests.vendor_sim.answers import Item, OutputType, answer, compatible_answer
from tests.vendor_sim.dashscope_tasks import submit_text_embedding
from tests.vendor_sim.errors import invalid_value, refuse
from tests.vendor_sim.exchange import Answer, Call
from tests.vendor_sim.faults import spoil
from tests.vendor_sim.models import ASYNC_MODELS, EMBEDDING_MODELS, EmbeddingModel
from tests.vendor_sim.vectors import token_count


async def native(call: Call) -> Answer:
    """The native path; the async header turns it into a task submission."""
    if call.is_enabled("X-DashScope-Async"):
        return submit_text_embedding(call)
    model = find_model(call.model)
    parameters = call.parameters
    texts = _checked_texts(model, call.input.get("texts"), call.state.settings.max_texts or model.max_texts)
    text_type = parameters.get("text_type") or "document"
    if text_type not in ("query", "document"):
        raise invalid_value("text_type is invalid, should be query or document.: parameters.text_type")
    instruct = parameters.get("instruct")
    if instruct is not None and not isinstance(instruct, str):
        raise invalid_value("instruct is not a string.: parameters.instruct")
    body = answer(
        model.name,
        texts,
        request_id=call.request_id,
        dimension=_checked_dimension(model, parameters.get("dimension")),
        text_type=text_type,
        instruct=instruct,
        output_type=_checked_output_type(model, parameters.get("output_type")),
        alter=lambda items: _altered(call, items, "text_index"),
    )
    call.count_answered(texts)
    return Answer(body)


async def compatible(call: Call) -> Answer:
    """The OpenAI-compatible path."""
    model = find_model(call.model)
    texts = _checked_texts(model, call.body.get("input"), call.state.settings.max_texts or model.max_texts)
    encoding = call.body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise invalid_value("encoding_format is invalid, should be float or base64.: encoding_format")
    body = compatible_answer(
        model.name,
        texts,
        request_id=call.request_id,
        dimensions=_checked_dimension(model, call.body.get("dimensions")),
        is_base64=encoding == "base64" and call.state.settings.honours_base64,
        alter=lambda items: _altered(call, items, "index"),
    )
    call.count_answered(texts)
    return Answer(body)


def texts_of(payload: dict[str, Any] | None, *, is_compatible: bool) -> tuple[str, ...]:
    """The texts a body asks for, for the record; whatever is not a text is left out."""
    value: Any = payload or {}
    for name in ("input",) if is_compatible else ("input", "texts"):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, str):
        return (value,)
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()


def find_model(name: str) -> EmbeddingModel:
    """The model of that name; refuses unknown ones and those that only do batches."""
    if name in ASYNC_MODELS:
        raise refuse("access_denied", "Current user api does not support synchronous calls.")
    if name not in EMBEDDING_MODELS:
        raise refuse("model_not_found")
    return EMBEDDING_MODELS[name]


def _checked_texts(model: EmbeddingModel, value: Any, max_texts: int) -> list[str]:
    if value is None or value == []:
        raise refuse("empty_input")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise refuse("invalid_parameter")
    if len(texts) > max_texts:
        raise invalid_value(f"batch size is invalid, it should not be larger than {max_texts}.: input.contents")
    if any(not text or token_count(text) > model.max_tokens for text in texts):
        raise refuse("invalid_parameter", f"Range of input length should be [1, {model.max_tokens}]")
    return texts


def _checked_dimension(model: EmbeddingModel, value: Any) -> int | None:
    # Vendor examples send the number as a string, too.
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int) or number not in model.dimensions:
        allowed = ", ".join(str(size) for size in sorted(model.dimensions))
        raise invalid_value(f"dimension is invalid, it should be one of [{allowed}].: parameters.dimension")
    return number


def _checked_output_type(model: EmbeddingModel, value: Any) -> OutputType:
    kind = value or "dense"
    if kind not in ("dense", "sparse", "dense&sparse") or (kind != "dense" and not model.has_sparse):
        raise invalid_value("output_type is invalid.: parameters.output_type")
    return cast(OutputType, kind)


def _altered(call: Call, items: list[Item], index_name: str) -> list[Item]:
    items = spoil(items, call.wrong, index_name)
    if call.state.settings.shuffles_embeddings:
        items = call.state.random.sample(items, len(items))
    return items
