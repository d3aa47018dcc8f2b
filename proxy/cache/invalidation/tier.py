"""
The tier for answers that a write can make stale: Redis only, read and kept under generations.

There is no memory tier here: its copies would have to be told of every write by every process. One Redis round trip
reads entry, tokens and holds together.
"""

import asyncio
import enum
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar

from proxy.cache.codec import Codec, Opened, Rejected
from proxy.cache.invalidation.generations import Generations, Scope
from proxy.cache.redis.tier import RedisTier, Tokens
from proxy.core.answer import nothing
from proxy.core.entry import Entry
from proxy.core.found import Found
from proxy.core.telemetry import Telemetry
from proxy.runtime.offload import Heavy
from proxy.runtime.tasks import Tasks

Result = TypeVar("Result")

_TOLD_AT_ONCE = 100
_OPENED_BYTES = 4 << 20
"""What stands for the memory tier: not the word of a moment ago, but the work of opening it."""


class Effect(enum.Enum):
    """The effect of a write on stored answers."""

    NONE = enum.auto()
    """Nothing was changed."""
    KNOWN = enum.auto()
    """Something may have changed; from now on the vendor only has to show it."""
    UNKNOWN = enum.auto()
    """Something may have changed, or may change yet: nobody has heard the end of it."""


class NotTold(Exception):  # noqa: N818  a fork in the road, see ``writing``
    """In strict mode: Redis could not be told of a write before it was forwarded, or the journal could not."""


class VoidableTier:
    """Reads, keeps and voids entries under scopes. *settle_s* is how long after a write nothing is kept."""

    def __init__(
        self,
        redis: RedisTier | None,
        codec: Codec,
        generations: Generations,
        tasks: Tasks,
        telemetry: Telemetry,
        *,
        settle_s: float,
        is_strict: bool,
        max_pending_stores: int,
        heavy: Heavy | None = None,
    ) -> None:
        self._redis = redis
        self._codec = codec
        self._opened = Opened(codec, _OPENED_BYTES)
        self._generations = generations
        self._tasks = tasks
        self._telemetry = telemetry
        self._settle_ms = max(1, round(settle_s * 1000))
        self._is_strict = is_strict
        self._max_pending_stores = max_pending_stores
        self._heavy = heavy or Heavy()
        self._pending_stores = 0

    @property
    def pending(self) -> int:
        """How many scopes are stale without Redis knowing."""
        return len(self._generations.untold)

    def is_pending(self, scopes: Collection[Scope]) -> bool:
        """Whether one of *scopes* is stale without Redis knowing."""
        return self._generations.is_untold(scopes)

    async def read(self, keys: Sequence[bytes], scopes: Sequence[Scope], owner: bytes) -> Found:
        """
        The entries of *owner*'s under *keys* that no write has made stale, and the tokens to keep new ones under.

        Never raises, and waits for at most three operations of Redis, each within its deadline.
        """
        found = Found()
        if self._redis is None:
            return found
        started_s = time.perf_counter()
        found.redis_ok = await self._look(self._redis, keys, scopes, owner, found)
        found.redis_s = time.perf_counter() - started_s
        return found

    def fill(
        self,
        entries: Mapping[bytes, Entry],
        scopes: Sequence[Scope],
        tokens: Tokens | None,
        done: Callable[[], None] = nothing,
    ) -> None:
        """
        Keep *entries* in the background if *tokens* are still the ones in Redis and nothing holds.

        *done* is called when that is over.
        """
        if self._redis is None or tokens is None:
            done()
            return
        if self._pending_stores >= self._max_pending_stores:
            self._telemetry.stored(0, failed=len(entries))
            done()
            return
        self._pending_stores += 1
        self._tasks.start(self._fill(self._redis, entries, scopes, tokens, done))

    async def writing(
        self, scopes: Sequence[Scope], forward: Callable[[], Awaitable[Result]], *, effect: Callable[[Result], Effect]
    ) -> Result:
        """
        Run *forward* (a write) as one unit with what makes *scopes* stale; the caller shields it from leaving clients.

        *effect* tells what a result means; what raises is of unknown outcome. *forward* may ``announce`` the write
        before the upstream can act on it.

        Raises:
            NotTold: strict mode, and Redis or the journal could not be told; nothing was forwarded, or not the end.
        """
        is_on_record = self._begin(scopes)
        came = Effect.NONE
        try:
            if self._is_strict and not (is_on_record and await self._can_tell(scopes)):
                raise NotTold
            came = Effect.UNKNOWN
            try:
                result = await forward()
            except NotTold:
                came = Effect.NONE  # but what could not be told before stays untold
                raise
            came = effect(result)
            return result
        finally:
            if came is Effect.NONE:
                self._generations.end(scopes)
            else:
                if came is Effect.UNKNOWN:
                    self._generations.doubt(scopes)
                await asyncio.shield(self._tasks.start(self._void_and_end(scopes)))

    async def announce(self, scopes: Sequence[Scope]) -> None:
        """
        Make *scopes* stale before the upstream can act on a write.

        Not for a credential that it has not accepted lately: that must not be able to void what others use.

        Raises:
            NotTold: strict mode, and Redis could not be told.
        """
        if not await self._void(scopes) and self._is_strict:
            raise NotTold

    def redis_went_back(self) -> None:
        """Redis may have lost what it was told of writes that may still be settling: it is to be told again."""
        self._generations.not_told(self._generations.told_since(self._settle_ms))

    async def tell(self) -> None:
        """Tell Redis of every scope that it could not be told of."""
        untold = tuple(self._generations.untold)
        # So many at once as Redis can take within its deadline.
        for start in range(0, len(untold), _TOLD_AT_ONCE):
            if not await self._void(untold[start : start + _TOLD_AT_ONCE]):
                return

    def _begin(self, scopes: Sequence[Scope]) -> bool:
        """Whether the write to *scopes* is on the journal. A full disk must not stop writes, unless in strict mode."""
        try:
            self._generations.begin(scopes)
        except OSError as error:
            self._telemetry.journal_failed(error)
            return False
        return True

    async def _can_tell(self, scopes: Sequence[Scope]) -> bool:
        """Whether Redis takes words about *scopes* just now."""
        if self._redis is None:
            return True
        return await self._redis.make_tokens(scopes, [self._generations.new_token() for _ in scopes]) is not None

    async def _look(
        self, redis: RedisTier, keys: Sequence[bytes], scopes: Sequence[Scope], owner: bytes, found: Found
    ) -> bool:
        """Whether Redis could be asked; what it said is in *found*."""
        # No more than these: everything under the endpoint hangs on one of a read's scopes.
        if self._generations.is_untold(scopes):
            untold = [scope for scope in scopes if self._generations.is_untold((scope,))]
            if not await self._void(untold):
                return False
        reply = await redis.read_guarded(keys, scopes, owner)
        if reply is None:
            return False
        values, tokens, is_held, found.standing, incarnation = reply
        is_held = is_held or self._generations.settles(scopes, self._settle_ms)
        if None in tokens:
            made = await redis.make_tokens(scopes, [self._generations.new_token() for _ in scopes])
            if made is None:
                return False
            # Held since, perhaps: what is fetched now could be kept when that hold is over.
            current, was_held, incarnation = made
            found.is_held = is_held or was_held
            found.tokens = (*current, incarnation) if not (self._fallen(scopes, current) or found.is_held) else None
            return True
        current = tuple([token for token in tokens if token is not None])
        if fallen := self._fallen(scopes, current):
            return await self._void(fallen)  # Redis has been set back: entries of then must not count again
        if is_held:
            found.is_held = True
            return True
        found.tokens = (*current, incarnation)
        self._open_all(keys, values, scopes, b"".join(found.tokens), found)
        return True

    def _fallen(self, scopes: Sequence[Scope], tokens: Tokens) -> list[Scope]:
        """Those of *scopes* whose tokens are older than what this process has set."""
        pairs = zip(scopes, tokens, strict=True)
        return [scope for scope, token in pairs if not self._generations.stands(scope, token)]

    def _open_all(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes | None],
        scopes: Sequence[Scope],
        generation: bytes,
        found: Found,
    ) -> None:
        for key, sealed in zip(keys, values, strict=True):
            if sealed is None:
                continue
            try:
                entry = self._opened.open(key, sealed)
            except Rejected:
                self._telemetry.entries_rejected(1)
                continue
            # Somebody who saw no write may have kept it while Redis had lost the hold.
            is_settled = not self._generations.settles(scopes, self._settle_ms, entry.stored_unix_ms)
            if entry.generation == generation and is_settled:
                found.entries[key] = entry

    async def _fill(
        self,
        redis: RedisTier,
        entries: Mapping[bytes, Entry],
        scopes: Sequence[Scope],
        tokens: Tokens,
        done: Callable[[], None],
    ) -> None:
        try:
            for key, entry in entries.items():
                sealed = await self._heavy(entry.row.size, self._codec.seal, key, entry)
                if self._generations.is_untold(scopes) or self._fallen(scopes, tokens[:-1]):
                    return
                if sealed is not None:
                    kept = await redis.fill_guarded(key, sealed, entry.ttl_ms, scopes, tokens)
                    self._telemetry.stored(int(kept), failed=0)
        finally:
            self._pending_stores -= 1
            done()

    async def _void_and_end(self, scopes: Sequence[Scope]) -> None:
        await self._void(scopes)
        self._generations.end(scopes)

    async def _void(self, scopes: Sequence[Scope]) -> bool:
        """New tokens and a hold for *scopes*; whether Redis took them. What it did not take is untold from now on."""
        self._generations.not_told(scopes)
        if self._redis is None:
            for scope in scopes:  # nobody keeps anything: there is nothing to be stale
                self._generations.told(scope, self._generations.new_token())
            return True
        tokens = {scope: self._generations.new_token() for scope in scopes}
        replaced = await self._redis.void(tokens, self._generations.hold_ms(scopes, self._settle_ms))
        self._telemetry.invalidated(replaced is not None)
        if replaced is None:
            return False
        for (scope, token), before in zip(tokens.items(), replaced, strict=True):
            self._generations.told(scope, token, before)
        return True
