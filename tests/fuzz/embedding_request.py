"""
Plans of text embeddings, native and OpenAI-compatible: any body, any part of its texts in the cache.

The vendor is a function from all of a body but its texts, and a text, to a vector; so a body that lost a member, a text
at another's place and two requests under one key all show as another vector. Input: dialect, hits (2 bytes), body.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from proxy.core.plan import Pass
from proxy.core.request import Request
from proxy.vendors.dashscope.batch_limits import BatchLimits
from proxy.vendors.dashscope.embedding_request import COMPATIBLE, NATIVE, Dialect, EmbeddingAdapter, EmbeddingRead
from tests.fuzz.mutation import json_changed
from tests.fuzz.oracles import HEADERS, OURS, Meanings, Spelled, keys_of, loaded, stored, told

SAMPLES = Path(__file__).parents[1] / "samples" / "dashscope"
_MOST_NUMBERS = 256
_MEANINGS = Meanings()
_ADAPTERS = {False: EmbeddingAdapter(NATIVE, BatchLimits()), True: EmbeddingAdapter(COMPATIBLE, BatchLimits())}


def seeds() -> Iterator[bytes]:
    """The samples' bodies in each dialect, with nothing, half and all in the cache."""
    for path in sorted(SAMPLES.glob("*embedding*.request.json")):
        for dialect in b"\x00\x01":
            for hits in (b"\x00\x00", b"\x55\x55", b"\xff\xff"):
                yield bytes([dialect]) + hits + path.read_bytes()


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Another body, or other hits."""
    if chance.random() < 0.1:
        return bytes([data[0]]) + chance.randbytes(2) + data[3:] if data else data
    return data[:3] + json_changed(data[3:], chance)


def one_input(data: bytes) -> None:
    """Raise AssertionError if the plan for *data* is wrong."""
    if len(data) > 3:
        check(data[3:], is_compatible=bool(data[0] & 1), hits=int.from_bytes(data[1:3], "big"))


def check(body: bytes, *, is_compatible: bool, hits: int) -> bool:
    """Plan *body* with the texts whose bits *hits* has in the cache; whether it is one to read."""
    adapter = _ADAPTERS[is_compatible]
    dialect = COMPATIBLE if is_compatible else NATIVE
    plan = adapter.plan(Request("POST", dialect.path, HEADERS, "default", body))
    if isinstance(plan, Pass):
        return False
    assert isinstance(plan, EmbeddingRead)
    document = loaded(body)
    assert plan.texts == tuple(texts_of(document, is_compatible))
    assert list(plan.items) == [text.encode() for text in plan.texts]
    keys, fields = keys_of(plan), fields_of(document, is_compatible)
    for key, text in zip(keys, plan.texts, strict=True):
        _MEANINGS.check(key, (fields, text))
    assert plan.narrowed(range(len(keys))) == body
    if plan.asked.dimension is None or plan.asked.dimension <= _MOST_NUMBERS:
        _serve(plan, body, keys, hits, dialect)
    return True


def _serve(plan: EmbeddingRead, body: bytes, keys: Sequence[bytes], hits: int, dialect: Dialect) -> None:
    """The client's answer out of two smaller ones must be the vendor's whole one."""
    chance = random.Random(hits)
    is_compatible = dialect is COMPATIBLE
    first = [at for at, key in enumerate(keys) if key not in keys[:at]]
    rows = {}
    for part in ([at for at in first if hits >> at % 16 & 1], [at for at in first if not hits >> at % 16 & 1]):
        if part:
            answer = answer_of(plan.narrowed(part), is_compatible, chance)
            rows.update(zip((keys[at] for at in part), map(stored, plan.split(answer, part)), strict=True))
    assert len(rows) == len(first)
    joined = loaded(plan.join([rows[key] for key in keys], OURS))
    whole = loaded(answer_of(body, is_compatible, None))
    assert isinstance(whole, dict)
    whole["id" if is_compatible else "request_id"] = OURS
    assert told(joined) == told(whole), (joined, whole)


def texts_of(document: Any, is_compatible: bool) -> list[str]:
    """The texts that *document* asks for; a lone one is a list of one."""
    given = document["input"] if is_compatible else document["input"]["texts"]
    return given if isinstance(given, list) else [given]


def fields_of(document: Any, is_compatible: bool) -> str:
    """All else in *document* that a vendor could tell apart, less what it documents to have no effect."""
    fields = {name: value for name, value in document.items() if name != "input"}
    if is_compatible:
        if type(fields.get("user")) is str:
            del fields["user"]
    elif fields.get("parameters") == {}:
        del fields["parameters"]
    return told(fields)


def answer_of(body: bytes, is_compatible: bool, chance: random.Random | None) -> bytes:
    """The vendor's answer to *body*; in any order, and with any blanks, if there is a *chance*."""
    document: Any = loaded(body)
    texts, fields = texts_of(document, is_compatible), fields_of(document, is_compatible)
    asked = document.get("parameters") or {} if not is_compatible else document
    asked = asked if isinstance(asked, dict) else {}
    dimension = asked.get("dimensions" if is_compatible else "dimension")
    is_number = isinstance(dimension, Spelled) and dimension.isdigit()
    length = (int(dimension[:9]) if is_number else 0) or 4
    kinds = ("embedding",) if is_compatible else _KINDS[asked.get("output_type")]
    index = "index" if is_compatible else "text_index"
    rows = []
    for at, text in enumerate(texts):
        row: dict[str, Any] = {name: _numbers(name, fields, text, length) for name in kinds}
        rows.append(row | {index: at} | ({"object": "embedding"} if is_compatible else {}))
    if chance is not None:
        chance.shuffle(rows)
    tokens = sum(len(text.encode()) or 1 for text in texts)
    answer: dict[str, Any] = {"data": rows} if is_compatible else {"output": {"embeddings": rows}}
    answer |= {"model": document["model"], "object": "list"} if is_compatible else {}
    answer |= {"usage": {"total_tokens": tokens}, "id" if is_compatible else "request_id": f"vendor-{len(texts)}"}
    separators = (",", ":") if chance is None or chance.random() < 0.5 else (", ", " :\t")
    return json.dumps(answer, separators=separators, ensure_ascii=chance is None).encode()


_KINDS: dict[str | None, tuple[str, ...]] = {
    None: ("embedding",),
    "dense": ("embedding",),
    "sparse": ("sparse_embedding",),
    "dense&sparse": ("embedding", "sparse_embedding"),
}


def _numbers(kind: str, fields: str, text: str, length: int) -> list[Any]:
    digest = hashlib.sha256(f"{kind}\0{fields}\0{text}".encode("utf-8", "surrogatepass")).digest()
    if kind == "sparse_embedding":
        return [{"index": byte, "value": byte / 7, "token": text[:2]} for byte in digest[:3]]
    return [(digest[at % 32] - 127.5) / (at + 1) for at in range(length)]
