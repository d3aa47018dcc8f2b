"""
Commands to the shared tier: on one connection for all while the circuit is closed, by the guard's long way otherwise.

The first command, the one after a connection has broken, and the trial of a circuit that was open connect within the
guard's deadline, in a task that no client can cancel.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from proxy.cache.commands import Command, Result
from proxy.cache.guard import Guard, Unavailable
from proxy.cache.pipe import Pipe


class Line:
    """One connection at a time; *connect* makes it, ``None`` when Redis is well but refuses us."""

    def __init__(self, guard: Guard, connect: Callable[[], Awaitable[Pipe | None]]) -> None:
        self._guard = guard
        self._connect = connect
        self._connecting = asyncio.Lock()
        self._pipe: Pipe | None = None

    async def ask(self, command: Command[Result]) -> Result | None:
        """What *command* brings; ``None`` when Redis could not be asked."""
        pipe, mark = self._pipe, self._guard.begin()
        if mark is None or pipe is None or not pipe.is_open:
            return await self._ask_anew(command)
        reply = await pipe.ask(command, mark)
        return None if isinstance(reply, Exception) else reply

    async def ask_all(self, commands: Sequence[Command[Result]]) -> list[Result | None]:
        """The same for several, which Redis gets in this order."""
        replies: list[Result | None] = []
        if commands and (self._pipe is None or not self._pipe.is_open or self._guard.begin() is None):
            first = await self.ask(commands[0])  # makes the connection, if there can be one
            replies.append(first)
        pipe, mark = self._pipe, self._guard.begin()
        if mark is None or pipe is None:
            return [*replies, *[None] * (len(commands) - len(replies))]
        for asked in [pipe.ask(command, mark) for command in commands[len(replies) :]]:
            reply = await asked
            replies.append(None if isinstance(reply, Exception) else reply)
        return replies

    async def close(self) -> None:
        """Let go of the connection."""
        if self._pipe is not None:
            await self._pipe.close()

    async def _ask_anew(self, command: Command[Result]) -> Result | None:
        async def ask() -> Result:
            pipe = await self._connected()
            if pipe is None:
                return command.refused
            reply = await pipe.ask(command, None)
            if isinstance(reply, Exception):
                raise reply
            return reply

        try:
            return await self._guard.run(ask, vouches=command.vouches)
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
