"""The simulated DashVector as an object: HTTP and gRPC over one store, in the running loop."""

import ssl
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from aiohttp import web

from tests.vendor_sim.app import AddRoutes
from tests.vendor_sim.dashvector_control import add_dashvector_control_routes, changed_dashvector_settings
from tests.vendor_sim.dashvector_exchange import DashVectorState, Hook
from tests.vendor_sim.dashvector_faults import DashVectorFaults
from tests.vendor_sim.dashvector_http import add_dashvector_routes, add_unknown_route
from tests.vendor_sim.dashvector_recorder import DashVectorRecord
from tests.vendor_sim.dashvector_settings import DashVectorSettings
from tests.vendor_sim.dashvector_store import DashVectorStore, Hold
from tests.vendor_sim.gateway import Gateway

if TYPE_CHECKING:
    from tests.vendor_sim.dashvector_grpc import DashVectorGrpcServer

_MAX_BODY_BYTES = 1024**3
_MAX_HEADER_BYTES = 256 * 1024
_SHUTDOWN_S = 0.5


class TlsFiles(NamedTuple):
    """A certificate chain and its key, PEM; with them both protocols speak TLS."""

    certificate: Path
    key: Path


class DashVectorSim:
    """
    One simulated DashVector on two loopback ports.

    `before_execute` is awaited (with the record) before an operation takes place, `before_answer` between that and
    its answer. `hold_visibility` keeps acknowledged writes from being seen.
    """

    def __init__(self, settings: DashVectorSettings | None = None, *, tls: TlsFiles | None = None) -> None:
        self.state = DashVectorState(settings or DashVectorSettings())
        self._tls = tls
        self._runner: web.AppRunner | None = None
        self._grpc: DashVectorGrpcServer | None = None
        self.host = ""
        self.http_port = 0
        self.grpc_port = 0

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, http_port: int = 0, grpc_port: int = 0, host: str = "127.0.0.1") -> Self:
        """Listen for both protocols in the running loop; port 0 picks a free one."""
        await self.start_http(http_port, host)
        await self.start_grpc(grpc_port, host)
        return self

    async def start_http(self, port: int = 0, host: str = "127.0.0.1") -> None:
        """Listen for HTTP alone."""
        if self._runner is not None:
            raise RuntimeError("the simulator runs already")
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        self._add(app)
        add_unknown_route(app, self.state)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            auto_decompress=False,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            shutdown_timeout=_SHUTDOWN_S,
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=4096, ssl_context=self._ssl_context()).start()
        self.host, self.http_port = self._runner.addresses[0][:2]

    async def start_grpc(self, port: int = 0, host: str = "127.0.0.1") -> None:
        """Listen for gRPC alone."""
        if self._grpc is not None:
            raise RuntimeError("the simulator runs already")
        # Here, so that whoever needs HTTP alone needs neither the gRPC library nor the vendor's package.
        from tests.vendor_sim.dashvector_grpc import DashVectorGrpcServer, tls_credentials  # noqa: PLC0415

        self._grpc = DashVectorGrpcServer(self.state)
        self.host = host
        self.grpc_port = await self._grpc.start(port, host, tls_credentials(*self._tls) if self._tls else None)

    async def stop(self) -> None:
        """End all connections and stop listening; may be called twice. The store stays, `start` brings all back."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._grpc is not None:
            await self._grpc.stop()
            self._grpc = None

    def beside(self, other: AddRoutes) -> AddRoutes:
        """Routes for a `VendorSim` whose port shall serve DashVector's HTTP too: *other*'s paths come after these."""

        def add_routes(app: web.Application, gateway: Gateway) -> None:
            self._add(app)
            other(app, gateway)

        return add_routes

    def _add(self, app: web.Application) -> None:
        add_dashvector_control_routes(app, self.state)
        add_dashvector_routes(app, self.state)

    def _ssl_context(self) -> ssl.SSLContext | None:
        if self._tls is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._tls.certificate, self._tls.key)
        return context

    @property
    def http_url(self) -> str:
        """The root of the HTTP side, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.http_port}"

    @property
    def grpc_address(self) -> str:
        """Host and port of the gRPC side."""
        return f"{self.host}:{self.grpc_port}"

    @property
    def store(self) -> DashVectorStore:
        """The collections; also for tests that look or write without a protocol."""
        return self.state.store

    @property
    def settings(self) -> DashVectorSettings:
        """The options in force."""
        return self.state.settings

    def configure(self, **changes: Any) -> None:
        """Change options by name, from the next call on."""
        self.state.configure(changed_dashvector_settings(self.state.settings, changes))

    def hold_visibility(self, collection: str | None = None) -> Hold:
        """Keep writes from being seen (in one collection, or in all) until the hold's ``release()``."""
        return self.state.store.hold_visibility(collection)

    @property
    def requests(self) -> list[DashVectorRecord]:
        """Every call since the last `clear`, in order of arrival, both protocols."""
        return self.state.recorder.requests

    @property
    def asked(self) -> Counter[str]:
        """How often each operation was asked, answered or not."""
        return self.state.recorder.asked

    @property
    def executed(self) -> Counter[str]:
        """How often each operation took place, which is what costs."""
        return self.state.recorder.executed

    @property
    def in_flight(self) -> int:
        """How many calls are being served."""
        return self.state.recorder.in_flight

    @property
    def faults(self) -> DashVectorFaults:
        """The rules in force."""
        return self.state.faults

    @property
    def before_execute(self) -> Hook | None:
        """Awaited before an operation, once token and rate are checked."""
        return self.state.before_execute

    @before_execute.setter
    def before_execute(self, hook: Hook | None) -> None:
        self.state.before_execute = hook

    @property
    def before_answer(self) -> Hook | None:
        """Awaited between an operation and its answer."""
        return self.state.before_answer

    @before_answer.setter
    def before_answer(self, hook: Hook | None) -> None:
        self.state.before_answer = hook

    def clear(self) -> None:
        """Forget the records; settings, rules and collections stay."""
        self.state.recorder.clear()

    def reset(self) -> None:
        """Forget records, rules and collections; the settings stay."""
        self.state.reset()
