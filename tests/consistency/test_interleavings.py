"""C1: a thousand random interleavings, in four parts so that they run side by side."""

import secrets
from collections.abc import Callable

import pytest

from tests.consistency.interleavings import crossed
from tests.consistency.rig import Rig

pytestmark = pytest.mark.asyncio(loop_scope="session")

COUNT = 250


@pytest.mark.parametrize("part", range(4))
async def test_c1_no_hit_of_a_thousand_random_interleavings_is_stale(
    pair: Rig, part: int, record_property: Callable[[str, object], None]
) -> None:
    figures = await crossed(pair, COUNT, seed := secrets.randbelow(2**32))
    print(figures)
    assert not figures.stale, f"python -m tests.consistency.interleavings --count {COUNT} --seed {seed}\n{figures}"
    # Nothing is proved by interleavings in which nothing crossed, or nothing was ever kept.
    assert figures.interleavings == COUNT
    assert figures.crossed > COUNT, figures
    assert figures.hits > COUNT / 4, figures
    record_property("figure", f"{COUNT} interleavings: {figures.reads} reads, {figures.hits} hits, 0 stale")
