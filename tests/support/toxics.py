"""
What can go wrong on a line, after Toxiproxy's set, and the one-way pipe that makes it so. Switched by `fault_proxy`.

A toxic is an immutable description; what it has counted so far is kept by the pipe, apart for each connection. They
act in the order of `Pipe.deliver`, whatever the order they were added in.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tests.support import wire


@dataclass(frozen=True, slots=True, eq=False)
class Toxic:
    """Base; two toxics are never equal, so that the same kind may be added twice and each be removed."""


@dataclass(frozen=True, slots=True, eq=False)
class Latency(Toxic):
    """Everything arrives *delay_s* later, plus or minus up to *jitter_s*; order is kept, throughput too."""

    delay_s: float
    jitter_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Bandwidth(Toxic):
    """At most so many bytes per second."""

    bytes_per_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Slicer(Toxic):
    """Pieces of at most *size* bytes, *delay_s* apart; without a delay the receiver may still read several at once."""

    size: int = 1
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class LimitData(Toxic):
    """Let so many bytes through, then end the connection in an orderly way."""

    size: int


@dataclass(frozen=True, slots=True, eq=False)
class ResetPeer(Toxic):
    """Let *after_bytes* through, then break the connection with a RST: in the middle of an answer, for example."""

    after_bytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class BlackHole(Toxic):
    """Swallow everything. Once it is removed, connections that lost data are ended: their rest would make no sense."""


@dataclass(frozen=True, slots=True, eq=False)
class SlowClose(Toxic):
    """The end of the stream arrives *delay_s* later."""

    delay_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Garbage(Toxic):
    """Whatever comes, *data* is what arrives; the first *skip* times (reads, not bytes) it is left alone."""

    data: bytes
    skip: int = 0


class LineCutError(Exception):
    """A toxic ends the connection; *by_reset* says how."""

    def __init__(self, *, by_reset: bool) -> None:
        super().__init__("reset" if by_reset else "closed")
        self.by_reset = by_reset


ToxicT = TypeVar("ToxicT", bound=Toxic)

# Small: what the pipe holds back should soon hold the sender back too. Large enough for latency at full speed.
READ_SIZE = 16 * 1024
PIECES_UNDER_WAY = 32
# A slow line is slow evenly: this many pieces per second at most.
BANDWIDTH_STEPS_PER_S = 50


class Pipe:
    """One direction of one connection. *toxics* is asked anew for every piece, so changes take effect at once."""

    def __init__(
        self,
        reader: wire.PatientReader,
        writer: asyncio.StreamWriter,
        toxics: Callable[[], Iterable[Toxic]],
        chance: random.Random,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._toxics = toxics
        self._chance = chance
        self._under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES_UNDER_WAY)
        self._counted: Counter[Toxic] = Counter()
        self._free_at = 0.0
        self.has_lost_data = False
        self.delivered = 0

    def has(self, kind: type[Toxic]) -> bool:
        """Whether a toxic of this kind is active in this direction."""
        return any(self._active(kind))

    def _active(self, kind: type[ToxicT]) -> Iterator[ToxicT]:
        return (toxic for toxic in self._toxics() if isinstance(toxic, kind))

    async def take_in(self) -> None:
        """First half of the work: read until the end, noting when each piece came."""
        while True:
            data = await self._reader.read(READ_SIZE)
            if self.has(BlackHole):
                self.has_lost_data = True
            else:
                await self._under_way.put((time.monotonic(), data))
            if not data:
                return

    async def give_out(self) -> None:
        """Second half, beside the first: pass everything on. Raises LineCutError, or ConnectionError."""
        while True:
            arrived_at, data = await self._under_way.get()
            await self._delay(arrived_at)
            if not data:
                break
            await self._deliver(data)
        if self._reader.broken is not None:
            raise LineCutError(by_reset=True)
        await asyncio.sleep(sum(slow.delay_s for slow in self._active(SlowClose)))
        if not self._writer.is_closing():
            with contextlib.suppress(OSError):  # broken already, and not noticed yet
                self._writer.write_eof()

    async def _delay(self, arrived_at: float) -> None:
        delay_s = sum(
            toxic.delay_s + self._chance.uniform(-toxic.jitter_s, toxic.jitter_s) for toxic in self._active(Latency)
        )
        await asyncio.sleep(max(0.0, arrived_at + delay_s - time.monotonic()))

    async def _deliver(self, data: bytes) -> None:
        for garbage in self._active(Garbage):
            self._counted[garbage] += 1
            if self._counted[garbage] > garbage.skip:
                data = garbage.data
        data, cut = self._cut_to_limit(data)
        for piece, pause_s in self._slices(data):
            await self._pace(len(piece))
            self._writer.write(piece)
            self.delivered += len(piece)
            await self._writer.drain()
            await asyncio.sleep(pause_s)
        if cut is not None:
            await wire.flush(self._writer)
            raise cut

    def _cut_to_limit(self, data: bytes) -> tuple[bytes, LineCutError | None]:
        """What may still pass, and how the line ends then; a limit of zero ends it when there is something to pass."""
        cut = None
        limits = [(toxic, toxic.size, False) for toxic in self._active(LimitData)]
        resets = [(toxic, toxic.after_bytes, True) for toxic in self._active(ResetPeer)]
        for toxic, limit, by_reset in [*limits, *resets]:
            if self._counted[toxic] + len(data) >= limit:
                data = data[: max(0, limit - self._counted[toxic])]
                cut = LineCutError(by_reset=by_reset)
            self._counted[toxic] += len(data)
        return data, cut

    def _slices(self, data: bytes) -> Iterator[tuple[bytes, float]]:
        size, pause_s = len(data), 0.0
        for slicer in self._active(Slicer):
            size, pause_s = min(size, slicer.size), pause_s + slicer.delay_s
        for bandwidth in self._active(Bandwidth):
            size = min(size, int(bandwidth.bytes_per_s / BANDWIDTH_STEPS_PER_S) or 1)
        for start in range(0, len(data), size or 1):
            yield data[start : start + size], pause_s

    async def _pace(self, size: int) -> None:
        rate = min((toxic.bytes_per_s for toxic in self._active(Bandwidth)), default=None)
        if rate is not None:
            self._free_at = max(self._free_at, time.monotonic()) + size / rate
            await asyncio.sleep(self._free_at - time.monotonic())
