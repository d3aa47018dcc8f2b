"""
Which process writes to which journal, where two may have the same number for a while, and who takes over from the dead.

A journal's owner holds a lock on a file beside it, which the kernel lets go of however the owner ends. What an owner
left is taken over by whoever looks next: its successor when it starts, or any other worker within a second. Who starts
beside others also reads theirs: it serves what they have made stale, and Redis may not know yet.
"""

import errno
import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from proxy.cache.invalidation.generations import Generations, Journal, Scope

_MOST = 256
_ALL = "invalidations.lock"
_ONE = "invalidations-{}.lock"
_JOURNAL = "invalidations-{}.journal"


class Claim:
    """A journal, and the right to write to it until ``close``."""

    def __init__(self, folder: Path, number: int, lock: int, journal: Journal) -> None:
        self.journal = journal
        self._folder = folder
        self._number = number
        self._lock = lock

    def learn(self, generations: Generations) -> None:
        """
        Before this process serves: take up what others have not told Redis of, living or not.

        Raises:
            OSError: that could not be read, or not be noted; nothing of before may be believed then.
        """
        with _locked(self._folder):
            for number in _journals(self._folder):
                if number != self._number:
                    _take_up(self._folder / _JOURNAL.format(number), generations, is_dead=False)
            self._adopt(generations)

    def adopt(self, generations: Generations) -> None:
        """
        Take over what processes that have ended could not tell Redis of.

        Raises:
            OSError: also if another process does the same at this moment; who serves must not hang with that one.
        """
        with _locked(self._folder, waits=False):
            self._adopt(generations)

    def _adopt(self, generations: Generations) -> None:
        for number in _journals(self._folder):
            if number == self._number or (lock := _try_lock(self._folder / _ONE.format(number))) is None:
                continue
            try:
                path = self._folder / _JOURNAL.format(number)
                _take_up(path, generations, is_dead=True)
                path.unlink()
            finally:
                os.close(lock)

    def close(self) -> None:
        """Let others take over; the journal itself is closed by who uses it."""
        os.close(self._lock)


class NoClaim:
    """
    Stands in for a journal where none can be had: its folder is full, read-only or gone.

    Nothing of before is believed, as nobody can know what others have left untold. Writes go on; in strict mode, which
    promises that their effect outlives this process, they are refused.
    """

    def __init__(self) -> None:
        self.journal: Journal = _NoJournal(None)

    def learn(self, generations: Generations) -> None:
        """See ``Claim``."""
        generations.distrust()

    def adopt(self, generations: Generations) -> None:
        """See ``Claim``: there is nothing to take over from, or no way to say so."""

    def close(self) -> None:
        """See ``Claim``."""


class _NoJournal(Journal):
    def opened(self, scopes: Collection[Scope]) -> None:
        """See Journal."""
        if scopes:
            raise OSError(errno.ENOENT, "there is no journal")


def claim(folder: Path, number: int, count: int) -> Claim:
    """
    The journal of worker *number* (from 1) of *count*; another one while a predecessor still writes to it.

    The first worker also takes over what is left of workers that are no longer run. Raises OSError.
    """
    with _locked(folder):
        # Beyond the team's own numbers: for who comes while their owners are still there.
        for own in (number, *range(count + 1, 2 * _MOST)):
            if (lock := _try_lock(folder / _ONE.format(own))) is not None:
                break
        else:
            raise OSError("every journal is in use")
        try:
            return Claim(folder, own, lock, Journal.of_worker(folder, own, 2 * _MOST))
        except BaseException:
            os.close(lock)
            raise


def _take_up(path: Path, generations: Generations, *, is_dead: bool) -> None:
    """
    Treat the scopes that are open in the journal *path* as writes of this process that Redis was not told of.

    Of one who *is dead* nobody will hear how they ended.
    """
    other = Journal(path)
    try:
        scopes = other.left_over()
    finally:
        other.close()
    if not scopes:
        return
    if is_dead:
        generations.doubt(scopes)
    try:
        generations.begin(scopes)
        generations.not_told(scopes)
    finally:
        generations.end(scopes)


def _journals(folder: Path) -> list[int]:
    names = (path.stem.rpartition("-")[2] for path in folder.glob(_JOURNAL.format("*")))
    return sorted(int(name) for name in names if name.isdigit())


@contextmanager
def _locked(folder: Path, *, waits: bool = True) -> Iterator[None]:
    """One process at a time decides who owns what; BlockingIOError if another does so and this one does not wait."""
    lock = os.open(folder / _ALL, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        yield
    finally:
        os.close(lock)


def _try_lock(path: Path) -> int | None:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
