"""
The numbers the vendor would say, as pure functions: vectors, sparse items, scores, token counts, and their spelling.

Tests call these to know an answer without asking the simulator. Every number depends on all that the vendor's would
depend on, so that a cache which confuses two questions gives itself away.
"""

import json
import re
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from tests.vendor_sim.models import EMBEDDING_MODELS

# One ideograph, one run of letters or digits, or one other visible character: crude, but stable and quick.
_TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+|[^\w\s]|_")
_SPARSE_VOCABULARY = 250_000
# Below 1e-4 Python begins to write exponents.
_SMALL = 1e-3


def token_list(text: str) -> list[str]:
    """The tokens of *text*."""
    return _TOKEN.findall(text)


def token_count(text: str) -> int:
    """How many tokens the vendor bills for *text*; never less than one."""
    return max(1, len(token_list(text)))


def generator(*identity: Any) -> np.random.Generator:
    """A random generator that depends on *identity* (JSON values) and on nothing else."""
    digest = blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def effective_instruct(model: str, text_type: str, instruct: str | None) -> str | None:
    """The instruct as far as it matters: with queries, and on the models that know it."""
    known = EMBEDDING_MODELS[model].has_instruct
    return instruct if instruct and known and text_type == "query" else None


def vector(
    model: str, dimension: int | None, text: str, text_type: str = "document", instruct: str | None = None
) -> npt.NDArray[Any]:
    """
    The dense vector of *text*, of length one; *dimension* None is the model's default.

    Its dtype is what the model computes in: float64 for v1 and v2, else float32.
    """
    about = EMBEDDING_MODELS[model]
    size = dimension or about.dimensions[0]
    numbers = generator("dense", model, size, text_type, effective_instruct(model, text_type, instruct), text)
    values = numbers.standard_normal(size)
    values /= np.linalg.norm(values)
    return values if about.is_float64 else values.astype(np.float32)


def spelled_vector(
    model: str, dimension: int | None, text: str, text_type: str = "document", instruct: str | None = None
) -> str:
    """The JSON text of `vector`, digit for digit as the vendor writes it."""
    size = dimension or EMBEDDING_MODELS[model].dimensions[0]
    return _spelled(model, size, text, text_type, effective_instruct(model, text_type, instruct))


# Bounded by count: the longest vector is about 55 KB of text.
@lru_cache(maxsize=1024)
def _spelled(model: str, dimension: int, text: str, text_type: str, instruct: str | None) -> str:
    values = vector(model, dimension, text, text_type, instruct).astype(np.float64)
    spell = plain_decimal if EMBEDDING_MODELS[model].is_float64 else repr
    # orjson is ten times faster than json, which load tests need; only small numbers does it spell in its own way.
    numbers = orjson.dumps(values.tolist()).decode()[1:-1].split(",")
    for index in np.flatnonzero(np.abs(values) < _SMALL).tolist():
        numbers[index] = spell(float(values[index]))
    return "[" + ",".join(numbers) + "]"


def plain_decimal(value: float) -> str:
    """The shortest digits that read back as *value*, without an exponent."""
    text = repr(value)
    return format(Decimal(text), "f") if "e" in text else text


def sparse_vector(model: str, text: str, text_type: str = "document") -> list[dict[str, Any]]:
    """The sparse items of *text*, one per distinct token; key order as on the vendor's page."""
    items: dict[str, dict[str, Any]] = {}
    for token in token_list(text) or [text]:
        numbers = generator("sparse", model, text_type, token, text)
        index = int.from_bytes(blake2b(token.encode(), digest_size=8).digest(), "little") % _SPARSE_VOCABULARY
        items[token] = {"index": index, "value": round(float(numbers.uniform(0.05, 1.0)), 4), "token": token}
    return list(items.values())


def multimodal_vector(model: str, dimension: int, content: Any) -> list[float]:
    """A vector of float16 values for any JSON *content*."""
    values = generator("multimodal", model, dimension, content).standard_normal(dimension)
    values /= np.linalg.norm(values)
    halves: list[float] = values.astype(np.float16).astype(np.float64).tolist()
    return halves


def rerank_scores(model: str, query: Any, documents: list[Any], instruct: str | None = None) -> list[float]:
    """
    One score per document, between 0 and 1, in the order of *documents*.

    The vendor calls scores relative to the request, so a document's score depends on its neighbours and their order.
    """
    numbers = generator("rerank", model, query, documents, instruct)
    scores: list[float] = numbers.uniform(0.0, 1.0, len(documents)).tolist()
    return scores
