"""Plans of text embeddings over whole requests: what is forwarded, what is joined, and which requests share a key."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.request import Request
from proxy.vendors.dashscope.batch_limits import BatchLimits
from proxy.vendors.dashscope.embedding_request import COMPATIBLE, NATIVE, EmbeddingAdapter
from tests.fuzz import embedding_request
from tests.fuzz.mutation import json_changed
from tests.fuzz.oracles import HEADERS, Meanings, keys_of
from tests.property.test_json_documents import NUMBERS, TREES, spelled

TEXTS = st.sampled_from(["a", "b", "", "é", "e\u0301", "\ufeffa", "a ", "A", "\u2028", "\0", "\U0001f600"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=6
)
BATCHES = st.lists(TEXTS, min_size=1, max_size=4).flatmap(
    lambda pool: st.lists(st.sampled_from(pool), min_size=1, max_size=12)
)
OPTIONS = st.dictionaries(
    st.sampled_from(["dimension", "output_type", "text_type", "instruct", "odd"]),
    st.sampled_from(["dense", "sparse", "dense&sparse", "query", None, True]) | NUMBERS | TREES,
    max_size=3,
)
MORE = st.dictionaries(
    st.sampled_from(["user", "dimensions", "encoding_format", "stream", "odd", "parameters"]),
    st.sampled_from(["u", "v", "float", "base64", None, False, {}]) | NUMBERS | TREES,
    max_size=3,
)
CHANCES = st.randoms(use_true_random=False)


@st.composite
def bodies(draw, *, is_compatible: bool) -> bytes:
    """A request's body, in any spelling."""
    texts = draw(BATCHES)
    given = draw(st.sampled_from([texts, texts, texts, texts[0], [texts[0], None], {"url": "u"}]))
    tree = {"model": draw(st.sampled_from(["text-embedding-v4", "m", ""])), **draw(MORE)}
    tree["input"] = given if is_compatible else {"texts": given}
    if not is_compatible and draw(st.booleans()):
        tree["parameters"] = draw(OPTIONS)
    return spelled(tree, draw(CHANCES)).encode()


@pytest.mark.parametrize("is_compatible", [False, True])
@given(data=st.data())
def test_any_part_in_the_cache_gives_the_vendors_answer(is_compatible, data):
    embedding_request.check(
        data.draw(bodies(is_compatible=is_compatible)),
        is_compatible=is_compatible,
        hits=data.draw(st.integers(0, 65535)),
    )


@pytest.mark.parametrize("is_compatible", [False, True])
@given(data=st.data())
def test_requests_that_are_nearly_the_same_do_not_share_a_key(is_compatible, data):
    body = data.draw(bodies(is_compatible=is_compatible))
    hits, chance = data.draw(st.integers(0, 65535)), data.draw(CHANCES)
    for _ in range(4):
        embedding_request.check(body, is_compatible=is_compatible, hits=hits)
        body = json_changed(body, chance)


NAMES = st.sampled_from(
    [b"Authorization", b"authorization", b"X-DashScope-WorkSpace", b"X-DashScope-ApiKey", b"X-Odd", b"x-odd", b"Cookie"]
)
VALUES = st.sampled_from([b"Bearer sk-one", b"bearer sk-one", b"Bearer  sk-one", b"", b"a", b"b", b"a,b", b"a=1"])
LINES = st.lists(st.tuples(NAMES, VALUES), max_size=5).map(tuple)
MEANINGS = Meanings()


@given(LINES, st.sampled_from([NATIVE, COMPATIBLE]), st.sampled_from(["", "?", "?a=1", "?a=%31", "?a"]))
def test_lines_and_targets_that_differ_do_not_share_a_key(lines, dialect, query):
    tree = {"model": "m", "input": {"texts": ["a"]} if dialect is NATIVE else "a"}
    lines = (*lines, *HEADERS)
    plan = EmbeddingAdapter(dialect, BatchLimits()).plan(
        Request("POST", dialect.path + query, lines, "default", json.dumps(tree).encode())
    )
    by_name = {}
    for name, value in lines:
        by_name.setdefault(name.lower(), []).append(value)
    by_name = {name: tuple(values) for name, values in by_name.items() if name != b"content-type"}
    # Cookies without a word say nothing.
    cookies = tuple(value for value in by_name.pop(b"cookie", ()) if value)
    MEANINGS.check(*keys_of(plan), (dialect.path + query, cookies, tuple(sorted(by_name.items()))))


@given(st.integers(0, 2**32), st.sampled_from([False, True]))
def test_what_was_sampled_a_little_changed(seed, is_compatible):
    """A check that reads nothing would pass, so something must be read."""
    chance = random.Random(seed)
    seeds = [data for data in embedding_request.seeds() if bool(data[0]) is is_compatible]
    for data in chance.sample(seeds, 6):
        embedding_request.one_input(embedding_request.mutated(data, chance))
    assert any(embedding_request.check(data[3:], is_compatible=is_compatible, hits=0) for data in seeds)
