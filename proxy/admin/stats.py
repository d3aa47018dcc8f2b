"""``GET /v1/stats``: the counters of all workers as one JSON document for people and dashboards."""

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.admin import savings
from proxy.admin.health import State, upstream_state
from proxy.admin.metric_files import Totals
from proxy.control.live import LiveModes
from proxy.control.purges import named
from proxy.core.modes import Rule
from proxy.core.purges import Marks
from proxy.telemetry import labels
from proxy.vendors.operations import OPERATIONS


def version() -> str:
    """The installed version."""
    try:
        return importlib.metadata.version("dashcache")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


_FAILING_SINCE = "dashcache_upstream_failing_since_seconds"


class _Sums:
    """Questions to the totals."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def one(self, name: str, **wanted: str) -> int:
        """The sum of all samples called *name* that have the labels *wanted*."""
        pairs = set(wanted.items())
        fitting = (value for (known, given), value in self._totals.items() if known == name and pairs <= set(given))
        return round(sum(fitting))

    def by(self, name: str, label: str, **wanted: str) -> dict[str, int]:
        """The same, split by *label*; zeros are left out."""
        pairs = set(wanted.items())
        sums: dict[str, int] = {}
        for (known, given), value in self._totals.items():
            if known == name and pairs <= set(given) and value:
                key = dict(given)[label]
                sums[key] = sums.get(key, 0) + round(value)
        return dict(sorted(sums.items()))


def stats(
    totals: Totals,
    state: State,
    redis: dict[str, Any],
    modes: LiveModes,
    upstreams: Mapping[str, Sequence[str]],
    *,
    marks: Marks,
) -> dict[str, Any]:
    """The document; *upstreams* have their operations beside them, *marks* are the purges'."""
    sums = _Sums(totals)
    served = {name for names in upstreams.values() for name in names}
    shown = [name for name in (*OPERATIONS, labels.OTHER) if name in served or name == labels.OTHER]
    operations = {name: _operation(sums, name) for name in shown}
    return {
        "version": version(),
        "phase": state.phase,
        "uptime_s": state.uptime_s(),
        "listeners": state.listeners(),
        "workers": state.worker_counts(),
        "settings": state.settings(),
        "redis": {**redis, "failures": sums.by("dashcache_redis_failures_total", "kind")},
        "breaker": _breaker(sums, state),
        "memory": {
            "entries": sums.one("dashcache_memory_entries"),
            "bytes": sums.one("dashcache_memory_bytes"),
        },
        "stores": {
            "stored": sums.one("dashcache_stores_total", result="stored"),
            "failed": sums.one("dashcache_stores_total", result="failed"),
            "rejected_on_read": sums.one("dashcache_entries_rejected_total"),
        },
        "invalidations": {
            "told": sums.one("dashcache_invalidations_total", result="told"),
            "untold": sums.one("dashcache_invalidations_total", result="untold"),
            "pending": sums.one("dashcache_pending_invalidations"),
        },
        "operations": operations,
        "upstreams": {name: _upstream(sums, name) for name in upstreams},
        "shadow": sums.by("dashcache_shadow_total", "result"),
        "money_saved": savings.saved(sums.by("dashcache_tokens_saved_total", "model")),
        "modes": modes_document(modes, upstreams),
        "purges": _purges(marks),
    }


def failing_since(totals: Totals, upstream: str) -> dict[str, int]:
    """For which causes *upstream* does not answer, and since when (Unix seconds)."""
    return _Sums(totals).by(_FAILING_SINCE, "cause", upstream=upstream)


def modes_document(modes: LiveModes, upstreams: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """
    The mode of each upstream and of those of its operations that have one, and the rules that make it so.

    ``waiting`` are rules that a later one stands before; some of them hold when that one ends.
    """
    switchable = {
        upstream: [name for name in operations if OPERATIONS[name].is_switchable]
        for upstream, operations in upstreams.items()
    }
    pairs = [(upstream, name) for upstream, names in switchable.items() for name in names]
    deciding = {pair: modes.deciding(*pair) for pair in pairs}
    in_force = dict.fromkeys(deciding.values())
    latest_first = reversed(modes.valid().rules)
    waiting = [rule for rule in latest_first if rule not in in_force and any(rule.covers(*pair) for pair in pairs)]
    return {
        "effective": {
            upstream: {name: deciding[upstream, name].mode for name in names} for upstream, names in switchable.items()
        },
        "rules": [_rule(rule) for rule in in_force],
        "waiting": [_rule(rule) for rule in waiting],
    }


def _purges(marks: Marks) -> dict[str, Any]:
    """How many marks keys are made with, and the latest."""
    last = max(marks.marks, key=lambda mark: mark.set_unix_s, default=None)
    if last is None:
        return {"marks": 0, "last": None}
    age_s = round(max(0.0, time.time() - last.set_unix_s))
    return {"marks": len(marks.marks), "last": {"scope": named(last.extent), "token": last.token, "age_s": age_s}}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "mode": rule.mode,
        "upstream": rule.upstream,
        "operation": rule.operation,
        "until_unix_s": rule.until_unix_s,
        "set_unix_s": rule.set_unix_s or None,
        "source": "switched" if rule.set_unix_s else "settings",
        "by": rule.by if rule.set_unix_s else "settings",
        "reason": rule.reason,
    }


def _operation(sums: _Sums, name: str) -> dict[str, Any]:
    items = {result: sums.one("dashcache_items_total", operation=name, result=result) for result in labels.ITEM_RESULTS}
    hits = items["memory"] + items["redis"]
    looked_up = sum(items.values())
    return {
        "requests": sums.one("dashcache_requests_total", operation=name),
        "requests_by_state": sums.by("dashcache_requests_total", "state", operation=name),
        "items": looked_up,
        "hits": {"memory": items["memory"], "redis": items["redis"]},
        "misses": items["forwarded"] + items["coalesced"],
        "coalesced": items["coalesced"],
        "hit_ratio": round(hits / looked_up, 4) if looked_up else None,
        "upstream_calls": sums.one("dashcache_operation_calls_total", operation=name, result="made"),
        "calls_saved": sums.one("dashcache_operation_calls_total", operation=name, result="saved"),
        "tokens_saved": sums.one("dashcache_tokens_saved_total", operation=name),
        "not_cached": sums.by("dashcache_not_cached_total", "reason", operation=name),
    }


def _upstream(sums: _Sums, name: str) -> dict[str, Any]:
    return {
        "calls": sums.one("dashcache_upstream_calls_total", upstream=name),
        "by_end": sums.by("dashcache_upstream_calls_total", "end", upstream=name),
        **upstream_state(sums.by(_FAILING_SINCE, "cause", upstream=name)),
    }


def _breaker(sums: _Sums, state: State) -> dict[str, Any]:
    workers = sums.one("dashcache_breaker_open_workers")
    verdict = "open" if workers >= state.serving else "open in some workers"
    return {"state": verdict if workers else "closed", "open_workers": workers}
