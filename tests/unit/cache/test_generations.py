"""What one process remembers of writes: tokens, what Redis was not told, and the journal that outlives it (C3, C10)."""

import itertools
import os
from pathlib import Path

import pytest

from proxy.cache.invalidation import generations
from proxy.cache.invalidation.generations import TOKEN_BYTES, Generations, Journal, token_time_ms
from tests.support.clock import FakeClock

ONE, TWO = b"\x01" * 32, b"\x02" * 32


def made(path: Path | None = None, clock: FakeClock | None = None) -> Generations:
    return Generations(Journal(path), (clock or FakeClock()).wall, doubt_ms=30_000)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "invalidations-1.journal"


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_grow_whatever_the_clock_does():
    clock = FakeClock()
    process = made(clock=clock)
    tokens = []
    for step_s in (0.0, 3_600.0, 0.0, -7_200.0, 0.001, -1e9, 0.0, 1e9):
        clock.step_wall(step_s)
        tokens += [process.new_token(), process.new_token()]
    times = [token_time_ms(token) for token in tokens]
    assert all(earlier < later for earlier, later in itertools.pairwise(times))
    assert len({token[8:] for token in tokens}) == len(tokens), "the rest is random"
    assert {len(token) for token in tokens} == {TOKEN_BYTES}


@pytest.mark.parametrize("odd", [b"", b"\x00" * 23, b"\xff" * 25, b"1"])
def test_what_is_no_token_never_stands(odd):
    assert token_time_ms(odd) == -1
    assert not made().stands(ONE, odd)


def test_a_token_stands_unless_this_process_has_set_a_later_one():
    process = made()
    before, mine, after = (process.new_token() for _ in range(3))
    assert process.stands(ONE, before), "nothing is known of it yet"
    process.told(ONE, mine)
    assert not process.stands(ONE, before)
    assert process.stands(ONE, mine)
    assert process.stands(ONE, after)
    assert process.stands(TWO, before)


def test_telling_out_of_order_keeps_the_later_token():
    process = made()
    earlier, later = process.new_token(), process.new_token()
    process.told(ONE, later)
    process.told(ONE, earlier)
    assert not process.stands(ONE, earlier)


def test_a_token_made_by_a_clock_ahead_falls_with_its_writes():
    """Else a Redis that is set back to before our write would be believed, by a token newer than ours."""
    ahead, mine = made(clock=FakeClock(wall_unix_s=1_000_010.0)), made(clock=FakeClock(wall_unix_s=1_000_000.0))
    theirs, ours = ahead.new_token(), mine.new_token()
    mine.told(ONE, ours, theirs)
    assert not mine.stands(ONE, theirs)
    mine.told(ONE, again := mine.new_token(), ours)
    assert mine.stands(ONE, again)
    assert not mine.stands(ONE, theirs)


def test_a_token_out_of_all_time_does_not_spoil_our_clock():
    process = made()
    process.told(ONE, process.new_token(), b"\xff" * TOKEN_BYTES)
    process.told(ONE, token := process.new_token())
    assert process.stands(ONE, token)


def test_what_is_forgotten_is_not_believed(monkeypatch):
    monkeypatch.setattr(generations, "_MAX_REMEMBERED", 3)
    process = made()
    old = process.new_token()
    for number in range(10):
        process.told(b"%d" % number, process.new_token())
    assert len(process._set_ms) == 3
    assert not any(process.stands(b"%d" % number, old) for number in range(10))
    assert process.stands(b"0", process.new_token())


def test_a_write_whose_end_nobody_has_heard_settles_for_longer():
    clock = FakeClock()
    process = made(clock=clock)
    began_ms = int(clock.wall() * 1000)
    process.doubt([ONE])
    assert process.hold_ms([TWO], 2_000) == 2_000
    assert process.hold_ms([TWO, ONE], 2_000) == 30_000
    process.told(ONE, process.new_token())
    clock.advance(10)
    assert process.settles((TWO, ONE), 2_000)
    assert not process.settles((TWO,), 2_000)
    assert process.hold_ms([ONE], 2_000) == 20_000
    clock.advance(19)
    assert process.hold_ms([ONE], 2_000) == 2_000
    clock.advance(1.001)
    assert not process.settles((ONE,), 2_000)
    assert process.settles((ONE,), 2_000, began_ms + 29_999), "what was stored meanwhile"
    assert not process.settles((ONE,), 2_000, began_ms - 1)
    process.doubt([TWO])
    assert process._doubted_ms.keys() == {TWO}


def test_what_a_process_before_left_open_may_be_executed_yet(path):
    before = made(path)
    before.begin([ONE])
    after = made(path)
    assert after.hold_ms([ONE], 2_000) == 30_000
    assert after.hold_ms([TWO], 2_000) == 2_000


def test_a_write_settles_by_the_clock_however_far_its_token_runs_ahead():
    clock = FakeClock()
    process, ahead = made(clock=clock), made(clock=FakeClock(wall_unix_s=clock.wall() + 60))
    assert not process.settles((ONE,), 2_000)
    for _ in range(50):  # in one millisecond
        process.new_token()
    for replaced in (None, ahead.new_token()):
        process.told(ONE, process.new_token(), replaced)
        assert process.settles((TWO, ONE), 2_000)
        assert not process.settles((TWO,), 2_000)
        clock.advance(1.999)
        assert process.settles((ONE,), 2_000)
        clock.advance(0.002)
        assert not process.settles((ONE,), 2_000)


# --- told and untold --------------------------------------------------------------------------------------------------


def test_what_was_not_told_is_untold_until_it_is():
    process = made()
    process.not_told([ONE])
    assert process.untold == {ONE}
    assert process.is_untold((TWO, ONE))
    assert not process.is_untold((TWO,))
    process.told(ONE, process.new_token())
    assert process.untold == frozenset()


def test_a_token_made_before_the_mark_does_not_make_up_for_it():
    """Two writes at once: the first one's token may have been set before the second one's documents were."""
    process = made()
    process.not_told([ONE])
    first = process.new_token()
    process.not_told([ONE])
    process.told(ONE, first)
    assert process.untold == {ONE}
    process.told(ONE, process.new_token())
    assert process.untold == frozenset()


def test_a_mark_never_goes_back():
    process = made()
    process.not_told([ONE])
    process.new_token()
    process.not_told([ONE])
    second = process.new_token()
    process.told(ONE, second)
    process.told(ONE, second)
    assert not process.untold


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("bbee"))))
def test_writes_that_overlap_end_in_any_order(order, path):
    """The journal holds the scope from the first beginning to the last end, and no longer."""
    process, running = made(path), 0
    for step in order:
        if step == "b":
            process.begin([ONE])
            running += 1
        elif running:
            process.end([ONE])
            running -= 1
        assert Journal(path).left_over() == ({ONE} if running else set())


STEPS = ("untold", "told", "end")


@pytest.mark.parametrize("order", list(itertools.permutations(STEPS)))
def test_a_scope_leaves_the_journal_when_it_is_over_and_told(order, path):
    process = made(path)
    process.begin([ONE])
    has_ended, is_told = False, True
    for step in order:
        if step == "untold":
            process.not_told([ONE])
            is_told = False
        elif step == "told":
            process.told(ONE, process.new_token())
            is_told = True
        else:
            process.end([ONE])
            has_ended = True
        is_open = not has_ended or not is_told
        # What is marked after its end was not begun by a write: it is no loss to forget it.
        if order.index("untold") < order.index("end"):
            assert Journal(path).left_over() == ({ONE} if is_open else set())


# --- the journal ------------------------------------------------------------------------------------------------------


def test_a_process_begins_with_what_the_one_before_left_open(path):
    before = made(path)
    before.begin([ONE, TWO])
    before.told(TWO, before.new_token())
    before.end([TWO])
    after = made(path)
    assert after.untold == {ONE}
    after.told(ONE, after.new_token())
    assert made(path).untold == frozenset()


def test_the_file_starts_anew_when_nothing_is_open(path):
    process = made(path)
    for _ in range(3):
        process.begin([ONE])
        assert path.stat().st_size
        process.end([ONE])
        assert path.stat().st_size == 0


def test_the_file_does_not_grow_while_something_is_always_open(path, monkeypatch):
    monkeypatch.setattr(generations, "_MAX_JOURNAL_BYTES", 1_000)
    process = made(path)
    process.begin([ONE])
    largest = 0
    for _ in range(200):
        process.begin([TWO])
        assert made(path).untold == {ONE, TWO}
        process.end([TWO])
        assert made(path).untold == {ONE}
        largest = max(largest, path.stat().st_size)
    assert largest < 1_300
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    process.end([ONE])
    assert path.stat().st_size == 0


@pytest.mark.parametrize("cut", range(1, 67))
def test_a_torn_line_takes_nothing_else_along(path, cut):
    before = made(path)
    before.begin([ONE])
    before.begin([TWO])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    after = made(path)
    assert ONE in after.untold
    after.begin([TWO])
    assert {ONE, TWO} <= made(path).untold


def test_a_file_of_garbage_is_read_to_its_end(path):
    path.write_bytes(b"\xff\xfe\n\n+zz\n?\n-\n+" + TWO.hex().encode() + b"\n-" + ONE.hex().encode() + b"\n")
    assert made(path).untold == {TWO}


def test_the_file_is_nobody_elses(path):
    made(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_without_a_folder_nothing_is_written():
    process = made()
    process.begin([ONE])
    process.end([ONE])
    assert process.untold == frozenset()


def test_a_full_disk_is_told_and_changes_nothing_else(path, monkeypatch):
    process = made(path)
    monkeypatch.setattr(os, "write", lambda _file, data: len(data) // 2)
    with pytest.raises(OSError, match="a part of a line"):
        process.begin([ONE])
    monkeypatch.undo()
    process.begin([ONE])
    assert made(path).untold == {ONE}, "the second write has it on the journal"
    process.end([ONE])
    process.end([ONE])
    assert not process._writing
    assert path.stat().st_size == 0


def test_a_line_that_cannot_be_closed_is_no_error(path, monkeypatch):
    process = made(path)
    process.begin([ONE])
    process.begin([TWO])
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda _file, data: 0)
        process.end([TWO])
    assert made(path).untold == {ONE, TWO}, "too much, never too little"
    process.begin([TWO])
    process.end([TWO])
    assert made(path).untold == {ONE}


def test_the_first_worker_adopts_what_is_left_of_workers_that_are_gone(tmp_path):
    for number, scope in ((1, b"a"), (2, b"b"), (3, b"c"), (4, b"d")):
        journal = Journal.of_worker(tmp_path, number, 4)
        journal.opened([scope])
        journal.close()
    second = Journal.of_worker(tmp_path, 2, 2)
    assert second.left_over() == {b"b"}
    first = Journal.of_worker(tmp_path, 1, 2)
    assert first.left_over() == {b"a", b"c", b"d"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"invalidations-{number}.journal" for number in (1, 2)]
    assert Generations(first, FakeClock().wall).untold == {b"a", b"c", b"d"}


def test_an_adoption_that_was_cut_short_is_made_again(tmp_path, monkeypatch):
    for number in (1, 2):
        Journal.of_worker(tmp_path, number, 2).opened([b"%d" % number])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_: (_ for _ in ()).throw(PermissionError()))
        with pytest.raises(PermissionError):
            Journal.of_worker(tmp_path, 1, 1)
    assert Journal.of_worker(tmp_path, 1, 1).left_over() == {b"1", b"2"}


def test_a_folder_that_is_not_there_is_told_at_once(tmp_path):
    with pytest.raises(FileNotFoundError):
        Journal.of_worker(tmp_path / "gone", 1, 1)


def test_a_closed_journal_takes_nothing_more(path):
    journal = Journal(path)
    journal.close()
    journal.close()
    journal.opened([ONE])
    journal.closed([ONE], left=())
    assert path.read_bytes() == b""
