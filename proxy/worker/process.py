"""
A worker process, from its start to its end: event loop, log, the channel to the supervisor, and then ``app``.

Started by the supervisor only, as ``python -m proxy worker``. Ends when told to, or when the supervisor has gone.
"""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence

import uvloop

from proxy.control.channel import Hello, WorkerControl, settings_from_json, worker_end
from proxy.control.live import LiveModes
from proxy.control.purges import LivePurges
from proxy.core.listening import Port
from proxy.core.modes import Modes
from proxy.core.purges import Marks
from proxy.runtime import collector
from proxy.runtime.process import CONTROL_VARIABLE, die_with_parent
from proxy.runtime.tasks import Tasks
from proxy.settings.model import Settings
from proxy.telemetry.log_output import configure, error_fields, logger

Serve = Callable[[Settings, Sequence[Port], bytes, str | None, WorkerControl], Awaitable[None]]
"""What ``proxy.worker.build.serve_worker`` is: serve the ports until ``control.wait_drain`` returns, then end."""

# Beyond the time for draining: to let go of the ports, and to close connections to Redis and upstreams.
_LAST_SECONDS = 5.0


def main(serve: Serve | None = None) -> int:
    """Run a worker with *serve* (by default the real one); the exit status."""
    try:
        connected = socket.socket(fileno=int(os.environ.pop(CONTROL_VARIABLE)))
    except (KeyError, ValueError, OSError):
        os.write(2, b"dashcache worker: only the supervisor starts workers; use: dashcache run\n")
        return 2
    die_with_parent(signal.SIGTERM)
    # Ctrl-C reaches the whole terminal; when to stop is the supervisor's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(connected, serve))


async def _run(connected: socket.socket, serve: Serve | None) -> int:
    channel = await worker_end(connected)
    hello = await channel.receive()
    if not isinstance(hello, Hello):
        return 1
    settings = settings_from_json(bytes(hello.settings))
    writer = configure(settings.log, f"worker-{hello.worker}")
    modes = LiveModes(settings.start)
    modes.replace(Modes(hello.rules))
    control = WorkerControl(
        channel,
        modes,
        settings.limits.drain_s,
        _end_at_last,
        number=hello.worker,
        count=hello.workers,
        purges=LivePurges(Marks(hello.marks)),
        listeners=_inherited(hello),
        own_id=hello.own_id,
    )
    tasks = Tasks(lambda error: logger().error("background_failed", **error_fields(error)))
    control.start(tasks)
    # A service manager sends it to all processes at once. When to stop is the supervisor's decision, who would fill
    # this place again; that it has gone is seen on the channel.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        serve = serve or _real_serve()
        collector.spare()
        await serve(settings, hello.ports, hello.secret, hello.redis_url, control)
    except Exception as error:  # noqa: BLE001  the last place where it can be told
        logger().error("worker_failed", **error_fields(error))
        return 1
    finally:
        await tasks.wait_done(0)
        channel.close()
        writer.close()
    return 0


def _inherited(hello: Hello) -> dict[Port, socket.socket]:
    """The sockets that the supervisor holds for this worker's place."""
    pairs = zip(hello.ports, hello.sockets, strict=False)
    return {port: socket.socket(fileno=number) for port, number in pairs if number >= 0}


def _real_serve() -> Serve:
    # Only now: prometheus_client looks for its folder when it is imported, and the supervisor never needs all this.
    from proxy.worker.build import serve_worker  # noqa: PLC0415

    return serve_worker


def _end_at_last(within_s: float) -> None:
    """A thread that ends this process should draining hang: without a supervisor nobody else would."""
    last = threading.Timer(within_s + _LAST_SECONDS, os._exit, (1,))
    last.daemon = True
    last.start()
