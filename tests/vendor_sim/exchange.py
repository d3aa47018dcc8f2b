"""The two sides of one call as operations see them: the `Call` that came in, the `Answer` or `Stream` that goes out."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from tests.vendor_sim.answers import compact
from tests.vendor_sim.errors import refuse
from tests.vendor_sim.faults import Faults, Wrong
from tests.vendor_sim.limits import Limits
from tests.vendor_sim.recorder import RecordedRequest, Recorder
from tests.vendor_sim.settings import SimSettings
from tests.vendor_sim.stores import FileStore, TaskStore

JSON_TYPE = "application/json"
EVENT_STREAM_TYPE = "text/event-stream;charset=UTF-8"

BeforeAnswer = Callable[[RecordedRequest], Awaitable[None]]
BeforeFrame = Callable[[RecordedRequest, int], Awaitable[None]]


class SimState:
    """What outlives one call: options, rules, records, stored tasks and files, and the hooks that tests may set."""

    def __init__(self, settings: SimSettings) -> None:
        self.settings = settings
        self.random = random.Random(settings.seed)
        self.recorder = Recorder()
        self.faults = Faults(settings.seed)
        self.limits = Limits()
        self.tasks = TaskStore()
        self.files = FileStore()
        # Awaited before an answer and before the n-th frame of a stream: where a test holds the vendor, not the clock.
        self.before_answer: BeforeAnswer | None = None
        self.before_frame: BeforeFrame | None = None

    def reset(self) -> None:
        """Forget everything but the settings and the hooks."""
        self.random.seed(self.settings.seed)
        self.recorder.clear()
        self.faults.clear()
        self.limits.clear()
        self.tasks.clear()
        self.files.clear()


@dataclass(slots=True)
class Call:
    """One request on its way through an operation."""

    request: web.Request
    record: RecordedRequest
    state: SimState
    request_id: str
    is_compatible: bool
    payload: dict[str, Any] | None
    wrong: Wrong | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that was sent; refuses when it was something else."""
        if self.payload is None:
            raise refuse("malformed_body")
        return self.payload

    @property
    def model(self) -> str:
        """The model that was named; refuses when none was."""
        model = self.body.get("model")
        if not isinstance(model, str) or not model:
            raise refuse("empty_model")
        return model

    @property
    def input(self) -> dict[str, Any]:
        """The native ``input`` object."""
        value = self.body.get("input")
        if not isinstance(value, dict) or not value:
            raise refuse("empty_input")
        return value

    @property
    def parameters(self) -> dict[str, Any]:
        """The native ``parameters``; absent and null are empty."""
        value = self.body.get("parameters")
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise refuse("malformed_body")
        return value

    def is_enabled(self, header: str) -> bool:
        """Whether a switch like X-DashScope-Async is on."""
        return self.request.headers.get(header, "").strip().lower() == "enable"

    def count_answered(self, texts: Sequence[str]) -> None:
        """Note that *texts* were embedded; without records, counting them would fill the memory as well."""
        if self.state.settings.records:
            self.state.recorder.texts_answered.update(texts)

    async def pause(self, milliseconds: float) -> None:
        """Let the vendor take its time."""
        if milliseconds > 0:
            await asyncio.sleep(milliseconds / 1000)


@dataclass(slots=True)
class Answer:
    """A whole answer."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    is_truncated: bool = False


@dataclass(slots=True)
class Stream:
    """An event stream, frame by frame."""

    frames: AsyncGenerator[bytes, None]


# A WebSocket is served by its operation itself.
Outcome = Answer | Stream | web.WebSocketResponse
Operation = Callable[[Call], Awaitable[Outcome]]


def json_answer(value: Any) -> Answer:
    """An answer of status 200 with that body."""
    return Answer(compact(value))


def read_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in *body*; None when it is none."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
