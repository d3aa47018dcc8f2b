"""
One call on its way through the simulator, whatever the protocol: token, limits, faults, hooks, execution.

The protocols decode what came in to an `Ask`, let `Exchange.run` decide, and encode the `Outcome`.
"""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.vendor_sim.dashvector_errors import (
    SUCCESS,
    DashVectorRefusal,
    UnauthorizedRefusal,
    code_name,
    refusal,
)
from tests.vendor_sim.dashvector_faults import DashVectorFault, DashVectorFaults, Stage, Wrong
from tests.vendor_sim.dashvector_model import Result
from tests.vendor_sim.dashvector_recorder import DashVectorRecord, DashVectorRecorder
from tests.vendor_sim.dashvector_settings import DashVectorSettings
from tests.vendor_sim.dashvector_store import DashVectorStore

TOKEN_HEADER = "dashvector-auth-token"
_SECOND = 1.0

Hook = Callable[[DashVectorRecord], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked: the collection, the partition where the operation is about one, and the request itself."""

    collection: str = ""
    partition: str = ""
    request: Any = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What goes back. *http_status* and *grpc_status* are set where a refusal travels as a status."""

    request_id: str
    code: int = SUCCESS
    message: str = "Success"
    result: Result | None = None
    http_status: int = 200
    grpc_status: str | None = None
    has_trailers: bool = True
    has_extra_code: bool = True
    wrong: Wrong | None = None


Execute = Callable[[DashVectorStore, Ask, int | None], Result]


class DashVectorState:
    """What outlives one call: options, the store, rules, records, and the hooks that tests may set."""

    def __init__(self, settings: DashVectorSettings) -> None:
        self.settings = settings
        self.store = DashVectorStore(settings)
        self.recorder = DashVectorRecorder()
        self.faults = DashVectorFaults()
        self._started: deque[float] = deque()
        # Awaited before the operation takes place, and between that and its answer.
        self.before_execute: Hook | None = None
        self.before_answer: Hook | None = None

    def configure(self, settings: DashVectorSettings) -> None:
        """Change the options, from the next call on."""
        self.settings = self.store.settings = settings

    def reset(self) -> None:
        """Forget everything but the settings and the hooks."""
        self.store.clear()
        self.recorder.clear()
        self.faults.clear()
        self._started.clear()

    def check_rate(self) -> None:
        """Refuse when too many calls were started within the last second."""
        limit = self.settings.calls_per_second
        if limit is None:
            return
        now = time.monotonic()
        while self._started and self._started[0] <= now - _SECOND:
            self._started.popleft()
        if len(self._started) >= limit:
            raise refusal("ExceedRateLimit")
        self._started.append(now)

    def check_token(self, record: DashVectorRecord) -> None:
        """Refuse a missing or wrong token."""
        token = record.header(TOKEN_HEADER) or ""
        settings = self.settings
        is_known = settings.tokens is None or token in settings.tokens
        if not token or not is_known or token in settings.refused_tokens:
            raise UnauthorizedRefusal(settings.unauthorized_code, "Unauthorized")


def new_request_id() -> str:
    """An id for one call."""
    return str(uuid.uuid4())


class Exchange:
    """Runs calls on one state."""

    def __init__(self, state: DashVectorState) -> None:
        self.state = state

    async def run(
        self, record: DashVectorRecord, decode: Callable[[], Ask], execute: Execute, *, is_version: bool = False
    ) -> Outcome:
        """Take one call to its outcome; *decode* may refuse. An aborted call is marked and its cancellation goes on."""
        recorder = self.state.recorder
        recorder.arrived(record, keep=self.state.settings.records)
        recorder.in_flight += 1
        recorder.peak_in_flight = max(recorder.peak_in_flight, recorder.in_flight)
        try:
            outcome = await self._answered(record, decode, execute)
        except asyncio.CancelledError:
            record.is_aborted = True
            raise
        finally:
            recorder.in_flight -= 1
        record.code = outcome.code
        return replace(outcome, message="") if is_version and not outcome.code else outcome

    async def _answered(self, record: DashVectorRecord, decode: Callable[[], Ask], execute: Execute) -> Outcome:
        outcome = Outcome(record.request_id)
        try:
            self.state.check_token(record)
            self.state.check_rate()
        except DashVectorRefusal as refused:
            return self._refused(record, refused)
        fault = self.state.faults.pick(record)
        await self._hook(self.state.before_execute, record)
        await _pause(self.state.settings.latency_ms)
        await self._misbehave(fault, "before")
        if not _answers_instead(fault, "before"):
            try:
                outcome = self._executed(record, decode, execute, fault)
            except DashVectorRefusal as refused:
                outcome = self._refused(record, refused)
        await self._hook(self.state.before_answer, record)
        await self._misbehave(fault, "after")
        return _spoiled(outcome, fault) if fault else outcome

    def _executed(
        self, record: DashVectorRecord, decode: Callable[[], Ask], execute: Execute, fault: DashVectorFault | None
    ) -> Outcome:
        limit = self.state.settings.max_request_bytes
        if limit is not None and len(record.body) > limit:
            raise refusal("ExceedRequestSize")
        ask = decode()
        result = execute(self.state.store, ask, fault.doc_code if fault else None)
        self.state.recorder.has_executed(record)
        return Outcome(record.request_id, result=result)

    def _refused(self, record: DashVectorRecord, refused: DashVectorRefusal) -> Outcome:
        settings = self.state.settings
        outcome = Outcome(record.request_id, refused.code, refused.message)
        if not isinstance(refused, UnauthorizedRefusal):
            return outcome
        return replace(
            outcome,
            http_status=settings.unauthorized_status,
            grpc_status="UNAUTHENTICATED",
            has_trailers=settings.unauthenticated_trailers,
        )

    async def _misbehave(self, fault: DashVectorFault | None, stage: Stage) -> None:
        if fault is None or fault.stage != stage:
            return
        await _pause(fault.latency_ms)
        if fault.wrong == "timeout":
            # Only the asker ends this, by going away.
            await asyncio.Event().wait()

    async def _hook(self, hook: Hook | None, record: DashVectorRecord) -> None:
        if hook is not None:
            await hook(record)


def _answers_instead(fault: DashVectorFault | None, stage: Stage) -> bool:
    return fault is not None and fault.stage == stage and (fault.refuses or fault.wrong is not None)


def _spoiled(outcome: Outcome, fault: DashVectorFault) -> Outcome:
    if fault.refuses:
        code = outcome.code if fault.code is None else fault.code
        outcome = replace(
            outcome,
            code=code,
            message=fault.message if fault.message is not None else code_name(code),
            result=None,
            http_status=fault.http_status or 200,
            grpc_status=fault.grpc_status,
            has_trailers=fault.has_trailers,
            has_extra_code=fault.code is not None,
        )
    return replace(outcome, wrong=fault.wrong)


async def _pause(milliseconds: float) -> None:
    if milliseconds > 0:
        await asyncio.sleep(milliseconds / 1000)
