"""
The upstream double: a server on a bare socket which records every byte and answers from a script.

Used by every test that asks what the proxy really sends, how often, and what it makes of an answer. The ready-made
answers are in `answers`, what is remembered in `recorded`. It runs on the test's own event loop, so that order can be
forced with gates and events.
"""

# ruff: noqa: ASYNC109 (see waiting)

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Any, Self

from tests.support import wire
from tests.support.ports import PortReservation
from tests.support.recorded import Connection, RecordedRequest
from tests.support.waiting import LONG_S, wait_until

Answer = Callable[[RecordedRequest, asyncio.StreamWriter], Awaitable[None]]
# Called when only the head is there, before the body is read. True: it is answered, close without reading the body.
OnHead = Callable[[wire.Head, asyncio.StreamWriter], Awaitable[bool]]


class _WatchedProtocol(asyncio.StreamReaderProtocol):
    """Sees the peer's bytes and its leaving at once, even while an answer is being written and nobody reads."""

    def __init__(self, upstream: "RawUpstream") -> None:
        super().__init__(wire.PatientReader(limit=wire.STREAM_LIMIT), upstream._serve)
        self._upstream = upstream
        self.connection = Connection(0, 0.0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connection = self._upstream._accepted(transport)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.connection.received += data
        super().data_received(data)

    def eof_received(self) -> bool | None:
        self._note_peer_closed()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._note_peer_closed()
        self._upstream._lost(self.connection)
        super().connection_lost(exc)

    def _note_peer_closed(self) -> None:
        if self.connection.peer_closed_at is None:
            self.connection.peer_closed_at = time.monotonic()
            self.connection.peer_closed.set()


class RawUpstream:
    """
    Listens on a loopback port between `start` and `stop`, or within `async with`.

    *answer* is called once per complete request and writes whatever it likes; it may be replaced at any time. An error
    in it resets the connection, and is raised again at the end, so that a broken script cannot pass for a result.
    """

    def __init__(self, answer: Answer, *, on_head: OnHead | None = None) -> None:
        self.answer = answer
        self.on_head = on_head
        self.requests: list[RecordedRequest] = []
        self.incomplete: list[RecordedRequest] = []
        """Requests whose body was cut short or malformed; they were not answered."""
        self.malformed: list[wire.WireError] = []
        """Why requests were refused with 400: each is a fault of whoever sent it (or left in the middle of it)."""
        self.connections: list[Connection] = []
        self.failures: list[Exception] = []
        self._reservation: PortReservation | None = None
        self._server: asyncio.Server | None = None
        self._live: dict[Connection, asyncio.BaseTransport] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._release()
        if error is None:
            self._raise_failures()

    @property
    def port(self) -> int:
        """The port, which stays the same until `stop`."""
        if self._reservation is None:
            raise RuntimeError("not started")
        return self._reservation.port

    @property
    def url(self) -> str:
        """Base URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections_open(self) -> int:
        """How many connections are open now, from both sides."""
        return sum(c.is_open and c.peer_closed_at is None for c in self.connections)

    def executions(self, by: Callable[[RecordedRequest], Hashable] = lambda r: r.target) -> Counter[Hashable]:
        """How often each thing was asked for: by target, or by what *by* makes of a request (a header, the body)."""
        return Counter(by(request) for request in self.requests)

    async def start(self) -> Self:
        """Listen; also after `down`, on the same port."""
        if self._server is not None:
            raise RuntimeError("started already")
        self._reservation = self._reservation or PortReservation()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _WatchedProtocol(self), sock=self._reservation.listen())
        return self

    async def down(self) -> None:
        """Break all connections and refuse new ones, until `start`."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        others = self._tasks - {asyncio.current_task()}  # a script may take its own server down
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self.drop_connections()
        if server is not None:
            await server.wait_closed()
        await wait_until(lambda: not self._live, 5.0, "the upstream's connections to close")

    async def stop(self) -> None:
        """End everything, give the port back, and raise what went wrong in the script."""
        await self._release()
        self._raise_failures()

    def drop_connections(self) -> None:
        """Close every open connection now, whatever it is doing, as a vendor does with idle ones."""
        for transport in tuple(self._live.values()):
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()

    async def wait_requests(self, count: int = 1, timeout: float = LONG_S) -> list[RecordedRequest]:
        """Wait until *count* complete requests have come in all; return all so far."""
        await wait_until(
            lambda: len(self.requests) >= count, timeout, lambda: f"{count} requests ({len(self.requests)} so far)"
        )
        return self.requests

    async def wait_closed(self, count: int = 1, timeout: float = LONG_S) -> float:
        """Wait until the other side has closed *count* connections in all; the monotonic time of the last of these."""
        await wait_until(
            lambda: len(self._closings()) >= count,
            timeout,
            lambda: f"{count} closings ({len(self._closings())} so far)",
        )
        return self._closings()[count - 1]

    def _closings(self) -> list[float]:
        return sorted(c.peer_closed_at for c in self.connections if c.peer_closed_at is not None)

    async def _release(self) -> None:
        await self.down()
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None

    def _raise_failures(self) -> None:
        if self.failures:
            failures, self.failures = self.failures, []
            raise ExceptionGroup("the upstream's script failed", failures)

    def _accepted(self, transport: asyncio.BaseTransport) -> Connection:
        connection = Connection(len(self.connections), time.monotonic())
        self.connections.append(connection)
        self._live[connection] = transport
        return connection

    def _lost(self, connection: Connection) -> None:
        connection.is_open = False
        self._live.pop(connection, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = writer.transport.get_protocol()
        task = asyncio.current_task()
        assert isinstance(protocol, _WatchedProtocol)
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._serve_one(reader, writer, protocol.connection):
                pass
        except ConnectionError:
            pass  # the peer left, which is on record
        except Exception as error:  # noqa: BLE001 (the script may raise anything; raised again at the end)
            self.failures.append(error)
            wire.reset(writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve_one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection
    ) -> bool:
        """Read and answer one request; False when the connection is to be closed."""
        try:
            request = await self._read_request(reader, writer, connection)
        except wire.WireError as error:
            self.malformed.append(error)
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return False
        if request is None:
            return False
        self.requests.append(request)
        await self.answer(request, writer)
        if writer.is_closing():
            return False
        await writer.drain()
        return not wire.closes(request.head)

    async def _read_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection
    ) -> RecordedRequest | None:
        head = await wire.read_head(reader)
        if head is None or (self.on_head is not None and await self.on_head(head, writer)):
            return None
        body = wire.Body()
        complete = False
        try:
            await wire.read_body(reader, wire.request_framing(head), body)
            complete = True
        finally:
            request = RecordedRequest(
                number=len(self.requests),
                connection=connection,
                head=head,
                raw_body=bytes(body.raw),
                body=bytes(body.data),
                trailers=body.trailers,
                arrived_at=time.monotonic(),
                complete=complete,
            )
            if not complete:
                self.incomplete.append(request)
        return request
