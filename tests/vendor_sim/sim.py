"""The simulator as an object: start it in the running loop, ask what it was asked, stop it."""

from collections import Counter
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tests.vendor_sim.app import AddRoutes, add_dashscope_routes, build_app
from tests.vendor_sim.control import changed_settings
from tests.vendor_sim.exchange import BeforeAnswer, BeforeFrame, SimState
from tests.vendor_sim.faults import Faults
from tests.vendor_sim.recorder import RecordedRequest
from tests.vendor_sim.settings import SimSettings
from tests.vendor_sim.stores import TaskStore

# Long request lines and headers must pass, and so must every count of headers: the limits are for the proxy to set.
_MAX_HEADER_BYTES = 256 * 1024
_MAX_HEADERS = 10_000
_SHUTDOWN_S = 0.5


class VendorSim:
    """
    One simulated vendor on a loopback port.

    To hold answers without sleeping set `before_answer` (awaited with the recorded request) or `before_frame`
    (awaited with it and the frame's number), for instance to a gate's ``wait``.
    """

    def __init__(self, settings: SimSettings | None = None, *, add_routes: AddRoutes = add_dashscope_routes) -> None:
        self.state = SimState(settings or SimSettings())
        self._add_routes = add_routes
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self.host = ""
        self.port = 0

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> Self:
        """Listen in the running loop; port 0 picks a free one."""
        if self._runner is not None:
            raise RuntimeError("the simulator runs already")
        self._runner = web.AppRunner(
            build_app(self.state, self._add_routes),
            access_log=None,
            handler_cancellation=True,
            # The record holds bodies as they came.
            auto_decompress=False,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
            shutdown_timeout=_SHUTDOWN_S,
        )
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, host, port, backlog=4096)
        await self._site.start()
        self.host, self.port = self._runner.addresses[0][:2]
        return self

    async def stop(self) -> None:
        """End all connections and stop listening; may be called twice. `start` on the same port brings all back."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        """The root, without a slash at the end."""
        return f"http://{self.host}:{self.port}"

    @property
    def settings(self) -> SimSettings:
        """The options in force."""
        return self.state.settings

    def configure(self, **changes: Any) -> None:
        """Change options by name, from the next request on."""
        self.state.settings = changed_settings(self.state.settings, changes)

    @property
    def requests(self) -> list[RecordedRequest]:
        """Every API request since the last `clear`, in order of arrival."""
        return self.state.recorder.requests

    @property
    def texts_asked(self) -> Counter[str]:
        """How often each text was asked, answered or not."""
        return self.state.recorder.texts_asked

    @property
    def texts_answered(self) -> Counter[str]:
        """How often each text was embedded, which is what costs."""
        return self.state.recorder.texts_answered

    @property
    def in_flight(self) -> int:
        """How many calls are being served."""
        return self.state.recorder.in_flight

    @property
    def peak_in_flight(self) -> int:
        """The most that were served at once since the last `clear`."""
        return self.state.recorder.peak_in_flight

    @property
    def faults(self) -> Faults:
        """The rules in force."""
        return self.state.faults

    @property
    def tasks(self) -> TaskStore:
        """The batch tasks."""
        return self.state.tasks

    @property
    def before_answer(self) -> BeforeAnswer | None:
        """Awaited before every answer that passed the key and the limits."""
        return self.state.before_answer

    @before_answer.setter
    def before_answer(self, hook: BeforeAnswer | None) -> None:
        self.state.before_answer = hook

    @property
    def before_frame(self) -> BeforeFrame | None:
        """Awaited before every frame of an event stream."""
        return self.state.before_frame

    @before_frame.setter
    def before_frame(self, hook: BeforeFrame | None) -> None:
        self.state.before_frame = hook

    def clear(self) -> None:
        """Forget the records; settings, rules and tasks stay."""
        self.state.recorder.clear()

    def reset(self) -> None:
        """Forget records, rules, tasks and files; the settings stay."""
        self.state.reset()
