"""A client's request body: read whole when it must be keyed, passed on as it arrives otherwise."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import HttpVersion11, hdrs, web

from proxy.core.errors import ClientError, ErrorCode, ProxyError, no_room
from proxy.core.held_bytes import Hold
from proxy.server.http.half_closed import CONTINUE


@dataclass(frozen=True, slots=True)
class Patience:
    """
    How long a client may take for a body. Only time counts in which the proxy waits for it, and not the upstream's.

    *idle_s* in one go, *total_s* altogether; within each *idle_s* of waiting there are *bytes_per_s* at least.
    """

    idle_s: float
    total_s: float = math.inf
    bytes_per_s: float = 0.0


class NoRoomError(web.RequestPayloadError):
    """The rest of a body is not read, as too much is held already."""


class IncomingBody:
    """
    Implements ``core.answer.Body`` on an aiohttp request.

    *hold* is its connection's, and is told what is kept here until ``end``.
    """

    def __init__(self, raw: web.BaseRequest, patience: Patience, hold: Hold) -> None:
        self._raw = raw
        self._hold = hold
        self._patience = patience
        self._waited_s = 0.0
        self._looked_s = 0.0
        self._looked_bytes = 0
        self._taken: list[bytes] = []
        # RFC 9110 §10.1.1: a client of HTTP/1.0 does not know interim answers.
        self._asked_to_continue = hdrs.EXPECT not in raw.headers or raw.version < HttpVersion11
        declared = raw.headers.get(hdrs.CONTENT_LENGTH)
        self.length = int(declared) if declared is not None else None
        self.is_empty = declared is None and hdrs.TRANSFER_ENCODING not in raw.headers
        self.fault: ProxyError | None = None
        """What was wrong with the body: who reads it reports this to somebody else, or not at all."""
        self.is_answered = False
        """The answer is on its way, so nobody minds any more how long the rest takes."""
        self.received_bytes = 0

    @property
    def is_withheld(self) -> bool:
        """Whether its client still waits to be asked for it: it may send it all the same, or another request."""
        return not (self._asked_to_continue or self.is_empty)

    async def read(self, limit: int) -> bytes | None:
        """The whole body, or ``None`` when it is longer than *limit*; ``pieces`` still gives all of it."""
        if self.length is not None and self.length > limit:
            return None
        if (content := self.at_hand(limit)) is not None:
            return content
        size = 0
        async for piece in self._arriving():
            self._keep(piece)
            size += len(piece)
            if size > limit:
                return None
        self._taken = [b"".join(self._taken)]
        return self._taken[0]

    def at_hand(self, limit: int) -> bytes | None:
        """The whole body, if it is here: see ``core.answer.Body``."""
        if self.is_empty:
            return b""
        content = self._raw.content
        if self.length is None or self.length > limit or not self._asked_to_continue:
            return None
        if not content.is_eof() or content.exception() is not None:
            return None
        rest = content.read_nowait()
        self.received_bytes += len(rest)
        self._keep(rest)
        self._taken = [b"".join(self._taken)]
        return self._taken[0]

    def end(self) -> None:
        """The request is over."""
        self._taken = []
        self._hold.end()

    def _keep(self, piece: bytes) -> None:
        self._taken.append(piece)
        self._hold.kept += len(piece)

    async def begun(self, limit: int) -> bool:
        """Wait for all of the body if it is short, else for its first piece: see ``core.answer.Body``."""
        if self.length is not None and self.length <= limit:
            return await self.read(limit) is not None
        if not self._taken:
            async for piece in self._arriving():
                self._keep(piece)
                break
        return self.is_empty

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of the body: first what was already read, then the rest as it arrives."""
        for piece in self._taken:
            yield piece
        async for piece in self._arriving():
            yield piece

    async def before_end(self) -> None:
        """Nothing to do."""

    async def _arriving(self) -> AsyncIterator[bytes]:
        if self.is_empty:
            return
        if not self._asked_to_continue:
            # RFC 9110 §10.1.1; asked for only now, so that a request refused by its head is refused without its body.
            self._asked_to_continue = True
            await self._raw.writer.write(CONTINUE)
        while piece := await self._next():
            self.received_bytes += len(piece)
            yield piece

    async def _next(self) -> bytes:
        """What has come, or comes next; empty at the end."""
        content = self._raw.content
        try:
            if content.is_eof():  # all of it is here
                return await content.readany()
            if self.is_answered:
                return await content.readany()
            return await self._awaited()
        except NoRoomError as error:
            self.fault = no_room()
            raise self.fault from error
        except web.RequestPayloadError as error:
            self.fault = ClientError(ErrorCode.BAD_REQUEST, "the request body's framing is broken")
            raise self.fault from error
        except ConnectionError as error:
            self.fault = ClientError(ErrorCode.BAD_REQUEST, "the client left inside the request's body")
            raise self.fault from error

    async def _awaited(self) -> bytes:
        patience, loop = self._patience, asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(min(patience.idle_s, patience.total_s - self._waited_s)):
                piece = await self._raw.content.readany()
        except TimeoutError:
            if self.is_answered:
                return await self._raw.content.readany()
            raise self._too_slow() from None
        self._waited_s += loop.time() - began_s
        if (span_s := self._waited_s - self._looked_s) >= patience.idle_s:
            if self.received_bytes + len(piece) - self._looked_bytes < span_s * patience.bytes_per_s:
                raise self._too_slow()
            self._looked_s, self._looked_bytes = self._waited_s, self.received_bytes + len(piece)
        return piece

    def _too_slow(self) -> ClientError:
        self.fault = ClientError(ErrorCode.REQUEST_TIMEOUT, "the request's body did not come in time", 408)
        return self.fault
