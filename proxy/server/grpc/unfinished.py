"""
gRPC messages that are on their way: how much of them there is, and for how long.

The library shows a message when it is complete, and holds up to 128 MiB of each until then, for as many calls as there
are. Nothing of ours sees those bytes, so the kernel is asked how many a connection has brought (TCP_INFO) since it was
first seen with a message that does not end, less those that have come to their end meanwhile. Only such connections are
looked at, a moment after the call began: a call whose message comes at once costs an entry in a table.
"""

import asyncio
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

from proxy.core.errors import ClientError, ErrorCode, ProxyError, no_room
from proxy.core.held_bytes import FREE_BYTES, HeldBytes
from proxy.server.grpc.listener_close import connections_from
from proxy.server.http.body import Patience

# isort: split
import grpc.aio

_LOOK_S = 0.01
"""Between two looks; at 10 Gbit/s, 12 MiB come in it unseen."""
_OVERHEAD = 1.125
"""The library keeps pieces as they came, in blocks of its own; each byte costs it about so much."""
_LOOK_SHARE = 20
"""Looking takes no more than one part in so many of the time, however many connections there are."""
_BYTES_RECEIVED_AT = 128  # struct tcp_info, linux/tcp.h: tcpi_bytes_received, since Linux 4.1
_TCP_INFO_BYTES = 192


@dataclass(slots=True, eq=False)
class _Unfinished:
    """A call whose message is on its way."""

    task: "asyncio.Task[Any]"
    context: Any
    began_s: float
    error: ProxyError | None = None
    """Why it was given up."""


@dataclass(slots=True)
class _Line:
    """A connection with such calls."""

    number: int
    """Of its file, which is the library's."""
    received: int
    bytes_before: int
    """Of those, what belongs to messages that are over, or was given up."""
    looked_s: float
    looked_bytes: int
    calls: list[_Unfinished] = field(default_factory=list)
    held_bytes: int = 0


class Unfinished:
    """
    All of a worker; what they hold counts in *held*.

    *patience* is meant as for bodies, but that of the bytes it looks at the whole connection: what comes for which of
    its messages is the library's knowledge.
    """

    def __init__(self, held: HeldBytes, patience: Patience) -> None:
        self._hold = held.hold(0)
        self._patience = patience
        self._calls: dict[_Unfinished, None] = {}
        self._lines: dict[str, _Line] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def message(self, context: Any) -> bytes | None:  # noqa: ANN401  grpc.aio.ServicerContext
        """
        The next message of a call; None if there is none any more.

        Raises:
            ProxyError: it takes too long, or there is no room for it.
        """
        task: asyncio.Task[Any] | None = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call runs in a task")
        loop = asyncio.get_running_loop()
        call = _Unfinished(task, context, loop.time())
        self._calls[call] = None
        if self._timer is None:
            self._timer = loop.call_later(_LOOK_S, self._look)
        try:
            message: bytes = await context.read()
        except asyncio.CancelledError:
            if call.error is None:
                raise
            task.uncancel()
            raise call.error from None
        finally:
            del self._calls[call]
        if message is grpc.aio.EOF:
            return None
        if self._lines and (line := self._lines.get(context.peer())) is not None:
            line.bytes_before += len(message)
        return message

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for line in self._lines.values():
            line.calls.clear()
        self._sort(began_s)
        self._measure(began_s)
        while not self._has_room():
            self._give_up(max(self._lines.values(), key=lambda line: line.held_bytes))
        self._timer = None
        if self._calls:
            self._timer = loop.call_later(max(_LOOK_S, _LOOK_SHARE * (loop.time() - began_s)), self._look)

    def _sort(self, now_s: float) -> None:
        """Find the connections of the calls that were there at the last look."""
        strange: dict[str, list[_Unfinished]] = {}
        for call in self._calls:
            age_s = now_s - call.began_s
            if age_s < _LOOK_S or call.error is not None:
                continue
            if age_s >= self._patience.total_s:
                _end(call, _too_slow())
                continue
            peer = call.context.peer()
            calls = self._lines[peer].calls if peer in self._lines else strange.setdefault(peer, [])
            calls.append(call)
        for peer, number in connections_from(strange).items() if strange else ():
            received = _received(number) or 0
            self._lines[peer] = _Line(number, received, received, now_s, received, strange[peer])

    def _measure(self, now_s: float) -> None:
        for peer, line in tuple(self._lines.items()):
            received = _received(line.number) if line.calls else None
            if received is None:
                del self._lines[peer]
            else:
                line.received = received
                # A message may be longer than what came for it was: compressed, it must not make room for others.
                line.bytes_before = min(line.bytes_before, received)
                line.held_bytes = round(_OVERHEAD * max(0, received - line.bytes_before - FREE_BYTES))
                if now_s - line.looked_s >= self._patience.idle_s:
                    self._judge(line, received, now_s)

    def _judge(self, line: _Line, received: int, now_s: float) -> None:
        """End the calls on *line* that wait for what has come too slowly since the last time."""
        if received - line.looked_bytes < (now_s - line.looked_s) * self._patience.bytes_per_s:
            for call in line.calls:
                if call.began_s <= line.looked_s:
                    _end(call, _too_slow())
        line.looked_s, line.looked_bytes = now_s, received

    def _has_room(self) -> bool:
        self._hold.end()
        return self._hold.add(sum(line.held_bytes for line in self._lines.values()))

    def _give_up(self, line: _Line) -> None:
        """All that is on its way over *line*: nobody can tell which of them holds how much."""
        for call in line.calls:
            _end(call, no_room())
        line.bytes_before, line.held_bytes = line.received, 0  # the next calls over it begin anew


def _too_slow() -> ClientError:
    return ClientError(ErrorCode.REQUEST_TIMEOUT, "the message did not come in time", 408)


def _end(call: _Unfinished, error: ProxyError) -> None:
    call.error = error
    call.task.cancel()


def _received(number: int) -> int | None:
    """How many bytes the connection with this file has brought; None if it is none any more."""
    try:
        with socket.socket(fileno=os.dup(number)) as copy:
            info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    (received,) = struct.unpack_from("=Q", info.ljust(_TCP_INFO_BYTES, b"\0"), _BYTES_RECEIVED_AT)
    return int(received)
