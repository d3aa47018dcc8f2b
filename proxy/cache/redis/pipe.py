"""
Commands pipelined on one connection: for hits, the client's work per command costs more than Redis' own.

Commands are written once a turn of the loop, and replies, which come in the order of the commands, are handed out as
they arrive: no task, no timer and no connection of its own for any of them. Who leaves keeps a place in the row; the
reply is read and thrown away. Whatever makes it doubtful whose reply is next ends the connection, and everything asked
on it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis

from proxy.cache.redis.breaker import Neutral
from proxy.cache.redis.commands import Command, Garbage, Result
from proxy.cache.redis.deadline import SLICES, PromptTurn, Slices

MAX_PENDING = 4_096
"""Commands under way on one connection; a healthy Redis answers so many in well under a deadline."""

_MAX_UNSENT_BYTES = 4 << 20
_MORE = object()


class Pipe(asyncio.Protocol):
    """
    One connection, taken over from *writer*, which is open and has nothing left to be read.

    *parse_error* makes an exception of an error reply's text; *judge* says which failure of Redis that is, ``None`` if
    Redis is well and refuses only this command. *ended* is told how each command ended that was asked with a mark: of
    the mark, and the failure or, if the command vouches, ``None``.
    """

    def __init__(
        self,
        writer: asyncio.StreamWriter,
        *,
        deadline_s: float,
        parse_error: Callable[[str], Exception],
        judge: Callable[[Exception], Exception | None],
        ended: Callable[[int, Exception | None], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = writer  # kept: it closes the connection when it is forgotten
        self._transport = writer.transport
        self._deadline_s = deadline_s
        self._judge = judge
        self._ended = ended
        self._reader = hiredis.Reader(protocolError=Garbage, replyError=parse_error, notEnoughData=_MORE)
        # Each with its command, the slices of the deadline that were over when it was asked, and its mark.
        self._pending: deque[tuple[asyncio.Future[Any], Command[Any], float, int | None]] = deque()
        self._unsent: list[bytes] = []
        # One for all: the oldest command is the first to be late.
        self._slices = Slices(self._loop, deadline_s, self._look)
        self._last_turn: PromptTurn | None = None
        self._is_full = False
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self.is_open = True
        self._transport.set_write_buffer_limits(_MAX_UNSENT_BYTES)
        self._transport.set_protocol(self)

    def ask(self, command: Command[Result], mark: int | None) -> "asyncio.Future[Result | Exception]":
        """
        What *command* brings, or why it does not: a failure of Redis, or Neutral. Never raises.

        Neutral without being asked, if the connection is closed or too much is under way on it.
        """
        asked: asyncio.Future[Result | Exception] = self._loop.create_future()
        if not self.is_open or self._is_full or len(self._pending) >= MAX_PENDING:
            asked.set_result(Neutral())
            return asked
        packed = hiredis.pack_command(command.words)  # type: ignore[arg-type]
        slices = self._slices
        if slices.is_running:
            self._pending.append((asked, command, slices.count + 1, mark))  # the slice that has begun is not all its
        else:
            slices.start()
            self._pending.append((asked, command, slices.count, mark))
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(packed)
        return asked

    def end(self) -> None:
        """End the connection and what is under way on it."""
        self._end(Neutral())

    async def close(self) -> None:
        """The same, and wait until it is gone."""
        self.end()
        await self._gone

    def _send(self) -> None:
        """What one turn of the loop asked for at once: a system call costs as much as all the rest."""
        if not self.is_open:
            return
        commands = b"".join(self._unsent)
        self._unsent.clear()
        try:
            self._transport.write(commands)
        except RuntimeError:  # uvloop's word for a connection that has just broken
            self._end(ConnectionResetError("the connection to Redis has ended"))

    # --- called by the event loop -------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Hand out the replies that are complete now."""
        reader, pending = self._reader, self._pending
        try:
            reader.feed(data)
            while pending:
                reply = reader.gets()
                if reply is _MORE:
                    return
                self._answer(reply)
            if reader.has_data():
                raise Garbage("a reply that nobody asked for")  # noqa: TRY301  the same end as for any other
        except Exception as error:  # noqa: BLE001  the parser's own, or what redis-py makes of half an error
            self._end(error if isinstance(error, Garbage) else Garbage("unreadable"))

    def pause_writing(self) -> None:
        """Redis does not take what is sent."""
        self._is_full = True

    def resume_writing(self) -> None:
        """It does again."""
        self._is_full = False

    def eof_received(self) -> None:
        """Redis says no more, and the connection closes by itself."""
        self._end(ConnectionResetError("Redis has closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what was under way; nothing else follows."""
        self._end(exc or ConnectionResetError("the connection to Redis has ended"))
        if not self._gone.done():
            self._gone.set_result(None)

    # --- the row ------------------------------------------------------------------------------------------------------

    def _answer(self, reply: object) -> None:
        """Give *reply* to the oldest command."""
        asked, command, _, mark = self._pending[0]
        if isinstance(reply, Exception):
            if (failure := self._judge(reply)) is not None:
                self._end(failure)
                return
            result = command.refused
        else:
            result = command.read(reply)
        self._pending.popleft()
        if not asked.done():
            asked.set_result(result)
        if mark is not None and command.vouches:
            self._ended(mark, None)

    def _end(self, error: Exception, *, is_for_all: bool = False) -> None:
        """
        Close, and fail what is under way: the oldest command with *error*, and if it *is for all* every read so.

        The others say nothing more: that one connection broke under many commands, or that one store was slow before
        many, is one fact about Redis.
        """
        if self.is_open:
            self.is_open = False
            self._transport.abort()
        self._slices.stop()
        if self._last_turn is not None:
            self._last_turn.cancel()
            self._last_turn = None
        row = enumerate(self._pending)
        ends = [
            (asked, mark, error if not at or (is_for_all and command.vouches) else Neutral())
            for at, (asked, command, _, mark) in row
        ]
        self._pending.clear()
        for asked, _, end in ends:  # first, so that nobody waits for ever whatever is thought of it
            if not asked.done():
                asked.set_result(end)
        for _, mark, end in ends:
            if mark is not None:
                self._ended(mark, end)

    # --- the deadline -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """After each slice of the deadline."""
        if not self._pending:
            self._slices.stop()
        elif self._last_turn is None and self._slices.count - self._pending[0][2] >= SLICES:
            # An answer may be there already, and only we have not come to read it.
            oldest, last_s = self._pending[0], time.monotonic() + self._deadline_s
            self._last_turn = PromptTurn(self._loop, last_s, lambda: self._judge_silence(oldest))

    def _judge_silence(self, oldest: object) -> None:
        self._last_turn = None
        if self._pending and self._pending[0] is oldest:
            self._end(TimeoutError("no reply within the deadline"), is_for_all=True)
