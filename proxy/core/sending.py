"""
A write's body on its way up: what has to happen before the upstream can act on it, and whether it ever could.

A message that is not complete cannot be executed: neither one whose declared length has not come, nor one in chunks
without the last chunk. So the last piece is what counts: it waits until ``announce`` is done, and if it is never sent
(the client broke off, no connection could be had), nothing has happened.
"""

from collections.abc import AsyncIterator, Awaitable, Callable

from proxy.core.answer import Body


class Sending:
    """*body*, as ``core.answer.Body``; *announce* is awaited once, before the last of it goes out."""

    def __init__(self, body: Body, announce: Callable[[], Awaitable[None]]) -> None:
        self._body = body
        self._announce = announce
        self.length = body.length
        self.is_empty = body.is_empty
        self.is_whole = False
        """Whether the upstream may have all of it."""
        self.objection: Exception | None = None
        """Why ``announce`` has forbidden to send the last of it."""

    async def read(self, limit: int) -> bytes | None:
        """See ``core.answer.Body``."""
        return await self._body.read(limit)

    def at_hand(self, limit: int) -> bytes | None:
        """See ``core.answer.Body``."""
        return self._body.at_hand(limit)

    async def begun(self, limit: int) -> bool:
        """See ``core.answer.Body``."""
        return await self._body.begun(limit)

    async def pieces(self) -> AsyncIterator[bytes]:
        """See ``core.answer.Body``; each piece leaves when the next one is there, and the last one when it may."""
        held: bytes | None = None
        async for piece in self._body.pieces():
            if held is not None:
                yield held
            held = piece
        await self.before_end()
        if held is not None:
            yield held

    async def before_end(self) -> None:
        """See ``core.answer.Body``."""
        if self.is_whole:
            return
        try:
            await self._announce()
        except Exception as error:
            self.objection = error
            raise
        self.is_whole = True
