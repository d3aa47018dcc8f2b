"""One worker inside the benchmark's own process, on a real socket, so that its clock can be moved by hand."""

import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from proxy.core.listening import Port
from proxy.core.modes import Mode
from proxy.core.outcome import Outcome, Repeats
from proxy.core.ports import Clock
from proxy.core.trouble import Trouble
from proxy.settings.model import Settings
from proxy.worker import build
from proxy.worker.ports import listen


class AlwaysOn:
    """A mode source that nobody switches."""

    version = 0
    same_until_unix_s = math.inf

    def mode(self, upstream: str, operation: str) -> Mode:  # noqa: ARG002  the same for all
        return Mode.ON


@dataclass
class Recorder:
    """An observer that keeps the outcomes."""

    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def observe_repeats(self, repeats: Repeats) -> None:  # noqa: ARG002
        self.failures.append("more requests a second than are recorded one by one")

    def background_failed(self, error: BaseException) -> None:
        self.failures.append(repr(error))

    def breaker_changed(self, old: str, new: str) -> None:
        self.failures.append(f"breaker {old} -> {new}")

    def redis_failed(self, kind: str) -> None:
        self.failures.append(f"redis {kind}")

    def redis_read_only(self, is_so: bool) -> None:
        self.failures.append(f"redis read-only: {is_so}")

    def redis_went_back(self, why: str) -> None:
        self.failures.append(f"redis went back: {why}")

    def invalidated(self, told: bool) -> None:
        if not told:
            self.failures.append("invalidation not told")

    def stored(self, entries: int, failed: int) -> None:
        if failed:
            self.failures.append(f"{failed} of {entries + failed} stores failed")

    def refreshed(self, is_fresh: bool, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if not is_fresh:
            self.failures.append("a refresh brought nothing")

    def upstream_refused(self, upstream: str, reason: str) -> None:
        self.failures.append(f"{upstream} busy: {reason}")

    def call_ended(self, upstream: str, end: int | Trouble) -> None:
        if isinstance(end, Trouble):
            self.failures.append(f"{upstream}: {end}")

    def flight_overdue(self, operation: str) -> None:
        self.failures.append(f"{operation}: a flight was overdue")

    def batched(self, items: int, is_right: bool) -> None:
        if not is_right:
            self.failures.append(f"a batch of {items} items was not right")

    def batch_limit_changed(self, upstream: str, model: str, before: int, now: int) -> None:
        """Nothing is made of it."""

    def journal_failed(self, error: OSError) -> None:
        self.failures.append(f"journal {error}")

    def connection_ended(self, reason: str) -> None:
        self.failures.append(f"connection ended: {reason}")

    def entries_rejected(self, entries: int) -> None:
        self.failures.append(f"{entries} entries rejected")


@contextlib.asynccontextmanager
async def serving(
    settings: Settings, redis_url: str | None, clock: Clock
) -> AsyncIterator[tuple[int, build.Worker, Recorder]]:
    """A worker that serves on a free port until the block ends: its port, its parts, what it observed."""
    recorder = Recorder()
    async with build.built(settings, b"benchmark", redis_url, AlwaysOn(), recorder, clock=clock) as worker:
        runner = await listen(settings, worker.front, Port("http", "", "127.0.0.1", 0))
        try:
            yield runner.addresses[0][1], worker, recorder
            await worker.tasks.wait_done(5)
        finally:
            await runner.cleanup()
