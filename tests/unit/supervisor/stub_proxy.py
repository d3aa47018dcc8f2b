"""
The supervisor with a worker that only says who and how it is: for tests of processes, without the data path.

Each connection sends one word and gets one JSON line: ``who`` (process and mode), ``crash``, ``observe`` (counts one
request), ``hold`` (answers only when the supervisor asks to drain), ``hang`` (stops the loop for good). With certain
settings it dies before it serves.
"""

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence

from proxy.control.channel import WorkerControl
from proxy.core.listening import Port
from proxy.core.outcome import CacheState, Outcome
from proxy.settings.model import Settings

ALL_DIE = 999
"""As ``limits.header_lines``: no worker comes to serve; 1,000 and a number: that worker does not."""


async def serve(
    settings: Settings,
    ports: Sequence[Port],
    secret: bytes,
    redis_url: str | None,
    control: WorkerControl,
) -> None:
    from proxy.telemetry.observer import Observer  # noqa: PLC0415  as in the real worker: after the folder for metrics is known

    observer = Observer.of(settings)
    if settings.limits.header_lines in (ALL_DIE, 1_000 + control.number):
        sys.exit(3)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        word = (await reader.readline()).strip().decode()
        if word == "crash":
            os._exit(1)
        if word == "hang":
            writer.write(b"{}\n")  # so that the test knows when
            await writer.drain()
            time.sleep(3_600)  # noqa: ASYNC251  that is the fault
        if word == "hold":
            await control.wait_drain()
        if word == "observe":
            hit = Outcome(operation="embedding", upstream="dashscope", state=CacheState.HIT, items=1, hits_memory=1)
            observer.observe(hit)
        told = {
            "pid": os.getpid(),
            "number": control.number,
            "count": control.count,
            "data_dir": str(settings.data_dir),
            "ports": ports,
            "mode": control.modes.mode("dashscope", "embedding"),
            "secret": secret.decode(),
            "redis": redis_url,
            "environ": sorted(os.environ),
            "header_lines": settings.limits.header_lines,
        }
        writer.write(json.dumps(told).encode() + b"\n")
        await writer.drain()
        writer.close()

    servers = []
    for port in ports:
        listener = control.listeners.get(port)
        if listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((port.host, port.number))
        servers.append(await asyncio.start_server(answer, sock=listener))
    await control.ready()
    await control.wait_drain()
    for server in servers:
        server.close()
        await server.wait_closed()
    await asyncio.sleep(0.05)  # what was held is written


def run(environ: Mapping[str, str]) -> None:
    from proxy.settings.load import config_folder, load  # noqa: PLC0415
    from proxy.supervisor.supervisor import Supervisor  # noqa: PLC0415
    from proxy.telemetry.log_output import configure  # noqa: PLC0415

    settings = load(environ)
    writer = configure(settings.log, "supervisor")

    async def supervise() -> None:
        command = [sys.executable, "-m", "tests.unit.supervisor.stub_proxy", "worker"]
        await Supervisor(settings, config_folder(environ), worker_command=command, environ=environ).run()

    asyncio.run(supervise())
    writer.close()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        from proxy.worker.process import main

        sys.exit(main(serve))
    run(os.environ)
