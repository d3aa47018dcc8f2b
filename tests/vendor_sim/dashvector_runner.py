"""The simulated DashVector beside synchronous code, such as the vendor's SDK: on a thread with a loop of its own."""

from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tests.vendor_sim.dashvector_faults import DashVectorFault
from tests.vendor_sim.dashvector_recorder import DashVectorRecord
from tests.vendor_sim.dashvector_settings import DashVectorSettings
from tests.vendor_sim.dashvector_sim import DashVectorSim, TlsFiles
from tests.vendor_sim.runner import LoopThread

T = TypeVar("T")


class DashVectorThreadSim:
    """A simulator on a thread; whatever touches it runs in its loop, so nothing races."""

    def __init__(self, settings: DashVectorSettings | None = None, *, tls: TlsFiles | None = None) -> None:
        self.sim = DashVectorSim(settings, tls=tls)
        self._thread = LoopThread("dashvector-sim")
        try:
            self.run(self.sim.start())
        except BaseException:
            self.stop()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* in the simulator's loop and wait for it."""
        return self._thread.run(work)

    def call(self, function: Callable[[DashVectorSim], T]) -> T:
        """Call *function* with the simulator, in its loop."""

        async def work() -> T:
            return function(self.sim)

        return self.run(work())

    @property
    def http_url(self) -> str:
        """The root of the HTTP side, without a slash at the end."""
        return self.sim.http_url

    @property
    def grpc_address(self) -> str:
        """Host and port of the gRPC side."""
        return self.sim.grpc_address

    @property
    def requests(self) -> list[DashVectorRecord]:
        """A copy of the records."""
        return self.call(lambda sim: list(sim.requests))

    @property
    def asked(self) -> Counter[str]:
        """A copy of the counter."""
        return self.call(lambda sim: Counter(sim.asked))

    @property
    def executed(self) -> Counter[str]:
        """A copy of the counter."""
        return self.call(lambda sim: Counter(sim.executed))

    def add_faults(self, *rules: DashVectorFault) -> None:
        """Put *rules* into force, behind those that are."""
        self.call(lambda sim: sim.faults.add(*rules))

    def configure(self, **changes: Any) -> None:
        """Change options by name."""
        self.call(lambda sim: sim.configure(**changes))

    @contextmanager
    def hold_visibility(self, collection: str | None = None) -> Iterator[None]:
        """Keep writes from being seen inside the ``with``."""
        hold = self.call(lambda sim: sim.hold_visibility(collection))
        try:
            yield
        finally:
            self.call(lambda _: hold.release())

    def clear(self) -> None:
        """Forget the records."""
        self.call(lambda sim: sim.clear())

    def reset(self) -> None:
        """Forget records, rules and collections."""
        self.call(lambda sim: sim.reset())

    def stop(self) -> None:
        """Stop the simulator and its thread; may be called twice."""
        if self._thread.is_closed:
            return
        try:
            self.run(self.sim.stop())
        finally:
            self._thread.close()


@contextmanager
def dashvector_thread(
    settings: DashVectorSettings | None = None, *, tls: TlsFiles | None = None
) -> Iterator[DashVectorThreadSim]:
    """A simulator on a thread, gone afterwards."""
    sim = DashVectorThreadSim(settings, tls=tls)
    try:
        yield sim
    finally:
        sim.stop()
