"""Outcome to header lines: Cache-Status (RFC 9211), Age (RFC 9111 §5.1) and our own counters."""

from functools import lru_cache

from proxy.core.outcome import CacheState, Outcome
from proxy.core.request import HeaderLines

_FORWARDED = {
    CacheState.PARTIAL: "fwd=partial",
    CacheState.STALE: "fwd=stale",
    CacheState.MISS: "fwd=miss",
    CacheState.BYPASS: "fwd=bypass",
    CacheState.WRITE: "fwd=method",
}


def cache_status(outcome: Outcome) -> str:
    """
    The value of Cache-Status, for example ``dashcache; hit; ttl=604001``; a stale entry's ttl is negative (§2.4).

    RFC 9211 §2; ``fwd=partial`` and ``fwd=miss`` are its registered values as far as they fit a batch of items.
    """
    members = ["dashcache"]
    is_stale_hit = outcome.state is CacheState.STALE and not outcome.has_asked
    if is_stale_hit or outcome.state in (CacheState.HIT, CacheState.NEGATIVE):
        members.append("hit")
    elif outcome.state in _FORWARDED:
        members.append(_FORWARDED[outcome.state])
    if outcome.upstream_status is not None:
        members.append(f"fwd-status={outcome.upstream_status}")
    if outcome.ttl_s is not None and outcome.hits:
        members.append(f"ttl={outcome.ttl_s}")
    if outcome.stored:
        members.append("stored")
    if outcome.coalesced:
        members.append("collapsed")
    if outcome.state is CacheState.NEGATIVE:
        members.append("detail=negative")
    elif outcome.detail:
        members.append(f"detail={outcome.detail}")
    return "; ".join(members)


def header_lines(outcome: Outcome) -> HeaderLines:
    """The lines that tell a client how its answer came about; none for answers that are not ours to cache."""
    if outcome.state in _NOT_OURS:
        return ()
    if outcome.state is CacheState.HIT and not outcome.detail:
        return _hit_lines(outcome.ttl_s, outcome.hits, outcome.items, outcome.age_s, outcome.origins)
    return _lines(cache_status(outcome), outcome.hits, outcome.items, outcome.age_s, outcome.origins)


@lru_cache(512)
def _hit_lines(ttl_s: int | None, hits: int, items: int, age_s: int | None, origins: tuple[str, ...]) -> HeaderLines:
    """Those of a plain hit, of which there are many within a second."""
    told = Outcome(state=CacheState.HIT, hits_memory=hits, items=items, ttl_s=ttl_s)
    return _lines(cache_status(told), hits, items, age_s, origins)


def _lines(status: str, hits: int, items: int, age_s: int | None, origins: tuple[str, ...]) -> HeaderLines:
    lines = [(b"Cache-Status", status.encode("ascii"))]
    if items:
        lines.append((b"X-Dashcache-Items", b"%d/%d" % (hits, items)))
    if age_s is not None and hits:
        lines.append((b"Age", b"%d" % age_s))
    if origins:
        lines.append((b"X-Dashcache-Origin", ", ".join(origins[:_MAX_ORIGINS]).encode("latin-1", "replace")))
    return tuple(lines)


_NOT_OURS = frozenset({CacheState.PASS, CacheState.WRITE, CacheState.REFUSED})
_MAX_ORIGINS = 25  # the largest batch a vendor takes in one call
