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

from proxy.cache.redis.tier import RedisTier
from proxy.runtime.tasks import Tasks

_RENEWALS = 3  # in one lease, so that one of them may be late


class Claim(enum.Enum):
    """Who fetches an item."""

    OURS = 1
    HELD = 0
    """Another process."""
    THERE = 2
    """Nobody any more: an entry has come since we looked."""
    ALONE = 3
    """Everybody for itself: an answer that came lately could not be kept."""


class Claims:
    """
    The claims of one process; *lease_s* of zero switches them off. No two trips of a process claim one key at a time.

    *uncacheable_s* is for how long nobody waits for a key whose answer could not be kept.
    """

    def __init__(self, redis: RedisTier | None, tasks: Tasks, lease_s: float, uncacheable_s: float) -> None:
        self._redis = redis if lease_s else None
        self._tasks = tasks
        self._lease_s = lease_s
        self._uncacheable_s = uncacheable_s
        self._owner = secrets.token_bytes(16)
        self._held: set[bytes] = set()
        self._next_renewal: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._held)

    @property
    def patience_s(self) -> float:
        """How long anybody waits for another process' claim: its holder may renew it and be stuck all the same."""
        return 2 * self._lease_s

    async def take(self, keys: Sequence[bytes], entries: Sequence[bytes | None]) -> list[Claim]:
        """
        Claim *keys*, each unless it is held, or its entry is there (*entries*: their keys, or ``None``); in order.

        Everything is ours when Redis is of no help. Waits at most one Redis deadline.
        """
        if self._redis is None or not keys:
            return [Claim.OURS] * len(keys)
        answers = await self._redis.claim(keys, entries, self._owner, _ms(self._lease_s))
        if answers is None:
            return [Claim.OURS] * len(keys)
        claims = [Claim(answer) for answer in answers]
        self._held.update(key for key, claim in zip(keys, claims, strict=True) if claim is Claim.OURS)
        self._renew_later()
        return claims

    def release(self, keys: Iterable[bytes]) -> None:
        """Give up what we hold of *keys*, in the background; the rest is left alone."""
        ours = self._dropped(keys)
        if ours and self._redis is not None:
            self._tasks.start(self._redis.release(ours, self._owner))

    def mark(self, keys: Iterable[bytes]) -> None:
        """Give up what we hold of *keys*, as its answer cannot be kept: for a while nobody need wait for anybody."""
        ours = self._dropped(keys)
        if ours and self._redis is not None:
            self._tasks.start(self._redis.release(ours, self._owner, _ms(self._uncacheable_s)))

    def _dropped(self, keys: Iterable[bytes]) -> list[bytes]:
        ours = [key for key in keys if key in self._held]
        self._held.difference_update(ours)
        return ours

    def _renew_later(self) -> None:
        if self._held and self._next_renewal is None:
            self._next_renewal = asyncio.get_running_loop().call_later(self._lease_s / _RENEWALS, self._renew)

    def _renew(self) -> None:
        """Called by the loop, a few times in a lease, until nothing is held."""
        self._next_renewal = None
        if self._held and self._redis is not None:
            self._tasks.start(self._redis.renew(tuple(self._held), self._owner, _ms(self._lease_s)))
            self._renew_later()


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
