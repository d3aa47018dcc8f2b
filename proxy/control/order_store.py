"""
The supervisor's book of orders: takes them from operators and other replicas, hands them to the workers, keeps them.

An order is applied first and written down after, and neither waits for Redis: switching to bypass, or purging, must
work when nothing else does. ``modes`` and ``purges`` say what an order is.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple

from proxy.control.stored import BadOrders, Form, Value
from proxy.runtime.data_folder import replace_file
from proxy.telemetry.log_output import logger

# Two orders within one tick of the clock, or after the clock was set back, still have an order.
_LATER_S = 0.001


class Reached(NamedTuple):
    """Workers that confirmed an order in time, of so many; *missing* are the numbers of the others."""

    confirmed: int
    workers: int
    missing: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Confirmation:
    """How far an order has come: who confirmed it, of so many workers, who did not, and whether it is on disk."""

    confirmed: int
    workers: int
    missing: tuple[int, ...]
    persisted: bool


class Book(ABC, Generic[Value]):
    """
    One per supervisor and *form*, kept in a file in *folder*.

    *push* hands all orders to all workers, and returns which of them confirmed in time.
    """

    def __init__(
        self,
        form: Form[Value],
        folder: Path,
        push: Callable[[Value], Awaitable[Reached]],
        unix_s: Callable[[], float],
    ) -> None:
        self.form = form
        self.held = form.empty
        self.path = folder / f"{form.name}.json"
        self._push = push
        self._unix_s = unix_s
        self._writing = asyncio.Lock()
        self._is_written = True

    @abstractmethod
    def _with(self, others: Value) -> Value:
        """What is held together with *others*, as far as each still counts."""

    def load(self) -> None:
        """Take up the orders of the last run; damaged ones are left out and reported."""
        try:
            with self.path.open("rb") as file:
                stored = file.read(self.form.max_bytes + 1)
            self._hold(self._with(self.form.decode(stored)))
        except FileNotFoundError:
            return
        except OSError as error:
            logger().warning(f"{self.form.name}_not_read", error=type(error).__name__)
        except BadOrders as error:
            logger().warning(f"{self.form.name}_not_read", error=str(error))

    def lacks(self) -> list[str]:
        """The orders that are in force and not written down, in words."""
        return [] if self._is_written else [f"{self.path.name}: not written; a restart will forget it"]

    async def merge(self, others: Value) -> None:
        """Take up another replica's orders, as far as they are later than ours."""
        merged = self._with(others)
        if merged != self.held:
            self._log_taken_over(merged)
            await self._apply(merged)

    def _log_taken_over(self, merged: Value) -> None:  # noqa: ARG002  a kind of book may say more
        logger().info(f"{self.form.name}_taken_over")

    def _hold(self, value: Value) -> None:
        """From now on *value* holds."""
        self.held = value

    def _now_after(self, known_unix_s: Iterable[float]) -> float:
        """The time of a new order, which is later than all that are known."""
        return max(self._unix_s(), max(known_unix_s, default=0.0) + _LATER_S)

    async def _apply(self, value: Value) -> Confirmation:
        self._hold(value)
        reached = await self._push(value)
        return Confirmation(*reached, persisted=await self._persist())

    async def _persist(self) -> bool:
        async with self._writing:
            # What is in force now, not what was when this was called: a later order may have come meanwhile.
            stored = self.form.encode(self.held)
            try:
                await asyncio.to_thread(replace_file, self.path, stored)
            except OSError as error:
                logger().warning(f"{self.form.name}_not_written", error=error.strerror or type(error).__name__)
                self._is_written = False
                return False
            self._is_written = True
        return True
