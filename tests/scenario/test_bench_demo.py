"""The demo: both rounds ask the same, and the second is answered alike at fewer calls."""

import dashscope
import pytest
from rich.console import Console

from benchmarks.demo import KINDS, both, closing, story, summary


def test_who_was_rewritten_comes_back_with_the_new_text() -> None:
    told = story(6, 4, 40, 2)
    assert [profile.version for profile in told.rewritten] == [1, 1]
    before, after = ({visit.profile for visit in act} for act in told.acts)
    assert not before & set(told.rewritten)
    assert not {profile.updated for profile in after} & set(told.rewritten)
    assert len(told.people) == 10
    assert told.calls == 40 * 3 + 4


def test_the_second_round_is_answered_alike_at_fewer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", dashscope.base_http_api_url)  # put back afterwards
    told = story(12, 8, 30, 2)
    console = Console(quiet=True)
    direct, cached, stats = both(told, latency_ms=3, vector_latency_ms=1, threads=4, console=console, settle_s=0.3)
    assert cached.answers == direct.answers
    assert len(direct.answers) == told.calls
    assert all(cached.vendor_calls[kind] < direct.vendor_calls[kind] for kind in KINDS if kind != "vector-write")
    assert cached.vendor_calls["vector-write"] == direct.vendor_calls["vector-write"]
    assert stats["vector-query"]["hit_ratio"] > 0
    assert f"equal answers {told.calls}/{told.calls}" in closing(direct, cached)
    assert summary(direct, cached, stats).row_count == len(KINDS)
