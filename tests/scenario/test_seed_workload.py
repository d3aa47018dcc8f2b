"""The seed workload: what the proxy was made for."""

import pytest

from benchmarks.seed_workload import week


@pytest.mark.timeout(300)  # 16 s of work: a starved machine took more than two minutes for it
async def test_a_week_of_the_seed_workload_saves_nine_calls_in_ten_and_fits_its_memory() -> None:
    result = await week(texts=1_500, calls_per_hour=100, hours=168, seed=7)
    assert result.wrong == 0
    assert result.troubles == ()
    assert result.saved >= 0.90
    assert result.redis_entries == 1_500
    assert result.redis_bytes <= 6.6e6
