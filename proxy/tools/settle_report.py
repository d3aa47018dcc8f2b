"""The outcome of a settle probe: for people, as JSON, and in the text format of Prometheus."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from proxy.tools.settle_probe import FACTOR, FLOOR_S, Kind, Plan, Samples, quantiles, recommended_s

_MS = 1000.0


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured where, and what follows; *figures_s* are seconds by kind and quantile."""

    url: str
    collection: str
    plan: Plan
    figures_s: Mapping[Kind, Mapping[str, float]]
    rate_limited: int
    configured_s: float

    @property
    def longest_s(self) -> float:
        """The longest time of any kind."""
        return max(figures["max"] for figures in self.figures_s.values())

    @property
    def recommended_s(self) -> float:
        """The least that ``vector.settle_s`` should be."""
        return recommended_s(self.longest_s)

    @property
    def is_enough(self) -> bool:
        """Whether what is configured is at least that."""
        return self.configured_s >= self.recommended_s


def report(url: str, collection: str, plan: Plan, samples: Samples, configured_s: float) -> Report:
    """The outcome of *samples*, of which every kind has some."""
    figures = {kind: quantiles(values) for kind, values in samples.elapsed_s.items()}
    return Report(url, collection, plan, figures, samples.rate_limited, configured_s)


def table(outcome: Report) -> str:
    """*outcome* for people, in milliseconds."""
    names = list(next(iter(outcome.figures_s.values())))
    lines = [f"{outcome.collection} at {outcome.url}, rounds: {outcome.plan.rounds}", ""]
    lines.append(f"{'ms after the acknowledgement':<30}" + "".join(f"{name:>10}" for name in names))
    for kind, figures in outcome.figures_s.items():
        lines.append(f"{kind.replace('_', ' '):<30}" + "".join(f"{figures[name] * _MS:>10.1f}" for name in names))
    rule = f"{FACTOR:g} times the longest, rounded up, never below {FLOOR_S:g}"
    lines += ["", f"settle_s: at least {outcome.recommended_s:g} ({rule}); configured: {outcome.configured_s:g}"]
    return "\n".join(lines)


def warnings(outcome: Report) -> list[str]:
    """What an operator should not miss."""
    found = []
    if outcome.rate_limited:
        found.append(f"{outcome.rate_limited} calls were refused for their rate, so the figures are coarse")
    if not outcome.is_enough:
        found.append(f"vector.settle_s is {outcome.configured_s:g}, less than that: stale answers may be stored")
    return found


def as_json(outcome: Report) -> str:
    """*outcome* as one JSON object."""
    document = {
        "url": outcome.url,
        "collection": outcome.collection,
        "rounds": outcome.plan.rounds,
        "sightings": outcome.plan.sightings,
        "rate_limited": outcome.rate_limited,
        "milliseconds": {
            kind: {name: round(seconds * _MS, 3) for name, seconds in figures.items()}
            for kind, figures in outcome.figures_s.items()
        },
        "recommended_settle_s": outcome.recommended_s,
        "configured_settle_s": outcome.configured_s,
        "is_enough": outcome.is_enough,
    }
    return json.dumps(document, indent=2)


def exposition(outcome: Report) -> str:
    """*outcome* in the text format of Prometheus."""
    lines = [
        "# HELP dashcache_settle_seconds From the acknowledgement of a DashVector write until reads show it.",
        "# TYPE dashcache_settle_seconds gauge",
        *(
            f'dashcache_settle_seconds{{kind="{kind}",quantile="{name}"}} {seconds:.6f}'
            for kind, figures in outcome.figures_s.items()
            for name, seconds in figures.items()
        ),
        "# HELP dashcache_settle_recommended_seconds The least that vector.settle_s should be.",
        "# TYPE dashcache_settle_recommended_seconds gauge",
        f"dashcache_settle_recommended_seconds {outcome.recommended_s:g}",
    ]
    return "\n".join(lines) + "\n"


def write_metrics(outcome: Report, path: Path) -> None:
    """Replace the file at *path* at once, so that a collector never reads half of it. Raises OSError."""
    # The collector reads *.prom only, so this name is none of its business.
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_text(exposition(outcome), encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
