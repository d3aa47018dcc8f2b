"""
After a purge of everything: old entries are taken out of Redis, so that their memory is free before they end.

Nobody would find them anyway, so this is done in small steps, beside everything else, and given up at the first
trouble. What is written meanwhile may go with them: a miss.
"""

import asyncio

from proxy.cache.redis.tier import entries_prefix
from proxy.control.redis_link import LinkDown, RedisLink
from proxy.runtime.tasks import Tasks
from proxy.telemetry.log_output import logger

_AT_ONCE = 200
_PAUSE_S = 0.01


class Sweep:
    """Removes every entry under the prefix of *link*; at most one sweep runs."""

    def __init__(self, link: RedisLink, tasks: Tasks) -> None:
        self._link = link
        self._tasks = tasks
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, from the start if one is running: it may have passed by what was written since."""
        self.cancel()
        self._running = self._tasks.start(self._run())

    def cancel(self) -> None:
        """Let the rest lie."""
        if self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        beginning, cursor, removed = entries_prefix(self._link.prefix), 0, 0
        try:
            while True:
                cursor, count = await self._link.remove_some(beginning, cursor, _AT_ONCE)
                removed += count
                if cursor == 0:
                    break
                await asyncio.sleep(_PAUSE_S)
        except LinkDown as error:
            logger().warning("purged_entries_left", removed=removed, error=error.kind)
        else:
            logger().info("purged_entries_removed", removed=removed)
