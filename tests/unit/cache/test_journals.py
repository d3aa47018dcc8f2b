"""Journals that two workers of one number want at a time, and what is left of those that have ended."""

import errno
import fcntl
from pathlib import Path

import pytest

from proxy.cache.invalidation.generations import Generations, Journal
from proxy.cache.invalidation.journals import Claim, NoClaim, claim


def generations(own: Claim) -> Generations:
    return Generations(own.journal, lambda: 1_000.0)


def ended(own: Claim) -> None:
    """As the kernel does it for a process that is killed."""
    own.journal.close()
    own.close()


def test_a_successor_beside_its_predecessor_has_a_journal_of_its_own(tmp_path: Path) -> None:
    old = claim(tmp_path, 1, 2)
    known = generations(old)
    known.begin([b"a"])
    new = claim(tmp_path, 1, 2)
    later = generations(new)
    later.begin([b"b"])
    known.not_told([])
    known.told(b"a", known.new_token())
    known.end([b"a"])  # nothing is open any more, so it starts its file anew
    assert new.journal.left_over() == {b"b"}
    ended(old)
    ended(new)


def test_what_the_dead_left_is_taken_over_once(tmp_path: Path) -> None:
    dead, one, other = claim(tmp_path, 1, 3), claim(tmp_path, 2, 3), claim(tmp_path, 3, 3)
    generations(dead).begin([b"a"])
    alive, too = generations(one), generations(other)
    one.adopt(alive)
    assert not alive.untold  # its owner is still there
    ended(dead)
    one.adopt(alive)
    other.adopt(too)
    assert alive.untold == {b"a"}
    assert not too.untold
    assert one.journal.left_over() == {b"a"}  # so that it is not forgotten if this one dies as well
    ended(one)
    other.adopt(too)
    assert too.untold == {b"a"}
    ended(other)


def test_who_starts_beside_others_knows_what_redis_does_not(tmp_path: Path) -> None:
    old = claim(tmp_path, 1, 1)
    known = generations(old)
    known.begin([b"a"])
    new = claim(tmp_path, 1, 1)
    later = generations(new)
    new.learn(later)
    assert later.untold == {b"a"}
    later.told(b"a", later.new_token())
    assert not later.untold
    assert old.journal.left_over() == {b"a"}  # it has its own say yet
    ended(old)
    ended(new)


def test_adopted_scopes_are_done_with_when_redis_knows(tmp_path: Path) -> None:
    dead = claim(tmp_path, 1, 1)
    generations(dead).begin([b"a"])
    ended(dead)
    own = claim(tmp_path, 2, 2)
    alive = generations(own)
    own.adopt(alive)
    alive.told(b"a", alive.new_token())
    assert not alive.untold
    assert own.journal.left_over() == set()
    ended(own)


def test_who_takes_over_a_number_knows_what_it_left(tmp_path: Path) -> None:
    dead = claim(tmp_path, 1, 1)
    generations(dead).begin([b"a"])
    ended(dead)
    own = claim(tmp_path, 1, 1)
    assert generations(own).untold == {b"a"}
    own.adopt(generations(own))
    assert own.journal.left_over() == {b"a"}
    ended(own)


def test_journals_of_a_larger_team_of_before_are_taken_over(tmp_path: Path) -> None:
    team = [claim(tmp_path, number, 4) for number in range(1, 5)]
    for number, one in enumerate(team):
        generations(one).begin([b"%d" % number])
        ended(one)
    own = claim(tmp_path, 1, 1)
    alive = generations(own)
    own.adopt(alive)
    assert alive.untold == {b"0", b"1", b"2", b"3"}
    assert len(list(tmp_path.glob("*.journal"))) == 1
    ended(own)


def test_who_serves_does_not_wait_for_another_that_looks(tmp_path: Path) -> None:
    dead, own = claim(tmp_path, 1, 2), claim(tmp_path, 2, 2)
    generations(dead).begin([b"a"])
    ended(dead)
    alive = generations(own)
    with (tmp_path / "invalidations.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            own.adopt(alive)
    own.adopt(alive)
    assert alive.untold == {b"a"}
    ended(own)


def test_what_could_not_be_taken_over_at_once_is_done_with_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, own = claim(tmp_path, 1, 2), claim(tmp_path, 2, 2)
    generations(dead).begin([b"a"])
    ended(dead)
    alive = generations(own)

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(own.journal, "opened", full)
        with pytest.raises(OSError, match="no space"):
            own.adopt(alive)
    own.adopt(alive)
    assert alive.untold == {b"a"}
    alive.told(b"a", alive.new_token())
    assert own.journal.left_over() == set()
    ended(own)


def test_a_folder_that_has_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        claim(tmp_path / "gone", 1, 1)


def test_nothing_stays_open(tmp_path: Path) -> None:
    before = open_files()
    own = claim(tmp_path, 1, 1)
    own.adopt(generations(own))
    ended(own)
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_r19_without_a_journal_nothing_of_before_is_believed_and_nothing_can_be_noted() -> None:
    none = NoClaim()
    alone = Generations(none.journal, lambda: 1_000.0)
    before = Generations(Journal(None), lambda: 999.0).new_token()
    assert alone.stands(b"a", before)
    none.learn(alone)
    assert not alone.stands(b"a", before)
    assert alone.stands(b"a", alone.new_token())
    with pytest.raises(OSError, match="no journal"):
        alone.begin([b"a"])
    alone.end([b"a"])
    none.adopt(alone)
    none.close()
