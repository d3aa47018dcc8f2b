"""
Commands to the shared tier: on one connection for all while the circuit is closed, by the guard's long way otherwise.

The first command, the one after a connection has broken, and the trial of a circuit that was open connect within the
guard's deadline, in a task that no client can cancel.

Before anything else a new connection is asked whether Redis' data are those that we know (``incarnation``). What is
asked next follows at once: Redis answers in order, so what comes back is judged by what that look has shown.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from proxy.cache.invalidation.incarnation import Incarnation, Look
from proxy.cache.redis.breaker import Guard, Neutral, Unavailable
from proxy.cache.redis.commands import Command, Result
from proxy.cache.redis.pipe import Pipe

Heard = Callable[[Look | None], None]
Looking = asyncio.Future[Look | Exception | None]

_RETIRED_S = 1.0
"""How long a connection that is no longer used may take for what was asked on it."""


class Line:
    """
    One connection at a time; *connect* makes it, ``None`` when Redis is well but refuses us.

    *heard* is told what each look at *incarnation* has shown.
    """

    def __init__(
        self, guard: Guard, connect: Callable[[], Awaitable[Pipe | None]], incarnation: Incarnation, heard: Heard
    ) -> None:
        self._guard = guard
        self._connect = connect
        self._incarnation = incarnation
        self._heard = heard
        self._retired: set[Pipe] = set()
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

    async def look(self) -> None:
        """Look whether Redis' data are those that we know; nothing if Redis cannot be asked."""

        async def look() -> None:
            pipe, greeted = await self._connected()
            if pipe is not None and greeted is None:
                greeted = self._greet(pipe, is_new=False)
            if greeted is not None and isinstance(failure := await greeted, Exception):
                raise failure

        try:
            await self._guard.run(look, vouches=False)
        except Unavailable:
            return

    def renew(self) -> None:
        """Use another connection from now on; what is under way on this one may end."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None and pipe.is_open:
            self._retired.add(pipe)
            asyncio.get_running_loop().call_later(_RETIRED_S, self._end, pipe)

    async def close(self) -> None:
        """Let go of the connection."""
        pipes = [*self._retired, *([self._pipe] if self._pipe is not None else [])]
        await asyncio.gather(*(pipe.close() for pipe in pipes))

    def _end(self, pipe: Pipe) -> None:
        self._retired.discard(pipe)
        pipe.end()

    async def _ask_anew(self, command: Command[Result]) -> Result | None:
        if self._incarnation.is_stranger:
            return None

        async def ask() -> Result:
            pipe, greeted = await self._connected()
            if pipe is None:
                return command.refused
            reply = await pipe.ask(command, None)
            if isinstance(reply, Neutral) and greeted is not None and isinstance(failure := await greeted, Exception):
                raise failure  # the connection broke under the look, which was asked first
            if isinstance(reply, Exception):
                raise reply
            return reply

        try:
            reply = await self._guard.run(ask, vouches=command.vouches)
        except Unavailable:
            return None
        return None if self._incarnation.is_stranger else reply

    async def _connected(self) -> "tuple[Pipe | None, Looking | None]":
        """
        The connection, made anew if need be, and then the look that it was greeted with.

        One at a time tries, within its own deadline; who waits behind it is as late, and tries with what is left.
        """
        async with self._connecting:
            if self._pipe is not None and self._pipe.is_open:
                return self._pipe, None
            self._pipe = pipe = await self._connect()
            return pipe, None if pipe is None else self._greet(pipe, is_new=True)

    def _greet(self, pipe: Pipe, *, is_new: bool) -> "Looking":
        looked = pipe.ask(self._incarnation.look(is_new_connection=is_new), None)
        looked.add_done_callback(self._looked)
        return looked

    def _looked(self, looked: "Looking") -> None:
        if not looked.cancelled() and not isinstance(look := looked.result(), Exception):
            self._heard(look)
