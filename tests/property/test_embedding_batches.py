"""
Batches of texts, some cached: every text gets its own vector, and what the vendor counted adds up.

The vendor is a function from text to vector, so a vector at another text's place shows.
"""

import dataclasses
import hashlib
import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from proxy.core import jsontext
from proxy.vendors.apportion import shares
from tests.unit.vendors.exchanges import compatible, keys, native, read

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
POOLS = st.lists(TEXTS, min_size=1, max_size=6, unique=True)
BATCHES = POOLS.flatmap(lambda pool: st.lists(st.sampled_from(pool), min_size=1, max_size=10))


def vector_of(text: str, dimension: int = 4) -> list[float]:
    """The fake vendor's vector."""
    digest = hashlib.sha256(text.encode()).digest()
    return [(byte - 127.5) / 256 for byte in digest[:dimension]]


def vendor_answer(body: bytes, shuffle) -> bytes:
    """The fake vendor's answer to *body* in either dialect, its rows in any order."""
    document = json.loads(body)
    texts = document["input"]["texts"] if isinstance(document["input"], dict) else document["input"]
    texts = [texts] if isinstance(texts, str) else texts
    tokens = sum(1 + len(text) // 3 for text in texts)
    request_id = hashlib.sha256(body).hexdigest()[:32]
    if isinstance(document["input"], dict):
        rows = [{"embedding": vector_of(text), "text_index": at} for at, text in enumerate(texts)]
        shuffle(rows)
        answer = {"output": {"embeddings": rows}, "usage": {"total_tokens": tokens}, "request_id": request_id}
    else:
        rows = [{"embedding": vector_of(text), "index": at, "object": "embedding"} for at, text in enumerate(texts)]
        shuffle(rows)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"data": rows, "model": document["model"], "object": "list", "usage": usage, "id": request_id}
    return json.dumps(answer, separators=(",", ":")).encode()


def requested(texts: list[str], *, is_native: bool):
    """A request for *texts* in one of the dialects."""
    if is_native:
        return native(json.dumps({"model": "m", "parameters": {"dimension": 4}, "input": {"texts": texts}}).encode())
    return compatible(json.dumps({"model": "m", "input": texts, "dimensions": 4}).encode())


def served(texts: list[str], store: dict, shuffle, *, is_native: bool) -> tuple[dict, list[bytes]]:
    """What a client gets for *texts* over the cache *store*, and the bodies that the vendor saw, as in the flow."""
    request = requested(texts, is_native=is_native)
    plan, item_keys = read(request), keys(request)
    missing = [at for at, key in enumerate(item_keys) if key not in store and key not in item_keys[:at]]
    bodies = []
    if missing:
        bodies.append(plan.narrowed(missing))
        rows = plan.split(vendor_answer(bodies[0], shuffle), missing)
        store.update(zip((item_keys[at] for at in missing), rows, strict=True))
    return json.loads(plan.join([store[key] for key in item_keys], "ours")), bodies


@given(st.lists(BATCHES, min_size=1, max_size=5), st.booleans(), st.randoms(use_true_random=False))
def test_every_text_gets_its_own_vector_whatever_is_cached(batches, is_native, chance):
    store = {}
    for texts in batches:
        answer, bodies = served(texts, store, chance.shuffle, is_native=is_native)
        rows = answer["output"]["embeddings"] if is_native else answer["data"]
        index = "text_index" if is_native else "index"
        assert [row["embedding"] for row in rows] == [vector_of(text) for text in texts]
        assert [row[index] for row in rows] == list(range(len(texts)))
        assert answer["request_id" if is_native else "id"] == "ours"
        assert len(bodies) <= 1
    again, bodies = served(batches[-1], store, chance.shuffle, is_native=is_native)
    assert (again, bodies) == (answer, [])


@given(BATCHES, st.booleans(), st.randoms(use_true_random=False))
def test_no_text_is_asked_for_twice(texts, is_native, chance):
    store = {}
    _, bodies = served(texts, store, chance.shuffle, is_native=is_native)
    document = json.loads(bodies[0])
    asked = document["input"]["texts"] if is_native else document["input"]
    if len(set(texts)) == len(texts):
        assert bodies[0] == requested(texts, is_native=is_native).body
    assert asked == list(dict.fromkeys(texts))
    assert len(store) == len(asked)


@given(BATCHES, st.booleans(), st.randoms(use_true_random=False))
def test_a_whole_batch_adds_up_to_what_the_vendor_counted(texts, is_native, chance):
    distinct = list(dict.fromkeys(texts))
    answer, _ = served(distinct, {}, chance.shuffle, is_native=is_native)
    tokens = sum(1 + len(text) // 3 for text in distinct)
    assert set(answer["usage"].values()) == {tokens}


@given(BATCHES, st.data())
def test_a_narrowed_body_differs_in_its_texts_only(texts, data):
    request = requested(texts, is_native=data.draw(st.booleans()))
    plan = read(request)
    positions = data.draw(st.lists(st.sampled_from(range(len(texts))), min_size=1, max_size=10))
    narrowed = plan.narrowed(positions)
    smaller = read(dataclasses.replace(request, body=narrowed))
    assert smaller.texts == tuple(texts[position] for position in positions)
    assert smaller.identity == plan.identity
    before, after = jsontext.parse(request.body), jsontext.parse(narrowed)
    assert list(before) == list(after)
    assert {**before, "input": None} == {**after, "input": None}


@given(st.integers(0, 2**60), st.lists(st.integers(1, 2**30), min_size=1, max_size=40))
def test_shares_add_up_exactly_and_follow_the_weights(total, weights):
    parts = shares(total, weights)
    assert sum(parts) == total
    assert all(part >= 0 for part in parts)
    whole = sum(weights)
    if total < len(weights) or total * min(weights) >= whole:  # else small shares are raised to 1 from the largest
        assert all(abs(part * whole - total * weight) < whole for part, weight in zip(parts, weights, strict=True))
    if total >= len(weights):
        assert all(parts), "no text costs nothing"
    by_weight = [part for _, part in sorted(zip(weights, parts, strict=True))]
    assert all(lighter <= heavier + 1 for lighter, heavier in itertools.pairwise(by_weight))
    assert parts == shares(total, weights)
