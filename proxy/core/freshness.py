"""Lifetimes, and what a request's Cache-Control asks of an entry."""

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.core.entry import Entry
from proxy.core.request import Request, list_items


@dataclass(frozen=True, slots=True)
class Directives:
    """The request directives that the cache honours (RFC 9111 §5.2.1); times in seconds."""

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age_s: int | None = None
    min_fresh_s: int = 0
    max_stale_s: int | None = None
    """How stale an answer the client takes; ``None``: it does not say."""

    def accept(self, entry: Entry, now_unix_ms: int) -> bool:
        """Whether *entry* is fresh, and as fresh as the client asks."""
        remaining_ms = entry.remaining_ms(now_unix_ms)
        if self.no_cache or remaining_ms <= 0 or remaining_ms < self.min_fresh_s * 1000:
            return False
        return self.max_age_s is None or entry.age_ms(now_unix_ms) <= self.max_age_s * 1000


NONE = Directives()

_ANY_S = 2**31  # RFC 9111 §1.2.2: larger means the same


def directives(request: Request) -> Directives:
    """
    What *request* asks of the cache; unknown directives are ignored (RFC 9111 §5.2).

    ``max-age=0`` is ``no-cache`` in other words. ``Pragma: no-cache`` counts only without Cache-Control (§5.4).
    """
    values = request.values(b"cache-control")
    if not values:
        return Directives(no_cache=True) if "no-cache" in list_items(request.values(b"pragma")) else NONE
    named = {name: argument.strip('" ') for name, _, argument in (item.partition("=") for item in list_items(values))}
    max_age_s = _seconds(named.get("max-age"))
    return Directives(
        no_store="no-store" in named,
        no_cache="no-cache" in named or max_age_s == 0,
        only_if_cached="only-if-cached" in named,
        max_age_s=max_age_s,
        min_fresh_s=_seconds(named.get("min-fresh")) or 0,
        max_stale_s=_max_stale_s(named),
    )


def _max_stale_s(named: Mapping[str, str]) -> int | None:
    """Without a number, any staleness will do; with something else than a number, none (RFC 9111 §5.2.1.2)."""
    if "max-stale" not in named:
        return None
    return (_seconds(named["max-stale"]) or 0) if named["max-stale"] else _ANY_S


def _seconds(argument: str | None) -> int | None:
    if argument is None or not (argument.isascii() and argument.isdigit()):
        return None
    return min(int(argument[:12]), _ANY_S)


def jittered_ms(ttl_s: float, jitter: float, random_unit: float) -> int:
    """
    A lifetime in milliseconds, spread evenly over ``ttl_s`` ± ``jitter`` (a share of it) by *random_unit* in [0, 1).

    Entries filled together would otherwise end together, and their refills with them.
    """
    return max(1, round(ttl_s * 1000 * (1 + jitter * (2 * random_unit - 1))))
