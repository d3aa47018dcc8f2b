"""
A Redis in memory, exact about tokens, holds and entries, and one process's way to it in the place of ``RedisTier``.

For tests that need to stop between two commands, or to lose one of them; what Redis itself does is tested with Redis.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeVar

from tests.support.gate import Gate

Result = TypeVar("Result")
Tokens = tuple[bytes, ...]


@dataclass
class Store:
    """What one Redis holds; *now_ms* is its own clock, which only tests move."""

    entries: dict[bytes, bytes] = field(default_factory=dict)
    tokens: dict[bytes, bytes] = field(default_factory=dict)
    holds: dict[bytes, int] = field(default_factory=dict)
    now_ms: int = 0
    incarnation: bytes = b"incarnation-0001"

    def is_held(self, scopes: Sequence[bytes]) -> bool:
        return any(self.holds.get(scope, 0) > self.now_ms for scope in scopes)

    def read(self, keys: Sequence[bytes], scopes: Sequence[bytes]):
        values = [self.entries.get(key) for key in keys]
        return values, [self.tokens.get(scope) for scope in scopes], self.is_held(scopes), None, self.incarnation

    def make(self, scopes: Sequence[bytes], tokens: Sequence[bytes]) -> tuple[Tokens, bool, bytes]:
        current = tuple(self.tokens.setdefault(scope, token) for scope, token in zip(scopes, tokens, strict=True))
        return current, self.is_held(scopes), self.incarnation

    def fill(self, key: bytes, sealed: bytes, scopes: Sequence[bytes], tokens: Tokens) -> bool:
        if [*(self.tokens.get(scope) for scope in scopes), self.incarnation] != list(tokens) or self.is_held(scopes):
            return False
        self.entries[key] = sealed
        return True

    def void(self, tokens: Mapping[bytes, bytes], hold_ms: int) -> tuple[bytes | None, ...]:
        replaced = tuple(self.tokens.get(scope) for scope in tokens)
        self.tokens.update(tokens)
        self.holds.update({scope: max(self.holds.get(scope, 0), self.now_ms + hold_ms) for scope in tokens})
        return replaced

    def copy(self) -> Self:
        """A snapshot."""
        return copy.deepcopy(self)

    def set_back(self, snapshot: "Store") -> None:
        """All as it was then, but the time; holds of then are over or not as the clock says."""
        then = snapshot.copy()
        self.entries, self.tokens, self.holds = then.entries, then.tokens, then.holds


class GuardedRedis:
    """
    One process's way to a store. Operations named in *gates* arrive there before anything else happens.

    Those in *lost* do not reach Redis, those in *unheard* do, and the process does not learn of it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.gates: dict[str, Gate] = {}
        self.lost: set[str] = set()
        self.unheard: set[str] = set()
        self.calls: list[str] = []
        self.voided: list[set[bytes]] = []

    @property
    def is_reachable(self) -> bool:
        return not self.lost

    @is_reachable.setter
    def is_reachable(self, is_reachable: bool) -> None:
        self.lost = set() if is_reachable else {"read", "make", "fill", "void"}

    def gate(self, operation: str) -> Gate:
        """A gate before *operation*, from now on."""
        return self.gates.setdefault(operation, Gate(operation))

    async def read_guarded(self, keys, scopes, owner):
        return await self._asked("read", lambda: self.store.read(keys, scopes))

    async def make_tokens(self, scopes, tokens):
        return await self._asked("make", lambda: self.store.make(scopes, tokens))

    async def fill_guarded(self, key, sealed, ttl_ms, scopes, tokens) -> bool:
        return bool(await self._asked("fill", lambda: self.store.fill(key, sealed, scopes, tokens)))

    async def void(self, tokens, hold_ms):
        self.voided.append(set(tokens))
        return await self._asked("void", lambda: self.store.void(tokens, hold_ms))

    async def _asked(self, operation: str, effect: Callable[[], Result]) -> Result | None:
        self.calls.append(operation)
        if gate := self.gates.get(operation):
            await gate.wait()
        if operation in self.lost:
            return None
        result = effect()
        return None if operation in self.unheard else result
