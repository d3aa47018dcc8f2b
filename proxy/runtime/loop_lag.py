"""How late the event loop is: whatever stops it stops every request of the worker."""

import asyncio
from collections import deque
from collections.abc import Callable

EVERY_S = 0.05
_REMEMBERED = 200


class LoopLag:
    """Looks at the running loop, twenty times a second; *tell* hears by how many seconds a timer was late."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self._last: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def worst_s(self) -> float:
        """The longest of the last ten seconds, or a little more where the loop was late."""
        return max(self._last, default=0.0)

    async def watch(self) -> None:
        """Look, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + EVERY_S
            await asyncio.sleep(EVERY_S)
            late_s = max(0.0, loop.time() - due_s)
            self._last.append(late_s)
            self._tell(late_s)
