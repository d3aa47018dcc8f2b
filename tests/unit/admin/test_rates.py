"""The rates of the last minute and hour, on a clock of the test's."""

from proxy.admin.metric_files import Totals
from proxy.admin.rates import EVERY_S, Rates


class Rig:
    """Rates whose clock and totals the test sets."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.rates = Rates(self._totals, lambda: self.now_s)
        self.requests = 0.0

    async def _totals(self) -> Totals:
        return self.totals()

    def totals(self) -> Totals:
        by_operation = (("operation", "embedding"),)
        return {
            ("dashcache_requests_total", (*by_operation, ("state", "HIT"))): self.requests,
            ("dashcache_items_total", (*by_operation, ("result", "memory"))): 3 * self.requests,
            ("dashcache_items_total", (*by_operation, ("result", "forwarded"))): self.requests,
            ("dashcache_operation_calls_total", (*by_operation, ("result", "made"))): 0.5 * self.requests,
            ("dashcache_tokens_saved_total", (*by_operation, ("model", "text-embedding-v4"))): 2 * self.requests,
            ("dashcache_memory_bytes", ()): 1e9,
        }

    def goes_on(self, seconds: float, requests_per_s: float) -> None:
        for _ in range(round(seconds / EVERY_S)):
            self.now_s += EVERY_S
            self.requests += requests_per_s * EVERY_S
            self.rates.sample(self.totals())

    def per_s(self, span: str) -> float:
        found: float = self.rates.document(self.totals())[span]["operations"]["embedding"]["requests_per_s"]
        return found


def test_the_last_minute_and_the_last_hour_are_told_apart() -> None:
    rig = Rig()
    rig.goes_on(7_200, 100)
    rig.goes_on(60, 4)
    minute = rig.rates.document(rig.totals())["last_minute"]
    assert minute == {
        "over_s": 60,
        "operations": {
            "embedding": {
                "requests_per_s": 4.0,
                "hits_per_s": 12.0,
                "misses_per_s": 4.0,
                "calls_per_s": 2.0,
                "calls_saved_per_s": 0.0,
                "tokens_saved_per_s": 8.0,
                "hit_ratio": 0.75,
            }
        },
    }
    assert rig.rates.document(rig.totals())["last_hour"]["over_s"] == 3_600
    assert rig.per_s("last_hour") == round((3_540 * 100 + 60 * 4) / 3_600, 3)


def test_what_came_since_the_last_sample_counts() -> None:
    rig = Rig()
    rig.goes_on(60, 0)
    rig.now_s += 5
    rig.requests += 130
    assert rig.per_s("last_minute") == 2.0  # 130 in 65 s: the samples are 10 s apart


def test_a_young_proxy_says_over_how_long() -> None:
    rig = Rig()
    rig.requests = 5
    assert rig.rates.document(rig.totals())["last_minute"]["over_s"] == 1  # not 5 in no time at all
    assert rig.per_s("last_hour") == 5.0
    rig.now_s += 20
    assert rig.rates.document(rig.totals())["last_hour"]["over_s"] == 20
    assert rig.per_s("last_hour") == 0.25


def test_no_rate_is_negative_when_counts_are_lost_and_what_comes_later_counts() -> None:
    rig = Rig()
    rig.goes_on(60, 100)
    rig.requests = 10  # the file of a worker could not be read when it died
    assert 0 <= rig.per_s("last_minute") <= 100
    rig.goes_on(60, 7)
    assert rig.per_s("last_minute") in (7.0, round(7 * 5 / 6, 3))
    rig.goes_on(60, 7)
    assert rig.per_s("last_minute") == 7.0


def test_the_samples_are_bounded() -> None:
    rig = Rig()
    rig.goes_on(5 * 3_600, 1)
    assert len(rig.rates._samples) == 361
