"""Splits a request's counters into shares of its items, so that the shares add up exactly."""

from collections.abc import Sequence


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """
    *total* cut into whole shares in proportion to *weights* (each at least 1); their sum is *total*.

    Largest remainder, ties to the earlier item: deterministic, so the same batch always adds up to the same.
    """
    whole = sum(weights)
    floors = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda item: (-(total * weights[item] % whole), item))
    for item in by_remainder[: total - sum(floors)]:
        floors[item] += 1
    return floors
