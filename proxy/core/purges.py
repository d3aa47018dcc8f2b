"""
Purges: what an operator no longer wants to be answered from the cache; pure: the caller brings time and randomness.

A purge deletes nothing. It sets a mark, a random token for a scope, and keys are made with the tokens of all marks that
cover them. So what was kept before is never found again, in any tier; what is being fetched meanwhile is kept under the
key of before; and without marks keys are what they always were.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from proxy.core.plan import Scope

EVERY = "*"
TOKEN_BYTES = 16
MAX_MARKS = 1_000
"""Beyond it one mark for everything takes the place of all: the cache starts anew, and keys stay cheap to make."""

SKEW_S = 300.0
"""
A mark ends another that it covers only if it was set so many seconds later.

Two replicas may purge without knowing of each other, by clocks that differ. Whose order came last is then not known;
until it is beyond doubt, both marks count, so that neither purge is undone by the other.
"""

Extent = tuple[str, str, str, str]
"""What a mark covers: upstream, operation, model, collection, each by name or ``*`` for all."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One purge: *token* (hexadecimal) is new to every key that the extent covers; ``set_unix_s`` orders marks."""

    token: str
    set_unix_s: float
    upstream: str = EVERY
    operation: str = EVERY
    model: str = EVERY
    collection: str = EVERY

    @property
    def extent(self) -> Extent:
        """What it covers."""
        return (self.upstream, self.operation, self.model, self.collection)


@dataclass(frozen=True)
class Marks:
    """All marks that count, in an order that is the same in every replica."""

    marks: tuple[Mark, ...] = ()

    def merged(self, marks: Iterable[Mark]) -> "Marks":
        """These and *marks*, without those that a later one covers. The order of merging does not matter."""
        together = {*self.marks, *marks}
        if len(together) == len(self.marks):
            return self
        latest_unix_s: dict[Extent, float] = {}
        for mark in together:
            latest_unix_s[mark.extent] = max(mark.set_unix_s, latest_unix_s.get(mark.extent, -math.inf))
        kept = [
            mark
            for mark in together
            if all(latest_unix_s.get(extent, -math.inf) < mark.set_unix_s + SKEW_S for extent in _covering(mark.extent))
        ]
        if len(kept) > MAX_MARKS:
            kept = [_everything(kept)]
        return Marks(tuple(sorted(kept, key=lambda mark: (mark.extent, mark.set_unix_s, mark.token))))

    def tokens_for(self, upstream: str, operation: str, model: str, scopes: Sequence[Scope]) -> tuple[bytes, ...]:
        """The tokens of all marks that cover such a request; see ``core.ports.PurgeSource``."""
        if not self.marks:
            return ()
        collections = [scope[1] for scope in scopes if scope[0] == "collection"]
        extents = itertools.product((EVERY, upstream), (EVERY, operation), (EVERY, model), (EVERY, *collections))
        tokens = self._tokens
        return tuple(token for extent in extents for token in tokens.get(extent, ()))

    @cached_property
    def _tokens(self) -> dict[Extent, tuple[bytes, ...]]:
        tokens: dict[Extent, tuple[bytes, ...]] = {}
        for mark in self.marks:
            tokens[mark.extent] = (*tokens.get(mark.extent, ()), bytes.fromhex(mark.token))
        return tokens


NO_MARKS = Marks()


def _covering(extent: Extent) -> Iterable[Extent]:
    """*extent* and all that are broader."""
    upstream, operation, model, collection = ({EVERY, name} for name in extent)
    return itertools.product(upstream, operation, model, collection)


def _everything(marks: Iterable[Mark]) -> Mark:
    """One mark for everything in the place of *marks*; equal marks give an equal one."""
    ordered = sorted(marks, key=lambda mark: mark.token)
    text = "".join(mark.token for mark in ordered).encode()
    token = hashlib.blake2b(text, digest_size=TOKEN_BYTES).hexdigest()
    return Mark(token, max(mark.set_unix_s for mark in ordered))
