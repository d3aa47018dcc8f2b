"""Reloading, with a worker that does next to nothing: what is refused, what is taken up, and who serves meanwhile."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.control.channel import Hello
from proxy.runtime.process import CONTROL_VARIABLE
from proxy.runtime.tasks import Tasks
from proxy.settings.model import Listen, Redis, Settings, UpstreamRule
from proxy.settings.types import SecretText
from proxy.supervisor.reload import fixed_changes
from proxy.supervisor.workers import NotReplacedError, Workers
from tests.support.child import send_signal
from tests.support.proxy_process import ProxyProcess
from tests.support.waiting import wait_until, wait_until_sync
from tests.unit.supervisor.stub_proxy import ALL_DIE

STUB = (sys.executable, "-m", "tests.unit.supervisor.stub_proxy", "run")


class Rig:
    """A proxy of two workers with a file of the operator's."""

    def __init__(self, folder: Path, data_dir: Path) -> None:
        self.file = folder / "mine.toml"
        self.write()
        env = {"PATH": "/nonexistent", "DASHCACHE_CONFIG": str(self.file)}
        self.proxy = ProxyProcess(
            command=STUB, env=env, workers=2, redis_url="redis://127.0.0.1:1/0", data_dir=data_dir
        )

    def write(self, text: str = "", *, lines: int = 100) -> None:
        self.file.write_text(f"{text}\n[limits]\nheader_lines = {lines}\n")

    def say(self, word: str = "who") -> Any:
        with socket.create_connection(("127.0.0.1", self.proxy.http_port), timeout=10) as connection:
            connection.sendall(word.encode() + b"\n")
            with connection.makefile("rb") as file:
                return json.loads(file.readline())

    def in_force(self) -> set[int]:
        """What the workers say, asked often enough to hear each."""
        return {self.say()["header_lines"] for _ in range(20)}

    def wait_in_force(self, lines: set[int]) -> None:
        """A worker that has just been told to drain may have accepted somebody before it heard."""
        wait_until_sync(lambda: self.in_force() == lines, 5.0, lambda: f"{lines} to be in force alone")

    def reload(self) -> Any:
        return self.proxy.admin("POST", "/v1/reload", {})


@pytest.fixture
def rig(tmp_path: Path, data_dir: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, data_dir)
    with made.proxy:
        yield made
    assert made.proxy.left_behind == []


def test_new_settings_are_in_force_when_it_is_answered(rig: Rig) -> None:
    before = rig.proxy.stats()["settings"]
    pids = rig.proxy.worker_pids()
    rig.proxy.mode("bypass")
    rig.write(lines=200)
    answer = rig.reload()
    assert (answer.status, answer.json()["workers"]) == (200, {"serving": 2, "wanted": 2})
    rig.wait_in_force({200})
    assert rig.say()["mode"] == "bypass"
    after = rig.proxy.admin("GET", "/healthz").json()["settings"]
    assert after["loaded_unix_s"] > before["loaded_unix_s"]
    assert (before["reloading"], after["reloading"]) == (False, False)
    wait_until_sync(lambda: not set(pids) & set(rig.proxy.worker_pids()), 10, "the old workers to go")
    assert rig.proxy.stop() == 0
    assert not [line for line in rig.proxy.logs if line["event"] == "worker_ended"]


def test_the_supervisor_goes_by_them_too(rig: Rig) -> None:
    rig.write('[start]\nmode = "shadow"\n[[upstreams]]\nname = "us"\nurl = "us"\nhosts = ["us.example"]')
    assert rig.reload().status == 200
    effective = rig.proxy.modes()["effective"]
    assert effective == {"dashscope": {"embedding": "shadow"}, "us": {"embedding": "shadow"}}
    assert rig.proxy.mode("on", upstream="us")["effective"]["us"] == {"embedding": "on"}
    assert 'mode="shadow"' in rig.proxy.metrics()


def test_a_hangup_reloads(rig: Rig) -> None:
    rig.write(lines=300)
    send_signal(rig.proxy.pid, signal.SIGHUP)
    rig.proxy.wait_log("reloaded")
    rig.wait_in_force({300})


def test_a_hangup_during_a_reload_means_another(rig: Rig) -> None:
    send_signal(rig.proxy.pid, signal.SIGHUP)
    rig.proxy.wait_log("reloading")
    rig.write(lines=301)
    send_signal(rig.proxy.pid, signal.SIGHUP)
    rig.proxy.wait_log("reloaded")
    rig.proxy.wait_log("reloaded", after=1 + [line["event"] for line in rig.proxy.logs].index("reloaded"))
    rig.wait_in_force({301})


def test_a_hangup_during_a_reload_by_request_means_another(rig: Rig) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(rig.reload)
        rig.proxy.wait_log("reloading")
        rig.write(lines=302)
        send_signal(rig.proxy.pid, signal.SIGHUP)
        assert answer.result(20).status == 200
    rig.proxy.wait_log("reloaded")
    rig.proxy.wait_log("reloaded", after=1 + [line["event"] for line in rig.proxy.logs].index("reloaded"))
    rig.wait_in_force({302})


def test_a_bad_file_is_refused_with_every_mistake(rig: Rig) -> None:
    pids, loaded = rig.proxy.worker_pids(), rig.proxy.stats()["settings"]
    rig.write("nonsense = 1\n[breaker]\nfail_max = 0", lines=7)
    answer = rig.reload()
    assert (answer.status, answer.json()["error"]) == (400, "BadSettings")
    told = "\n".join(answer.json()["mistakes"])
    assert all(name in told for name in ("nonsense", "breaker.fail_max", "limits.header_lines"))
    assert rig.proxy.wait_log("reload_refused", reason="BadSettings")["mistakes"] == answer.json()["mistakes"]
    assert (rig.proxy.worker_pids(), rig.proxy.stats()["settings"]) == (pids, loaded)
    rig.wait_in_force({100})


def test_what_needs_a_restart_is_refused_by_name(rig: Rig) -> None:
    pids = rig.proxy.worker_pids()
    rig.write('[redis]\nkey_prefix = "other"\n[listen]\nhttps = "127.0.0.1:0"', lines=200)
    answer = rig.reload()
    assert (answer.status, answer.json()["error"]) == (400, "BadSettings")  # no certificate
    rig.write('[redis]\nkey_prefix = "other"\n[[upstreams]]\nname = "us"\nurl = "us"\nlisten = "127.0.0.1:0"')
    answer = rig.reload()
    assert (answer.status, answer.json()["error"]) == (400, "NeedsRestart")
    assert answer.json()["mistakes"] == [
        "redis.key_prefix: cannot change without a restart",
        "upstream us: cannot change without a restart",
    ]
    assert rig.proxy.worker_pids() == pids
    rig.wait_in_force({100})


@pytest.mark.parametrize(
    ("lines", "number"),
    [pytest.param(ALL_DIE, 1, marks=pytest.mark.slow), pytest.param(1_001, 1, marks=pytest.mark.slow), (1_002, 2)],
)
def test_workers_that_die_at_the_start_leave_the_old_ones_in_place(rig: Rig, lines: int, number: int) -> None:
    rig.write(lines=lines)
    answer = rig.reload()
    assert (answer.status, answer.json()["error"]) == (500, "NotReplaced")
    assert f"worker {number} ended with status 3 before it served" in answer.json()["mistakes"][0]
    rig.wait_in_force({100})
    assert rig.proxy.stats()["workers"] == {"serving": 2, "wanted": 2}
    assert rig.say("observe")
    rig.write(lines=400)
    assert rig.reload().status == 200
    rig.wait_in_force({400})


def test_a_crash_after_a_reload_goes_on_with_the_new_settings(rig: Rig) -> None:
    rig.write(lines=500)
    assert rig.reload().status == 200
    rig.wait_in_force({500})  # an old worker's end would not be an accident
    with socket.create_connection(("127.0.0.1", rig.proxy.http_port), timeout=10) as connection:
        connection.sendall(b"crash\n")
        rig.proxy.wait_log("worker_ended", status=1)
    wait_until_sync(lambda: rig.proxy.stats()["workers"]["serving"] == 2, 10, "the worker to be replaced")
    rig.wait_in_force({500})


def test_a_second_one_at_a_time_is_refused_and_so_is_one_at_the_end(rig: Rig) -> None:
    held = socket.create_connection(("127.0.0.1", rig.proxy.http_port), timeout=10)
    send_signal(rig.proxy.pid, signal.SIGHUP)
    rig.proxy.wait_log("reloading")
    assert rig.proxy.stats()["settings"]["reloading"] is True
    answer = rig.reload()
    assert (answer.status, answer.json()["mistakes"]) == (409, ["a reload is under way"])
    rig.proxy.wait_log("reloaded")
    held.close()


def test_the_body_is_an_empty_object(rig: Rig) -> None:
    for sent in (None, [], {"now": True}):
        answer = rig.proxy.admin("POST", "/v1/reload", sent, {"Content-Type": "application/json"})
        assert (answer.status, answer.json()["error"]) == (400, "BadRequest"), sent


def test_everything_that_needs_a_restart_is_known_and_no_value_is_named() -> None:
    old = Settings(data_dir=Path("/a"))
    new = Settings(
        data_dir=Path("/b"),
        workers=3,
        key_secret=SecretText("canary"),
        redis=Redis(url=SecretText("redis://:canary@localhost/0"), key_prefix="x"),
        listen=Listen(admin="127.0.0.1:1", admin_token=SecretText("canary"), http="127.0.0.1:2"),
        dashvector_url="https://cluster.example",
        upstreams=(UpstreamRule(name="us", url="us", hosts=("us.example",)),),
    )
    assert list(fixed_changes(old, new)) == [
        "listen.admin",
        "listen.admin_token",
        "data_dir",
        "key_secret",
        "workers",
        "redis.url",
        "redis.key_prefix",
        "listen.grpc",
        "listen.http",
    ]
    assert list(fixed_changes(old, old)) == []


SILENT = "import time; time.sleep(3600)"
"""A worker that never serves."""
DEAF = f"""
import os, socket, time
channel = socket.socket(fileno=int(os.environ["{CONTROL_VARIABLE}"]))
channel.sendall(b'{{"type":"ready"}}\\n')
time.sleep(3600)
"""
"""A worker that serves and does not end when it is told to."""


@contextlib.asynccontextmanager
async def one_worker(code: str, greeted: list[str]) -> AsyncIterator[Workers]:
    """A team of one, that runs *code*; *greeted* gets the name of each greeting."""
    tasks = Tasks(lambda _: None)

    async def died(_pid: int) -> None:
        return None

    command = (sys.executable, "-c", code)
    hello = greeting("old", greeted)
    workers = Workers(1, command, {}, hello=hello, changed=lambda: None, died=died, drain_s=0.0, tasks=tasks)
    workers.start()
    await wait_until(lambda: len(workers.pids) == 1)
    try:
        yield workers
    finally:
        workers.hurry()
        await asyncio.wait_for(workers.stop(), 10)
        assert workers.pids == []
        await tasks.wait_done(5)


def greeting(name: str, greeted: list[str]) -> Callable[[int], Hello]:
    def hello(number: int) -> Hello:
        greeted.append(name)
        return Hello(number, 1, msgspec.Raw(b"{}"), (), b"", None, ())

    return hello


async def test_workers_that_never_serve_are_given_up() -> None:
    async with one_worker(SILENT, []) as workers:
        workers.serve_s = 0.2
        old = workers.pids
        with pytest.raises(NotReplacedError, match=r"worker 1 did not serve within 0.2 s"):
            await workers.replace_all(greeting("new", []), 0.0, 0.0)
        await wait_until(lambda: workers.pids == old, 5.0, "the new one to be gone")


async def test_who_dies_during_a_reload_comes_back_with_the_settings_in_force() -> None:
    """They may be refused yet, and then nobody would take them back from it."""
    greeted: list[str] = []
    async with one_worker(SILENT, greeted) as workers:
        (old,) = workers.pids
        replacing = asyncio.ensure_future(workers.replace_all(greeting("new", greeted), 0.0, 0.0))
        await wait_until(lambda: greeted == ["old", "new"])
        os.kill(old, signal.SIGKILL)
        await wait_until(lambda: len(greeted) == 3, 5.0, "another to be started")
        assert greeted == ["old", "new", "old"]
        workers.hurry()
        await asyncio.wait_for(workers.stop(), 20)
        with pytest.raises(NotReplacedError, match="the proxy is ending"):
            await replacing


async def test_a_stop_leaves_nobody_whom_a_reload_is_just_starting() -> None:
    async with one_worker(SILENT, []) as workers:
        os.kill(workers.pids[0], signal.SIGKILL)  # so that nobody else is waited for
        await wait_until(lambda: workers.pids == [])
        replacing = asyncio.ensure_future(workers.replace_all(greeting("new", []), 0.0, 0.0))
        await asyncio.sleep(0)  # it has begun, and the process is not there yet
        workers.hurry()
        await asyncio.wait_for(workers.stop(), 10)
        assert (workers.pids, replacing.done()) == ([], True)
        with pytest.raises(NotReplacedError, match="the proxy is ending"):
            await replacing


async def test_replaced_workers_do_not_pile_up() -> None:
    async with one_worker(DEAF, []) as workers:
        await asyncio.wait_for(workers.wait_all_serve(), 10)
        for count in (2, 3):
            await workers.replace_all(greeting("new", []), 0.0, 60.0)
            assert len(workers.pids) == count
        oldest = workers.pids[0]
        replacing = asyncio.ensure_future(workers.replace_all(greeting("newer", newer := []), 0.0, 60.0))
        await asyncio.wait({replacing}, timeout=0.5)  # it should not end, which nobody tells
        assert (len(workers.pids), newer, replacing.done()) == (3, [], False)
        os.kill(oldest, signal.SIGKILL)
        await asyncio.wait_for(replacing, 10)
        assert (len(workers.pids), newer) == (3, ["newer"])
