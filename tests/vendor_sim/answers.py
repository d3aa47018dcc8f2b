"""
The bodies of text embedding answers, native and compatible, as pure functions. Key order as in the samples.

`answer` and `compatible_answer` are "what the vendor would say", byte for byte; the simulator itself answers with them.
"""

import base64
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import orjson

from tests.vendor_sim.vectors import sparse_vector, spelled_vector, token_count, vector

Item = dict[str, Any]
Alter = Callable[[list[Item]], list[Item]]
OutputType = Literal["dense", "sparse", "dense&sparse"]


def compact(value: Any) -> bytes:
    """JSON as the vendor writes it: no blanks, nothing escaped that need not be."""
    return orjson.dumps(value)


def total_tokens(texts: Sequence[str]) -> int:
    """What one request for *texts* costs; a text asked twice is paid twice."""
    return sum(token_count(text) for text in texts)


def _unchanged(items: list[Item]) -> list[Item]:
    return items


def answer(
    model: str,
    texts: Sequence[str],
    *,
    request_id: str,
    dimension: int | None = None,
    text_type: str = "document",
    instruct: str | None = None,
    output_type: OutputType = "dense",
    alter: Alter = _unchanged,
) -> bytes:
    """The native answer. *alter* may reorder or spoil the items before they are written."""
    items: list[Item] = []
    for index, text in enumerate(texts):
        item: Item = {}
        if "sparse" in output_type:
            item["sparse_embedding"] = sparse_vector(model, text, text_type)
        if "dense" in output_type:
            item["embedding"] = orjson.Fragment(spelled_vector(model, dimension, text, text_type, instruct))
        item["text_index"] = index
        items.append(item)
    return compact(
        {
            "output": {"embeddings": alter(items)},
            "usage": {"total_tokens": total_tokens(texts)},
            "request_id": request_id,
        }
    )


def compatible_answer(
    model: str,
    texts: Sequence[str],
    *,
    request_id: str,
    dimensions: int | None = None,
    is_base64: bool = False,
    alter: Alter = _unchanged,
) -> bytes:
    """The OpenAI-compatible answer, with number lists or with base64 of little-endian float32."""
    items: list[Item] = []
    for index, text in enumerate(texts):
        embedding: Any = orjson.Fragment(spelled_vector(model, dimensions, text))
        if is_base64:
            embedding = base64_vector(model, dimensions, text)
        items.append({"embedding": embedding, "index": index, "object": "embedding"})
    tokens = total_tokens(texts)
    return compact(
        {
            "data": alter(items),
            "model": model,
            "object": "list",
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "id": request_id,
        }
    )


def base64_vector(model: str, dimensions: int | None, text: str) -> str:
    """The dense vector as base64 of little-endian float32."""
    return base64.b64encode(vector(model, dimensions, text).astype(np.dtype("<f4")).tobytes()).decode()
