"""What the inner layers tell about themselves between requests; ``ops`` turns it into log lines and counters."""

from typing import Protocol

from proxy.core.outcome import Outcome
from proxy.core.trouble import Trouble


class Telemetry(Protocol):
    """Events that belong to no single request. Implementations must not raise and must not wait."""

    def breaker_changed(self, old: str, new: str) -> None:
        """The breaker in front of Redis went from *old* to *new*: ``closed``, ``open``, ``half-open``."""

    def redis_failed(self, kind: str) -> None:
        """One Redis operation failed; *kind* is a class of error (``timeout``, ``connection``, ``rejected`` …)."""

    def redis_read_only(self, is_so: bool) -> None:
        """Redis takes no writes from now on, or takes them again."""

    def redis_went_back(self, why: str) -> None:
        """What Redis held of before no longer counts: because of *why*, or, if empty, as another process has found."""

    def stored(self, entries: int, failed: int) -> None:
        """So many entries were written, so many could not be."""

    def entries_rejected(self, entries: int) -> None:
        """So many stored values did not open: altered, truncated, foreign or old."""

    def refreshed(self, is_fresh: bool, outcome: Outcome) -> None:
        """A refresh in the background is over; *outcome* is its own, and tells what it asked of the upstream."""

    def invalidated(self, told: bool) -> None:
        """A write made answers stale; *told*: Redis knows. If not, this process reads none of them until it does."""

    def call_ended(self, upstream: str, end: int | Trouble) -> None:
        """A call to *upstream* ended: with an answer of this HTTP status, or without one, for this trouble."""

    def upstream_refused(self, upstream: str, reason: str) -> None:
        """A request got no turn at *upstream*: the line was full, or it had waited long enough."""

    def batched(self, items: int, is_right: bool) -> None:
        """Several requests were one upstream request for so many items; not *right*: it brought none of them a row."""

    def batch_limit_changed(self, upstream: str, model: str, before: int, now: int) -> None:
        """The vendor took more texts of *model* at once than were known, or takes fewer again; once each per model."""

    def flight_overdue(self, operation: str) -> None:
        """A request of *operation* brought nothing within its lock time: those who waited for it went on without it."""

    def connection_ended(self, reason: str) -> None:
        """A client's connection was refused or broken off: too many of them, or too slow; an ErrorCode."""

    def journal_failed(self, error: OSError) -> None:
        """A write goes on although its word could not be written to the journal."""

    def background_failed(self, error: BaseException) -> None:
        """A background task ended with an exception that nobody awaited."""
