"""What can be chosen about a simulated DashVector. Immutable; `DashVectorSim.configure` replaces them while it runs."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DashVectorSettings:
    """
    The options; the defaults are a healthy service that answers at once and shows every write at once.

    With ``tokens`` None every token is accepted except the ``refused_tokens``. What a wrong token gets is not known:
    ``unauthorized_status`` and ``unauthorized_code`` choose it over HTTP (200 puts only the code into the body), and
    ``unauthenticated_trailers`` whether the gRPC status UNAUTHENTICATED comes with `request-id` and `extra-code`.
    """

    tokens: frozenset[str] | None = None
    refused_tokens: frozenset[str] = frozenset({"sk-dv-wrong"})
    unauthorized_status: int = 401
    unauthorized_code: int = 401
    unauthenticated_trailers: bool = True
    # How long a new collection or partition is INITIALIZED, and a deleted one DROPPING.
    creation_ms: float = 0.0
    dropping_ms: float = 0.0
    # From the acknowledgement of a write to the moment reads see it.
    visibility_ms: float = 0.0
    latency_ms: float = 0.0
    # Calls per second, all operations together; beyond: ExceedRateLimit.
    calls_per_second: int | None = None
    # Business refusals over gRPC: an OK call whose message has a code, or a status with metadata.
    grpc_refusals: Literal["message", "status"] = "message"
    grpc_failure_metadata: tuple[Literal["initial", "trailing"], ...] = ("trailing",)
    # 64-bit counts in JSON: protobuf's JSON writes text, the vendor's habit is unknown.
    counts_are_text: bool = True
    service_version: str = "1.0.15"
    max_request_bytes: int | None = None
    gzip_level: int = 1
    records: bool = True
