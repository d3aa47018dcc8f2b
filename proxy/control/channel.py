"""
The channel between the supervisor and one worker: typed JSON lines over a socket pair, and a worker's end of it.

The first line carries the settings, secrets included: an argument or the environment could be read by others.
"""

import asyncio
import enum
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from proxy.control.live import LiveModes
from proxy.control.purges import LivePurges
from proxy.core.listening import Port
from proxy.core.modes import Modes, Rule
from proxy.core.purges import Mark, Marks
from proxy.runtime.tasks import Tasks
from proxy.settings.model import Settings
from proxy.settings.types import SecretText

# Settings, 256 rules and 1,000 marks are far below it; it bounds what a confused peer can make us keep.
_MAX_LINE_BYTES = 4 * 2**20


class Hello(msgspec.Struct, tag="hello", tag_field="type"):
    """
    To a new worker: everything that it needs to serve. Workers are numbered from 1 to *workers*.

    *sockets* are the numbers of inherited files, one for each port; -1 where the worker binds for itself.
    """

    worker: int
    workers: int
    settings: msgspec.Raw
    ports: tuple[Port, ...]
    secret: bytes
    redis_url: str | None
    rules: tuple[Rule, ...]
    marks: tuple[Mark, ...] = ()
    sockets: tuple[int, ...] = ()
    own_id: bytes = b""


class SetModes(msgspec.Struct, tag="modes", tag_field="type"):
    """To a worker: from now on these rules hold; confirm *version*."""

    version: int
    rules: tuple[Rule, ...]


class SetPurges(msgspec.Struct, tag="purges", tag_field="type"):
    """To a worker: from now on keys are made with these marks; confirm *version*."""

    version: int
    marks: tuple[Mark, ...]


class LastCall(msgspec.Struct, tag="last-call", tag_field="type"):
    """To a worker: go on accepting, but let no connection outlive its next answer."""


class Ping(msgspec.Struct, tag="ping", tag_field="type"):
    """To a worker: say that your loop still turns."""


class Question(enum.StrEnum):
    """The questions that a worker can be asked."""

    STATE = "state"
    """How it does: connections, requests, memory tier, loop, breaker."""


class Ask(msgspec.Struct, tag="ask", tag_field="type"):
    """To a worker: a question; its answer has the same *number*."""

    number: int
    question: Question


class Drain(msgspec.Struct, tag="drain", tag_field="type"):
    """
    To a worker: stop accepting, end what is running within so many seconds, and exit.

    *is_replaced*: a successor accepts on the same sockets. Connections may bring one more request for *linger_s*.
    """

    within_s: float
    linger_s: float = 0.0
    is_replaced: bool = False


class Ready(msgspec.Struct, tag="ready", tag_field="type"):
    """From a worker: all its ports accept connections."""


class Confirmed(msgspec.Struct, tag="confirmed", tag_field="type"):
    """From a worker: no request that comes from now on is treated by older rules or marks than those of *version*."""

    version: int


class Pong(msgspec.Struct, tag="pong", tag_field="type"):
    """From a worker: its loop turns."""


class Answered(msgspec.Struct, tag="answered", tag_field="type"):
    """From a worker: the answer to a question; ``None`` if it cannot tell (yet)."""

    number: int
    document: dict[str, Any] | None


class Met(msgspec.Struct, tag="met", tag_field="type"):
    """From a worker: the cache has, or had, an answer of such a model or collection. Once for each name."""

    name: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of the worker at one place; *document* is ``None`` if it did not answer in time, or could not tell."""

    worker: int
    pid: int
    age_s: float
    document: Mapping[str, Any] | None


ToWorker = Hello | SetModes | SetPurges | LastCall | Ping | Ask | Drain
ToSupervisor = Ready | Confirmed | Pong | Answered | Met

Message = TypeVar("Message")


class Channel(Generic[Message]):
    """One end; *Message* is what this end receives."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decoder: msgspec.json.Decoder[Message]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = decoder

    def send(self, message: ToWorker | ToSupervisor) -> None:
        """Queue *message*; never waits. After the other end has gone it does nothing."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")

    async def receive(self) -> Message | None:
        """The next message; ``None`` when the other end has gone, or talks nonsense."""
        try:
            line = await self._reader.readuntil(b"\n")
            return self._decoder.decode(line)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, msgspec.MsgspecError):
            return None

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


async def supervisor_end(connected: socket.socket) -> Channel[ToSupervisor]:
    """The supervisor's end of a connected pair."""
    reader, writer = await asyncio.open_unix_connection(sock=connected, limit=_MAX_LINE_BYTES)
    return Channel(reader, writer, msgspec.json.Decoder(ToSupervisor))


async def worker_end(connected: socket.socket) -> Channel[ToWorker]:
    """The worker's end of a connected pair."""
    reader, writer = await asyncio.open_unix_connection(sock=connected, limit=_MAX_LINE_BYTES)
    return Channel(reader, writer, msgspec.json.Decoder(ToWorker))


def settings_to_json(settings: Settings) -> bytes:
    """*settings* whole, secrets in clear: for the channel only."""
    return msgspec.json.encode(settings, enc_hook=_in_clear)


def settings_from_json(text: bytes) -> Settings:
    """The opposite of ``settings_to_json``. Types are held to, bounds are not: who sends has checked them."""
    return msgspec.json.decode(text, type=Settings, dec_hook=_out_of_text)


def _in_clear(value: object) -> str:
    if isinstance(value, SecretText):
        return value.reveal()
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError


def _out_of_text(kind: type, text: object) -> object:
    if isinstance(text, str) and kind in (SecretText, Path):
        return kind(text)
    raise NotImplementedError


class WorkerControl:
    """
    What a worker knows of its supervisor.

    It is *number* of *count*, from 1 on; who replaces a worker that died takes over its number. While
    ``listen`` runs, ``modes`` follows every switch and ``purges`` every purge; ``drain_s`` is how long running requests
    may take at the end, ``linger_s`` and ``is_replaced`` are as in ``Drain``, ``is_hastened``: there is no time to
    linger after all. ``listeners`` are the sockets to accept on, which outlive this worker; ports without one are for
    it to bind. ``own_id`` is what all workers are called in ``CDN-Loop``.
    """

    def __init__(
        self,
        channel: "Channel[Any]",
        modes: LiveModes,
        drain_s: float,
        on_drain: Callable[[float], None],
        *,
        number: int = 1,
        count: int = 1,
        purges: LivePurges | None = None,
        listeners: Mapping[Port, socket.socket] | None = None,
        own_id: bytes = b"",
    ) -> None:
        self.own_id = own_id
        self.number = number
        self.count = count
        self.modes = modes
        self.purges = purges or LivePurges()
        self.listeners = listeners or {}
        self.drain_s = drain_s
        self.linger_s = 0.0
        self.is_replaced = False
        self.is_hastened = False
        self.answers: dict[Question, Callable[[], dict[str, Any]]] = {}
        """The function that answers each question; it must not wait."""
        self._channel = channel
        self._last_call = asyncio.Event()
        self._draining = asyncio.Event()
        self._on_drain = on_drain

    def start(self, tasks: Tasks) -> None:
        """Begin to listen."""
        tasks.start(self._listen())

    async def ready(self) -> None:
        """Tell the supervisor that all ports accept connections."""
        self._channel.send(Ready())

    def met(self, name: tuple[str, str]) -> None:
        """Tell the supervisor of a model or a collection; see ``telemetry.names``."""
        self._channel.send(Met(name))

    async def wait_last_call(self) -> None:
        """Return when no connection should outlive its next answer; at the latest when told to drain."""
        await self._last_call.wait()

    async def wait_drain(self) -> None:
        """Return when told to drain, or when the supervisor has gone."""
        await self._draining.wait()

    def drain(self, within_s: float, linger_s: float = 0.0, *, is_replaced: bool = False) -> None:
        """Begin to drain; the first call counts, another one ends its lingering."""
        self.is_hastened = self._draining.is_set()
        if not self._draining.is_set():
            self.drain_s, self.linger_s, self.is_replaced = within_s, linger_s, is_replaced
            self._last_call.set()
            self._draining.set()
            self._on_drain(within_s + linger_s)

    async def _listen(self) -> None:
        while (message := await self._channel.receive()) is not None:
            if isinstance(message, SetModes):
                self.modes.replace(Modes(message.rules))
                self._channel.send(Confirmed(message.version))
            elif isinstance(message, SetPurges):
                self.purges.replace(Marks(message.marks))
                self._channel.send(Confirmed(message.version))
            elif isinstance(message, Ping):
                self._channel.send(Pong())
            elif isinstance(message, Ask):
                answer = self.answers.get(message.question)
                self._channel.send(Answered(message.number, None if answer is None else answer()))
            elif isinstance(message, LastCall):
                self._last_call.set()
            elif isinstance(message, Drain):
                self.drain(message.within_s, message.linger_s, is_replaced=message.is_replaced)
        # The supervisor has gone, perhaps by kill -9: nobody would ever tell us to stop.
        self.drain(self.drain_s)
