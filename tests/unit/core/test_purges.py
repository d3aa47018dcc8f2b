"""Marks: what they cover, which of them count, and that no merge brings an old key back."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.purges import MAX_MARKS, NO_MARKS, SKEW_S, Mark, Marks

NAMES = st.sampled_from(["*", "a", "b"])
EXTENTS = st.tuples(NAMES, NAMES, NAMES, NAMES)
TIMES = st.sampled_from([1.0, 2.0, 1.0 + SKEW_S, 2.0 + SKEW_S, 1.0 + 2 * SKEW_S])
MARKS = st.lists(
    st.builds(
        lambda number, time, extent: Mark(f"{number:032x}", time, *extent), st.integers(0, 2**64), TIMES, EXTENTS
    ),
    max_size=8,
)
REQUEST = ("dashvector", "vector-query", "", (("endpoint",), ("collection", "users")))


def mark(number: int, set_unix_s: float = 1.0, **names: str) -> Mark:
    return Mark(f"{number:032x}", set_unix_s, **names)


def tokens(marks: Marks, *request: object) -> list[int]:
    found = marks.tokens_for(*(request or REQUEST))
    assert all(len(token) == 16 for token in found)
    return [int.from_bytes(token) for token in found]


def test_without_marks_there_is_nothing_to_add() -> None:
    assert NO_MARKS.tokens_for(*REQUEST) == ()
    assert NO_MARKS.merged([]) is NO_MARKS


@pytest.mark.parametrize(
    ("names", "is_covered"),
    [
        ({}, True),
        ({"upstream": "dashvector"}, True),
        ({"upstream": "dashscope"}, False),
        ({"operation": "vector-query"}, True),
        ({"operation": "vector-stats"}, False),
        ({"collection": "users"}, True),
        ({"collection": "user"}, False),
        ({"collection": "endpoint"}, False),
        ({"model": "m"}, False),
        ({"upstream": "dashvector", "operation": "vector-query", "collection": "users"}, True),
        ({"upstream": "dashvector", "operation": "vector-stats", "collection": "users"}, False),
    ],
)
def test_a_mark_covers_what_it_names(names: dict[str, str], is_covered: bool) -> None:
    assert tokens(Marks().merged([mark(7, **names)])) == [7] * is_covered


def test_models_are_told_apart() -> None:
    marks = Marks().merged([mark(1, model="v3"), mark(2, model="v4", operation="embedding")])
    assert tokens(marks, "dashscope", "embedding", "v4", ()) == [2]
    assert tokens(marks, "dashscope", "embedding", "v3", ()) == [1]
    assert tokens(marks, "dashscope", "embedding", "v5", ()) == []


def test_every_collection_of_a_request_counts() -> None:
    marks = Marks().merged([mark(1, collection="one"), mark(2, collection="two")])
    assert set(tokens(marks, "v", "q", "", (("collection", "two"), ("collection", "one")))) == {1, 2}


def test_a_later_mark_ends_those_that_it_covers() -> None:
    narrow, other = mark(1, collection="users"), mark(2, model="m")
    marks = Marks().merged([narrow, other, mark(3, 1.0 + SKEW_S, upstream="*", operation="*", collection="users")])
    assert {found.token for found in marks.marks} == {other.token, mark(3).token}
    everything = mark(4, 1.0 + 2 * SKEW_S)
    assert marks.merged([everything]).marks == (everything,)


def test_a_narrower_mark_ends_nothing() -> None:
    marks = Marks().merged([mark(1), mark(2, 1.0 + 9 * SKEW_S, collection="users")])
    assert tokens(marks) == [1, 2]


def test_within_the_skew_of_clocks_both_count() -> None:
    """Two replicas purge at once, the second by a clock that is behind: what the first kept since must not count."""
    first, second = mark(1, 100.0), mark(2, 99.0)
    assert set(tokens(Marks().merged([first]).merged([second]))) == {1, 2}
    assert Marks().merged([second]).merged([first]) == Marks().merged([first, second])


@given(MARKS, MARKS)
def test_merging_is_commutative(one, other):
    assert Marks().merged(one).merged(other) == Marks().merged(other).merged(one)


@given(MARKS, MARKS, MARKS)
def test_merging_is_associative(one, other, third):
    right = Marks().merged(one).merged(Marks().merged(other).merged(third).marks)
    assert right == Marks().merged(one).merged(other).merged(third)


@given(MARKS)
def test_merging_again_changes_nothing(marks):
    merged = Marks().merged(marks)
    assert merged.merged(marks) == merged.merged(merged.marks) == merged


@given(MARKS, EXTENTS, TIMES)
def test_after_a_purge_every_key_that_it_covers_is_a_new_one(marks, extent, now_unix_s):
    """Whatever older marks came before, and come again: the latest purge is in the key, and in no other."""
    older = [dataclasses.replace(known, set_unix_s=min(known.set_unix_s, now_unix_s)) for known in marks]
    before = Marks().merged(older)
    new = Mark("f" * 32, now_unix_s + 0.001, *extent)
    after = before.merged([new])
    for request in itertools.product("ab", "ab", "ab", [(("collection", "a"),), (("collection", "b"),), ()]):
        upstream, operation, model, scopes = request
        collections = {scope[1] for scope in scopes}
        is_covered = (
            extent[0] in ("*", upstream)
            and extent[1] in ("*", operation)
            and extent[2] in ("*", model)
            and (extent[3] == "*" or extent[3] in collections)
        )
        found = after.tokens_for(*request)
        assert (bytes.fromhex(new.token) in found) is is_covered
        assert after.merged(before.marks).tokens_for(*request) == found
        if not is_covered:
            assert found == before.tokens_for(*request)


def test_too_many_marks_become_one_for_everything() -> None:
    many = [mark(number, collection=f"c{number}") for number in range(MAX_MARKS)]
    marks = Marks().merged(many)
    assert len(marks.marks) == MAX_MARKS
    collapsed = marks.merged([mark(MAX_MARKS, 2.0, collection="one-more")])
    (everything,) = collapsed.marks
    assert everything.extent == ("*", "*", "*", "*")
    assert everything.set_unix_s == 2.0
    assert collapsed == Marks().merged([*reversed(many), mark(MAX_MARKS, 2.0, collection="one-more")])
    # Replicas that still hold the many, or read them from Redis, come to rest.
    once, again = marks.merged(collapsed.marks), collapsed.merged(many)
    assert once == again
    assert once.merged(collapsed.marks) == collapsed.merged(once.marks)
