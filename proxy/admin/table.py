"""``GET /v1/stats`` for people: the figures that an operator looks for, in columns."""

import time
from decimal import Decimal
from typing import Any

_MOST_MODELS = 5
_RATES = ("requests_per_s", "calls_per_s", "hit_ratio")


def table(document: dict[str, Any]) -> str:
    """*document* as text."""
    parts = [_overview(document), _operations(document), _rates(document), _upstreams(document), _rules(document)]
    return "\n\n".join(part for part in parts if part)


def workers_table(document: dict[str, Any]) -> str:
    """``GET /v1/workers`` for people: a line for each worker."""
    lines = [
        ["worker", "pid", "up", "connections", "requests", "at upstreams", "memory", "held", "loop lag", "breaker"]
    ]
    for each in document["workers"]:
        line = [str(each["worker"]), str(each["pid"]), _duration(each["age_s"])]
        if not each["answers"]:
            lines.append([*line, "does not answer", *[""] * (len(lines[0]) - len(line) - 1)])
            continue
        memory = each["memory"]
        lines.append(
            [
                *line,
                str(each["connections"]),
                str(each["requests"]),
                str(sum(each["upstream_requests"].values())),
                f"{memory['entries']} rows, {memory['bytes'] / 2**20:.1f} MiB",
                f"{each['held_bytes'] / 2**20:.1f} MiB",
                f"{each['loop_lag_ms']:.0f} ms",
                each["breaker"] or "no Redis",
            ]
        )
    return _columns(lines)


def _overview(document: dict[str, Any]) -> str:
    redis, workers = document["redis"], document["workers"]
    answered = {None: "none", True: f"{redis['round_trip_ms']} ms", False: "does not answer"}[redis["ok"]]
    memory = document["memory"]
    return _columns(
        [
            ["version", document["version"]],
            ["phase", f"{document['phase']}, up {_duration(document['uptime_s'])}"],
            ["workers", f"{workers['serving']} of {workers['wanted']}"],
            ["settings", _settings(document["settings"])],
            ["listening", _listening(document["listeners"])],
            ["redis", f"{redis['kind']}, {answered}, breaker {document['breaker']['state']}"],
            ["memory", f"{memory['entries']} rows, {memory['bytes'] / 2**20:.1f} MiB"],
            *_invalidations(document),
            *_purges(document),
            ["saved", _money(document["money_saved"])],
        ]
    )


def _money(saved: dict[str, Any]) -> str:
    """Enough digits that a few tokens are not shown as nothing; and what is not in the amount."""
    text = f"about {_amount(saved['amount'])} {saved['currency']}"
    unknown = {model: entry["tokens"] for model, entry in saved["models"].items() if entry["amount"] is None}
    most_first = sorted(unknown, key=lambda model: (-unknown[model], model))
    named = [f"{unknown[model]} tokens of model {model}" for model in most_first[:_MOST_MODELS]]
    rest = most_first[_MOST_MODELS:]
    if rest:
        named.append(f"{sum(unknown[model] for model in rest)} tokens of {len(rest)} more")
    return f"{text}; unknown price: {', '.join(named)}" if named else text


def _amount(value: float) -> str:
    return f"{value:.2f}" if value >= 1 or not value else f"{Decimal(f'{value:.3g}'):f}"


def _invalidations(document: dict[str, Any]) -> list[list[str]]:
    counts = document["invalidations"]
    if not any(counts.values()):
        return []
    told, untold, pending = counts["told"], counts["untold"], counts["pending"]
    text = f"{told + untold} times by writes, {untold} without Redis; {pending} pending"
    return [["invalidated", text]]


def _purges(document: dict[str, Any]) -> list[list[str]]:
    purges = document["purges"]
    if purges["last"] is None:
        return []
    scope = ", ".join("all" if kind == "all" else f"{kind} {name}" for kind, name in purges["last"]["scope"].items())
    return [["purged", f"{scope}, {_duration(purges['last']['age_s'])} ago; {purges['marks']} marks in all"]]


def _settings(state: dict[str, Any]) -> str:
    loaded = _moment(state["loaded_unix_s"], "")
    return f"of {loaded}{', a reload is under way' if state['reloading'] else ''}"


def _listening(listeners: dict[str, Any]) -> str:
    data = {protocol: addresses for protocol, addresses in listeners.items() if protocol != "admin"}
    return "; ".join(f"{protocol} {', '.join(addresses)}" for protocol, addresses in data.items())


def _operations(document: dict[str, Any]) -> str:
    heads = [
        "operation",
        "requests",
        "items",
        "memory",
        "redis",
        "misses",
        "hit ratio",
        "calls",
        "saved",
        "tokens saved",
    ]
    rows = [
        [
            name,
            operation["requests"],
            operation["items"],
            operation["hits"]["memory"],
            operation["hits"]["redis"],
            operation["misses"],
            "-" if operation["hit_ratio"] is None else f"{operation['hit_ratio']:.1%}",
            operation["upstream_calls"],
            operation["calls_saved"],
            operation["tokens_saved"],
        ]
        for name, operation in document["operations"].items()
    ]
    return _columns([heads, *rows])


def _rates(document: dict[str, Any]) -> str:
    spans = [(short, document["rates"][span]) for short, span in (("1m", "last_minute"), ("1h", "last_hour"))]
    heads = [f"{head} {short}" for head in ("requests/s", "calls/s", "hit ratio") for short, _ in spans]
    rows = [
        [name, *(_rate(span["operations"].get(name), figure) for figure in _RATES for _, span in spans)]
        for name in document["operations"]
    ]
    return _columns([["rates", *heads], *rows])


def _rate(rates: dict[str, Any] | None, figure: str) -> str:
    value = None if rates is None else rates[figure]
    if value is None:
        return "-"
    return f"{value:.1%}" if figure == "hit_ratio" else f"{value:.2f}"


def _upstreams(document: dict[str, Any]) -> str:
    rows = [
        [
            name,
            upstream["state"],
            upstream["calls"],
            ", ".join(f"{count} {end}" for end, count in upstream["by_end"].items()),
        ]
        for name, upstream in document["upstreams"].items()
    ]
    return _columns([["upstream", "state", "calls", "how they ended"], *rows])


def _rules(document: dict[str, Any]) -> str:
    modes = document["modes"]
    rows = [_rule(rule, "") for rule in modes["rules"]] + [_rule(rule, "waits, ") for rule in modes["waiting"]]
    return _columns([["mode", "upstream", "operation", "until", "since", "by", "reason"], *rows])


def _rule(rule: dict[str, Any], before: str) -> list[str]:
    until, since = _moment(rule["until_unix_s"], "for good"), _moment(rule["set_unix_s"], "the start")
    return [f"{before}{rule['mode']}", rule["upstream"], rule["operation"], until, since, rule["by"], rule["reason"]]


def _moment(unix_s: float | None, otherwise: str) -> str:
    return otherwise if unix_s is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s))


def _columns(rows: list[list[Any]]) -> str:
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    named = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    shown = [f"{count}{unit}" for count, unit in named if count]
    return " ".join(shown[:2]) or "0s"
