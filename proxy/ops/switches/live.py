"""
The modes of a running proxy: what holds now, how rules are written down, and what is believed when read.

``LiveModes`` is what every process asks per request. Rules come from the settings (they hold until somebody switches,
and again when a switch ends), from operators, and from other replicas. Who carries them where is in ``book``,
``share`` and ``processes.channel``.
"""

import hmac
import math
import re
import time
from collections.abc import Callable

import msgspec

from proxy.core.key import TAG_BYTES, Secret, authentication_tag
from proxy.core.modes import Mode, Modes, Rule
from proxy.settings import Start

EVERYTHING = "*"
MAX_RULES = 256
MAX_REASON = 200
MAX_STORED_BYTES = 128 * 1024
_FORMAT = 1
_NAME = re.compile(r"\*|[a-z0-9][a-z0-9_.-]{0,63}")
_KEEP_ENDED_S = 86_400.0
"""An ended rule is kept for a day: a replica that was away may still hold an older one for the same scope."""
_NEVER = math.inf
_LAST_UNIX_S = 32_503_680_000.0
"""The year 3000. Far beyond it a float cannot tell one order from the next, and a rule could never be replaced."""


class BadRules(ValueError):  # noqa: N818  a verdict about data, like NotStorable
    """Stored rules that are not ours, or damaged; the message says which check failed, never what was read."""


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    rules: tuple[Rule, ...]


class LiveModes:
    """The rules in force, and the answer per upstream and operation, remembered until a rule comes or ends."""

    def __init__(self, start: Start, unix_s: Callable[[], float] = time.time) -> None:
        self._start = start_modes(start)
        self._switched = Modes()
        self._unix_s = unix_s
        self._answers: dict[tuple[str, str], Mode] = {}
        self._in_force = self._start
        self._until_unix_s = _NEVER

    @property
    def switched(self) -> Modes:
        """The rules that somebody set, ended ones included."""
        return self._switched

    def replace(self, switched: Modes) -> None:
        """From now on *switched* holds."""
        self._switched = switched
        self._refresh(self._unix_s())

    def mode(self, upstream: str, operation: str) -> Mode:
        """The mode for *operation* at *upstream* now."""
        now_unix_s = self._unix_s()
        if now_unix_s >= self._until_unix_s:
            self._refresh(now_unix_s)
        answer = self._answers.get((upstream, operation))
        if answer is None:
            answer = self._in_force.mode(upstream, operation, now_unix_s)
            if len(self._answers) < MAX_RULES:
                self._answers[upstream, operation] = answer
        return answer

    def in_force(self) -> tuple[Rule, ...]:
        """The rules that count now; those from the settings have ``set_unix_s`` zero."""
        now_unix_s = self._unix_s()
        self._refresh(now_unix_s)
        return self._in_force.rules

    def _refresh(self, now_unix_s: float) -> None:
        active = self._switched.active(now_unix_s)
        self._in_force = self._start.merged(active)
        ends = [rule.until_unix_s for rule in active if rule.until_unix_s is not None]
        self._until_unix_s = min(ends, default=_NEVER)
        self._answers = {}


def start_modes(start: Start) -> Modes:
    """The rules that the settings make; older than any switch."""
    return Modes().merged(
        [Rule(start.mode), *(Rule(mode, operation=operation) for operation, mode in start.operations.items())]
    )


def tidied(modes: Modes, now_unix_s: float) -> Modes:
    """*modes* without rules that ended long ago, and not more than can be stored: the latest stay."""
    kept = [rule for rule in modes.rules if rule.until_unix_s is None or now_unix_s < rule.until_unix_s + _KEEP_ENDED_S]
    kept.sort(key=lambda rule: rule.set_unix_s)
    return Modes().merged(kept[-MAX_RULES:])


def encode(modes: Modes) -> bytes:
    """*modes* as JSON."""
    return msgspec.json.encode(_Stored(_FORMAT, modes.rules))


def decode(stored: bytes) -> Modes:
    """
    The modes in *stored*, strictly checked.

    Raises:
        BadRules: another format, unknown fields, or values that an operator could not have set.
    """
    if len(stored) > MAX_STORED_BYTES:
        raise BadRules("too large")
    try:
        read = msgspec.json.decode(stored, type=_Stored)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRules("not in the form of rules") from error
    if read.format != _FORMAT or len(read.rules) > MAX_RULES:
        raise BadRules("another format")
    for rule in read.rules:
        _check(rule)
    return Modes().merged(read.rules)


def seal(secret: Secret, key: bytes, modes: Modes) -> bytes:
    """*modes* as stored under *key* where others can write: an authentication tag, then JSON."""
    body = encode(modes)
    return authentication_tag(secret, key, body) + body


def unseal(secret: Secret, key: bytes, stored: bytes) -> Modes:
    """
    The opposite of ``seal``. An old value played back changes nothing: its rules are older than those known.

    Raises:
        BadRules: not sealed with our secret for this key, or see ``decode``.
    """
    tag, body = stored[:TAG_BYTES], stored[TAG_BYTES:]
    # Both sides are hashed values; how long a comparison takes tells nobody anything, but this costs nothing.
    if not hmac.compare_digest(tag, authentication_tag(secret, key, body)):
        raise BadRules("not authenticated")
    return decode(body)


def _check(rule: Rule) -> None:
    if not _NAME.fullmatch(rule.upstream) or not _NAME.fullmatch(rule.operation):
        raise BadRules("a name that cannot be")
    if not 0 < rule.set_unix_s <= _LAST_UNIX_S:
        raise BadRules("a time that cannot be")
    if rule.until_unix_s is not None and not 0 < rule.until_unix_s <= _LAST_UNIX_S:
        raise BadRules("a time that cannot be")
    if len(rule.reason) > MAX_REASON or not rule.reason.isprintable():
        raise BadRules("a reason that cannot be")
