"""
How many requests one worker has at one upstream, how many wait for their turn, and how fast they follow each other.

Whatever is beyond is refused within a time that a client can bear: a line without an end helps nobody, as those at its
end have given up when their turn comes.

Nobody has a limit of its own, but when several wait, the next turn is for the one who has the least: by address first,
then by credential (``core.share``). One client alone may have all slots and the whole line.
"""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proxy.core.errors import ErrorCode, UpstreamError
from proxy.core.share import NOBODY, Share

QUEUE_FULL, QUEUE_WAIT = "queue-full", "queue-wait"
"""Why a request was refused: too many waited already, or it had waited long enough."""

_PACE_BURST_S = 1.0
_CLOCK_S = 0.001
"""What the loop's timers are exact to."""

_LONG_SHARE = 0.75
"""Of the slots, for what lasts as long as a client likes."""


def _ignored(reason: str) -> None:
    """For who does not want to know."""


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """A place in line."""

    turn: asyncio.Future[None]
    share: Share
    is_long: bool
    is_first: bool


class Slots:
    """
    At most *max_inflight* requests at a time, at most *max_queue* in line, each for at most *queue_wait_s* seconds.

    *per_minute* requests at most begin in a minute, zero: any number. What was not used is kept for one second only,
    and the rest of a flush follows evenly: the vendor minds a sudden rise more than the sum.

    A *long* request (an upload on its way, a WebSocket) leaves a quarter of the slots to others, at any time.
    """

    def __init__(
        self,
        *,
        max_inflight: int,
        max_queue: int,
        queue_wait_s: float,
        per_minute: float = 0.0,
        on_refused: Callable[[str], None] = _ignored,
    ) -> None:
        self.inflight = 0
        self._long = 0
        self._max_inflight = max_inflight
        self._max_long = max(1, int(max_inflight * _LONG_SHARE))
        self._max_queue = max_queue
        self._queue_wait_s = queue_wait_s
        self._on_refused = on_refused
        self._line: list[_Place] = []
        self._by_address: Counter[str] = Counter()
        self._by_share: Counter[Share] = Counter()
        self._pace_s = 60 / per_minute if per_minute else 0.0
        self._saved_s = max(0.0, _PACE_BURST_S - self._pace_s)
        self._next_s = -math.inf
        """When the next request would begin if all of them came evenly (loop time)."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many are in line."""
        return len(self._line)

    async def take(
        self,
        at_most_s: float = math.inf,
        *,
        share: Share = NOBODY,
        is_again: bool = False,
        is_long: bool = False,
    ) -> "Slot":
        """
        Wait for a slot, no longer than *at_most_s*; it is to be given back.

        Who comes *again*, as its connection closed under its request, has waited already and goes first.

        Raises:
            UpstreamError: 503, UpstreamBusy.
        """
        place = _Place(asyncio.get_running_loop().create_future(), share, is_long, is_again)
        if (is_again or not self._line) and self._may_begin(place) and self._delay_s() <= _CLOCK_S:
            return self._begin(place)
        if len(self._line) >= self._max_queue and not is_again:
            self._make_room(share)
        self._line.append(place)
        self._serve()
        try:
            async with asyncio.timeout(min(self._queue_wait_s, max(at_most_s, 0))):
                await place.turn
        except BaseException as error:
            had_its_turn = place.turn.done() and not place.turn.cancelled() and place.turn.exception() is None
            if not had_its_turn:
                self._leave(place)
            if isinstance(error, TimeoutError):
                if not had_its_turn:
                    raise self._refusal(QUEUE_WAIT) from None
            else:  # the client has gone, or another got the place
                if had_its_turn:
                    Slot(self, place).give_back()
                raise
        return Slot(self, place)

    def _may_begin(self, place: _Place) -> bool:
        return not place.is_long or self._long < self._max_long

    def _delay_s(self) -> float:
        """Seconds until one more may begin, as far as time decides; infinite while all slots are taken."""
        if self.inflight >= self._max_inflight:
            return math.inf
        if not self._pace_s:
            return 0.0
        return self._next_s - self._saved_s - asyncio.get_running_loop().time()

    def _begin(self, place: _Place) -> "Slot":
        self.inflight += 1
        self._long += place.is_long
        self._by_address[place.share.address] += 1
        self._by_share[place.share] += 1
        if self._pace_s:
            self._next_s = max(self._next_s, asyncio.get_running_loop().time()) + self._pace_s
        return Slot(self, place)

    def end(self, place: _Place) -> None:
        """The request that had *place* is over."""
        self.inflight -= 1
        _count_down(self._by_address, place.share.address)
        _count_down(self._by_share, place.share)
        self._serve()

    def end_long(self) -> None:
        """A request that was long goes on like any other."""
        self._long -= 1
        self._serve()

    def _serve(self) -> None:
        """Let in who may come in now; look again when time alone lets in the next."""
        delay_s = math.inf
        while (place := self._next()) is not None and (delay_s := self._delay_s()) <= _CLOCK_S:
            self._line.remove(place)
            if not place.turn.done():
                self._begin(place)
                place.turn.set_result(None)
        if place is not None and math.isfinite(delay_s) and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._look_again)

    def _next(self) -> _Place | None:
        """The next in turn: a sender that comes again, else that with least at the upstream; of those the first."""
        able = [place for place in self._line if self._may_begin(place)]
        if len(able) < 2 or self.inflight >= self._max_inflight:
            return able[0] if able else None
        return min(able, key=self._held)

    def _held(self, place: _Place) -> tuple[bool, int, int]:
        return not place.is_first, self._by_address[place.share.address], self._by_share[place.share]

    def _make_room(self, share: Share) -> None:
        """
        The last in line of who waits most gives way to one who waits less; if there is none, nobody comes in.

        Raises:
            UpstreamError: 503, UpstreamBusy.
        """
        by_address = Counter(place.share.address for place in self._line)
        by_share = Counter(place.share for place in self._line)

        most = max(by_share, key=lambda one: (by_address[one.address], by_share[one]), default=share)
        is_less = (
            by_share[share] + 1 < by_share[most]
            if most.address == share.address
            else by_address[share.address] + 1 < by_address[most.address]
        )
        if not is_less:
            raise self._refusal(QUEUE_FULL)
        last = next(place for place in reversed(self._line) if place.share == most)
        self._line.remove(last)
        if not last.turn.done():
            last.turn.set_exception(self._refusal(QUEUE_FULL))

    def _look_again(self) -> None:
        self._timer = None
        self._serve()

    def _leave(self, place: _Place) -> None:
        with contextlib.suppress(ValueError):  # it was passed over as it had been cancelled
            self._line.remove(place)

    def _refusal(self, reason: str) -> UpstreamError:
        self._on_refused(reason)
        return UpstreamError(ErrorCode.UPSTREAM_BUSY, "too many requests wait for the upstream; try again", 503)


class Slot:
    """A slot that was taken."""

    __slots__ = ("_is_long", "_place", "_slots")

    def __init__(self, slots: Slots, place: _Place) -> None:
        self._slots: Slots | None = slots
        self._place = place
        self._is_long = place.is_long

    def shorten(self) -> None:
        """The upload, which lasted as long as the client liked, is complete."""
        if self._is_long and self._slots is not None:
            self._is_long = False
            self._slots.end_long()

    def give_back(self) -> None:
        """The request is over: its connection is free, or gone. Nothing happens the second time."""
        self.shorten()
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.end(self._place)


def _count_down(counter: Counter[Any], key: object) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
