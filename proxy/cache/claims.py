"""
Claims: which process fetches an item, so that all workers and replicas together ask the upstream once.

A claim is a name in Redis that ends by itself after a lease. Its holder renews it while the upstream is busy and takes
it away when the entry is there; a holder that is killed delays the others by what is left of its lease. Without Redis
every process fetches for itself.
"""

import asyncio
import enum
import secrets
from collections.abc import Iterable, Sequence

from proxy.cache.redis_tier import RedisTier
from proxy.core.tasks import Tasks

_RENEWALS = 3  # in one lease, so that one of them may be late


class Claim(enum.Enum):
    """Who fetches an item."""

    OURS = 1
    HELD = 0
    """Another process."""
    THERE = 2
    """Nobody any more: an entry has come since we looked."""


class Claims:
    """The claims of one process; *lease_s* of zero switches them off."""

    def __init__(self, redis: RedisTier | None, tasks: Tasks, lease_s: float) -> None:
        self._redis = redis if lease_s else None
        self._tasks = tasks
        self._lease_s = lease_s
        self._owner = secrets.token_bytes(16)
        self._held: dict[bytes, int] = {}
        self._renewing: asyncio.Task[None] | None = None

    async def take(self, keys: Sequence[bytes], entries: Sequence[bytes | None]) -> list[Claim]:
        """
        Claim *keys*, each unless it is held, or its entry is there (*entries*: their keys, or ``None``); in order.

        Everything is ours when Redis is of no help.
        """
        if self._redis is None:
            return [Claim.OURS] * len(keys)
        answers = await self._redis.claim(keys, entries, self._owner, round(self._lease_s * 1000))
        if answers is None:
            return [Claim.OURS] * len(keys)
        claims = [Claim(answer) for answer in answers]
        for key, claim in zip(keys, claims, strict=True):
            if claim is Claim.OURS:
                self._held[key] = self._held.get(key, 0) + 1
        if self._held and self._renewing is None:
            self._renewing = self._tasks.start(self._renew())
        return claims

    def release(self, keys: Iterable[bytes]) -> None:
        """Give up what we hold of *keys*, in the background; the rest is left alone."""
        ours = []
        for key in keys:
            count = self._held.pop(key, 0)
            if count > 1:
                self._held[key] = count - 1
            elif count:
                ours.append(key)
        if ours and self._redis is not None:
            self._tasks.start(self._redis.release(ours, self._owner))

    async def _renew(self) -> None:
        """Until nothing is held."""
        try:
            while True:
                await asyncio.sleep(self._lease_s / _RENEWALS)
                if not self._held or self._redis is None:
                    return
                await self._redis.renew(tuple(self._held), self._owner, round(self._lease_s * 1000))
        finally:
            self._renewing = None
