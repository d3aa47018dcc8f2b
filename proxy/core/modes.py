"""The operating modes and the rules that switch them; pure: the caller brings the time."""

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

    ``until_unix_s`` is when it ends by itself (``None``: never). ``set_unix_s`` orders rules between replicas: of two
    rules for the same scope the later one stands.
    """

    mode: Mode
    upstream: str = "*"
    operation: str = "*"
    until_unix_s: float | None = None
    set_unix_s: float = 0.0
    reason: str = ""

    def is_active(self, now_unix_s: float) -> bool:
        """Whether the rule still counts."""
        return self.until_unix_s is None or now_unix_s < self.until_unix_s

    @property
    def scope(self) -> tuple[str, str]:
        """What the rule is about."""
        return (self.upstream, self.operation)

    @property
    def rank(self) -> tuple[float, str, float, str]:
        """Of two rules for one scope the greater stands: the later; the rest only makes replicas choose alike."""
        until_unix_s = math.inf if self.until_unix_s is None else self.until_unix_s
        return (self.set_unix_s, self.mode, until_unix_s, self.reason)


@dataclass(frozen=True, slots=True)
class Modes:
    """All rules in force, at most one per scope."""

    rules: tuple[Rule, ...] = ()

    def with_rule(self, rule: Rule) -> "Modes":
        """These modes with *rule* in place of any older rule for the same scope."""
        return self.merged([rule])

    def merged(self, rules: Iterable[Rule]) -> "Modes":
        """These modes and *rules*: the later rule stands in each scope. Order of merging does not matter."""
        by_scope = {rule.scope: rule for rule in self.rules}
        for rule in rules:
            known = by_scope.get(rule.scope)
            if known is None or rule.rank > known.rank:
                by_scope[rule.scope] = rule
        return Modes(tuple(sorted(by_scope.values(), key=lambda rule: rule.scope)))

    def active(self, now_unix_s: float) -> tuple[Rule, ...]:
        """The rules that still count."""
        return tuple(rule for rule in self.rules if rule.is_active(now_unix_s))

    def mode(self, upstream: str, operation: str, now_unix_s: float) -> Mode:
        """
        The mode for *operation* at *upstream*.

        Of the rules that fit, the one set last decides: an operator who turns bypass off for everything means
        everything, also what was switched on its own before.
        """
        fitting = [
            rule
            for rule in self.active(now_unix_s)
            if rule.upstream in ("*", upstream) and rule.operation in ("*", operation)
        ]
        if not fitting:
            return Mode.ON
        return max(fitting, key=lambda rule: (rule.set_unix_s, rule.upstream != "*", rule.operation != "*")).mode
