"""
Reads of the shared tier: on one connection for all while the circuit is closed, by the guard's long way otherwise.

The first read, the one after a connection has broken, and the trial of a circuit that was open connect within the
guard's deadline, in a task that no client can cancel.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from proxy.cache.guard import Guard, Neutral, Unavailable
from proxy.cache.pipe import Pipe, Values


class Reads:
    """Asks for many values at a time; *connect* makes a connection, ``None`` when Redis is well but refuses us."""

    def __init__(self, guard: Guard, connect: Callable[[], Awaitable[Pipe | None]]) -> None:
        self._guard = guard
        self._connect = connect
        self._connecting = asyncio.Lock()
        self._pipe: Pipe | None = None

    async def values(self, names: Sequence[bytes]) -> Values | None:
        """What stands under *names*, in one round trip; ``None`` when Redis could not be asked."""
        pipe, mark = self._pipe, self._guard.begin()
        if mark is None or pipe is None or not pipe.is_open:
            return await self._values_anew(names)
        asked = pipe.ask(names, mark)
        reply = await asked if asked is not None else None
        return reply if isinstance(reply, list) else None

    async def close(self) -> None:
        """Let go of the connection."""
        if self._pipe is not None:
            await self._pipe.close()

    async def _values_anew(self, names: Sequence[bytes]) -> Values | None:
        async def fetch() -> Values:
            pipe = await self._connected()
            if pipe is None:
                return [None] * len(names)
            asked = pipe.ask(names, None)
            reply = await asked if asked is not None else Neutral()
            if isinstance(reply, Exception):
                raise reply
            return reply

        try:
            return await self._guard.run(fetch)
        except Unavailable:
            return None

    async def _connected(self) -> Pipe | None:
        """
        The connection, made anew if need be.

        One at a time tries, within its own deadline; who waits behind it is as late, and tries with what is left.
        """
        async with self._connecting:
            if self._pipe is None or not self._pipe.is_open:
                self._pipe = await self._connect()
            return self._pipe
