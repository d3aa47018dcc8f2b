"""Multimodal embeddings, as far as a proxy can tell them apart: one vector per item or one for all, usage by family."""

from typing import Any

from tests.vendor_sim.errors import invalid_value, refuse
from tests.vendor_sim.exchange import Answer, Call, json_answer
from tests.vendor_sim.models import MULTIMODAL_MODELS, MultimodalModel
from tests.vendor_sim.vectors import multimodal_vector, token_count

_KINDS = ("text", "image", "video", "multi_images")
_FUSING = {"qwen3-vl", "qwen2.5-vl"}


async def embedding(call: Call) -> Answer:
    """The multimodal path. URLs are not fetched: their spelling stands for their content."""
    if call.is_enabled("X-DashScope-Async"):
        raise refuse("access_denied")
    if call.model not in MULTIMODAL_MODELS:
        raise refuse("model_not_found")
    model = MULTIMODAL_MODELS[call.model]
    parameters = call.parameters
    contents = _contents(call.input.get("contents"))
    dimension = parameters.get("dimension") or model.dimensions[0]
    if dimension not in model.dimensions:
        raise invalid_value("dimension is invalid.: parameters.dimension")
    # Every parameter counts, known or not: a cache that drops one gives itself away.
    salt = {name: value for name, value in parameters.items() if name != "dimension"}
    if _is_fused(model, parameters):
        numbers = multimodal_vector(model.name, dimension, [contents, salt])
        embeddings = [{"index": 0, "embedding": numbers, "type": "fusion"}]
    else:
        embeddings = [
            {
                "index": index,
                "embedding": multimodal_vector(model.name, dimension, [content, salt]),
                "type": "vl" if model.family == "qwen3-vl" else _kind(content),
            }
            for index, content in enumerate(contents)
        ]
    return json_answer(
        {"output": {"embeddings": embeddings}, "usage": _usage(model, contents), "request_id": call.request_id}
    )


def _contents(value: Any) -> list[dict[str, Any]]:
    if not value or not isinstance(value, list):
        raise refuse("empty_input")
    contents = [{"text": item} if isinstance(item, str) else item for item in value]
    if not all(isinstance(item, dict) and _kind(item) for item in contents):
        raise invalid_value("contents is invalid.: input.contents")
    return contents


def _kind(content: dict[str, Any]) -> str:
    return next((kind for kind in _KINDS if kind in content), "")


def _is_fused(model: MultimodalModel, parameters: dict[str, Any]) -> bool:
    return model.family == "qwen2.5-vl" or (model.family in _FUSING and parameters.get("enable_fusion") is True)


def _usage(model: MultimodalModel, contents: list[dict[str, Any]]) -> dict[str, Any]:
    texts = sum(token_count(str(content["text"])) for content in contents if "text" in content)
    pictures = sum(_kind(content) != "text" for content in contents)
    if model.family == "tongyi":
        images = 896 * pictures
        details = {"image_tokens": images, "text_tokens": texts}
        total = texts + images + len(contents)
        return {
            "input_tokens": texts,
            "input_tokens_details": details,
            "output_tokens": len(contents),
            "total_tokens": total,
        }
    images = 402 * pictures
    usage: dict[str, Any] = {"input_tokens": texts, "image_tokens": images}
    if model.family == "qwen3-vl":
        usage["total_tokens"] = texts + images
    if model.family == "v1":
        usage |= {"image_count": pictures, "duration": 0}
    return usage
