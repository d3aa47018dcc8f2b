"""What the simulator was asked: every request as it came in, and how often each text was asked and answered."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class RecordedRequest:
    """
    One request, as it was on the wire.

    *body* stays empty for uploads, which are only counted (*body_size*, and *file_sha256* per file). *status* is None
    until the answer begins; *is_aborted* says that the asker went away first. *messages* is a WebSocket's share.
    """

    method: str
    target: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    request_id: str
    connection: tuple[str, int] | None
    body: bytes = b""
    body_size: int = 0
    model: str | None = None
    texts: tuple[str, ...] = ()
    file_sha256: list[str] = field(default_factory=list)
    messages: list[str | bytes] = field(default_factory=list)
    status: int | None = None
    is_finished: bool = False
    is_aborted: bool = False

    def header(self, name: str) -> str | None:
        """The first header of that name, in any case; None when absent."""
        wanted = name.lower().encode()
        return next((value.decode("utf-8", "replace") for key, value in self.headers if key.lower() == wanted), None)

    def as_json(self) -> dict[str, Any]:
        """The control endpoint's form; bytes that may be anything are base64."""
        return {
            "method": self.method,
            "target": self.target,
            "path": self.path,
            "headers": [[key.decode("latin-1"), value.decode("latin-1")] for key, value in self.headers],
            "request_id": self.request_id,
            "connection": self.connection,
            "body_base64": base64.b64encode(self.body).decode(),
            "body_size": self.body_size,
            "model": self.model,
            "texts": self.texts,
            "file_sha256": self.file_sha256,
            "status": self.status,
            "is_finished": self.is_finished,
            "is_aborted": self.is_aborted,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RecordedRequest:
        """The reverse of `as_json`, for whoever asks another process."""
        fields = dict(value)
        fields["headers"] = tuple((key.encode("latin-1"), item.encode("latin-1")) for key, item in fields["headers"])
        fields["body"] = base64.b64decode(fields.pop("body_base64"))
        fields["texts"] = tuple(fields["texts"])
        fields["connection"] = tuple(fields["connection"]) if fields["connection"] else None
        return cls(**fields)


class Recorder:
    """Everything asked since the last `clear`. *texts_asked* counts on arrival, *texts_answered* on success."""

    def __init__(self) -> None:
        self.requests: list[RecordedRequest] = []
        self.texts_asked: Counter[str] = Counter()
        self.texts_answered: Counter[str] = Counter()
        self.request_count = 0
        self.text_count = 0
        self.in_flight = 0
        self.peak_in_flight = 0

    def clear(self) -> None:
        """Forget; what is in flight stays counted."""
        self.requests.clear()
        self.texts_asked.clear()
        self.texts_answered.clear()
        self.request_count = self.text_count = 0
        self.peak_in_flight = self.in_flight

    def arrived(self, request: RecordedRequest, *, keep: bool) -> None:
        """Note a request; without *keep* it is only counted, so that a long load test does not fill the memory."""
        self.request_count += 1
        self.text_count += len(request.texts)
        if keep:
            self.requests.append(request)
            self.texts_asked.update(request.texts)

    def stats(self) -> dict[str, int]:
        """The counters."""
        return {
            "requests": self.request_count,
            "texts": self.text_count,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
        }
