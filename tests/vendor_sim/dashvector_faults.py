"""Rules that make the simulated DashVector misbehave: codes, statuses, delays, silence, lost connections."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from tests.vendor_sim.dashvector_recorder import DashVectorRecord, Protocol

Wrong = Literal[
    "disconnect",  # the connection ends before the answer; over gRPC: UNAVAILABLE without metadata
    "timeout",  # no answer until the asker gives up
    "truncated_body",  # HTTP: half of the body, then the end; gRPC: half of the message
    "not_json",  # HTTP: 200 with a page of HTML; gRPC: bytes that are no message
    "empty_body",  # nothing in the body
]
# "before": nothing is executed. "after": it is, and only the answer goes wrong, which for a write matters.
Stage = Literal["before", "after"]
_WRONGS = get_args(Wrong)
_STAGES = get_args(Stage)


@dataclass(slots=True)
class DashVectorFault:
    """
    One rule. It applies to a call that fits *operation*, *collection* and *protocol* where given.

    *code* answers a refusal; with *http_status* or *grpc_status* under that status (without *code* the gRPC failure
    has no `extra-code`), *has_trailers* False leaves all metadata away. *doc_code* lets the first document of a write
    fail. *latency_ms* delays at *stage*. *times* None applies for ever.
    """

    code: int | None = None
    message: str | None = None
    http_status: int | None = None
    grpc_status: str | None = None
    has_trailers: bool = True
    doc_code: int | None = None
    wrong: Wrong | None = None
    stage: Stage = "before"
    latency_ms: float = 0.0
    times: int | None = None
    probability: float = 1.0
    operation: str | None = None
    collection: str | None = None
    protocol: Protocol | None = None
    applied: int = 0

    def __post_init__(self) -> None:
        if self.wrong is not None and self.wrong not in _WRONGS:
            raise ValueError(f"unknown kind of wrong answer: {self.wrong}")
        if self.stage not in _STAGES:
            raise ValueError(f"unknown stage: {self.stage}")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """A rule from its control-endpoint form: the same fields by name."""
        return cls(**value)

    @property
    def refuses(self) -> bool:
        """Whether the rule answers something instead of the result."""
        return self.code is not None or self.http_status is not None or self.grpc_status is not None

    def fits(self, record: DashVectorRecord) -> bool:
        """Whether the rule speaks of such a call and is not used up."""
        return (
            (self.times is None or self.applied < self.times)
            and self.operation in (None, record.operation)
            and self.collection in (None, record.collection)
            and self.protocol in (None, record.protocol)
        )


class DashVectorFaults:
    """The rules in force, asked in order; the first that fits and is drawn applies."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.rules: list[DashVectorFault] = []

    def add(self, *rules: DashVectorFault) -> None:
        """Put *rules* behind those in force."""
        self.rules.extend(rules)

    def clear(self) -> None:
        """Behave again."""
        self.rules.clear()

    def pick(self, record: DashVectorRecord) -> DashVectorFault | None:
        """The rule for this call, counted as applied; None when it shall go well."""
        for rule in self.rules:
            if rule.fits(record) and self._random.random() < rule.probability:
                rule.applied += 1
                return rule
        return None
