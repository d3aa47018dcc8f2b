"""
The closed sets that metric labels are taken from; whatever is not in its set becomes ``other``.

Requests choose paths, models and headers, so nothing that they bring may become a label as it is: the number of series
would be theirs to choose.
"""

from collections.abc import Iterable

from proxy.core.errors import ErrorCode
from proxy.core.outcome import CacheState
from proxy.core.plan import PassReason, Refusal
from proxy.core.trouble import Trouble
from proxy.settings.model import Settings
from proxy.transport.slots import QUEUE_FULL, QUEUE_WAIT
from proxy.vendors.operations import of_vendor

OTHER = "other"

STATES: tuple[str, ...] = tuple(state.value for state in CacheState)
ITEM_RESULTS = ("memory", "redis", "forwarded", "coalesced")
ANSWERS = ("2xx", "3xx", "401", "403", "429", "4xx", "5xx", "none", OTHER)
"""Statuses of answers: by class, and those apart that an operator has to tell apart; ``none``: no answer came."""
CALL_ENDS = tuple(dict.fromkeys((*(status for status in ANSWERS if status != "none"), *Trouble)))
REDIS_FAILURES = (
    "authentication",
    "cluster-down",
    "connection",
    "garbage",
    "loading",
    "rejected",
    "timeout",
    OTHER,
)
REDIS_WENT_BACK = ("damaged", "empty", "older", "server", OTHER)
QUEUE_REASONS = (QUEUE_FULL, QUEUE_WAIT)
ENDINGS: tuple[str, ...] = tuple(
    code.value for code in (ErrorCode.TOO_MANY_CONNECTIONS, ErrorCode.REQUEST_TIMEOUT, ErrorCode.CLIENT_TOO_SLOW)
)
REASONS: frozenset[str] = frozenset(member.value for kind in (PassReason, Refusal, ErrorCode) for member in kind)


def upstream_names(settings: Settings) -> tuple[str, ...]:
    """The names of all configured upstreams."""
    return tuple(upstream.name for upstream in settings.all_upstreams())


def upstream_operations(settings: Settings) -> dict[str, tuple[str, ...]]:
    """The operations of each configured upstream, by its name."""
    return {upstream.name: of_vendor(upstream.vendor) for upstream in settings.all_upstreams()}


def known(value: str, allowed: Iterable[str]) -> str:
    """*value* if it is *allowed*, else ``other``."""
    return value if value in allowed else OTHER


def answer(status: int) -> str:
    """One of ANSWERS for a *status*; 0 is that of an answer that did not come."""
    if status == 0:
        return "none"
    return str(status) if str(status) in ANSWERS else known(f"{status // 100}xx", ANSWERS)
