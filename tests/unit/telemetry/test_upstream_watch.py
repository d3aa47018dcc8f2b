"""Trouble with upstreams: a line per kind and minute, and what keeps one from answering."""

import pytest
import structlog
from structlog.testing import capture_logs

from proxy.core.trouble import FAILS_FOR_ALL, WORDS, Trouble, of_status
from proxy.telemetry.upstream_watch import LINE_EVERY_S, UpstreamWatch


class Rig:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.told: list[tuple[str, Trouble | None, float]] = []
        self.watch = UpstreamWatch(
            structlog.get_logger(),
            {"dashscope": "vendor.test", "other": "other.test:81"},
            lambda *told: self.told.append(told),
            monotonic=lambda: self.now_s,
            unix_s=lambda: 1_000.0 + self.now_s,
        )

    def ended(self, *ends: int | Trouble) -> list[dict[str, object]]:
        with capture_logs() as logs:
            for end in ends:
                self.watch.ended("dashscope", end)
        return [dict(line) for line in logs]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_each_kind_has_words_and_some_are_the_callers_own() -> None:
    assert set(WORDS) == set(Trouble)
    assert [of_status(status) for status in (200, 404, 401, 403, 429, 500, 503)] == [
        None,
        None,
        Trouble.UNAUTHORIZED,
        Trouble.FORBIDDEN,
        Trouble.RATE_LIMITED,
        Trouble.SERVER_ERROR,
        Trouble.SERVER_ERROR,
    ]


def test_many_calls_with_one_trouble_are_one_line_a_minute(rig: Rig) -> None:
    (line,) = rig.ended(*[Trouble.REFUSED] * 500)
    assert line == {
        "event": "upstream_trouble",
        "log_level": "warning",
        "upstream": "dashscope",
        "host": "vendor.test",
        "reason": "refused",
        "words": "refusing connections",
        "calls": 1,
    }
    rig.now_s += LINE_EVERY_S
    (line,) = rig.ended(*[Trouble.REFUSED] * 3)
    assert line["calls"] == 500


def test_another_kind_has_its_own_line_at_once_but_turns_make_no_more(rig: Rig) -> None:
    lines = rig.ended(*[Trouble.REFUSED, Trouble.TIMEOUT, 200, 429] * 50)
    assert [line.get("reason", line["event"]) for line in lines] == [
        "refused",
        "timeout",
        "upstream_answers_again",
        "429",
    ]


def test_without_connection_it_fails_at_once_else_after_three_in_a_row(rig: Rig) -> None:
    rig.ended(Trouble.TIMEOUT, Trouble.TIMEOUT)
    assert rig.told == []
    rig.ended(Trouble.TIMEOUT)
    assert rig.told == [("dashscope", Trouble.TIMEOUT, 1_100.0)]
    rig.now_s += 5
    rig.ended(200, Trouble.UNKNOWN_HOST)
    assert rig.told[1:] == [("dashscope", None, 1_100.0), ("dashscope", Trouble.UNKNOWN_HOST, 1_105.0)]


@pytest.mark.parametrize("status", [401, 403, 429, 400, 200])
def test_what_is_said_to_one_credential_is_no_failure_of_the_upstream(rig: Rig, status: int) -> None:
    rig.ended(Trouble.REFUSED, *[status] * 10)
    assert rig.told[-1][1] is None


def test_the_word_is_repeated_once_a_second_as_another_workers_may_be_older(rig: Rig) -> None:
    for _ in range(100):
        rig.now_s += 0.05
        rig.ended(200)
    assert 4 <= len(rig.told) <= 6


def test_a_single_closed_connection_is_no_news(rig: Rig) -> None:
    assert rig.ended(*[Trouble.CLOSED, 200] * 5) == []
    assert [line["reason"] for line in rig.ended(Trouble.CLOSED, Trouble.CLOSED)] == ["closed"]


@pytest.mark.parametrize("trouble", sorted(FAILS_FOR_ALL))
def test_every_other_kind_is_a_failure(rig: Rig, trouble: Trouble) -> None:
    rig.ended(*[trouble] * 3)
    assert rig.told[-1][1] is trouble
