"""A barrier for racing tests: requests gather in front of it until the test lets them go. Used in upstream scripts."""

# ruff: noqa: ASYNC109 (see waiting)

import asyncio

from tests.support.waiting import LONG_S, wait_until


class Gate:
    """
    Closed at first; `wait` blocks until `open`. The test sees how many have arrived, so nothing has to be slept for.

    One loop only: open it from the loop that waits on it.
    """

    def __init__(self, name: str = "gate") -> None:
        self.name = name
        self.arrived = 0
        self._open = asyncio.Event()

    async def wait(self) -> None:
        """Arrive, and stay until the gate opens."""
        self.arrived += 1
        await self._open.wait()

    def open(self) -> None:
        """Let everybody through, now and from now on."""
        self._open.set()

    def close(self) -> None:
        """Hold whoever arrives from now on."""
        self._open.clear()

    async def wait_arrived(self, count: int = 1, timeout: float = LONG_S) -> None:
        """Wait until *count* have arrived in all."""
        await wait_until(
            lambda: self.arrived >= count, timeout, lambda: f"{count} arrivals at {self.name} (so far {self.arrived})"
        )
