"""
Answers that were given a moment ago, ready to be given again where the same ones go out many times a second.

Within a second another answer to the same request differs from the last one in its id alone. So at such rates an answer
is cut where its id stands, and kept for a moment. Whether anything speaks against it (modes, purges, refused
credentials) is asked anew when any of these has changed. Its requests are counted here, and told of when the moment is
over.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from proxy.core.answer import Again
from proxy.core.outcome import Outcome, Repeats
from proxy.core.ports import Clock

_WINDOW_S = 0.2
_SINGLY = 50
"""Answers in a window that are made one by one; below that rate nothing is gained."""
_MAX_BYTES = 8 << 20
_MAX_KEYS = 4_096
_IDS = 2
"""An answer of ours says its id twice: in a header line and in its body."""


class RepeatsObserver(Protocol):
    """Who is told."""

    def observe_repeats(self, repeats: Repeats) -> None:
        """Must not raise and must not wait."""


@dataclass(slots=True)
class _Kept:
    version: int
    pieces: list[bytes]
    until_unix_s: float
    repeats: Repeats


class Ready:
    """
    One per worker; what it keeps is bounded in bytes, and gone after a moment.

    It is gone, too, when *version*, the count of all that was switched, purged or refused, has become another.
    An answer is found by what answers again, and then also by the port and the bytes of a request that it answers.
    """

    def __init__(
        self, observer: RepeatsObserver, request_id: Callable[[], str], clock: Clock, version: Callable[[], int]
    ) -> None:
        self._observer = observer
        self._request_id = request_id
        self._clock = clock
        self._version = version
        self._kept: dict[object, _Kept] = {}
        self._all: list[_Kept] = []
        self._bytes = 0
        self._given = 0
        self._window: asyncio.TimerHandle | None = None

    def give(self, asked: object, transport: asyncio.WriteTransport) -> bool:
        """Whether an answer was ready for *asked*, an Again or what was ``known``, and is given."""
        kept = self._kept.get(asked)
        if kept is None:
            return False
        started_s = self._clock.monotonic()
        if self._clock.wall() >= kept.until_unix_s or self._version() != kept.version:
            del self._kept[asked]
            self._let_go(kept)
            return False
        transport.write(self._request_id().encode("ascii").join(kept.pieces))
        kept.repeats.add((self._clock.monotonic() - started_s) * 1000)
        return True

    def know(self, request: object, again: Again) -> None:
        """*request*, which is all that makes it what it is, is answered by *again*."""
        kept = self._kept.get(again)
        if kept is not None and len(self._kept) < _MAX_KEYS:
            self._kept[request] = kept

    def keep(self, again: Again, data: bytes, outcome: Outcome) -> None:
        """*data*, head and body, was just given as *again*'s answer, and *outcome* tells of it."""
        if self._window is None:
            self._window = asyncio.get_running_loop().call_later(_WINDOW_S, self.tell_all)
        self._given += 1
        if self._given <= _SINGLY or self._bytes + len(data) > _MAX_BYTES:
            return
        pieces = data.split(outcome.request_id.encode("ascii"))
        until_unix_s = again.same_until_unix_s()
        if len(pieces) == _IDS + 1 and until_unix_s > self._clock.wall():
            self._bytes += len(data)
            kept = self._kept[again] = _Kept(self._version(), pieces, until_unix_s, Repeats(outcome))
            self._all.append(kept)

    def _let_go(self, kept: _Kept) -> None:
        """It will not be given any more, however it is found; its requests are told of when the moment is over."""
        self._bytes -= sum(map(len, kept.pieces))
        kept.pieces, kept.until_unix_s = [], 0.0

    def tell_all(self) -> None:
        """Let go of everything, and tell of what was given."""
        if self._window is not None:
            self._window.cancel()
            self._window = None
        self._given = self._bytes = 0
        given, self._all, self._kept = self._all, [], {}
        for kept in given:
            if kept.repeats.times:
                self._observer.observe_repeats(kept.repeats)
