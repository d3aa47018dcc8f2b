"""The soak, short: that it runs, compares, tells what is wrong, and finds nothing."""

import dataclasses
import random
import re

import pytest

from tests.consistency.calls import Answer, Call
from tests.soak.faults import FAULTS
from tests.soak.history import History, Trouble
from tests.soak.load import Kept
from tests.soak.page import page
from tests.soak.soak import grown, soak, unexplained
from tests.soak.vectors import DOCS, OLDEST_S, Document, Documents, Written
from tests.soak.watch import MIB, Sample, Series
from tests.support import open_loop

DECK = ("Redis killed, back empty", "upstream 500", "worker killed (SIGKILL)", "bypass on and off")


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_short_soak_breaks_no_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.soak.soak.WARM_UP_S", 2.0)
    monkeypatch.setattr("tests.soak.faults.FAULTS", tuple(fault for fault in FAULTS if fault.name in DECK))
    soaked = await soak(seconds=16, rate=50, every_s=3, seed=1)

    text = page(soaked, "test")
    assert not soaked.breaches, text
    assert soaked.report.count == 800
    assert soaked.report.correct > 600, text
    assert soaked.report.cached > 50, text
    assert {spell.name for spell in soaked.history.spells} == set(DECK)
    assert re.search(r"\| wrong answers \| 0 \|\n\| errors \| 0 \|", text)
    assert {one.role for one in soaked.series} >= {"A supervisor", "A worker 1", "A worker 2", "B worker 1"}


# --- the judge --------------------------------------------------------------------------------------------------------

CALL = Call("query_doc", "soak0", docs=DOCS)


def objection(version: int, *, is_hit: bool, read_s: float, trouble: Trouble | None = None) -> str:
    """About a read that began at *read_s* and says that document ``a``, written at 100 and 200, is at *version*."""
    history = History(troubles=[trouble] if trouble else [])
    documents = Documents(history, random.Random(1))
    known = Document(sent=4, written=[Written(1, 0, 0), Written(2, 99, 100), Written(3, 199, 200)])
    floors = {"a": (known, known.written), "b": (Document(), [Written(1, 0, 0)])}
    answer = Answer("http", 200, 0, "dashcache; hit" if is_hit else "", [], {"a": version, "b": 1})
    return documents.objection(CALL, answer, read_s, floors)


@pytest.mark.parametrize("is_hit", [True, False])
def test_an_answer_shows_what_was_written_and_nothing_else(is_hit: bool) -> None:
    assert not objection(3, is_hit=is_hit, read_s=201)
    assert not objection(4, is_hit=is_hit, read_s=201)  # sent, not acknowledged: it may have taken place
    assert objection(2, is_hit=is_hit, read_s=201).startswith("stale")
    assert objection(5, is_hit=is_hit, read_s=201).startswith("invented")


def test_a_miss_may_be_as_late_as_the_vendor_and_a_hit_may_not() -> None:
    assert not objection(2, is_hit=False, read_s=200.1)
    assert objection(2, is_hit=True, read_s=200.1)


def test_a_hit_may_be_old_while_redis_cannot_be_told_but_not_older_than_its_lifetime() -> None:
    during = Trouble(190, None)
    assert not objection(2, is_hit=True, read_s=205, trouble=during)
    assert objection(2, is_hit=True, read_s=201 + OLDEST_S, trouble=during)
    assert objection(1, is_hit=True, read_s=205, trouble=during)  # the write before was told
    assert not objection(2, is_hit=True, read_s=205, trouble=Trouble(190, 206))
    assert objection(2, is_hit=True, read_s=207, trouble=Trouble(190, 206))
    assert objection(2, is_hit=True, read_s=205, trouble=Trouble(150, 198))
    assert objection(2, is_hit=True, read_s=205, trouble=Trouble(201, None))


def test_an_excuse_holds_for_calls_that_have_felt_its_cause() -> None:
    history = History()
    with history.spell("upstream 500", "vendor") as spell:
        assert history.excuses("vendor", spell.began_s - 1, spell.began_s + 1)
        assert not history.excuses("upstream line", spell.began_s - 1, spell.began_s + 1)
    assert spell.ended_s is not None
    assert not history.excuses("vendor", spell.began_s - 2, spell.began_s - 1)
    assert not history.excuses("vendor", spell.ended_s + 2, spell.ended_s + 3)


def test_a_silent_call_excuses_one_client_that_asked_for_such() -> None:
    history = History()
    with history.spell("upstream silent", "silent call", {"embedding": 1}) as spell:
        felt = (spell.began_s, spell.began_s + 1)
        assert not history.excuses("silent call", *felt, "vector read")
        assert history.excuses("silent call", *felt, "embedding")
        assert not history.excuses("silent call", *felt, "embedding")


def test_growth_is_told_of_what_lives_from_beginning_to_end() -> None:
    small = Sample(rss=50 * MIB, files=30, sockets=10, threads=5)
    more, open_more = dataclasses.replace(small, rss=80 * MIB), dataclasses.replace(small, files=90)
    assert grown([Series("A", True, [small] * 9)]) == []
    assert "50.0 to 80.0 MiB" in grown([Series("A", True, [*[small] * 6, *[more] * 3])])[0]
    assert "30 open files, then 90" in grown([Series("A", True, [*[small] * 6, *[open_more] * 3])])[0]
    assert grown([Series("B", False, [*[small] * 6, *[more] * 3])]) == []


def test_an_error_of_the_loads_own_is_a_breach() -> None:
    errors = ("left", "vendor's own: HTTP 500", "wrong: answer", "KeyError: 'x'", "unfinished", "unfinished")
    outcomes = [open_loop.Outcome(correct=False, error=error) for error in errors]
    report = open_loop.Report(1.0, [open_loop.Sample(at, at, at, 0.0, outcome) for at, outcome in enumerate(outcomes)])
    assert unexplained(report, [Kept(2.0, "embedding", "wrong: answer; ...")]) == [
        "1 calls: KeyError: 'x'",
        "2 calls: unfinished",
    ]
