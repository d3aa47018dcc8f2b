"""Grace: when an entry may still be served although its lifetime is over, and when not (RFC 5861, by cause)."""

import enum
from dataclasses import dataclass

from proxy.core.entry import Entry
from proxy.core.freshness import Directives


class Cause(enum.StrEnum):
    """How an upstream can fail; nothing that it says of a request (400, 401, 403) is a failure."""

    UNREACHABLE = "unreachable"
    """No connection, or one that broke before its answer was whole."""
    TIMEOUT = "timeout"
    """No answer in time."""
    SERVER_ERROR = "server-error"
    """A status of 500 or above."""
    THROTTLED = "throttled"
    """429."""
    BUSY = "busy"
    """Refused by ourselves: too many requests wait for this upstream."""


class StaleReason(enum.StrEnum):
    """Why a stale answer was served; the strings are log values, metric labels and Cache-Status details."""

    WHILE_REFRESH = "stale-while-revalidate"
    """A refresh is on its way, or failed a moment ago."""
    IF_ERROR = "stale-if-error"
    """The upstream failed just now, or a moment ago."""


_TOO_MANY_REQUESTS = 429


def cause_of_status(status: int) -> Cause | None:
    """What an upstream's *status* tells of it; ``None``: it did not fail."""
    if status == _TOO_MANY_REQUESTS:
        return Cause.THROTTLED
    return Cause.SERVER_ERROR if status >= 500 else None


@dataclass(frozen=True, slots=True)
class Windows:
    """
    For how long after its lifetime an entry may be served, in seconds; zero: never.

    *while_refresh_s* is for serving it at once, *if_error_s* for when the upstream failed, for one of *causes*.
    """

    while_refresh_s: float = 0.0
    if_error_s: float = 0.0
    causes: frozenset[Cause] = frozenset(Cause)

    @property
    def longest_s(self) -> float:
        """How long entries have to be kept for it."""
        return max(self.while_refresh_s, self.if_error_s)


def may_be_stale(entry: Entry, wishes: Directives, now_unix_ms: int, window_s: float) -> bool:
    """
    Whether *entry*, whose lifetime is over, may be served within a window of *window_s*, as far as the client goes.

    Who names an age or a time of freshness wants nothing stale, unless it says ``max-stale`` (RFC 9111 §5.2.1).
    """
    stale_ms = -entry.remaining_ms(now_unix_ms)
    if wishes.no_cache or wishes.min_fresh_s or not 0 <= stale_ms <= window_s * 1000:
        return False
    if wishes.max_age_s is not None and wishes.max_stale_s is None:
        return False
    is_young = wishes.max_age_s is None or entry.age_ms(now_unix_ms) <= wishes.max_age_s * 1000
    return is_young and (wishes.max_stale_s is None or stale_ms <= wishes.max_stale_s * 1000)
