"""
Which credentials the vendor has refused: they get nothing from the cache until it accepts them again.

Redis holds a standing for each credential whose answers are kept: accepted, or the mark of a refusal, random like a
generation's token. Who was sent on before a refusal and accepted after it has not seen the mark, and cannot take it
away. A credential without a standing has nothing to lose: whoever sends made-up ones leaves no trace, here or there.

An acceptance counts under the incarnation of Redis' data (``incarnation``) that it was noted under: a Redis that went
back may have forgotten a refusal. A credential that has entries, and that is not known to be accepted, is in doubt: its
next request goes to the vendor, whose answer settles it.
"""

import secrets
from collections.abc import Callable

from cachetools import LRUCache, TTLCache

from proxy.cache.redis.tier import MARK_BYTES, RedisTier
from proxy.runtime.tasks import Tasks

_MAX_KNOWN = 10_000
_VOUCH_EVERY_S = 60.0
# A standing must be there as long as anything that was kept under it.
_MARGIN_MS = 2 * int(_VOUCH_EVERY_S * 1000)
_DOUBT = b"doubt"
"""In the place of a mark; no refusal has one of this length."""


class Standings:
    """
    What one process knows of owners (keyed hashes of endpoint and credential), and tells the others through Redis.

    *longest_ms* is the longest time that an entry is kept.
    """

    def __init__(
        self, redis: RedisTier | None, tasks: Tasks, *, longest_ms: int, monotonic: Callable[[], float]
    ) -> None:
        self._redis = redis
        self._tasks = tasks
        self._life_ms = longest_ms + _MARGIN_MS
        # Those that were accepted or given hits here, each with its mark if it was refused since.
        self._known: LRUCache[bytes, bytes | None] = LRUCache(_MAX_KNOWN)
        self._vouched: TTLCache[bytes, bool] = TTLCache(_MAX_KNOWN, _VOUCH_EVERY_S, monotonic)
        self.version = 0
        """Another number whenever there is one more mark."""

    def mark(self, owner: bytes, shared: bytes | None, *, has_entries: bool) -> bytes | None:
        """
        The mark against *owner*, or ``None``: it may be given what was found.

        *shared* is its standing in Redis, as far as that was asked; *has_entries*: something was found.
        """
        try:
            mark = self._known[owner]
        except KeyError:
            mark = self._first_mark(owner, shared, has_entries=has_entries)
        # Anybody could have written there: what can be no mark of ours is none.
        if (mark is None or mark is _DOUBT) and shared is not None and len(shared) == MARK_BYTES:
            mark = self._known[owner] = shared
            self.version += 1
        elif mark is _DOUBT and self._is_accepted(shared):
            mark = self._known[owner] = None
        return mark

    def _first_mark(self, owner: bytes, shared: bytes | None, *, has_entries: bool) -> bytes | None:
        """The same for an *owner* that nothing is known of here, or no longer."""
        if not has_entries and shared is None:
            return None
        mark = self._known[owner] = None if self._is_accepted(shared) else _DOUBT
        self.version += mark is not None
        return mark

    def _is_accepted(self, shared: bytes | None) -> bool:
        return self._redis is None or (shared is not None and shared == self._redis.accepted)

    def redis_went_back(self) -> None:
        """Refusals that others have noted may be lost: nobody is known to be accepted, unless Redis is told so anew."""
        for owner in [owner for owner, mark in self._known.items() if mark is None]:
            del self._known[owner]
        self._vouched.clear()
        self.version += 1

    async def refused(self, owner: bytes) -> None:
        """
        The vendor does not accept *owner*: no hits from now on, here and wherever Redis is asked.

        Waits until Redis knows, no longer than a read would. Should it not learn of it: the next request of *owner*
        goes to the vendor too, and is refused again.
        """
        mark, is_known = secrets.token_bytes(MARK_BYTES), owner in self._known
        if is_known:
            self._known[owner] = mark
            self.version += 1
        if self._redis is not None:
            await self._redis.refuse(owner, mark, self._life_ms, is_known=is_known)

    def accepted(self, owner: bytes, mark: bytes | None) -> None:
        """The vendor has accepted *owner* in a request that was sent on when *mark* was known."""
        if self._known.get(owner) != mark:
            return  # refused since
        self._known[owner] = None
        if self._redis is not None and (mark is not None or owner not in self._vouched):
            self._vouched[owner] = True
            self._tasks.start(self._vouch(self._redis, owner, mark))

    async def _vouch(self, redis: RedisTier, owner: bytes, mark: bytes | None) -> None:
        if not await redis.accept(owner, mark, self._life_ms):
            self._vouched.pop(owner, None)
