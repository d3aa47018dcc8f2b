"""Read-through over the tiers, nearest first: memory, then all that is left in one Redis round trip."""

import time
from collections.abc import Callable, Iterable, Mapping

from proxy.cache.codec import Codec, Rejected
from proxy.cache.memory import MemoryTier
from proxy.cache.redis.tier import RedisTier
from proxy.core.answer import nothing
from proxy.core.entry import Entry
from proxy.core.found import Found
from proxy.core.telemetry import Telemetry
from proxy.runtime.offload import Heavy
from proxy.runtime.tasks import Tasks


class Tiers:
    """The memory tier and, if there is one, the Redis tier."""

    def __init__(
        self,
        memory: MemoryTier,
        redis: RedisTier | None,
        codec: Codec,
        tasks: Tasks,
        telemetry: Telemetry,
        *,
        max_pending_stores: int,
        grace_s: float = 0.0,
        heavy: Heavy | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.memory = memory
        self._redis = redis
        self._codec = codec
        self._tasks = tasks
        self._telemetry = telemetry
        self._max_pending_stores = max_pending_stores
        self._pending_stores = 0
        self._grace_ms = round(grace_s * 1000)
        self._heavy = heavy or Heavy()
        self._wall = wall

    @property
    def has_redis(self) -> bool:
        """Whether there is more than memory."""
        return self._redis is not None

    async def read(self, keys: Iterable[bytes], owner: bytes) -> Found:
        """
        The entries under *keys*, all of them *owner*'s, that any tier holds, fresh or, from Redis, in grace.

        Never raises, never waits longer than the Redis deadline.
        """
        found = Found()
        absent = []
        for key in dict.fromkeys(keys):
            entry = self.memory.get(key)
            if entry is None:
                absent.append(key)
            else:
                found.entries[key] = entry
                found.from_memory.add(key)
        if absent and self._redis is not None:
            await self._read_redis(self._redis, absent, owner, found)
        return found

    def fill(self, entries: Mapping[bytes, Entry], done: Callable[[], None] = nothing) -> None:
        """Keep *entries*: in memory at once, in Redis in the background; *done* is called when that is over."""
        now_unix_ms = self._now_unix_ms()
        for key, entry in entries.items():
            self.memory.put(key, entry, entry.remaining_ms(now_unix_ms))
        if self._redis is None:
            done()
            return
        if self._pending_stores >= self._max_pending_stores:
            self._telemetry.stored(0, failed=len(entries))
            done()
            return
        self._pending_stores += 1
        self._tasks.start(self._write_redis(self._redis, entries, done))

    async def connect(self) -> None:
        """Reach Redis before the first request does; no longer than that would wait."""
        if self._redis is not None:
            await self._redis.connect()

    async def close(self) -> None:
        """Let go of Redis; pending writes are the caller's to wait for."""
        if self._redis is not None:
            await self._redis.close()

    async def _read_redis(self, redis: RedisTier, keys: list[bytes], owner: bytes, found: Found) -> None:
        started_s = time.perf_counter()
        reply = await redis.read(keys, owner)
        found.redis_s = time.perf_counter() - started_s
        if reply is None:
            found.redis_ok = False
            return
        values, found.standing = reply
        sealed = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
        opened = await self._heavy(sum(map(len, sealed.values())), self._opened, sealed)
        now_unix_ms = self._now_unix_ms()
        for key, entry in opened.items():
            found.entries[key] = entry
            self.memory.put(key, entry, entry.remaining_ms(now_unix_ms))
        if len(opened) < len(sealed):
            found.rejected.update(sealed.keys() - opened.keys())
            self._telemetry.entries_rejected(len(found.rejected))

    async def _write_redis(self, redis: RedisTier, entries: Mapping[bytes, Entry], done: Callable[[], None]) -> None:
        try:
            values = await self._heavy(sum(entry.row.size for entry in entries.values()), self._sealed, entries)
            written = await redis.write(values) if values else 0
            self._telemetry.stored(written, failed=len(values) - written)
        finally:
            self._pending_stores -= 1
            done()

    def _opened(self, sealed: Mapping[bytes, bytes]) -> dict[bytes, Entry]:
        """Those of *sealed* that are entries of ours."""
        opened = {}
        for key, value in sealed.items():
            try:
                opened[key] = self._codec.open(key, value)
            except Rejected:
                continue
        return opened

    def _sealed(self, entries: Mapping[bytes, Entry]) -> list[tuple[bytes, bytes, int]]:
        """Key, stored form and lifetime (ms) in Redis of those of *entries* that can be stored."""
        sealed = [(key, self._codec.seal(key, entry), entry.ttl_ms) for key, entry in entries.items()]
        return [(key, value, ttl_ms + self._grace_ms) for key, value, ttl_ms in sealed if value is not None]

    def _now_unix_ms(self) -> int:
        return int(self._wall() * 1000)
