"""An event loop whose clock jumps to the next timer instead of waiting: what takes minutes in life takes no time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _NoWait(selectors.SelectSelector):
    """Looks, and tells the loop how long it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.passed_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing is left that could happen: the test would wait for ever")
        self.passed_s += max(timeout, 0)
        return super().select(0)


class FakeLoop(asyncio.SelectorEventLoop):
    """For code that takes its time from the running loop, and waits for nothing outside it."""

    def __init__(self) -> None:
        self._instant = _NoWait()
        super().__init__(self._instant)

    def time(self) -> float:
        """Seconds since its start, by its own clock."""
        return self._instant.passed_s


def run(work: Coroutine[Any, Any, T]) -> T:
    """*work* from its start to its end, in no time."""
    with asyncio.Runner(loop_factory=FakeLoop) as runner:
        return runner.run(work)
