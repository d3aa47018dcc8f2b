"""
How many requests one worker has at one upstream, how many wait for their turn, and how fast they follow each other.

Whatever is beyond is refused within a time that a client can bear: a line without an end helps nobody, as those at its
end have given up when their turn comes.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable

from proxy.errors import ErrorCode, UpstreamError

QUEUE_FULL, QUEUE_WAIT = "queue-full", "queue-wait"
"""Why a request was refused: too many waited already, or it had waited long enough."""

_PACE_BURST_S = 1.0
_CLOCK_S = 0.001
"""What the loop's timers are exact to."""


def _ignored(reason: str) -> None:
    """For who does not want to know."""


class Slots:
    """
    At most *max_inflight* requests at a time, at most *max_queue* in line, each for at most *queue_wait_s* seconds.

    *per_minute* requests at most begin in a minute, zero: any number. What was not used is kept for one second only,
    and the rest of a flush follows evenly: the vendor minds a sudden rise more than the sum.
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
        self._max_inflight = max_inflight
        self._max_queue = max_queue
        self._queue_wait_s = queue_wait_s
        self._on_refused = on_refused
        self._line: deque[asyncio.Future[None]] = deque()
        self._pace_s = 60 / per_minute if per_minute else 0.0
        self._saved_s = max(0.0, _PACE_BURST_S - self._pace_s)
        self._next_s = -math.inf
        """When the next request would begin if all of them came evenly (loop time)."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many are in line."""
        return len(self._line)

    async def take(self, at_most_s: float = math.inf, *, is_again: bool = False) -> None:
        """
        Wait for a slot, no longer than *at_most_s*; ``give_back`` is due afterwards, once.

        Who comes *again*, as its connection closed under its request, has waited already and goes first.

        Raises:
            UpstreamError: 503, UpstreamBusy; nothing is to be given back.
        """
        if (is_again or not self._line) and self._delay_s() <= _CLOCK_S:
            self._begin()
            return
        if len(self._line) >= self._max_queue and not is_again:
            raise self._refusal(QUEUE_FULL)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.appendleft(place) if is_again else self._line.append(place)
        self._serve()
        try:
            async with asyncio.timeout(min(self._queue_wait_s, max(at_most_s, 0))):
                await place
        except BaseException as error:
            had_its_turn = place.done() and not place.cancelled()
            if not had_its_turn:
                self._leave(place)
            if not isinstance(error, TimeoutError):  # the client has gone
                if had_its_turn:
                    self.give_back()
                raise
            if not had_its_turn:
                raise self._refusal(QUEUE_WAIT) from None

    def give_back(self) -> None:
        """The request is over: its connection is free, or gone."""
        self.inflight -= 1
        self._serve()

    def _delay_s(self) -> float:
        """Seconds until one more may begin, as far as time decides; infinite while all slots are taken."""
        if self.inflight >= self._max_inflight:
            return math.inf
        if not self._pace_s:
            return 0.0
        return self._next_s - self._saved_s - asyncio.get_running_loop().time()

    def _begin(self) -> None:
        self.inflight += 1
        if self._pace_s:
            self._next_s = max(self._next_s, asyncio.get_running_loop().time()) + self._pace_s

    def _serve(self) -> None:
        """Let in who may come in now; look again when time alone lets in the next."""
        while self._line and (delay_s := self._delay_s()) <= _CLOCK_S:
            place = self._line.popleft()
            if not place.done():
                self._begin()
                place.set_result(None)
        if self._line and math.isfinite(delay_s) and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._serve()

    def _leave(self, place: "asyncio.Future[None]") -> None:
        with contextlib.suppress(ValueError):  # it was passed over as it had been cancelled
            self._line.remove(place)

    def _refusal(self, reason: str) -> UpstreamError:
        self._on_refused(reason)
        return UpstreamError(ErrorCode.UPSTREAM_BUSY, "too many requests wait for the upstream; try again", 503)
