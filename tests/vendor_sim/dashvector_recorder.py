"""What the simulated DashVector was asked, over either protocol, and how often each operation was."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

Protocol = Literal["http", "grpc"]


@dataclass(slots=True)
class DashVectorRecord:
    """
    One call, as it was on the wire.

    *metadata* is the HTTP headers or the gRPC metadata, *body* the request's bytes, *target* the path with its query
    or the full gRPC method. *code* is None until the answer is known, *status* is the HTTP status or the gRPC status
    name. *is_executed* says that the operation took place, whatever was answered; *is_aborted* that the asker left.
    """

    protocol: Protocol
    operation: str
    method: str
    target: str
    metadata: tuple[tuple[bytes, bytes], ...]
    request_id: str
    collection: str = ""
    peer: str = ""
    body: bytes = b""
    code: int | None = None
    status: int | str | None = None
    is_executed: bool = False
    is_finished: bool = False
    is_aborted: bool = False

    def header(self, name: str) -> str | None:
        """The first header or metadata entry of that name, in any case; None when absent."""
        wanted = name.lower().encode()
        return next((value.decode("utf-8", "replace") for key, value in self.metadata if key.lower() == wanted), None)

    def as_json(self) -> dict[str, Any]:
        """The control endpoint's form; bytes that may be anything are base64."""
        return {
            "protocol": self.protocol,
            "operation": self.operation,
            "method": self.method,
            "target": self.target,
            "metadata": [[key.decode("latin-1"), value.decode("latin-1")] for key, value in self.metadata],
            "request_id": self.request_id,
            "collection": self.collection,
            "peer": self.peer,
            "body_base64": base64.b64encode(self.body).decode(),
            "code": self.code,
            "status": self.status,
            "is_executed": self.is_executed,
            "is_finished": self.is_finished,
            "is_aborted": self.is_aborted,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> DashVectorRecord:
        """The reverse of `as_json`, for whoever asks another process."""
        fields = dict(value)
        fields["metadata"] = tuple((key.encode("latin-1"), item.encode("latin-1")) for key, item in fields["metadata"])
        fields["body"] = base64.b64decode(fields.pop("body_base64"))
        return cls(**fields)


class DashVectorRecorder:
    """Every call since the last `clear`; *asked* and *executed* count by operation."""

    def __init__(self) -> None:
        self.requests: list[DashVectorRecord] = []
        self.asked: Counter[str] = Counter()
        self.executed: Counter[str] = Counter()
        self.in_flight = 0
        self.peak_in_flight = 0

    def clear(self) -> None:
        """Forget; what is in flight stays counted."""
        self.requests.clear()
        self.asked.clear()
        self.executed.clear()
        self.peak_in_flight = self.in_flight

    def arrived(self, record: DashVectorRecord, *, keep: bool) -> None:
        """Note a call; without *keep* it is only counted."""
        self.asked[record.operation] += 1
        if keep:
            self.requests.append(record)

    def has_executed(self, record: DashVectorRecord) -> None:
        """Note that the call's operation took place."""
        record.is_executed = True
        self.executed[record.operation] += 1

    def stats(self) -> dict[str, Any]:
        """The counters."""
        return {
            "asked": dict(self.asked),
            "executed": dict(self.executed),
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
        }
