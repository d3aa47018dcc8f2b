"""
A data port without sockets: what a client sends is put into it piece by piece, and what it answers is there to read.

For tests in which the exact pieces matter, and the turns of the loop between. On ``fake_loop`` minutes take no time.
"""

import asyncio
import dataclasses
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proxy.core.answer import Again, Answer, Body
from proxy.core.found import Found
from proxy.core.held_bytes import HeldBytes
from proxy.core.outcome import CacheState, Outcome, Repeats
from proxy.core.ports import SYSTEM_CLOCK
from proxy.core.request import Head, HeaderLines, Request
from proxy.server.http.admission import Intake
from proxy.server.http.body import Patience
from proxy.server.http.client_timers import Clients
from proxy.server.http.connection import Connection
from proxy.server.http.fast_lane import Lane
from proxy.server.http.front import Front
from proxy.server.http.micro_cache import Ready
from proxy.server.http.port import DataServer
from proxy.vendors.headers import decisive

KEEPALIVE_S, HEADER_WAIT_S, BODY_IDLE_S, WRITE_IDLE_S = 75.0, 10.0, 5.0, 60.0
MAX_BODY_BYTES = 100_000
_DATE = re.compile(rb"\r\nDate: [^\r]*\r\n")
_UUID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def digest(request: Request, body: bytes) -> bytes:
    """All that *request* says, so that an answer to anything else shows."""
    return hashlib.sha256(repr((request.method, request.target, request.headers, body)).encode()).hexdigest().encode()


class DigestFlow:
    """
    Answers with the digest of what it is asked, after a few turns of the loop, as many as the digest says.

    While `is_on`, POST to ``/hit`` is a hit, which may be given again; else, and elsewhere, answers say that they are
    not. A hit says only what decides. ``/early`` is answered before its body is read, ``/slow`` after a second. With
    *recalls* it remembers what heads and bodies meant, as the planner does.
    """

    def __init__(self, *, recalls: bool) -> None:
        self._recalls = recalls
        self._meanings: dict[tuple[Head, bytes], Again] = {}
        self.is_on = True
        self.fault: Exception | None = None
        """What `again` runs into."""
        self.padding = b""
        """Behind every hit's digest."""
        self.refusal: Exception | None = None
        """What every request is told that comes here."""
        self.far_s: float | None = None
        """How long it takes to look further away for what can be given again; ``None``: it is near."""
        self.found: list[Found | None] = []
        """What was found, for each request that came here, before it did."""

    async def answer(self, request: Request, body: Body, outcome: Outcome, found: Found | None = None) -> Answer:
        """See ``proxy.request.flow.Flow``."""
        self.found.append(found)
        if self.refusal is not None:
            raise self.refusal
        content = b"" if request.path == "/early" else await body.read(MAX_BODY_BYTES)
        asked = digest(request, content or b"")
        await asyncio.sleep(1 if request.path == "/slow" else 0)
        for _ in range(asked[0] % 4):
            await asyncio.sleep(0)
        if request.path == "/hit" and request.method == "POST" and content is not None:
            meant = dataclasses.replace(request, headers=decisive(request.headers))
            again = DigestAgain(self, digest(meant, content))
            answer = again.flow.hit(again.asked, outcome)
            if answer is not None:
                answer.again = again
                if self._recalls and request.head is not None:
                    self._meanings[request.head, content] = again
                return answer
        outcome.state = CacheState.MISS
        return Answer(200, "OK", ((b"X-Asked", asked),), b"sent on " + asked)

    def recall(self, head: Head, body: bytes) -> Again | None:
        """See ``proxy.request.from_memory.AtOnce``."""
        return self._meanings.get((head, body))

    def hit(self, asked: bytes, outcome: Outcome) -> Answer | None:
        """What says *asked*, if it may be said just now."""
        if not self.is_on:
            return None
        outcome.state, outcome.items, outcome.hits_memory = CacheState.HIT, 1, 1
        return Answer(200, "OK", ((b"X-Asked", asked),), asked + self.padding)


@dataclass(frozen=True)
class DigestAgain:
    """Answers again."""

    flow: DigestFlow
    asked: bytes

    def __call__(self, outcome: Outcome) -> Answer | None:
        """See ``proxy.core.answer.Again``."""
        if self.flow.fault is not None:
            raise self.flow.fault
        return self.flow.hit(self.asked, outcome) if self.flow.far_s is None else None

    def lacks_entries(self) -> bool:
        """See ``proxy.core.answer.Again``."""
        return self.flow.far_s is not None

    async def look_up(self, outcome: Outcome) -> Answer | Found:
        """See ``proxy.core.answer.Again``."""
        await asyncio.sleep(self.flow.far_s or 0)
        if self.flow.fault is not None:
            raise self.flow.fault
        return self.flow.hit(self.asked, outcome) or Found(redis_s=self.flow.far_s or 0.0)

    def holds(self) -> bool:
        """See ``proxy.core.answer.Again``."""
        return self.flow.is_on

    def same_until_unix_s(self) -> float:
        """Nothing is kept ready here: what is, is told of with others."""
        return 0.0


class Observed:
    """Every outcome, and every fault of ours."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.faults: list[BaseException] = []

    def observe(self, outcome: Outcome) -> None:
        """See ``proxy.server.http.front.RequestObserver``."""
        self.outcomes.append(outcome)

    def observe_repeats(self, repeats: Repeats) -> None:
        """See ``proxy.server.http.front.RequestObserver``."""
        raise AssertionError(f"{repeats} of what is never kept ready")

    def background_failed(self, error: BaseException) -> None:
        """See ``proxy.server.http.front.RequestObserver``."""
        self.faults.append(error)


class _NoBridge:
    def serves(self, upstream: str) -> bool:
        return False


class _CountingFront(Front):
    at_once = soon = 0

    async def answer_soon(self, *given: Any) -> tuple[bool, Found | None]:
        answered = await super().answer_soon(*given)
        self.soon += answered[0]
        return answered

    def answer_at_once(self, *given: Any) -> bool:
        is_answered = super().answer_at_once(*given)
        self.at_once += is_answered
        return is_answered


class Wire(asyncio.Transport):
    """A client's connection; its writes are `sent`, beyond *room* bytes they wait until `read`."""

    def __init__(self, room: int | None = None) -> None:
        super().__init__()
        self.sent = b""
        self.is_lost = False
        self.protocol: Connection
        self._room = room
        self._waiting = 0
        self._is_closing = self._is_paused = False
        self._unread: list[bytes] = []

    def opened(self, protocol: Connection) -> "Wire":
        """The same, connected."""
        self.protocol = protocol
        protocol.connection_made(self)
        return self

    def receive(self, data: bytes) -> None:
        """The client sends *data*."""
        if self._is_paused:
            self._unread.append(data)
        elif not self._is_closing:
            self.protocol.data_received(data)

    def receive_eof(self) -> None:
        """The client has nothing more to say."""
        if not self._is_closing:
            self.protocol.eof_received()
            self.close()

    def read(self) -> None:
        """The client takes all that waits."""
        self._waiting = 0
        if self.protocol.writing_paused:
            self.protocol.resume_writing()

    def write(self, data: Any) -> None:
        """See asyncio."""
        self.sent += bytes(data)
        self._waiting += len(data)
        if self._room is not None and self._waiting > self._room and not self.protocol.writing_paused:
            self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """See asyncio."""
        return self._waiting if self._room is not None else 0

    def pause_reading(self) -> None:
        """See asyncio."""
        self._is_paused = True

    def resume_reading(self) -> None:
        """See asyncio."""
        self._is_paused = False
        unread, self._unread = self._unread, []
        for data in unread:
            asyncio.get_running_loop().call_soon(self.receive, data)

    def is_closing(self) -> bool:
        """See asyncio."""
        return self._is_closing

    def close(self) -> None:
        """See asyncio."""
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self._lose)

    def abort(self) -> None:
        """See asyncio."""
        self.close()

    def _lose(self) -> None:
        self.is_lost = True
        self.protocol.connection_lost(None)


class MemoryPort:
    """The port, with a lane or without, whose flow recalls or not; needs a running loop."""

    def __init__(self, *, has_lane: bool, recalls: bool = False) -> None:
        self.flow, self.observed = DigestFlow(recalls=recalls), Observed()
        self.lane = Lane() if has_lane else None
        flow: Any = self.flow
        bridge: Any = _NoBridge()
        self.clients = Clients(
            max_connections=100,
            header_wait_s=HEADER_WAIT_S,
            write_idle_s=WRITE_IDLE_S,
            on_ended=lambda _: None,
        )
        self.front = _CountingFront(
            flow=flow,
            at_once=flow,
            ready=Ready(self.observed, lambda: "", SYSTEM_CLOCK, lambda: 0),
            bridge=bridge,
            observer=self.observed,
            error_body=lambda path, code, message, request_id: f"{path} {code} {message} {request_id}".encode(),
            clients=self.clients,
            held=HeldBytes(2**30),
            body_patience=Patience(BODY_IDLE_S),
        )
        upstream_of: Callable[[str, str, HeaderLines], str] = lambda *_: "vendor"  # noqa: E731
        self.server = DataServer(
            self.front,
            Intake(upstream_of, frozenset({"localhost"}), decisive),
            header_bytes=65_536,
            header_lines=256,
            keepalive_s=KEEPALIVE_S,
            lane=self.lane,
        )

    @property
    def at_once(self) -> int:
        """How many requests were answered in the call that brought them."""
        return self.front.at_once

    @property
    def soon(self) -> int:
        """How many were answered after a look further away."""
        return self.front.soon

    def connect(self, room: int | None = None) -> Wire:
        """One more client; it takes what it is sent, or with *room* only so many bytes until it reads."""
        protocol: Any = self.server()
        return Wire(room).opened(protocol)


def plain(sent: bytes) -> bytes:
    """What was *sent*, dates and ids taken out."""
    return _UUID.sub(b"id", _DATE.sub(b"\r\nDate: now\r\n", sent))
