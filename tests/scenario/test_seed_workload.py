"""The seed workload: what the proxy was made for."""

import pytest

from benchmarks.inprocess import Recorder
from benchmarks.seed_workload import week
from proxy.core.telemetry import Telemetry


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("texts", "calls_per_hour", "most_bytes"),
    [(80, 6, 1.3e6), pytest.param(1_500, 100, 6.6e6, marks=pytest.mark.slow)],
)
async def test_a_week_of_the_seed_workload_saves_nine_calls_in_ten_and_fits_its_memory(
    texts: int, calls_per_hour: int, most_bytes: float
) -> None:
    result = await week(texts=texts, calls_per_hour=calls_per_hour, hours=168, seed=7)
    assert result.wrong == 0
    assert result.troubles == ()
    assert result.saved >= 0.90
    assert result.redis_entries == texts
    assert result.redis_bytes <= most_bytes


def test_its_observer_hears_of_all_that_the_proxys_own_does() -> None:
    events = {name for name in vars(Telemetry) if not name.startswith("_")}
    assert events <= set(dir(Recorder))
