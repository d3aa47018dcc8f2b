"""The supervisor's book of modes."""

import asyncio
import dataclasses
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from proxy.control.live import MODES, LiveModes, tidied
from proxy.control.order_store import Book, Confirmation, Reached
from proxy.core.modes import Modes, Rule
from proxy.settings.model import Start
from proxy.telemetry.log_output import logger

_LOOK_S = 30.0
"""The longest time between two looks for rules that have ended: the clock may have been set."""


class ModeBook(Book[Modes]):
    """One per supervisor; *push* reaches its workers, *changed* is called after each change. ``run`` tells of ends."""

    def __init__(
        self,
        start: Start,
        folder: Path,
        push: Callable[[Modes], Awaitable[Reached]],
        changed: Callable[[], None],
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(MODES, folder, push, unix_s)
        self.live = LiveModes(start, unix_s)
        self._changed = changed
        self._untold: frozenset[Rule] = frozenset()
        """Rules whose end is still to be told of."""
        self._has_changed = asyncio.Event()

    def load(self) -> None:
        """See ``Book``. What ended since the book was written has ended unseen, and is told of by ``tell_ended``."""
        super().load()
        try:
            written_unix_s = self.path.stat().st_mtime
        except OSError:
            return
        self._untold = frozenset(self.held.active(written_unix_s))

    async def switch(self, rule: Rule) -> Confirmation:
        """Put *rule* in force, as the latest of all; its time of setting is given here."""
        dated = dataclasses.replace(rule, set_unix_s=self._now_after(known.set_unix_s for known in self.held.rules))
        logger().info("mode_switched", **rule_fields(dated))
        return await self._apply(self._with(Modes((dated,))))

    async def run(self) -> None:
        """Tell of each rule that ends, until cancelled."""
        while True:
            await self.tell_ended()
            self._has_changed.clear()
            now_unix_s = self._unix_s()
            next_s = min((rule.end_unix_s for rule in self.held.active(now_unix_s)), default=math.inf) - now_unix_s
            try:
                async with asyncio.timeout(min(next_s, _LOOK_S)):
                    await self._has_changed.wait()
            except TimeoutError:
                continue

    async def tell_ended(self) -> None:
        """Log what has ended since the last call, and what holds in its place."""
        now_unix_s = self._unix_s()
        active = frozenset(self.held.active(now_unix_s))
        # A rule that was silenced meanwhile has not ended: another has taken its place, which has its line.
        ended = sorted((self._untold & frozenset(self.held.rules)) - active, key=lambda rule: rule.end_unix_s)
        self._untold = active
        for rule in ended:
            holds = self.live.deciding(rule.upstream, rule.operation).mode
            logger().info("mode_ended", **rule_fields(rule), now=holds)
        if ended:
            self._changed()
            await self._persist()  # so that the next run does not tell of them again

    def _with(self, others: Modes) -> Modes:
        return tidied(self.held.merged(others.rules), self._unix_s())

    def _hold(self, value: Modes) -> None:
        self._untold |= frozenset(value.active(self._unix_s()))
        super()._hold(value)
        self.live.replace(value)
        self._changed()
        self._has_changed.set()

    def _log_taken_over(self, merged: Modes) -> None:
        for rule in merged.rules:
            if rule not in self.held.rules:
                logger().info("mode_taken_over", **rule_fields(rule))


def rule_fields(rule: Rule) -> dict[str, Any]:
    """*rule* in a line of the log."""
    return {
        "mode": rule.mode,
        "upstream": rule.upstream,
        "operation": rule.operation,
        "until_unix_s": rule.until_unix_s,
        "by": rule.by,
        "reason": rule.reason,
    }
