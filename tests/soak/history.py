"""What was wrong with the world, and when: which faults a call has lived through, and what they excuse."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Excuse = Literal[
    "vendor",  # the vendor answers an error, or a wrong answer, of its own
    "upstream line",  # the vendor's answer, or the way to it, breaks off
    "worker killed",  # a worker of replica B got SIGKILL with requests in its hands
    "worker hung",  # a worker of replica B got SIGSTOP, and was replaced with requests in its hands
    "silent call",  # the vendor never answers a few calls; whoever asks for the same must not wait for them
]
"""Why a call may fail that no proxy could save."""

AFTER_S = 1.0
"""For so long after its end a fault may still show: what was under way, what was accepted."""


@dataclass(slots=True)
class Spell:
    """A fault from its beginning to its end, monotonic seconds."""

    name: str
    excuse: Excuse | None
    began_s: float
    ended_s: float | None = None
    allowances: Counter[str] | None = None
    """How many calls of each kind it excuses; None is any number of any."""

    def touches(self, since_s: float, until_s: float) -> bool:
        """Whether a call between these times could have felt it."""
        return self.began_s <= until_s and (self.ended_s is None or since_s <= self.ended_s + AFTER_S)


@dataclass(slots=True)
class Trouble:
    """From the beginning of something that keeps Redis from being told, until all of it was told."""

    began_s: float
    settled_s: float | None = None


@dataclass(slots=True)
class History:
    """All faults so far."""

    spells: list[Spell] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    bypassed_since_s: float | None = None
    """Since then both replicas have confirmed that nothing comes from the cache."""
    purged_s: float | None = None
    """When the last purge of everything had returned."""
    are_leaving: bool = False

    @contextmanager
    def spell(self, name: str, excuse: Excuse | None, allowances: Mapping[str, int] | None = None) -> Iterator[Spell]:
        """Within the block, this fault is on."""
        counted = None if allowances is None else Counter(allowances)
        spell = Spell(name, excuse, time.monotonic(), allowances=counted)
        self.spells.append(spell)
        try:
            yield spell
        finally:
            spell.ended_s = time.monotonic()

    def excuses(self, excuse: Excuse, since_s: float, until_s: float, kind: str = "") -> bool:
        """Whether a call of *kind* between these times may have failed for that; it is then one of those that may."""
        # Only the last few can reach so far.
        for spell in self.spells[-4:]:
            if spell.excuse != excuse or not spell.touches(since_s, until_s):
                continue
            if spell.allowances is None:
                return True
            if spell.allowances[kind] > 0:
                spell.allowances[kind] -= 1
                return True
        return False

    def is_untold(self, began_s: float, acknowledged_s: float, read_s: float) -> bool:
        """Whether a replica may not know, at *read_s*, of a write through the other one between the other times."""
        return any(
            trouble.began_s <= acknowledged_s
            and (trouble.settled_s is None or (began_s <= trouble.settled_s and read_s <= trouble.settled_s))
            for trouble in self.troubles[-4:]
        )

    def is_bypassed(self, began_s: float) -> bool:
        """Whether a call that began then, and ends now, was within a bypass from its beginning to its end."""
        return self.bypassed_since_s is not None and began_s > self.bypassed_since_s
