"""
The supervisor's book of modes: takes orders and other replicas' rules, hands them to the workers, keeps them on disk.

An order is applied first and written down after, and neither waits for Redis: switching to bypass must work when
nothing else does.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from proxy.core.modes import Modes, Rule
from proxy.ops.processes.data_folder import replace_file
from proxy.ops.switches.live import MAX_STORED_BYTES, BadRules, LiveModes, decode, encode, tidied
from proxy.ops.telemetry.log_output import logger
from proxy.settings import Start

FILE_NAME = "modes.json"

# Two orders within one tick of the clock, or after the clock was set back, still have an order.
_LATER_S = 0.001


@dataclass(frozen=True, slots=True)
class Confirmation:
    """How far a switch has come: workers that confirmed it, of so many, and whether it is on disk."""

    confirmed: int
    workers: int
    persisted: bool


Push = Callable[[Modes], Awaitable[tuple[int, int]]]
"""Hands modes to all workers; returns how many confirmed in time, and of how many."""


class ModeBook:
    """One per supervisor; *push* reaches its workers, *changed* is called after every change."""

    def __init__(
        self,
        start: Start,
        folder: Path,
        push: Push,
        changed: Callable[[], None],
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self.live = LiveModes(start, unix_s)
        self._path = folder / FILE_NAME
        self._push = push
        self._changed = changed
        self._unix_s = unix_s
        self._writing = asyncio.Lock()

    def load(self) -> None:
        """Take up the rules of the last run; damaged ones are left out and reported."""
        try:
            stored = self._path.read_bytes()[: MAX_STORED_BYTES + 1]
        except FileNotFoundError:
            return
        except OSError as error:
            logger().warning("modes_not_read", error=type(error).__name__)
            return
        try:
            self.live.replace(tidied(decode(stored), self._unix_s()))
        except BadRules as error:
            logger().warning("modes_not_read", error=str(error))

    async def switch(self, rule: Rule) -> Confirmation:
        """Put *rule* in force, as the latest of all; its time of setting is given here."""
        now_unix_s = self._unix_s()
        newest_unix_s = max((known.set_unix_s for known in self.live.switched.rules), default=0.0)
        dated = Rule(
            mode=rule.mode,
            upstream=rule.upstream,
            operation=rule.operation,
            until_unix_s=rule.until_unix_s,
            set_unix_s=max(now_unix_s, newest_unix_s + _LATER_S),
            reason=rule.reason,
        )
        logger().info(
            "mode_switched", mode=rule.mode, upstream=rule.upstream, operation=rule.operation, reason=rule.reason
        )
        return await self._apply(tidied(self.live.switched.with_rule(dated), now_unix_s))

    async def merge(self, modes: Modes) -> None:
        """Take up another replica's rules, as far as they are later than ours."""
        merged = tidied(self.live.switched.merged(modes.rules), self._unix_s())
        if merged != self.live.switched:
            logger().info("modes_taken_over", rules=len(merged.rules))
            await self._apply(merged)

    async def _apply(self, modes: Modes) -> Confirmation:
        self.live.replace(modes)
        self._changed()
        confirmed, workers = await self._push(modes)
        return Confirmation(confirmed, workers, await self._persist())

    async def _persist(self) -> bool:
        async with self._writing:
            # What is in force now, not what was when this was called: a later order may have come meanwhile.
            stored = encode(self.live.switched)
            try:
                await asyncio.to_thread(replace_file, self._path, stored)
            except OSError as error:
                logger().warning("modes_not_written", error=type(error).__name__)
                return False
        return True
