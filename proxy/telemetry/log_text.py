"""The log for people at a terminal: one readable line for each request, the rest as structlog has it."""

from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

_GREEN, _YELLOW, _RED, _PLAIN = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"


class AsText:
    """The last of structlog's processors."""

    def __init__(self) -> None:
        self._render = structlog.dev.ConsoleRenderer(colors=True, sort_keys=False)

    def __call__(self, logger_: Any, method: str, event: MutableMapping[str, Any]) -> bytes:  # noqa: ANN401
        """The line."""
        text = _LINES[event["event"]](event) if event.get("event") in _LINES else self._other(logger_, method, event)
        return (text + "\n").encode("utf-8", "replace")

    def _other(self, logger_: Any, method: str, event: MutableMapping[str, Any]) -> str:  # noqa: ANN401
        return str(self._render(logger_, method, event))


def _request(event: Mapping[str, Any]) -> str:
    """``21:14:03.120  200  miss    131.2 ms  embedding text-embedding-v4  1/3 items  why``, and where it went."""
    hits = event["hits_memory"] + event["hits_redis"]
    upstream = event["upstream"]
    if event["upstream_status"] not in (None, event["status"]):
        upstream += f" said {event['upstream_status']}"
    words = (
        _time(event),
        _status(event["status"], event["grpc_status"]),
        f"{event['state']:<8}",
        f"{event['total_ms']:>8.1f} ms",
        f"{event['operation']} {event['model'] or event['collection']}".rstrip(),
        f"{hits}/{event['items']} items" if event["items"] else f"{event['method']} {event['path']}".strip(),
        event["detail"],
        "client gone" if event["client_gone"] else "",
        "redis away" if not event["redis_ok"] else "",
        upstream if event["upstream_calls"] else "",
        event["vendor_request_id"],
    )
    return "  ".join(word for word in words if word)


def _hits(event: Mapping[str, Any]) -> str:
    where = f"{event['hits_memory']} items from memory, {event['hits_redis']} from redis"
    times = f"mean {event['mean_ms']:.1f} ms, longest {event['max_ms']:.1f} ms"
    return f"{_time(event)}  {_status(200, None)}  {event['requests']} hits  {event['operation']}  {where}  {times}"


_LINES = {"request": _request, "hits": _hits}


def _time(event: Mapping[str, Any]) -> str:
    """Of the day, UTC."""
    return str(event["timestamp"])[11:23]


def _status(status: int, grpc_status: str | None) -> str:
    colour = _GREEN if 0 < status < 400 else _RED if status >= 500 or not status else _YELLOW
    return f"{colour}{grpc_status or status or '---'}{_PLAIN}"
