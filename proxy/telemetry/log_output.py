"""
How log lines leave: structlog to standard error, JSON unless that is a terminal. What is logged is in ``log``.

Of what clients and vendors sent, only names and ids are logged, and only if they look like ones (``asked``). An
exception is logged as its class and the place in our code, never with its message or its traceback, which may quote
data.
"""

import atexit
import logging
import os
import sys
import time
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import orjson
import structlog

from proxy.settings.model import Log
from proxy.telemetry.log_text import AsText
from proxy.telemetry.log_throttle import Throttle
from proxy.telemetry.log_writer import LineWriter

Event = MutableMapping[str, Any]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_PACKAGE = Path(__file__).parents[1]
_MAX_TEMPLATE = 200


def logger() -> Any:  # noqa: ANN401  structlog's loggers are made at run time
    """The logger of all our code."""
    return structlog.get_logger()


def configure(settings: Log, process: str, descriptor: int = 2) -> LineWriter:
    """Send structlog, the standard library's loggers and uncaught exceptions of this *process* to *descriptor*."""
    writer = LineWriter(descriptor, _dropped_line)
    as_json = settings.format == "json" or (settings.format == "auto" and not os.isatty(descriptor))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _without_traceback,
            _Stamped(process),
            _as_json if as_json else AsText(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.level]),
        logger_factory=lambda *_: _Out(writer),
        cache_logger_on_first_use=True,
    )
    _route_standard_loggers()
    sys.excepthook = _uncaught
    atexit.register(writer.close)
    return writer


def error_fields(error: BaseException) -> dict[str, str]:
    """The class of *error*, and the innermost line of our own code that it passed."""
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(_PACKAGE):
            where = f"{path.relative_to(_PACKAGE.parent)}:{frame.lineno}"
    return {"error": type(error).__name__, "where": where}


class _Out:
    """What structlog calls at the end of its chain."""

    def __init__(self, writer: LineWriter) -> None:
        self._write = writer.write

    def msg(self, line: bytes) -> None:
        self._write(line)

    debug = info = warning = error = critical = exception = log = msg


class _Stamped:
    """Adds when (UTC, to the millisecond) and which process: ``supervisor`` or ``worker-<n>``."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._second = -1
        self._text = ""

    def __call__(self, _logger: object, _method: str, event: Event) -> Event:
        now_unix_s = time.time()
        second = int(now_unix_s)
        if second != self._second:  # spelling out a date costs more than the rest of a line
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        event["timestamp"] = f"{self._text}.{int((now_unix_s - second) * 1000):03d}Z"
        event["process"] = self._process
        return event


def _as_json(_logger: object, _method: str, event: Event) -> bytes:
    # Values of unknown types are named, not shown: their repr may quote data.
    return orjson.dumps(event, default=lambda value: type(value).__name__, option=orjson.OPT_APPEND_NEWLINE)


def _without_traceback(_logger: object, _method: str, event: Event) -> Event:
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()[1]
    elif isinstance(given, tuple):
        given = given[1]
    if isinstance(given, BaseException):
        event.update(error_fields(given))
    return event


def _dropped_line(lines: int) -> bytes:
    return orjson.dumps({"event": "log_lines_dropped", "lines": lines}, option=orjson.OPT_APPEND_NEWLINE)


class _Route(logging.Handler):
    """
    The standard library's loggers, in our form.

    Of a record only the template's first line is kept: the arguments and further lines quote requests, addresses and
    objects. For asyncio, whose messages are put together before, the first line is its fixed sentence.
    """

    def __init__(self) -> None:
        super().__init__()
        self._throttle = Throttle()

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        template = str(record.msg).partition("\n")[0][:_MAX_TEMPLATE]
        held_back = self._throttle.passes((record.name, template))
        if held_back is None:
            return
        error = record.exc_info[1] if record.exc_info else None
        fields: dict[str, Any] = dict(error_fields(error)) if error is not None else {}
        log = logger().error if record.levelno >= logging.ERROR else logger().warning
        if held_back:
            fields["repeated"] = held_back
        log("library", library=record.name, message=template, **fields)


def _route_standard_loggers() -> None:
    root = logging.getLogger()
    root.handlers = [_Route()]
    root.setLevel(logging.WARNING)
    for name in ("aiohttp.access", "aiohttp.server", "aiohttp.web", "asyncio"):
        library = logging.getLogger(name)
        library.handlers = []
        library.propagate = True
        library.setLevel(logging.ERROR)
    logging.raiseExceptions = False


def _uncaught(_kind: type[BaseException], error: BaseException, _trace: object) -> None:
    logger().error("uncaught", **error_fields(error))
