"""
Clients that say that they send no more (FIN), and whether they still wait for their answer.

A client that has half-closed its connection and one that has closed it look the same until something is sent: then one
takes it, and the other's system answers with a reset. An interim answer (RFC 9110 §15.2) is what may be sent before the
real one; a client of HTTP/1.0 knows none, so it is answered whether it is still there or not.
"""

import asyncio
import contextlib
import select
from collections.abc import Callable
from typing import Any

from aiohttp import HttpVersion11, web

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_ASK_AFTER_S = 0.05
"""An answer that comes sooner tells as much itself."""
_ASK_AGAIN_S = 10.0


class Resets:
    """Tells of connections that the other side has reset, where nobody reads any more; one per event loop."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Callable[[], None]] = {}

    def watch(self, number: int, gone: Callable[[], None]) -> None:
        """Call *gone* when the socket of this file *number* is reset."""
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)
        # The end of what is read has come already, and would be told for ever; what breaks is told unasked.
        self._epoll.register(number, 0)
        self._watched[number] = gone

    def forget(self, number: int, gone: Callable[[], None]) -> None:
        """The socket is closed, or about to be; its number may be another's by now."""
        if self._epoll is None or self._watched.get(number) != gone:
            return
        del self._watched[number]
        with contextlib.suppress(OSError):
            self._epoll.unregister(number)
        if not self._watched:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _look(self) -> None:
        if self._epoll is not None:
            for number, _ in self._epoll.poll(0):
                self._watched[number]()


def has_begun(request: web.BaseRequest | None) -> bool:
    """Whether part of the answer to *request* is out: who says goodbye in the middle of one does not want the rest."""
    return request is not None and request.writer.output_size > len(CONTINUE)


class HalfClosed:
    """A connection on which nothing more comes, and an answer is owed: to *request*, or to what becomes one soon."""

    def __init__(
        self,
        transport: Any,  # noqa: ANN401  asyncio's, or uvloop's
        resets: Resets,
        request: Callable[[], web.BaseRequest | None],
    ) -> None:
        self._transport = transport
        self._resets = resets
        self._request = request
        self._number: int = transport.get_extra_info("socket").fileno()
        resets.watch(self._number, self._gone)
        self._timer = asyncio.get_running_loop().call_later(_ASK_AFTER_S, self._ask)

    def end(self) -> None:
        """The connection is gone."""
        self._timer.cancel()
        self._resets.forget(self._number, self._gone)

    def _ask(self) -> None:
        request = self._request()
        if not has_begun(request) and (request is None or request.version >= HttpVersion11):
            self._transport.write(CONTINUE)
            self._timer = asyncio.get_running_loop().call_later(_ASK_AGAIN_S, self._ask)

    def _gone(self) -> None:
        self.end()
        self._transport.abort()
