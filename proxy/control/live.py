"""
The modes of a running proxy: what holds now, and what rules are believed when read.

``LiveModes`` is what every process asks per request. Rules come from the settings (they hold until somebody switches,
and again when a switch ends), from operators, and from other replicas. Who carries them where is in ``book``,
``share`` and ``processes.channel``.
"""

import math
import time
from collections.abc import Callable

import msgspec

from proxy.control.stored import BadOrders, Document, Form, check_name, check_time, read
from proxy.core.modes import Mode, Modes, Rule
from proxy.settings.model import Start

EVERYTHING = "*"
MAX_RULES = 256
MAX_REASON = 200
MAX_BY = 80
MAX_STORED_BYTES = 128 * 1024
_KEEP_ENDED_S = 86_400.0
"""An ended rule is kept for a day: should the clock be set back, it has not ended yet."""
_NEVER = math.inf


class _Stored(Document, kw_only=True):
    rules: tuple[Rule, ...]


class LiveModes:
    """The rules in force, and the answer per upstream and operation, remembered until a rule comes or ends."""

    def __init__(self, start: Start, unix_s: Callable[[], float] = time.time) -> None:
        self._start = start_modes(start)
        self._switched = Modes()
        self._unix_s = unix_s
        self._answers: dict[tuple[str, str], Mode] = {}
        self._valid = self._start
        self.same_until_unix_s = _NEVER
        self.version = 0

    def begin_with(self, start: Start) -> None:
        """From now on the rules of the settings are those of *start*; switches go on."""
        self._start = start_modes(start)
        self._refresh(self._unix_s())

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
        if now_unix_s >= self.same_until_unix_s:
            self._refresh(now_unix_s)
        answer = self._answers.get((upstream, operation))
        if answer is None:
            answer = self._valid.mode(upstream, operation, now_unix_s)
            if len(self._answers) < MAX_RULES:
                self._answers[upstream, operation] = answer
        return answer

    def deciding(self, upstream: str, operation: str) -> Rule:
        """The rule that decides for *operation* at *upstream* now; of a rule of the settings ``set_unix_s`` is zero."""
        rule = self.valid().deciding(upstream, operation, self._unix_s())
        return rule if rule is not None else Rule(Mode.ON)

    def valid(self) -> Modes:
        """The rules that have not ended, those of the settings among them; not all of them need decide anything now."""
        self._refresh(self._unix_s())
        return self._valid

    def _refresh(self, now_unix_s: float) -> None:
        active = self._switched.active(now_unix_s)
        self._valid = self._start.merged(active)
        ends = [rule.until_unix_s for rule in active if rule.until_unix_s is not None]
        self.same_until_unix_s = min(ends, default=_NEVER)
        self._answers = {}
        self.version += 1


def start_modes(start: Start) -> Modes:
    """The rules that the settings make; older than any switch."""
    return Modes().merged(
        [Rule(start.mode), *(Rule(mode, operation=operation) for operation, mode in start.operations.items())]
    )


def tidied(modes: Modes, now_unix_s: float) -> Modes:
    """*modes* less what ended long ago, as many as can be stored: first those without an end, then the latest."""
    kept = [rule for rule in modes.rules if now_unix_s < rule.end_unix_s + _KEEP_ENDED_S]
    kept.sort(key=lambda rule: (rule.until_unix_s is None, rule.rank))
    return Modes().merged(kept[-MAX_RULES:])


def encode(modes: Modes) -> bytes:
    """*modes* as JSON."""
    return msgspec.json.encode(_Stored(format=1, rules=modes.rules))


def decode(stored: bytes) -> Modes:
    """
    The modes in *stored*, strictly checked.

    Raises:
        BadOrders: another format, unknown fields, or values that an operator could not have set.
    """
    rules = read(stored, _Stored, MAX_STORED_BYTES).rules
    if len(rules) > MAX_RULES:
        raise BadOrders("too many")
    for rule in rules:
        _check(rule)
    return Modes().merged(rules)


def _check(rule: Rule) -> None:
    check_name(rule.upstream)
    check_name(rule.operation)
    check_time(rule.set_unix_s)
    if rule.until_unix_s is not None:
        check_time(rule.until_unix_s)
    if len(rule.reason) > MAX_REASON or not rule.reason.isprintable():
        raise BadOrders("a reason that cannot be")
    if len(rule.by) > MAX_BY or not rule.by.isprintable():
        raise BadOrders("a caller that cannot be")


MODES = Form("modes", Modes(), MAX_STORED_BYTES, encode, decode)
