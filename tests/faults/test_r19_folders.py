"""
Folders that can no longer be written: full, read-only, gone. They cost what is kept in them, and no request.

Each runs the real proxy in a mount namespace of its own, with a disk of a few MiB for its data and another one for what
is temporary (the workers' metrics).
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.observed import events, settings
from tests.faults.workload import Workload
from tests.support import small_disk
from tests.support.child import send_signal
from tests.support.namespace import in_namespaces, make_read_only, require_namespaces
from tests.support.proxy_process import COMMAND, PASSED_ON, ROOT, ProxyProcess
from tests.support.small_disk import seen_by
from tests.support.waiting import wait_until
from tests.vendor_sim import ProcessSim

PATIENT_S = 60.0
SIZE = "size=3m"


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    require_namespaces()


def fill(proxy: ProxyProcess, folder: Path) -> None:
    small_disk.fill(proxy.pid, folder)


def remove(proxy: ProxyProcess, folder: Path) -> None:
    """All that is in it; a mounted folder itself stays."""
    for each in seen_by(proxy.pid, folder).iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()


def freeze(proxy: ProxyProcess, folder: Path) -> None:
    make_read_only(proxy.pid, folder)


Trouble = Callable[[ProxyProcess, Path], None]


@asynccontextmanager
async def on_small_disks(
    sim: ProcessSim, data: Path, temporary: Path, options: str = SIZE, **more: Any
) -> AsyncIterator[ProxyProcess]:
    command = in_namespaces(COMMAND, own_network=False, disks={data: options, temporary: options})
    env = settings(memory_max_bytes=2**20) | {"TMPDIR": str(temporary)}
    async with ProxyProcess(dashscope_url=sim.url, workers=2, data_dir=data, command=command, env=env, **more) as proxy:
        yield proxy
        await asyncio.to_thread(proxy.stop)
        assert proxy.exit_code == 0
        assert proxy.left_behind == []


async def health(proxy: ProxyProcess) -> Any:
    return (await asyncio.to_thread(proxy.admin, "GET", "/healthz")).json()


async def is_served(proxy: ProxyProcess) -> None:
    """Every text is answered, over connections of now: those to a killed worker break, whatever the disk."""
    async with Workload(proxy.http_url) as load:
        assert all(reply.status == 200 for reply in await load.ask_all())


async def goes_through(proxy: ProxyProcess) -> None:
    """Two workers' deaths, a reload and two orders; after each, requests are answered as before."""
    for _ in range(2):
        killed = proxy.worker_pids()[0]
        send_signal(killed, signal.SIGKILL)
        await wait_until(lambda gone=killed: gone not in proxy.worker_pids(), PATIENT_S)  # type: ignore[misc]
        await wait_until(lambda: proxy.stats()["workers"]["serving"] == 2, PATIENT_S, "both workers")
        await is_served(proxy)
    reloaded = await asyncio.to_thread(proxy.admin, "POST", "/v1/reload", {})
    assert (reloaded.status, reloaded.json()["workers"]["serving"]) == (200, 2), reloaded.body
    for mode in ("bypass", "on"):
        switched = await asyncio.to_thread(proxy.mode, mode)
        assert switched["workers"]["unconfirmed"] == []
    await is_served(proxy)
    assert (await asyncio.to_thread(proxy.admin, "GET", "/metrics")).status == 200


@pytest.mark.parametrize("trouble", [fill, pytest.param(freeze, marks=pytest.mark.slow), remove])
async def test_r19_a_folder_of_metrics_that_cannot_be_written_costs_metrics_only(
    sim: ProcessSim, data_dir: Path, tmp_path: Path, trouble: Trouble
) -> None:
    async with on_small_disks(sim, data_dir, tmp_path) as proxy, Workload(proxy.http_url) as load:
        await load.warm_up()
        trouble(proxy, tmp_path)
        await goes_through(proxy)
        told = await health(proxy)
        if trouble is remove:  # it is made anew
            assert told["status"] == "healthy"
        else:
            assert "metrics of " in told["lacks"][0]
            assert told["status"] == "degraded"
            assert events(proxy)["metrics_not_gathered"]


@pytest.mark.parametrize("trouble", [fill, freeze, pytest.param(remove, marks=pytest.mark.slow)])
async def test_r19_a_data_folder_that_cannot_be_written_costs_what_is_kept_in_it(
    sim: ProcessSim, data_dir: Path, tmp_path: Path, trouble: Trouble
) -> None:
    async with on_small_disks(sim, data_dir, tmp_path) as proxy, Workload(proxy.http_url) as load:
        await load.warm_up()
        trouble(proxy, data_dir)
        await goes_through(proxy)
        if trouble is not remove:  # the folder is there: files can be made in it
            told = await health(proxy)
            assert any(text.startswith("modes.json: not written") for text in told["lacks"]), told
            switched = await asyncio.to_thread(proxy.mode, "on")
            assert switched["persisted"] is False


@pytest.mark.parametrize("full", ["data", "temporary"])
async def test_r19_a_start_on_a_full_disk_serves(sim: ProcessSim, data_dir: Path, tmp_path: Path, full: str) -> None:
    small = "size=64k"  # less than what one worker counts in
    folder = tmp_path / "full"
    folder.mkdir()
    command = in_namespaces(COMMAND, own_network=False, disks={data_dir if full == "data" else folder: small})
    env = settings() | {"TMPDIR": str(data_dir if full == "data" else folder)}
    async with (
        ProxyProcess(dashscope_url=sim.url, workers=2, data_dir=data_dir, command=command, env=env) as proxy,
        Workload(proxy.http_url) as load,
    ):
        assert all(reply.status == 200 for reply in await load.ask_all())
        told = await health(proxy)
        assert "metrics of 2 of 2 workers" in told["lacks"][0]
        assert told["workers"] == {"serving": 2, "wanted": 2}


async def test_r19_a_snapshot_that_cannot_be_written_is_said(sim: ProcessSim, data_dir: Path, tmp_path: Path) -> None:
    async with on_small_disks(sim, data_dir, tmp_path) as proxy, Workload(proxy.http_url) as load:
        await load.warm_up()
        fill(proxy, data_dir)
        (socket,) = (path for path in seen_by(proxy.pid, data_dir).iterdir() if path.is_socket())
        reader, writer = await asyncio.open_unix_connection(str(socket))
        writer.write(b"BGSAVE\r\n")
        assert (await reader.readline()).startswith(b"+")
        writer.close()
        await wait_until(lambda: events(proxy)["embedded_redis_not_saved"], PATIENT_S)
        assert any(text.startswith("cache.rdb: not written") for text in (await health(proxy))["lacks"])
        assert all(reply.is_cached for reply in await load.ask_all())


@pytest.mark.parametrize(
    ("options", "said"), [("ro", "Read-only file system"), ("size=4k,nr_inodes=1", "No space left")]
)
def test_r19_a_start_that_fails_says_why(data_dir: Path, options: str, said: str) -> None:
    env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    env |= {"DASHCACHE_DATA_DIR": str(data_dir), "DASHCACHE_HTTP_LISTEN": "127.0.0.1:0"}
    done = subprocess.run(
        in_namespaces(COMMAND, own_network=False, disks={data_dir: options}),
        env=env | {"DASHCACHE_ADMIN_LISTEN": "127.0.0.1:0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if said in line]
    assert len(lines) == 1, done.stderr
    assert f"data_dir: {data_dir}" in lines[0]


def test_r19_a_run_that_fails_otherwise_says_why(data_dir: Path) -> None:
    broken = """
import asyncio, proxy.supervisor.start as start
from proxy.cli import main
async def broken(*_):
    raise OSError(28, "No space left on device", "/somewhere")
start._supervise = broken
main(["run"])
"""
    env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", broken],
        env=env | {"DASHCACHE_DATA_DIR": str(data_dir)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    logged, said = done.stderr.splitlines()
    assert json.loads(logged)["event"] == "run_failed"
    assert json.loads(logged)["reason"] == "No space left on device: /somewhere"
    assert said == "dashcache cannot run: No space left on device: /somewhere"
