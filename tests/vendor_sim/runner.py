"""The simulator beside synchronous code: on a thread with a loop of its own, or in a process of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import orjson

from tests.support.child import reap, send_signal, spawn
from tests.vendor_sim.dashvector_recorder import DashVectorRecord
from tests.vendor_sim.faults import Fault
from tests.vendor_sim.recorder import RecordedRequest
from tests.vendor_sim.settings import SimSettings
from tests.vendor_sim.sim import VendorSim

T = TypeVar("T")
_TIMEOUT_S = 60.0
_ROOT = Path(__file__).parents[2]


class LoopThread:
    """An event loop on a thread."""

    def __init__(self, name: str = "vendor-sim") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop."""
        return self._loop

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._loop.is_closed()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* in the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_TIMEOUT_S)

    def close(self) -> None:
        """End the loop and the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_TIMEOUT_S)


class ThreadSim:
    """A simulator on a thread; whatever touches it runs in its loop, so nothing races."""

    def __init__(self, settings: SimSettings | None = None) -> None:
        self.sim = VendorSim(settings)
        self._thread = LoopThread()
        try:
            self.run(self.sim.start())
        except BaseException:
            self.stop()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* in the simulator's loop and wait for it."""
        return self._thread.run(work)

    def call(self, function: Callable[[VendorSim], T]) -> T:
        """Call *function* with the simulator, in its loop."""

        async def work() -> T:
            return function(self.sim)

        return self.run(work())

    @property
    def url(self) -> str:
        """The root, without a slash at the end."""
        return self.sim.url

    @property
    def requests(self) -> list[RecordedRequest]:
        """A copy of the records."""
        return self.call(lambda sim: list(sim.requests))

    @property
    def texts_asked(self) -> Counter[str]:
        """A copy of the counter."""
        return self.call(lambda sim: Counter(sim.texts_asked))

    def add_faults(self, *rules: Fault) -> None:
        """Put *rules* into force, behind those that are."""
        self.call(lambda sim: sim.faults.add(*rules))

    def configure(self, **changes: Any) -> None:
        """Change options by name."""
        self.call(lambda sim: sim.configure(**changes))

    def clear(self) -> None:
        """Forget the records."""
        self.call(lambda sim: sim.clear())

    def reset(self) -> None:
        """Forget records, rules, tasks and files."""
        self.call(lambda sim: sim.reset())

    def stop(self) -> None:
        """Stop the simulator and its thread; may be called twice."""
        if self._thread.is_closed:
            return
        try:
            self.run(self.sim.stop())
        finally:
            self._thread.close()


class ProcessSim:
    """A simulator in a process, controlled by its endpoints. *options* are those of the command line."""

    def __init__(self, options: Sequence[str] = ()) -> None:
        self._process: subprocess.Popen[bytes] = spawn(
            [sys.executable, "-m", "tests.vendor_sim", "--port", "0", *options],
            cwd=_ROOT,
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=None,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        # With DashVector's gRPC port chosen, its address is the second line.
        has_grpc = "--dashvector-grpc-port" in options
        self.grpc_address = self._process.stdout.readline().decode().strip() if has_grpc else ""
        if not self.url or (has_grpc and not self.grpc_address):
            self.stop()
            raise RuntimeError("the simulator ended at once; its reason is on standard error")

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def requests(self) -> list[RecordedRequest]:
        """The records."""
        return [RecordedRequest.from_json(value) for value in self.control("GET", "requests")["requests"]]

    @property
    def dashvector_requests(self) -> list[DashVectorRecord]:
        """DashVector's records, both protocols."""
        return [DashVectorRecord.from_json(value) for value in self.control("GET", "dashvector/requests")]

    @property
    def texts_asked(self) -> Counter[str]:
        """How often each text was asked."""
        return Counter(self.control("GET", "requests")["texts_asked"])

    @property
    def stats(self) -> dict[str, int]:
        """The counters, which exist without records too."""
        counters: dict[str, int] = self.control("GET", "stats")
        return counters

    def set_faults(self, *rules: dict[str, Any]) -> None:
        """Replace all rules; each is a `Fault` as a dict."""
        self.control("PUT", "faults", list(rules))

    def configure(self, **changes: Any) -> None:
        """Change options by name."""
        self.control("PUT", "settings", changes)

    def reset(self) -> None:
        """Forget records, rules, tasks and files."""
        self.control("POST", "reset")

    def control(self, method: str, name: str, body: Any = None) -> Any:
        """Call a control endpoint and return its JSON."""
        request = urllib.request.Request(f"{self.url}/_sim/{name}", method=method)
        if body is not None:
            request.data = orjson.dumps(body)
        # Proxies from the environment have no business between us and loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_TIMEOUT_S) as response:
            return orjson.loads(response.read())

    def stop(self) -> int | None:
        """End the process in an orderly way and return its exit code; may be called twice."""
        send_signal(self._process.pid, signal.SIGTERM)
        code = reap(self._process, _TIMEOUT_S)
        if code is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code


@contextmanager
def sim_thread(settings: SimSettings | None = None) -> Iterator[ThreadSim]:
    """A simulator on a thread, gone afterwards."""
    sim = ThreadSim(settings)
    try:
        yield sim
    finally:
        sim.stop()


@contextmanager
def sim_process(*options: str) -> Iterator[ProcessSim]:
    """A simulator in a process, gone afterwards."""
    sim = ProcessSim(options)
    try:
        yield sim
    finally:
        sim.stop()
