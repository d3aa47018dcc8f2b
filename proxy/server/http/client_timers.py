"""
How many clients there may be, and how long one may take for what is its to do: send a head, take an answer.

A connection has one timer, which looks now and then: a request costs it nothing. What follows a head has its own time
limits: a body in ``body``, silence between two requests in aiohttp.
"""

import asyncio
import contextlib
import fcntl
import struct
import termios
from collections.abc import Callable

from proxy.core.errors import ErrorCode
from proxy.server.http.half_closed import Resets

_LOOKS = 4
"""In each time limit; so a client has up to a quarter more."""
_TURNED_AWAY_S = 1.0
_MOST_TURNED_AWAY = 256
"""Who are being told that there is no room; beyond that, connections end without a word."""


class Clients:
    """All connections of a worker's data ports; *on_ended* is told why the proxy ended or refused one."""

    def __init__(
        self,
        *,
        max_connections: int,
        header_wait_s: float,
        write_idle_s: float,
        on_ended: Callable[[str], None],
    ) -> None:
        self.count = 0
        self.header_wait_s = header_wait_s
        self.write_idle_s = write_idle_s
        self.look_s = min(header_wait_s, write_idle_s) / _LOOKS
        self.on_ended = on_ended
        self.resets = Resets()
        self._max_connections = max_connections
        self._turned_away: set[asyncio.BaseProtocol] = set()

    def has_room(self, transport: asyncio.Transport, words: Callable[[], bytes]) -> bool:
        """Whether one more may come; if not, it is told *words* and closed."""
        if self.count < self._max_connections:
            return True
        self.on_ended(ErrorCode.TOO_MANY_CONNECTIONS)
        if len(self._turned_away) >= _MOST_TURNED_AWAY:
            transport.abort()
            return False
        transport.set_protocol(_TurnedAway(transport, words(), self._turned_away))
        return False


class _TurnedAway(asyncio.Protocol):
    """
    A connection that there was no room for: *words*, then the end.

    What the client has sent meanwhile is read and dropped for a moment: closed on unread bytes, a socket is reset, and
    the words are lost.
    """

    def __init__(self, transport: asyncio.Transport, words: bytes, others: set[asyncio.BaseProtocol]) -> None:
        self._others = others
        others.add(self)
        self._end = asyncio.get_running_loop().call_later(_TURNED_AWAY_S, transport.abort)
        transport.write(words)
        if transport.can_write_eof():
            transport.write_eof()
        else:  # TLS says goodbye by itself
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's own
        """Called by the event loop."""
        self._others.discard(self)
        self._end.cancel()


class Watch:
    """One connection's timer, from its first moment to its last, also when aiohttp has closed it but bytes are left."""

    def __init__(self, transport: asyncio.Transport, clients: Clients) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._clients = clients
        clients.count += 1
        self._head_since_s: float | None = self._loop.time()
        self._unsent_bytes = 0
        self._progress_s = 0.0
        self._timer = self._loop.call_later(clients.look_s, self._look)
        self.gave_up: ErrorCode | None = None
        """Why the proxy broke the connection."""

    def end(self) -> None:
        """The connection is gone."""
        self._timer.cancel()
        self._clients.count -= 1

    def abort(self) -> None:
        """Break the connection."""
        self._transport.abort()

    def head_begins(self) -> bool:
        """Bytes came that are not a whole head yet; whether they are the first after another request."""
        if self._head_since_s is not None:
            return False
        self._head_since_s = self._loop.time()
        return True

    def head_ends(self) -> None:
        """A head is there, or will not come as it was malformed."""
        self._head_since_s = None

    def wrote(self) -> None:
        """What was waiting to be sent went on its way."""
        self._unsent_bytes = 0

    def _look(self) -> None:
        clients, now_s = self._clients, self._loop.time()
        if self._head_since_s is not None and now_s - self._head_since_s >= clients.header_wait_s:
            self._give_up(ErrorCode.REQUEST_TIMEOUT)
            return
        waiting = self._transport.get_write_buffer_size()
        unsent = waiting + self._in_kernel() if waiting else 0
        if unsent != self._unsent_bytes:
            self._unsent_bytes, self._progress_s = unsent, now_s
        elif unsent and now_s - self._progress_s >= clients.write_idle_s:
            self._give_up(ErrorCode.CLIENT_TOO_SLOW)
            return
        self._timer = self._loop.call_later(clients.look_s, self._look)

    def _in_kernel(self) -> int:
        """
        Bytes that the client's side has not acknowledged yet (SIOCOUTQ, which has TIOCOUTQ's number).

        Without them a client that reads steadily but slowly looks like one that reads nothing: the kernel asks for more
        only when a third of its megabytes is free again.
        """
        socket = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError, ValueError):
            (size,) = struct.unpack("i", fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4)))
            return int(size)
        return 0

    def _give_up(self, reason: ErrorCode) -> None:
        self.gave_up = reason
        self._clients.on_ended(reason)
        self.abort()
