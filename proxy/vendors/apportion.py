"""Splits a request's counters into shares of its items, so that the shares add up exactly."""

import heapq
from collections.abc import Sequence


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """
    *total* cut into whole shares in proportion to *weights* (each at least 1); their sum is *total*.

    Largest remainder, ties to the earlier item: deterministic, so the same batch always adds up to the same. No item is
    free where *total* allows: what rounds to 0 gets 1 of the largest share, of equal ones the earlier.
    """
    whole = sum(weights)
    floors = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda item: (-(total * weights[item] % whole), item))
    for item in by_remainder[: total - sum(floors)]:
        floors[item] += 1
    poor = [item for item, share in enumerate(floors) if not share] if total >= len(weights) else []
    richest = [(-share, item) for item, share in enumerate(floors)] if poor else []
    heapq.heapify(richest)
    for item in poor:
        share, rich = richest[0]
        heapq.heapreplace(richest, (share + 1, rich))
        floors[rich] -= 1
        floors[item] = 1
    return floors
