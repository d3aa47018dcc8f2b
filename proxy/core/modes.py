"""
The operating modes and the rules that switch them; pure: the caller brings the time.

A rule is one word of an operator about a scope. Of the rules that cover a request and have not ended, the one set last
decides. So a rule without an end silences all before it, for whatever it covers; and when a rule ends, the latest one
before it that has not ended holds again.
"""

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass


class Mode(enum.StrEnum):
    """What the proxy does with requests that it could answer from the cache."""

    ON = "on"
    """Read, store, answer from the cache."""
    BYPASS = "bypass"
    """Straight through: nothing read, nothing stored."""
    SHADOW = "shadow"
    """Always forward; read, compare and count what would have happened."""


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One switch: a mode for an upstream and an operation, ``*`` meaning all.

    ``until_unix_s`` is when it ends by itself (``None``: never). ``set_unix_s`` orders rules, between replicas too.
    *by* says how the caller was known.
    """

    mode: Mode
    upstream: str = "*"
    operation: str = "*"
    until_unix_s: float | None = None
    set_unix_s: float = 0.0
    reason: str = ""
    by: str = ""

    @property
    def end_unix_s(self) -> float:
        """When it ends; infinite if it does not."""
        return math.inf if self.until_unix_s is None else self.until_unix_s

    def is_active(self, now_unix_s: float) -> bool:
        """Whether the rule still counts."""
        return now_unix_s < self.end_unix_s

    def covers(self, upstream: str, operation: str) -> bool:
        """Whether the rule is about *operation* at *upstream*; ``*`` is covered by ``*`` only."""
        return self.upstream in ("*", upstream) and self.operation in ("*", operation)

    @property
    def rank(self) -> tuple[float, bool, bool, str, float, str, str, str, str]:
        """
        Of two rules the one of greater rank is the later.

        Of rules that were set in one instant the narrower is taken for the later; what follows in the tuple only makes
        all replicas choose alike.
        """
        is_narrow = (self.upstream != "*", self.operation != "*")
        rest = (self.mode, self.end_unix_s, self.reason, self.upstream, self.operation, self.by)
        return (self.set_unix_s, *is_narrow, *rest)

    def silences(self, other: "Rule") -> bool:
        """Whether *other* can never decide any more: this one is later, covers all of it and lasts as long."""
        return (
            self.rank > other.rank
            and self.covers(other.upstream, other.operation)
            and self.end_unix_s >= other.end_unix_s
        )


@dataclass(frozen=True, slots=True)
class Modes:
    """All rules that can still decide, the latest last; make it by ``merged``."""

    rules: tuple[Rule, ...] = ()

    def with_rule(self, rule: Rule) -> "Modes":
        """These modes and *rule*, which silences older ones."""
        return self.merged([rule])

    def merged(self, rules: Iterable[Rule]) -> "Modes":
        """These modes and *rules*, less those that are silenced by others. Order of merging does not matter."""
        together = {*self.rules, *rules}
        if len(together) == len(self.rules):
            return self
        kept: list[Rule] = []
        # Only a later rule silences another, and what silences it is itself kept or silenced by one that is.
        for rule in sorted(together, key=lambda rule: rule.rank, reverse=True):
            if not any(later.silences(rule) for later in kept):
                kept.append(rule)
        return Modes(tuple(reversed(kept)))

    def active(self, now_unix_s: float) -> tuple[Rule, ...]:
        """The rules that still count."""
        return tuple(rule for rule in self.rules if rule.is_active(now_unix_s))

    def deciding(self, upstream: str, operation: str, now_unix_s: float) -> Rule | None:
        """
        The rule that decides for *operation* at *upstream*: of those that cover it and still count, the one set last.

        An operator who turns bypass off for everything means everything, also what was switched on its own before.
        """
        for rule in reversed(self.rules):
            if rule.covers(upstream, operation) and rule.is_active(now_unix_s):
                return rule
        return None

    def mode(self, upstream: str, operation: str, now_unix_s: float) -> Mode:
        """The mode for *operation* at *upstream*: the deciding rule's, or else ``on``."""
        rule = self.deciding(upstream, operation, now_unix_s)
        return Mode.ON if rule is None else rule.mode
