"""
The incarnation of Redis' data: how every process notices that Redis went back, whether or not it has seen a write.

Redis holds one record: an identity, which server wrote it, and a mark that every write and every refusal advances. All
that a write or a refusal can make stale hangs on the identity. A look at the record, which comes before anything else
on each connection and again every second, sets a new identity when the record is missing, older than what the asking
process has seen, or of another server than the one that answers (a restart and a failover make it another). From then
on nothing of before counts, for anybody, and for the time of a hold nothing is kept.
"""

import enum
import secrets
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from proxy.cache.redis import scripts
from proxy.cache.redis.commands import Command, Garbage

# A record: when the identity was made (Unix µs by Redis' clock), random hex digits, the server's replication id, mark.
_TIME, _IDENTITY, _SERVER, RECORD_BYTES = 16, 32, 72, 88
_RANDOM_BYTES = 8

FINGERPRINT_MS = 60_000
"""How long a deployment has a Redis to itself after its last process has looked at it."""


class Standing(enum.Enum):
    """The result of a look at Redis."""

    SOUND = b"sound"
    STRANGER = b"stranger"
    """Another deployment's fingerprint is there: another secret, or another layout of keys."""
    READ_ONLY = b"read-only"
    """A new identity was due, and Redis did not take it."""


class Look(NamedTuple):
    """The answer to a look."""

    standing: Standing
    record: bytes
    why: str
    """Why a new identity was due: ``empty``, ``damaged``, ``older``, ``server``; empty when none was."""
    role: bytes
    """``master`` or ``slave``; empty if Redis does not tell."""
    hold_ms: int
    """For how much longer nothing may be kept."""


class Names(NamedTuple):
    """The names of the keys in Redis."""

    record: bytes
    hold: bytes
    fingerprint: bytes

    @classmethod
    def under(cls, prefix: bytes) -> "Names":
        """The names where all of ours begin with *prefix*."""
        return cls(prefix + b":i", prefix + b":i:hold", prefix + b":f")


class Incarnation:
    """
    One process's knowledge of Redis' data.

    *known* is the latest record that an earlier process left word of. *fingerprints* are those that may stand in Redis,
    our own first. *hold_ms* is for how long a new identity keeps everybody from keeping anything.
    """

    def __init__(
        self,
        names: Names,
        *,
        hold_ms: int,
        fingerprints: Sequence[bytes] = (),
        known: bytes = b"",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.names = names
        self.on_renewed: list[Callable[[str], None]] = []
        """Called when what was known of before no longer counts: with why, if this process has found out itself."""
        self.is_stranger = False
        """Another deployment uses this Redis: it must not be used."""
        self._hold_ms = hold_ms
        self._fingerprints = tuple(fingerprints)
        self._known = known
        self._is_believed = False
        self._held_until_s = 0.0
        self._monotonic = monotonic

    @property
    def record(self) -> bytes:
        """The latest record that was seen; empty before the first look."""
        return self._known

    @property
    def token(self) -> bytes:
        """The token that entries and standings carry now; empty while nothing is known for sure."""
        return self._known[_TIME:_IDENTITY] if self._is_believed else b""

    @property
    def holds(self) -> bool:
        """Whether nothing may be kept, as writes of before a new identity may be settling."""
        return self._monotonic() < self._held_until_s

    def stands(self, record: bytes | None) -> bool:
        """Whether Redis, which shows *record*, has not gone back since it was last looked at."""
        known = self._known
        if record == known:
            return self._is_believed
        if record is None or not self._is_believed or len(record) != RECORD_BYTES:
            return False
        if record[:_SERVER] != known[:_SERVER] or record < known:
            return False
        self._known = record
        return True

    def look(self, *, is_new_connection: bool, trusted: bytes = b"") -> Command[Look | None]:
        """
        The look; its answer is for ``heard``.

        The server may be another one since *trusted* was written, if exactly that is still there.
        """
        return Command(("EVAL", *self.words(is_new_connection=is_new_connection, trusted=trusted)), read_look, None)

    def words(self, *, is_new_connection: bool, trusted: bytes = b"") -> tuple[bytes | str | int, ...]:
        """What EVAL is given for a look."""
        return (
            scripts.LOOK,
            len(self.names),
            *self.names,
            self._known + b"," + trusted,
            secrets.token_hex(_RANDOM_BYTES),
            f"{self._hold_ms},{int(is_new_connection)},{FINGERPRINT_MS}",
            b",".join(self._fingerprints),
        )

    def heard(self, look: Look | None) -> None:
        """Take in the result of a look; ``None``: Redis is well and does not allow it."""
        self.is_stranger = look is not None and look.standing is Standing.STRANGER
        if look is None or look.standing is not Standing.SOUND:
            self._is_believed = False
            return
        is_news = look.record[:_IDENTITY] != self._known[:_IDENTITY]
        if is_news and look.record < self._known:
            return  # by the time that this was read, somebody had set another one
        had_known = bool(self._known)
        # Of two connections one may be behind the other by an answer.
        self._known = look.record if is_news else max(look.record, self._known)
        self._is_believed = True
        if is_news:
            self._held_until_s = self._monotonic() + look.hold_ms / 1000
            if had_known:
                for tell in self.on_renewed:
                    tell(look.why)


def read_look(reply: object) -> Look:
    """The answer to a look in *reply*. Raises Garbage."""
    if type(reply) is not list or len(reply) != 5:
        raise Garbage("not the answer to a look")
    standing, record, why, role, hold_ms = reply
    if not (type(record) is type(why) is type(role) is bytes and type(hold_ms) is int):
        raise Garbage("not the answer to a look")
    try:
        shown = Standing(standing)
    except ValueError as error:
        raise Garbage("not the answer to a look") from error
    if shown is Standing.SOUND and len(record) != RECORD_BYTES:
        raise Garbage("not the answer to a look")
    return Look(shown, record, why.decode("ascii", "replace"), role, max(0, hold_ms))
