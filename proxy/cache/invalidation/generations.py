"""
Generations: how a write makes answers stale that it cannot name one by one.

Every scope (a collection, a catalogue, an endpoint) has a token in Redis. An entry carries the tokens that were read
before its request was forwarded, and counts only while they are still the ones in Redis. A write sets new tokens, and a
hold during which nothing is kept, before it is forwarded and again when its outcome is known, whatever that is.

This module is what one process remembers: the tokens that it has set, so that a Redis that came back with older ones is
not believed, and the scopes that Redis could not be told of, which nothing is read from or kept for until it knows.
"""

import errno
import os
import secrets
import struct
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Self

Scope = bytes
"""A scope's name: a keyed hash, so that neither Redis nor the journal shows a collection's name."""

TOKEN_BYTES = 24
_TIME = struct.Struct(">Q")
_MAX_REMEMBERED = 100_000
_MAX_AHEAD_MS = 86_400_000
_MAX_JOURNAL_BYTES = 1 << 20
_JOURNAL = "invalidations-{}.journal"
_MAX_WORKERS = 256


def token_time_ms(token: bytes) -> int:
    """When *token* was made (Unix milliseconds); -1 for what is no token."""
    return _TIME.unpack_from(token)[0] if len(token) == TOKEN_BYTES else -1


class Generations:
    """
    One process's memory of writes.

    Tokens are a time and random bits: never a counter, because a counter that was evicted comes back to an old value
    and revives old entries. *wall* gives Unix seconds; a clock behind another replica's costs hits and nothing else,
    because a token is made later than every other that this process has seen replaced. *doubt_ms* is how long a write
    whose end nobody has heard may yet be executed.
    """

    def __init__(self, journal: "Journal", wall: Callable[[], float], *, doubt_ms: int = 0) -> None:
        self._journal = journal
        self._wall = wall
        self._doubt_ms = doubt_ms
        self._doubted_ms: dict[Scope, int] = {}
        self._set_ms: OrderedDict[Scope, int] = OrderedDict()
        self._told_ms: dict[Scope, int] = {}  # by the clock: the times of tokens run ahead of it
        self._floor_ms = 0
        self._last_ms = 0
        self._writing: dict[Scope, int] = {}
        self._journaled = journal.left_over()
        # Each with the time of the last token made before it was marked: only a later one can make up for it.
        self._untold: dict[Scope, int] = dict.fromkeys(self._journaled, 0)
        self.doubt(self._journaled)  # whoever left word of them has not heard how they ended

    def new_token(self) -> bytes:
        """A token later than any that this process has made."""
        self._last_ms = max(self._last_ms + 1, int(self._wall() * 1000))
        return _TIME.pack(self._last_ms) + secrets.token_bytes(TOKEN_BYTES - _TIME.size)

    def stands(self, scope: Scope, token: bytes) -> bool:
        """Whether *token*, read from Redis, can be the current one: not older than what this process has set."""
        return token_time_ms(token) >= self._set_ms.get(scope, self._floor_ms)

    def settles(self, scopes: Iterable[Scope], settle_ms: int, at_ms: int | None = None) -> bool:
        """
        Whether a write to one of *scopes* that this process has told Redis of was settling *at_ms*, or is so now.

        Redis has holds for this, which it can lose. A write whose end nobody has heard settles for longer.
        """
        time_ms = int(self._wall() * 1000) if at_ms is None else at_ms
        if self._doubted_ms and any(self._rest_of_doubt_ms(scope, time_ms) for scope in scopes):
            return True
        told_ms = self._told_ms
        for scope in scopes:  # noqa: SIM110  asked twice for each hit: a generator takes three times as long
            if scope in told_ms and 0 <= time_ms - told_ms[scope] < settle_ms:
                return True
        return False

    def doubt(self, scopes: Iterable[Scope]) -> None:
        """Nobody has heard how a write to *scopes* ended: from now on it may be executed for a while."""
        now_ms = int(self._wall() * 1000)
        self._doubted_ms = {
            scope: since_ms for scope, since_ms in self._doubted_ms.items() if self._rest_of_doubt_ms(scope, now_ms)
        } | dict.fromkeys(scopes, now_ms)

    def hold_ms(self, scopes: Iterable[Scope], settle_ms: int) -> int:
        """For how long nothing may be kept under *scopes* once Redis is told now: *settle_ms*, or the rest of doubt."""
        now_ms = int(self._wall() * 1000)
        return max((settle_ms, *(self._rest_of_doubt_ms(scope, now_ms) for scope in scopes)))

    def _rest_of_doubt_ms(self, scope: Scope, at_ms: int) -> int:
        since_ms = self._doubted_ms.get(scope)
        # Not before it began either: the clock may have been set back, and entries of then have other tokens.
        return 0 if since_ms is None or at_ms < since_ms else max(0, since_ms + self._doubt_ms - at_ms)

    def begin(self, scopes: Collection[Scope]) -> None:
        """
        A write to *scopes* starts: it is on the journal before it is forwarded. ``end`` has to follow in any case.

        Raises:
            OSError: it could not be put on the journal, so a process that comes after this one will not know of it.
        """
        for scope in scopes:
            self._writing[scope] = self._writing.get(scope, 0) + 1
        fresh = [scope for scope in scopes if scope not in self._journaled]
        self._journal.opened(fresh)
        self._journaled.update(fresh)

    def told(self, scope: Scope, token: bytes, replaced: bytes | None = None) -> None:
        """Redis has *token* for *scope*, in the place of *replaced*."""
        time_ms = token_time_ms(token)
        floor_ms = max(time_ms, self._set_ms.pop(scope, 0))
        if replaced is not None and time_ms <= (ahead_ms := token_time_ms(replaced)) < time_ms + _MAX_AHEAD_MS:
            # A clock ahead of ours made it. A Redis set back to it must not be believed, so neither must one with our
            # token: the next read will set a later one.
            floor_ms = max(floor_ms, ahead_ms + 1)
            self._last_ms = max(self._last_ms, ahead_ms)
        self._set_ms[scope] = floor_ms
        self._told_ms[scope] = int(self._wall() * 1000)
        if self._untold.get(scope, time_ms) < time_ms:
            del self._untold[scope]
        if len(self._set_ms) > _MAX_REMEMBERED:
            oldest, oldest_ms = self._set_ms.popitem(last=False)
            del self._told_ms[oldest]
            self._floor_ms = max(self._floor_ms, oldest_ms)
        self._close([scope])

    def told_since(self, ago_ms: int) -> list[Scope]:
        """The scopes that Redis was told of in the last *ago_ms*, or of which nobody has heard the end."""
        now_ms = int(self._wall() * 1000)
        settling = [scope for scope, told_ms in self._told_ms.items() if 0 <= now_ms - told_ms < ago_ms]
        doubted = [scope for scope in self._doubted_ms if self._rest_of_doubt_ms(scope, now_ms)]
        return list(dict.fromkeys((*settling, *doubted)))

    def not_told(self, scopes: Iterable[Scope]) -> None:
        """Redis has yet to be told of *scopes*: they are untold until it has a token made from now on."""
        self._untold.update(dict.fromkeys(scopes, self._last_ms))

    def end(self, scopes: Collection[Scope]) -> None:
        """The write to *scopes* is over, and Redis was told or stands among the untold."""
        for scope in scopes:
            self._writing[scope] -= 1
            if not self._writing[scope]:
                del self._writing[scope]
        self._close(scopes)

    def distrust(self) -> None:
        """Believe no token that was made before now: what others may have left untold cannot be known."""
        self._floor_ms = max(self._floor_ms, int(self._wall() * 1000))

    @property
    def untold(self) -> frozenset[Scope]:
        """Scopes that Redis does not know to be stale."""
        return frozenset(self._untold)

    def is_untold(self, scopes: Collection[Scope]) -> bool:
        """Whether any of *scopes* is stale without Redis knowing."""
        return not self._untold.keys().isdisjoint(scopes)

    def _close(self, scopes: Iterable[Scope]) -> None:
        done = [
            scope
            for scope in scopes
            if scope in self._journaled and scope not in self._writing and scope not in self._untold
        ]
        self._journaled.difference_update(done)
        if done:
            self._journal.closed(done, left=self._journaled)


class Journal:
    """
    The scopes under way or untold, in a file, so that a process that is killed leaves word for the next.

    One line per change, written with one call and not synced: it has to outlive the process, not the machine (after
    which Redis has no newer state to be wrong about than its own last snapshot).
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600) if path is not None else None

    @classmethod
    def of_worker(cls, folder: Path, number: int, count: int) -> Self:
        """
        The journal of worker *number* (from 1) of *count*; its predecessor's, as a restart takes over the number.

        The first worker also takes over what is left of workers that are no longer run. Raises OSError.
        """
        journal = cls(folder / _JOURNAL.format(number))
        others = range(count + 1, _MAX_WORKERS + 1) if number == 1 else ()
        for path in (path for other in others if (path := folder / _JOURNAL.format(other)).exists()):
            left = cls(path)
            journal.opened(left.left_over())
            left.close()
            path.unlink()
        return journal

    def left_over(self) -> set[Scope]:
        """The scopes that an earlier process opened and did not close."""
        open_scopes: set[Scope] = set()
        for line in (self._path.read_text("ascii", "replace") if self._path is not None else "").split("\n"):
            try:
                scope = bytes.fromhex(line[1:])
            except ValueError:
                continue  # torn by a crash
            if line.startswith("+"):
                open_scopes.add(scope)
            elif line.startswith("-"):
                open_scopes.discard(scope)
        return open_scopes

    def opened(self, scopes: Collection[Scope]) -> None:
        """*scopes* are about to be written to. Raises OSError when that cannot be noted."""
        self._note("+", scopes)

    def closed(self, scopes: Collection[Scope], *, left: Collection[Scope]) -> None:
        """Redis knows of *scopes*; with nothing *left* open the file starts anew. Never raises."""
        try:
            if not left and self._file is not None:
                os.ftruncate(self._file, 0)
            elif self._file is not None and os.fstat(self._file).st_size > _MAX_JOURNAL_BYTES:
                self._rewrite(left)
            else:
                self._note("-", scopes)
        except OSError:
            pass  # the write is done; a line too many makes something stale once more, and nothing else

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _rewrite(self, scopes: Collection[Scope]) -> None:
        """The file anew, with *scopes* alone; at no moment is there none."""
        if self._path is None:
            return
        path = self._path.with_suffix(".new")
        path.unlink(missing_ok=True)
        anew = type(self)(path)
        try:
            anew.opened(scopes)
            path.replace(self._path)
        except OSError:
            anew.close()
            raise
        self.close()
        self._file = anew._file  # noqa: SLF001  one of us

    def _note(self, sign: str, scopes: Collection[Scope]) -> None:
        if self._file is None or not scopes:
            return
        # An empty line first: one that was torn must not take this one along.
        lines = "".join(("\n", *(f"{sign}{scope.hex()}\n" for scope in scopes))).encode("ascii")
        try:
            written = os.write(self._file, lines)
        except OSError as error:
            error.filename = str(self._path)  # the system knows a number only
            raise
        if written != len(lines):
            raise OSError(errno.ENOSPC, "the journal took a part of a line only", str(self._path))
