"""The admin listener under clients that ask for nothing: the supervisor goes on answering, and minding its children."""

import asyncio
import contextlib
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.observed import events, settings
from tests.support.child import send_signal
from tests.support.proxy_process import COMMAND, ProxyProcess
from tests.support.waiting import wait_until_sync
from tests.vendor_sim import ProcessSim

FILES = 256
"""The number of files that the supervisor may have open: a container's larger limit is reached as soon."""
PATIENT_S = 60.0


@pytest.fixture
def proxy(sim: ProcessSim) -> Iterator[ProxyProcess]:
    limited = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES})); "
    limited += "os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", limited, *COMMAND]
    env = settings(limits_max_connections=64) | {"DASHCACHE_ADMIN_TOKEN": "a token that nobody here knows"}
    with ProxyProcess(dashscope_url=sim.url, workers=2, command=command, env=env) as running:
        yield running


@contextlib.contextmanager
def strangers(proxy: ProxyProcess, count: int, said: bytes) -> Iterator[list[socket.socket]]:
    host, _, port = proxy.admin_address.rpartition(":")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(4096, count), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with contextlib.ExitStack() as stack:
        made = []
        for number in range(count):
            # Of several machines; of loopback there are millions of addresses.
            one = socket.create_connection((host, int(port)), 30.0, (f"127.0.0.{1 + number % 3}", 0))
            stack.callback(one.close)
            with contextlib.suppress(OSError):
                one.sendall(said)
            made.append(one)
        yield made


def open_files(proxy: ProxyProcess) -> int:
    return sum(1 for _ in Path(f"/proc/{proxy.pid}/fd").iterdir())


HALVES = {
    "nothing": b"",
    "half a head": b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-",
    "half a body": b"PUT /v1/mode HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
}


@pytest.mark.parametrize(
    "said",
    [pytest.param(said, id=name, marks=[pytest.mark.slow] * (name != "half a body")) for name, said in HALVES.items()],
)
def test_r21_admin_half_requests_keep_nobody_from_health_and_no_worker_from_being_replaced(
    proxy: ProxyProcess, said: bytes, record_property: Any
) -> None:
    written, slowest_s = len(proxy.output), 0.0
    killed = proxy.worker_pids()[0]
    with strangers(proxy, 600, said):
        send_signal(killed, signal.SIGKILL)
        for _ in range(10):
            began_s = time.monotonic()
            assert proxy.health()
            slowest_s = max(slowest_s, time.monotonic() - began_s)
        assert open_files(proxy) < FILES - 32
        wait_until_sync(lambda: proxy.stats()["workers"]["serving"] == 2, PATIENT_S, "both workers")
        assert killed not in proxy.worker_pids()
    assert not {"library", "admin_failed"} & set(events(proxy)), events(proxy)
    assert len(proxy.output) - written < 20_000
    record_property("figure", f"600 half requests to the admin port: health within {slowest_s * 1000:.0f} ms")


def test_r21_admin_repeated_faults_are_logged_now_and_then(proxy: ProxyProcess) -> None:
    written = len(proxy.output)
    for _ in range(10):
        with strangers(proxy, 50, b"no HTTP at all\r\n\r\n"):
            assert proxy.health()
    assert len(proxy.output) - written < 20_000


async def test_r21_admin_who_asks_in_time_is_answered_beside_them(proxy: ProxyProcess) -> None:
    with strangers(proxy, 300, HALVES["half a head"]):
        answers = await asyncio.gather(*(asyncio.to_thread(proxy.admin, "GET", "/v1/mode") for _ in range(30)))
        assert {answer.status for answer in answers} == {200}
