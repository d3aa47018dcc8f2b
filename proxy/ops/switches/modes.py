"""The supervisor's book of modes."""

import dataclasses
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from proxy.core.modes import Modes, Rule
from proxy.ops.switches.book import Book, Confirmation
from proxy.ops.switches.live import MODES, LiveModes, tidied
from proxy.ops.telemetry.log_output import logger
from proxy.settings import Start


class ModeBook(Book[Modes]):
    """One per supervisor; *push* reaches its workers, *changed* is called after every change."""

    def __init__(
        self,
        start: Start,
        folder: Path,
        push: Callable[[Modes], Awaitable[tuple[int, int]]],
        changed: Callable[[], None],
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(MODES, folder, push, unix_s)
        self.live = LiveModes(start, unix_s)
        self._changed = changed

    async def switch(self, rule: Rule) -> Confirmation:
        """Put *rule* in force, as the latest of all; its time of setting is given here."""
        dated = dataclasses.replace(rule, set_unix_s=self._now_after(known.set_unix_s for known in self.held.rules))
        logger().info(
            "mode_switched", mode=rule.mode, upstream=rule.upstream, operation=rule.operation, reason=rule.reason
        )
        return await self._apply(self._with(Modes((dated,))))

    def _with(self, others: Modes) -> Modes:
        return tidied(self.held.merged(others.rules), self._unix_s())

    def _hold(self, value: Modes) -> None:
        super()._hold(value)
        self.live.replace(value)
        self._changed()
