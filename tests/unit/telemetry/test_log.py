"""The log: one line per request, nothing in it that a client sent, and a reader that stops does not stop us."""

import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
import structlog

from proxy.core.outcome import CacheState, Outcome
from proxy.settings.model import Log
from proxy.telemetry.asked import path_template
from proxy.telemetry.log_output import configure, error_fields, logger
from proxy.telemetry.log_writer import LineWriter
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.observer import Observer

CANARY = "canary-7d1f"


class Pipe:
    """A configured log, and what came out of it."""

    def __init__(self, settings: Log) -> None:
        self._reading, self.writing = os.pipe()
        self.writer = configure(settings, "worker-1", self.writing)

    def lines(self) -> list[dict[str, Any]]:
        self.writer.close()
        os.close(self.writing)
        with os.fdopen(self._reading, "rb") as reading:
            return [orjson.loads(line) for line in reading]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, hook, raising = root.handlers[:], root.level, sys.excepthook, logging.raiseExceptions
    yield
    root.handlers, sys.excepthook, logging.raiseExceptions = handlers, hook, raising
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def pipe() -> Pipe:
    return Pipe(Log())


def test_a_request_is_one_line(pipe: Pipe) -> None:
    observer = Observer(Metrics(("dashscope",)), log_requests=True)
    observer.observe(
        Outcome(
            operation="embedding", upstream="dashscope", state=CacheState.PARTIAL, items=10, hits_redis=9, status=200
        )
    )
    (line,) = pipe.lines()
    assert (line["event"], line["state"], line["items"], line["hits_redis"]) == ("request", "partial", 10, 9)
    assert line["grpc_code"] is None
    assert line["process"] == "worker-1"
    assert line["timestamp"].endswith("Z")


def test_how_a_grpc_call_ended_is_told(pipe: Pipe) -> None:
    Observer(Metrics(()), log_requests=True).observe(Outcome(operation="vector-query", grpc_code=14))
    (line,) = pipe.lines()
    assert (line["operation"], line["grpc_code"]) == ("vector-query", 14)


def test_requests_can_be_left_out_of_the_log(pipe: Pipe) -> None:
    Observer(Metrics(()), log_requests=False).observe(Outcome())
    assert pipe.lines() == []


def test_an_id_that_is_none_is_not_written_down(pipe: Pipe) -> None:
    Observer(Metrics(()), log_requests=True).observe(Outcome(request_id=f"{CANARY} <text>"))
    (line,) = pipe.lines()
    assert line["request_id"] == ""


def test_the_breaker_speaks_once_per_change(pipe: Pipe) -> None:
    observer = Observer(Metrics(()), log_requests=True)
    for old, new in (
        ("closed", "open"),
        ("open", "half-open"),
        ("half-open", "open"),
        ("open", "half-open"),
        ("half-open", "closed"),
    ):
        observer.breaker_changed(old, new)
        observer.redis_failed("timeout")
    assert [(line["level"], line["event"]) for line in pipe.lines()] == [
        ("warning", "redis_breaker_open"),
        ("info", "redis_breaker_closed"),
    ]


def _failing() -> BaseException:
    with pytest.raises(ValueError, match=CANARY) as caught:
        int(CANARY)
    return caught.value


def test_errors_are_told_without_their_words(pipe: Pipe) -> None:
    error = _failing()
    observer = Observer(Metrics(()), log_requests=True)
    observer.background_failed(error)
    logger().error("by_hand", exc_info=error)
    logging.getLogger("aiohttp.server").error("Error handling request from %s", CANARY, exc_info=error)
    logging.getLogger("asyncio").error("Task was never retrieved\nfuture: " + CANARY, exc_info=error)  # noqa: G003
    sys.excepthook(ValueError, error, None)
    logger().error("odd", value={1, CANARY}, other=object())
    lines = pipe.lines()
    assert CANARY not in str(lines)
    assert [line.get("error") for line in lines] == ["ValueError"] * 5 + [None]
    assert lines[2]["message"] == "Error handling request from %s"


@dataclass
class Subject:
    model: str = "text-embedding-v4"
    scopes: tuple[tuple[str, ...], ...] = ()
    keys: tuple[bytes, ...] = (bytes.fromhex("0123456789abcdef"),)
    asked: tuple[str, str] = ("POST", "/compatible-mode/v1/embeddings?x=1")

    @property
    def extent(self) -> tuple[str, str, str, tuple[tuple[str, ...], ...]]:
        return ("dashscope", "embedding", self.model, self.scopes)


def test_a_journal_that_cannot_be_written_is_told_now_and_then_and_what_it_means(pipe: Pipe) -> None:
    observer = Observer(Metrics(()), log_requests=True)
    for _ in range(3):
        observer.journal_failed(OSError(28, "No space left on device", "/data/invalidations-1.journal"))
    observer.journal_failed(OSError(30, "Read-only file system"))
    lines = pipe.lines()
    assert [(line["event"], line["level"], line["file"], line["error"]) for line in lines] == [
        ("journal_not_written", "error", "/data/invalidations-1.journal", "No space left on device"),
        ("journal_not_written", "error", "", "Read-only file system"),
    ]
    assert "writes go on" in lines[0]["consequence"]


def test_a_line_says_what_was_asked_for(pipe: Pipe) -> None:
    scopes = (("collection", "users"),)
    Observer(Metrics(()), log_requests=True).observe(
        Outcome(planned=Subject(scopes=scopes), vendor_request_id="0f-1", request_id="ours-2")
    )
    (line,) = pipe.lines()
    named = {name: line[name] for name in ("method", "path", "model", "collection", "item", "vendor_request_id")}
    assert named == {
        "method": "POST",
        "path": "/compatible-mode/v1/embeddings",
        "model": "text-embedding-v4",
        "collection": "users",
        "item": "0123456789ab",
        "vendor_request_id": "0f-1",
    }


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/v1/collections/secret/query?token=secret", "/v1/collections/*/query"),
        ("/v1/collections/query/docs", "/v1/collections/query/docs"),
        ("/api/v1/tasks/0a1b-secret", "/api/v1/tasks/*"),
        ("/dashvector.proto.DashVectorService/query", "/dashvector.proto.DashVectorService/query"),
        ("/dashvector.proto.DashVectorService/SECRET1", "/dashvector.proto.DashVectorService/*"),
        ("/sk-secret/%73ecret//x", "/*/*//*"),
        ("/a" * 5_000, "/*" * 10 + "/..."),
        ("", ""),
        ("*", "*"),
    ],
)
def test_of_a_path_only_the_vendors_words_are_shown(target: str, path: str) -> None:
    assert path_template(target) == path


@pytest.mark.parametrize("name", ["sk-0123456789abcdef", "a b", "x" * 65, "line\nfeed", "\x1b[31m", CANARY + "\x00"])
def test_what_does_not_look_like_a_name_is_not_shown(pipe: Pipe, name: str) -> None:
    observer = Observer(Metrics(()), log_requests=True)
    observer.observe(Outcome(planned=Subject(name, (("collection", name),)), asked=(name, name)))
    observer.observe(Outcome(asked=(name, f"/{name}"), vendor_request_id=f"<{name}>"))
    lines = pipe.lines()
    assert name not in str(lines)
    assert [lines[0]["model"], lines[0]["collection"], lines[1]["method"]] == ["(odd)", "(odd)", "other"]


def shown_at_a_terminal(*outcomes: Outcome) -> list[str]:
    main, terminal = os.openpty()
    writer = configure(Log(), "worker-1", terminal)
    observer = Observer(Metrics(()), log_requests=True)
    for outcome in outcomes:
        observer.observe(outcome)
    writer.close()
    text = os.read(main, 100_000).decode()
    os.close(main)
    os.close(terminal)
    return re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()


def test_a_terminal_gets_one_readable_line_for_each_request() -> None:
    partial = Outcome(
        operation="embedding",
        upstream="dashscope",
        state=CacheState.PARTIAL,
        status=200,
        items=3,
        hits_redis=1,
        upstream_calls=1,
        upstream_status=200,
        total_ms=131.24,
        planned=Subject(),
        vendor_request_id="0f-1",
    )
    failed = Outcome(
        upstream="dashscope",
        state=CacheState.REFUSED,
        detail="UpstreamUnreachable",
        status=502,
        upstream_calls=1,
        total_ms=5.0,
        asked=("GET", "/api/v1/tasks/x"),
    )
    first, second = shown_at_a_terminal(partial, failed)
    words = "200  partial      131.2 ms  embedding text-embedding-v4  1/3 items  dashscope  0f-1"
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}  " + re.escape(words), first)
    assert second[14:] == "502  refused        5.0 ms  other  GET /api/v1/tasks/*  UpstreamUnreachable  dashscope"


def test_access_lines_of_the_library_are_not_written(pipe: Pipe) -> None:
    logging.getLogger("aiohttp.access").info("GET /%s", CANARY)
    assert pipe.lines() == []


def test_an_error_from_our_code_names_the_place() -> None:
    try:
        Outcome.hits.fget(None)  # type: ignore[attr-defined]
    except AttributeError as error:
        fields = error_fields(error)
    assert fields["where"].startswith("proxy/core/outcome.py:")


def test_a_terminal_gets_colours() -> None:
    main, terminal = os.openpty()
    writer = configure(Log(), "supervisor", terminal)
    logger().warning("something")
    writer.close()
    assert b"\x1b[" in os.read(main, 10_000)
    os.close(main)
    os.close(terminal)


def test_a_reader_that_stops_costs_lines_and_never_time() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing, lambda lines: b"dropped %d\n" % lines, max_lines=100)
    line = b"x" * 999 + b"\n"
    for _ in range(2_000):  # a pipe takes 64 KiB
        writer.write(line)
    received = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(reading, 65_536):
                received.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    writer.close(10.0)
    os.close(writing)
    reader.join(10.0)
    os.close(reading)
    whole = [part for part in received.split(b"\n") if part]
    dropped = sum(int(part.split()[1]) for part in whole if part.startswith(b"dropped"))
    assert dropped > 0
    assert sum(part == line[:-1] for part in whole) + dropped == 2_000


def test_a_reader_that_left_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LineWriter(writing, lambda _: b"")
    writer.write(b"line\n")
    writer.close()
    os.close(writing)
