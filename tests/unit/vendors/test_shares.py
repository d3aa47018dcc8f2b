"""Shares of a request's counters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.vendors.apportion import shares


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (0, [1, 2, 3], [0, 0, 0]),
        (7, [1], [7]),
        (25, [21, 21], [13, 12]),
        (1, [1, 1, 1], [1, 0, 0]),
        (10, [1, 2, 2], [2, 4, 4]),
        (2, [1, 5, 5], [0, 1, 1]),
        (3, [1, 50, 50], [1, 1, 1]),
        (10, [1, 40, 40, 40], [1, 3, 3, 3]),
        (10, [1, 1, 1, 97], [1, 1, 1, 7]),
        (4, [1, 1, 1, 97], [1, 1, 1, 1]),
        (10**18, [1, 10**9], [999_999_999, 10**18 - 999_999_999]),
    ],
)
def test_shares_follow_the_weights_and_ties_go_to_the_earlier(total, weights, expected):
    assert shares(total, weights) == expected


@given(st.integers(0, 10_000), st.lists(st.integers(1, 10_000), min_size=1, max_size=30))
def test_shares_add_up_and_no_item_costs_nothing_where_the_total_allows(total, weights):
    cut = shares(total, weights)
    assert sum(cut) == total
    assert min(cut) >= (1 if total >= len(weights) else 0)
