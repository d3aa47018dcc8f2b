"""Lifetimes and request directives (RFC 9111 §4.2, §5.2.1)."""

import pytest

from proxy.core.entry import Entry, Row
from proxy.core.freshness import NONE, Directives, directives, jittered_ms
from proxy.core.request import Request

ROW = Row(b"{}", b"{}", b"[1.0]", (("total_tokens", 1),), "id")


def asked(*lines: tuple[bytes, bytes]) -> Directives:
    return directives(Request("POST", "/", lines, "default"))


def cache_control(value: bytes) -> Directives:
    return asked((b"Cache-Control", value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", NONE),
        (b"no-store", Directives(no_store=True)),
        (b"No-Cache", Directives(no_cache=True)),
        (b"max-age=0", Directives(no_cache=True, max_age_s=0)),
        (b"max-age=60", Directives(max_age_s=60)),
        (b'max-age="60"', Directives(max_age_s=60)),
        (b"min-fresh=5", Directives(min_fresh_s=5)),
        (b"only-if-cached", Directives(only_if_cached=True)),
        (b"no-cache, no-store , max-age=3", Directives(no_store=True, no_cache=True, max_age_s=3)),
        (b"stale-if-error=9, x-y=z", NONE),
        (b"max-stale=60", Directives(max_stale_s=60)),
        (b"max-stale", Directives(max_stale_s=2**31)),
        (b"max-stale=soon", Directives(max_stale_s=0)),
        (b"max-age=-1", NONE),
        (b"max-age", NONE),
        (b"max-age=", NONE),
        (b"max-age=1.5", NONE),
        (b"max-age=\xb2", NONE),
        (b"max-age=99999999999999999999999", Directives(max_age_s=2**31)),
        (b"no-store-please", NONE),
        (b",,, ,", NONE),
    ],
)
def test_directives_mean_what_rfc_9111_says(value, expected):
    assert cache_control(value) == expected


def test_several_lines_count_as_one_list():
    assert asked((b"cache-control", b"no-store"), (b"CACHE-CONTROL", b"max-age=7")) == Directives(
        no_store=True, max_age_s=7
    )


def test_pragma_counts_only_without_cache_control():
    assert asked((b"Pragma", b"no-cache")) == Directives(no_cache=True)
    assert asked((b"Pragma", b"no-cache"), (b"Cache-Control", b"max-age=9")) == Directives(max_age_s=9)
    assert asked((b"Pragma", b"x")) == NONE


@pytest.mark.parametrize(
    ("age_ms", "wish", "accepted"),
    [
        (0, NONE, True),
        (9_999, NONE, True),
        (10_000, NONE, False),
        (10_001, NONE, False),
        (5_000, Directives(max_age_s=5), True),
        (5_001, Directives(max_age_s=5), False),
        (5_000, Directives(min_fresh_s=5), True),
        (5_001, Directives(min_fresh_s=5), False),
        (9_999, Directives(max_age_s=2**31), True),
        (10_000, Directives(max_age_s=2**31), False),
    ],
)
def test_an_entry_is_accepted_as_long_as_it_is_fresh_and_as_the_client_asks(age_ms, wish, accepted):
    entry = Entry(ROW, stored_unix_ms=1_000_000, ttl_ms=10_000)
    assert wish.accept(entry, 1_000_000 + age_ms) is accepted


def test_an_entry_from_the_future_lives_no_longer_than_its_lifetime():
    """A writer's clock ahead of the reader's makes no negative age and no extra life."""
    entry = Entry(ROW, stored_unix_ms=2_000_000, ttl_ms=10_000)
    assert entry.age_ms(1_000_000) == 0
    assert entry.remaining_ms(1_000_000) == 10_000


@pytest.mark.parametrize("ttl_s", [0.001, 1, 604_800, 10**9])
@pytest.mark.parametrize("jitter", [0, 0.1, 0.5])
def test_jitter_spreads_evenly_and_stays_in_bounds(ttl_s, jitter):
    low, middle, high = (jittered_ms(ttl_s, jitter, unit) for unit in (0.0, 0.5, 1 - 2**-53))
    assert max(1, round(ttl_s * 1000 * (1 - jitter))) == low
    assert middle == round(ttl_s * 1000)
    assert middle <= high <= max(1, round(ttl_s * 1000 * (1 + jitter)))


def test_a_lifetime_is_never_zero():
    """Redis refuses PX 0."""
    assert jittered_ms(0, 0.1, 0.0) == 1
    assert jittered_ms(0.0001, 1.0, 0.0) == 1
