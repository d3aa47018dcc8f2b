"""What was found, as a page and as a picture."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.peers.figures import ALL, NEED_CORES, Figure
from benchmarks.peers.machine import PLACED, Placement, described

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "benchmarks" / "RESULTS.md"
PICTURE = ROOT / "docs" / "bench.svg"

_HEAD = """# Results

Written by `make bench`; what each figure means: [docs/performance.md](../docs/performance.md).

    {command}

{machine}. Placed: {placed}.
{crowded}Medians of the rounds; in brackets the quartiles. Every ratio is taken within a round.

| figure | found | target | |
|---|---|---|---|
"""
_CROWDED = (
    "Ratios marked * mean little here, as wrk shares a core with Redis and the upstreams; four cores are wanted.\n"
)
_RATES = """
## Requests a second

64 connections unless it says otherwise; they move with the machine, the ratios above much less.

| server, what was asked | requests a second |
|---|---|
"""


def write(
    values: Mapping[Figure, Sequence[float]],
    rates: Mapping[str, Sequence[float]],
    command: str,
    where: Placement = PLACED,
) -> str:
    """Write page and picture; the page's text."""
    doubtful = NEED_CORES if where.is_crowded else ()
    lines = [_line(figure, values.get(figure, ()), "*" if figure in doubtful else "") for figure in ALL]
    rows = [f"| {name} | {statistics.median(found):,.0f} {_spread(found, 0)} |" for name, found in rates.items()]
    head = _HEAD.format(
        command=command, machine=described(), placed=where, crowded=_CROWDED if where.is_crowded else ""
    )
    text = head + "\n".join(lines) + "\n" + _RATES + "\n".join(rows) + "\n"
    PAGE.write_text(text)
    PICTURE.write_text(picture({name: statistics.median(found) for name, found in rates.items()}))
    return text


def _line(figure: Figure, found: Sequence[float], mark: str) -> str:
    sign = "≥" if figure.better == "higher" else "≤"
    target = f"{sign} {figure.target:,g} {figure.unit}".strip()
    if not found:
        return f"| {figure.name}{mark} | not measured: a program was not there | {target} | |"
    value = statistics.median(found)
    digits = 0 if abs(value) >= 100 else 2
    said = f"{value:,.{digits}f} {figure.unit}".strip()
    verdict = "met" if figure.is_met(value) else "**missed**"
    return f"| {figure.name}{mark} | {said} {_spread(found, digits)} | {target} | {verdict} |"


def _spread(found: Sequence[float], digits: int) -> str:
    if len(found) < 2:
        return ""
    low, _, high = statistics.quantiles(found, n=4, method="inclusive")
    return f"({low:,.{digits}f}-{high:,.{digits}f})"


# --- the picture ------------------------------------------------------------------------------------------------------

_SHOWN = (
    ("Dashcache, repeated hit", "memory, repeat", True),
    ("nginx proxy_cache", "nginx-cache, repeat", False),
    ("Varnish", "varnish, repeat", False),
    ("Dashcache, hit parsed", "memory, new", True),
    ("bare aiohttp: read, hash, dict", "aiohttp, new", False),
    ("Dashcache, hit in Redis", "redis, repeat", True),
    ("nginx + Lua + Redis", "nginx-lua, repeat", False),
    ("bare aiohttp + pipelined Redis", "pipelined, repeat", False),
    ("LiteLLM, cached in its memory", "litellm, repeat", False),
)
_WIDTH, _LEFT, _ROW = 760, 240, 30


def picture(rates: Mapping[str, float]) -> str:
    """Bars, one for each server, as long as its rate."""
    bars = [(name, rates[key], is_ours) for name, key, is_ours in _SHOWN if key in rates]
    longest = max((rate for _, rate, _ in bars), default=1.0)
    height = _ROW * len(bars) + 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        "<style>text { font-size: 13px }</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="12" y="24" font-size="15">Hits a second on one core, 22 KB each, 64 connections</text>',
    ]
    for at, (name, rate, is_ours) in enumerate(bars):
        top, length = 42 + at * _ROW, (_WIDTH - _LEFT - 80) * rate / longest
        colour = "#0f766e" if is_ours else "#a8a29e"
        parts.append(f'<text x="{_LEFT - 8}" y="{top + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{top}" width="{length:.0f}" height="20" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + length + 6:.0f}" y="{top + 15}">{rate:,.0f}</text>')
    return "\n".join((*parts, "</svg>", ""))
