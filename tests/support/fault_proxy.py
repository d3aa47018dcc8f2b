"""
A proxy on the TCP level that makes trouble on demand: between the product and Redis, or the product and an upstream.

Runs on the test's own event loop. The kinds of trouble are `toxics`; refusing connections is `FaultProxy.down`.
"""

import asyncio
import contextlib
import enum
import random
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from tests.support import wire
from tests.support.ports import PortReservation
from tests.support.toxics import READ_SIZE, BlackHole, LineCutError, Pipe, Toxic
from tests.support.waiting import LONG_S, wait_until


class Direction(enum.Flag):
    """Which way the bytes go that a toxic acts on."""

    TO_TARGET = enum.auto()
    TO_CLIENT = enum.auto()
    BOTH = TO_TARGET | TO_CLIENT


class _Line:
    """One client's connection with, usually, the one to the target."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers = [writer]
        self.pipes: list[Pipe] = []
        self.is_cut = False
        self.is_swallowed = False
        """Accepted into a black hole: there is no connection to the target."""

    @property
    def has_lost_data(self) -> bool:
        return self.is_swallowed or any(pipe.has_lost_data for pipe in self.pipes)

    def cut(self, *, by_reset: bool) -> None:
        """End both connections: at once with a RST, or politely after what is written. Once only."""
        if self.is_cut:
            return
        self.is_cut = True
        for writer in self.writers:
            if by_reset:
                wire.reset(writer)
            else:
                writer.close()


def _place(target: int | str | Path) -> int | Path:
    """A port of loopback, or the path of a socket."""
    if not isinstance(target, str):
        return target
    url = urlsplit(target)
    if url.scheme == "unix":
        return Path(url.path)
    if url.hostname not in {"127.0.0.1", "localhost"} or url.port is None:
        raise ValueError(f"not a port of loopback: {target}")
    return url.port


class FaultProxy:
    """
    Forwards a port of its own to *target*: a port of loopback, a Unix socket's path, or the URL of either.

    *seed* makes jitter repeatable. Toxics may come and go at any time, and act on open connections too.
    """

    def __init__(self, target: int | str | Path, *, seed: int = 0) -> None:
        self._target = _place(target)
        self._chance = random.Random(seed)
        self._toxics: list[tuple[Toxic, Direction]] = []
        self._reservation: PortReservation | None = None
        self._server: asyncio.Server | None = None
        self._lines: dict[_Line, asyncio.Task[Any]] = {}
        self.accepted = 0
        """Connections so far."""

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def port(self) -> int:
        """Where clients connect; the same until `stop`."""
        if self._reservation is None:
            raise RuntimeError("not started")
        return self._reservation.port

    @property
    def connections_open(self) -> int:
        """Clients connected now."""
        return len(self._lines)

    def instead_of(self, url: str) -> str:
        """*url*, a Redis' or an upstream's, with this proxy in its place; credentials, path and database are kept."""
        parts = urlsplit(url)
        credentials = parts.netloc.rpartition("@")[0]
        place = f"{credentials}@127.0.0.1:{self.port}" if credentials else f"127.0.0.1:{self.port}"
        if parts.scheme == "unix":
            return f"redis://{place}/0"
        return urlunsplit(parts._replace(netloc=place))

    async def start(self) -> Self:
        """Listen."""
        self._reservation = PortReservation()
        await self.up()
        return self

    async def stop(self) -> None:
        """End everything and give the port back."""
        await self.down()
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None

    async def down(self) -> None:
        """Refuse new connections and break the open ones, until `up`."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in (tasks := tuple(self._lines.values())):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if server is not None:
            await server.wait_closed()

    async def up(self) -> None:
        """Listen again, on the same port."""
        if self._reservation is None or self._server is not None:
            raise RuntimeError("not started, or up already")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: asyncio.StreamReaderProtocol(wire.PatientReader(limit=READ_SIZE), self._serve),
            sock=self._reservation.listen(),
        )

    def lead_to(self, target: int | str | Path) -> None:
        """Connect whoever comes from now on to *target*; open connections stay where they lead, as after a failover."""
        self._target = _place(target)

    def add(self, toxic: Toxic, direction: Direction = Direction.TO_CLIENT) -> Toxic:
        """Switch *toxic* on for bytes in this *direction*; returned for `remove`."""
        self._toxics.append((toxic, direction))
        return toxic

    def remove(self, *toxics: Toxic) -> None:
        """Switch these off again."""
        self._toxics = [(toxic, direction) for toxic, direction in self._toxics if toxic not in toxics]
        self._end_black_holes()

    def clear(self) -> None:
        """Switch all off."""
        self.remove(*(toxic for toxic, _ in self._toxics))

    @contextlib.contextmanager
    def toxic(self, toxic: Toxic, direction: Direction = Direction.TO_CLIENT) -> Iterator[Toxic]:
        """Within this block, *toxic* is on."""
        self.add(toxic, direction)
        try:
            yield toxic
        finally:
            self.remove(toxic)

    def drop_connections(self, *, by_reset: bool = False) -> None:
        """End every open connection now; new ones are welcome."""
        for line, task in self._lines.items():
            line.cut(by_reset=by_reset)
            task.cancel()

    async def wait_connections(self, count: int, timeout: float = LONG_S) -> None:  # noqa: ASYNC109 (see waiting)
        """Wait until exactly *count* connections are open."""
        await wait_until(
            lambda: len(self._lines) == count, timeout, lambda: f"{count} connections ({len(self._lines)} now)"
        )

    def _active(self, direction: Direction) -> list[Toxic]:
        return [toxic for toxic, where in self._toxics if direction in where]

    def _end_black_holes(self) -> None:
        if any(isinstance(toxic, BlackHole) for toxic, _ in self._toxics):
            return
        for line, task in self._lines.items():
            if line.has_lost_data:
                line.cut(by_reset=False)
                task.cancel()

    async def _dial(self) -> tuple[wire.PatientReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = wire.PatientReader(limit=READ_SIZE)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport: asyncio.Transport
        if isinstance(self._target, Path):
            transport, _ = await loop.create_unix_connection(lambda: protocol, str(self._target))
        else:
            transport, _ = await loop.create_connection(lambda: protocol, "127.0.0.1", self._target)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert isinstance(reader, wire.PatientReader)
        line = _Line(writer)
        self._lines[line] = task
        self.accepted += 1
        by_reset = True
        try:
            by_reset = await self._carry(line, reader, writer)
        except asyncio.CancelledError:
            # Always our own doing, in `drop_connections` or `down`; asyncio 3.11 would print it as an error.
            pass
        finally:
            line.cut(by_reset=by_reset)
            del self._lines[line]

    async def _carry(self, line: _Line, reader: wire.PatientReader, writer: asyncio.StreamWriter) -> bool:
        """Connect the two sides until the line ends; returns whether it is to be reset."""
        if any(isinstance(toxic, BlackHole) for toxic in self._active(Direction.TO_TARGET)):
            line.is_swallowed = True
            await asyncio.Event().wait()  # until the black hole goes and this task is cancelled
        try:
            target_reader, target_writer = await self._dial()
        except OSError:
            return True
        line.writers.append(target_writer)
        line.pipes = [
            Pipe(reader, target_writer, lambda: self._active(Direction.TO_TARGET), self._chance),
            Pipe(target_reader, writer, lambda: self._active(Direction.TO_CLIENT), self._chance),
        ]
        by_reset = False
        try:
            async with asyncio.TaskGroup() as group:
                for pipe in line.pipes:
                    group.create_task(pipe.take_in())
                    group.create_task(pipe.give_out())
        except* LineCutError as cuts:
            by_reset = any(isinstance(cut, LineCutError) and cut.by_reset for cut in cuts.exceptions)
        except* ConnectionError:
            by_reset = True
        return by_reset
