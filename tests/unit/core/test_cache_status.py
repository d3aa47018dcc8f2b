"""What the client is told about the cache: Cache-Status (RFC 9211), Age, and our counters."""

import pytest

from proxy.core.cache_status import cache_status, header_lines
from proxy.core.outcome import CacheState, Outcome
from proxy.core.plan import PassReason, Refusal


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Outcome(state=CacheState.HIT, items=2, hits_memory=2, ttl_s=604_001), "dashcache; hit; ttl=604001"),
        (Outcome(state=CacheState.HIT, items=1, hits_redis=1, ttl_s=0), "dashcache; hit; ttl=0"),
        (
            Outcome(state=CacheState.PARTIAL, items=2, hits_redis=1, ttl_s=9, upstream_status=200, stored=True),
            "dashcache; fwd=partial; fwd-status=200; ttl=9; stored",
        ),
        (
            Outcome(state=CacheState.MISS, items=1, upstream_status=200, ttl_s=9, stored=True),
            "dashcache; fwd=miss; fwd-status=200; stored",
        ),
        (
            Outcome(state=CacheState.MISS, items=1, upstream_status=429, detail=Refusal.STATUS),
            "dashcache; fwd=miss; fwd-status=429; detail=status",
        ),
        (Outcome(state=CacheState.MISS, items=1, coalesced=1), "dashcache; fwd=miss; collapsed"),
        (
            Outcome(state=CacheState.BYPASS, upstream_status=200, detail=PassReason.NO_STORE),
            "dashcache; fwd=bypass; fwd-status=200; detail=no-store",
        ),
    ],
)
def test_cache_status_says_how_the_answer_came_about(outcome, text):
    assert cache_status(outcome) == text
    assert header_lines(outcome)[0] == (b"Cache-Status", text.encode())


@pytest.mark.parametrize("reason", [*PassReason, *Refusal])
def test_every_detail_is_a_token(reason):
    """RFC 9211 §2.8: a token or a quoted string; ours need no quotes."""
    assert all(sign.isascii() and (sign.isalnum() or sign in "-_") for sign in reason.value)


@pytest.mark.parametrize("state", [CacheState.PASS, CacheState.REFUSED])
def test_answers_that_are_not_ours_to_cache_say_nothing(state):
    assert header_lines(Outcome(state=state, items=3, hits_memory=3, age_s=4)) == ()


def test_age_and_counters_stand_beside_it():
    outcome = Outcome(
        state=CacheState.PARTIAL, items=3, hits_memory=1, hits_redis=1, age_s=7, ttl_s=5, origins=("id-1", "id-2")
    )
    assert dict(header_lines(outcome))[b"Age"] == b"7"
    assert dict(header_lines(outcome))[b"X-Dashcache-Items"] == b"2/3"
    assert dict(header_lines(outcome))[b"X-Dashcache-Origin"] == b"id-1, id-2"


def test_age_is_told_only_of_what_came_from_the_cache():
    lines = dict(header_lines(Outcome(state=CacheState.MISS, items=3, age_s=7)))
    assert b"Age" not in lines
    assert lines[b"X-Dashcache-Items"] == b"0/3"


def test_the_list_of_origins_is_bounded():
    lines = dict(header_lines(Outcome(state=CacheState.HIT, items=99, hits_memory=99, origins=("x",) * 99)))
    assert lines[b"X-Dashcache-Origin"].count(b"x") == 25
