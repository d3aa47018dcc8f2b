"""
The tier for answers that a write can make stale: Redis only, read and kept under generations.

There is no memory tier here: its copies would have to be told of every write by every process. One Redis round trip
reads entry, tokens and holds together.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar

from proxy.cache.codec import Codec, Rejected
from proxy.cache.generations import Generations, Scope
from proxy.cache.redis_tier import RedisTier, Tokens
from proxy.cache.tiers import Found
from proxy.core.answer import nothing
from proxy.core.entry import Entry
from proxy.core.tasks import Tasks
from proxy.core.telemetry import Telemetry

Result = TypeVar("Result")


class NotTold(Exception):  # noqa: N818  a fork in the road, see ``writing``
    """In strict mode: Redis could not be told of a write before it was forwarded."""


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
    ) -> None:
        self._redis = redis
        self._codec = codec
        self._generations = generations
        self._tasks = tasks
        self._telemetry = telemetry
        self._settle_ms = max(1, round(settle_s * 1000))
        self._is_strict = is_strict
        self._max_pending_stores = max_pending_stores
        self._pending_stores = 0

    @property
    def pending(self) -> int:
        """How many scopes are stale without Redis knowing."""
        return len(self._generations.untold)

    def is_pending(self, scopes: Collection[Scope]) -> bool:
        """Whether one of *scopes* is stale without Redis knowing."""
        return self._generations.is_untold(scopes)

    async def read(self, keys: Sequence[bytes], scopes: Sequence[Scope]) -> Found:
        """
        The entries under *keys* that no write has made stale, and the tokens under which new ones may be kept.

        Never raises, and waits at most two Redis deadlines.
        """
        found = Found()
        if self._redis is None:
            return found
        started_s = time.perf_counter()
        found.redis_ok = await self._look(self._redis, keys, scopes, found)
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
        self,
        scopes: Sequence[Scope],
        forward: Callable[[], Awaitable[Result]],
        *,
        announce: bool,
        counts: Callable[[Result], bool],
    ) -> Result:
        """
        Run *forward* (a write) as one unit with what makes *scopes* stale; the caller shields it from leaving clients.

        Without *announce* the first step is left out: a credential that the upstream has not accepted lately must not
        be able to void what others use. A result that does not *count* (refused) leaves out the second.

        Raises:
            NotTold: strict mode, and Redis could not be told; nothing was forwarded.
        """
        self._generations.begin(scopes)
        is_stale = True
        try:
            if not await self._may_forward(scopes, announce=announce):
                is_stale = False  # nothing was forwarded, but what could not be told before stays untold
                raise NotTold
            result = await forward()
            is_stale = counts(result)
            return result
        finally:
            if is_stale:
                await asyncio.shield(self._tasks.start(self._void_and_end(scopes)))
            else:
                self._generations.end(scopes)

    async def tell(self) -> None:
        """Tell Redis of every scope that it could not be told of."""
        untold = tuple(self._generations.untold)
        if untold:
            await self._void(untold)

    async def _may_forward(self, scopes: Sequence[Scope], *, announce: bool) -> bool:
        """Take the first step if *announce*. False in strict mode, when Redis is of no help."""
        if announce:
            return await self._void(scopes) or not self._is_strict
        if not self._is_strict or self._redis is None:
            return True
        return await self._redis.make_tokens(scopes, [self._generations.new_token() for _ in scopes]) is not None

    async def _look(self, redis: RedisTier, keys: Sequence[bytes], scopes: Sequence[Scope], found: Found) -> bool:
        """Whether Redis could be asked; what it said is in *found*."""
        if self._generations.is_untold(scopes) and not await self._void(scopes):
            return False
        reply = await redis.read_guarded(keys, scopes)
        if reply is None:
            return False
        values, tokens, is_held = reply
        if any(token is None for token in tokens):
            made = await redis.make_tokens(scopes, [self._generations.new_token() for _ in scopes])
            if made is None:
                return False
            found.tokens = made if self._all_stand(scopes, made) and not is_held else None
            return True
        current = tuple(token for token in tokens if token is not None)
        if not self._all_stand(scopes, current):
            return await self._void(scopes)  # Redis has been set back: entries of then must not count again
        if is_held:
            found.is_held = True
            return True
        found.tokens = current
        self._open_all(keys, values, b"".join(current), found)
        return True

    def _all_stand(self, scopes: Sequence[Scope], tokens: Tokens) -> bool:
        return all(self._generations.stands(scope, token) for scope, token in zip(scopes, tokens, strict=True))

    def _open_all(self, keys: Sequence[bytes], values: Sequence[bytes | None], generation: bytes, found: Found) -> None:
        for key, sealed in zip(keys, values, strict=True):
            if sealed is None:
                continue
            try:
                entry = self._codec.open(key, sealed)
            except Rejected:
                self._telemetry.entries_rejected(1)
                continue
            if entry.generation == generation:
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
            if self._generations.is_untold(scopes) or not self._all_stand(scopes, tokens):
                return
            for key, entry in entries.items():
                sealed = self._codec.seal(key, entry)
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
        is_told = await self._redis.void(tokens, self._settle_ms)
        self._telemetry.invalidated(is_told)
        if not is_told:
            return False
        for scope, token in tokens.items():
            self._generations.told(scope, token)
        return True
