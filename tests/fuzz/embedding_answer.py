"""
Answers to text embeddings: whatever comes is refused, or gives rows that make the same answer again.

Input: dialect and kinds, number of texts, dimension asked for (0: none), answer.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

import orjson

from proxy.core.plan import NotStorable
from proxy.vendors.dashscope.embedding_answer import COMPATIBLE_ANSWER, NATIVE_ANSWER, AnswerForm, Asked, join, split
from tests.fuzz.embedding_request import SAMPLES
from tests.fuzz.mutation import json_changed
from tests.fuzz.oracles import OURS, Spelled, loaded, stored, told

_DOUBLED = "\0doubled"
KINDS = (
    frozenset({"embedding"}),
    frozenset({"sparse_embedding"}),
    frozenset({"embedding", "sparse_embedding"}),
)


def seeds() -> Iterator[bytes]:
    """The samples' answers, vectors of more than 64 numbers left out, as asked for in every way."""
    for path in sorted(SAMPLES.glob("*.response.json")):
        body = path.read_bytes()
        if len(body) < 4_096:
            for flags in range(6):
                for texts in (1, 2):
                    yield bytes([flags, texts - 1, 0]) + body


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Another answer."""
    return data[:3] + json_changed(data[3:], chance)


def one_input(data: bytes) -> None:
    """Raise AssertionError if the answer in *data* is kept and comes back as another."""
    if len(data) > 3:
        form = COMPATIBLE_ANSWER if data[0] & 1 else NATIVE_ANSWER
        kinds = KINDS[(data[0] >> 1) % 3]
        check(form, data[3:], Asked(kinds, data[2] % 8 or None), [1 + at * at for at in range(1 + data[1] % 6)])


def check(form: AnswerForm, body: bytes, asked: Asked, weights: list[int]) -> bool:
    """Split *body* and join it again; whether it was kept."""
    try:
        rows = split(form, body, asked, weights)
    except NotStorable:
        return False
    assert len(rows) == len(weights)
    whole = _sorted(form, loaded(body))
    _check_once(form, body)
    assert not orjson.loads(body).get(form.error)
    if form.request_id in whole:
        whole[form.request_id] = OURS
    whole["usage"] = {name: Spelled(int(count)) for name, count in whole["usage"].items()}  # -0 is 0
    rows = tuple(map(stored, rows))
    joined = join(rows, OURS)
    assert told(loaded(joined)) == told(whole), joined
    for row in _rows(form, whole):
        assert set(row) & {"embedding", "sparse_embedding"} == asked.kinds
        _check_vector(row, asked)
    # Two of them in another order: each row as it was, but for its place.
    order = [len(rows) - 1, 0, len(rows) - 1]
    picked = _rows(form, loaded(join([rows[at] for at in order], OURS)))
    for at, (place, row) in enumerate(zip(order, picked, strict=True)):
        assert told(row) == told(_rows(form, whole)[place] | {form.index: Spelled(at)})
    return True


def _check_once(form: AnswerForm, body: bytes) -> None:
    """Around vectors no member stands twice: the whole answer would show both, one made of rows only one of them."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        doubled = len(pairs) != len(dict(pairs))
        return dict(pairs) | ({_DOUBLED: True} if doubled else {})

    document = json.loads(body, object_pairs_hook=once)
    around = [document, *([document[form.path[0]]] if len(form.path) == 2 else []), *_rows(form, document)]
    assert not any(_DOUBLED in each for each in around)


def _check_vector(row: dict[str, Any], asked: Asked) -> None:
    vector = row.get("embedding", [Spelled("1")])
    if isinstance(vector, list):
        assert vector
        assert all(isinstance(number, Spelled) for number in vector)
        assert all(abs(float(number)) < float("inf") for number in vector)
        assert "embedding" not in row or len(vector) == (asked.dimension or len(vector))


def _rows(form: AnswerForm, document: Any) -> list[dict[str, Any]]:
    for name in form.path:
        document = document[name]
    assert isinstance(document, list)
    return document


def _sorted(form: AnswerForm, document: Any) -> dict[str, Any]:
    """*document* with its rows in the order of their places."""
    copy = dict(document)
    rows = sorted(_rows(form, document), key=lambda row: int(row[form.index]))
    if len(form.path) == 2:
        copy[form.path[0]] = {**copy[form.path[0]], form.path[1]: rows}
    else:
        copy[form.path[0]] = rows
    return copy
