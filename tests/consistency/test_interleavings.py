"""C1: random interleavings; in the nightly run a thousand, in four parts so that they run side by side."""

import secrets
from collections.abc import Callable

import pytest

from tests.consistency.interleavings import crossed
from tests.consistency.rig import Rig

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("count", [120, *(pytest.param(250, marks=pytest.mark.slow, id=f"part {n}") for n in range(4))])
async def test_c1_no_hit_of_a_thousand_random_interleavings_is_stale(
    pair: Rig, count: int, record_property: Callable[[str, object], None]
) -> None:
    figures = await crossed(pair, count, seed := secrets.randbelow(2**32))
    assert not figures.stale, f"python -m tests.consistency.interleavings --count {count} --seed {seed}\n{figures}"
    # Nothing is proved by interleavings in which nothing crossed, or nothing was ever kept.
    assert figures.interleavings == count
    assert figures.crossed > count, figures
    assert figures.hits > count / 4, figures
    record_property("figure", f"{count} interleavings: {figures.reads} reads, {figures.hits} hits, 0 stale")
