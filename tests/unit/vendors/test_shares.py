"""Shares of a request's counters."""

import pytest

from proxy.vendors.shares import shares


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (0, [1, 2, 3], [0, 0, 0]),
        (7, [1], [7]),
        (25, [21, 21], [13, 12]),
        (1, [1, 1, 1], [1, 0, 0]),
        (10, [1, 2, 2], [2, 4, 4]),
        (2, [1, 5, 5], [0, 1, 1]),
        (10**18, [1, 10**9], [999_999_999, 10**18 - 999_999_999]),
    ],
)
def test_shares_follow_the_weights_and_ties_go_to_the_earlier(total, weights, expected):
    assert shares(total, weights) == expected
