"""Strict JSON over random documents: canonical texts are equal exactly for equal documents."""

import json
import random

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.jsontext import Ambiguous, Number, canonical, compact, parse

NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?", fullmatch=True),
).map(Number)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TREES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS | st.sampled_from(["", "null", "true", "1", "[]", "{}"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def typed(tree):
    """*tree* as a value whose equality tells numbers from texts; members without order."""
    if isinstance(tree, Number):
        return ("number", str(tree))
    if isinstance(tree, dict):
        return ("object", frozenset((name, typed(value)) for name, value in tree.items()))
    if isinstance(tree, list):
        return ("array", tuple(map(typed, tree)))
    return (type(tree).__name__, tree)


def spelled(tree, chance: random.Random) -> str:
    """*tree* as JSON in a random spelling: member order, blanks, escapes."""
    blank = chance.choice(["", "", " ", "\n", "\t\r "])
    if isinstance(tree, Number):
        text = str(tree)
    elif isinstance(tree, str):
        text = json.dumps(tree, ensure_ascii=chance.random() < 0.5)
    elif isinstance(tree, dict):
        members = list(tree.items())
        chance.shuffle(members)
        text = ",".join(f"{spelled(name, chance)}:{spelled(value, chance)}" for name, value in members)
        text = "{" + (text or blank) + "}"
    elif isinstance(tree, list):
        text = "[" + (",".join(spelled(value, chance) for value in tree) or blank) + "]"
    else:
        text = json.dumps(tree)
    return blank + text + blank


@given(TREES)
def test_what_is_written_is_read_as_it_was(tree):
    assert typed(parse(compact(tree))) == typed(parse(canonical(tree))) == typed(tree)
    assert compact(parse(compact(tree))) == compact(tree)


@given(TREES, st.randoms(use_true_random=False))
def test_canonical_is_the_same_for_every_spelling(tree, chance):
    assert canonical(parse(spelled(tree, chance).encode())) == canonical(tree)


@given(TREES, TREES)
def test_canonical_is_equal_exactly_for_equal_documents(one, other):
    assert (canonical(one) == canonical(other)) is (typed(one) == typed(other))


@given(TREES, st.randoms(use_true_random=False))
def test_canonical_tells_near_misses_apart(tree, chance):
    """One leaf of the document changes its type or its spelling."""
    other = parse(canonical(tree))
    changed = nearly(other, chance)
    assert (canonical(changed) == canonical(tree)) is (typed(changed) == typed(tree))


def nearly(tree, chance: random.Random):
    """*tree* with one thing changed somewhere."""
    if isinstance(tree, dict) and tree and chance.random() < 0.8:
        name = chance.choice(list(tree))
        return {**tree, name: nearly(tree[name], chance)}
    if isinstance(tree, list) and tree and chance.random() < 0.8:
        at = chance.randrange(len(tree))
        return [*tree[:at], nearly(tree[at], chance), *tree[at + 1 :]]
    if isinstance(tree, Number):
        return chance.choice([str(tree), Number(tree + "0"), Number("-" + tree.lstrip("-")), [tree]])
    return chance.choice([None, "", "null", [], {}, [tree], {"": tree}, Number("0"), False])


@given(st.binary(max_size=60) | TEXTS.map(str.encode))
def test_any_bytes_are_a_document_or_ambiguous_and_nothing_else(body):
    try:
        tree = parse(body)
    except Ambiguous:
        return
    assert typed(parse(canonical(tree))) == typed(tree)
    json.loads(body)


@given(TREES, st.integers(0, 300), st.integers(0, 255))
def test_damaged_documents_are_read_as_json_reads_them_or_not_at_all(tree, position, value):
    body = bytearray(compact(tree))
    body[position % len(body)] = value
    try:
        read = parse(bytes(body))
    except Ambiguous:
        return
    plain = json.loads(bytes(body), parse_int=Number, parse_float=Number)
    assert typed(read) == typed(plain)
