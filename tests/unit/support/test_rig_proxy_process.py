"""Starting, asking and above all ending the product; against a stand-in that keeps the product's contract."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.child import descendants, process_info, process_state, spawn
from tests.support.proxy_process import ROOT, ProxyProcess, ProxyStartError
from tests.support.waiting import wait_until_sync

FAKE = (sys.executable, str(Path(__file__).with_name("fake_product.py")))


def product(manners: str = "", **options) -> ProxyProcess:
    return ProxyProcess(command=FAKE, env={"FAKE": manners, **options.pop("env", {})}, **options)


def test_it_is_started_with_settings_of_its_own(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://developer")
    monkeypatch.setenv("DASHCACHE_ANYTHING", "x")
    with product(dashscope_url="http://up", profile="development", workers=2, env={"MORE": "1"}) as proxy:
        env = proxy.stats()["env"]
        assert "REDIS_URL" not in env
        assert "DASHCACHE_ANYTHING" not in env
        assert env["DASHCACHE_DASHSCOPE_URL"] == "http://up"
        assert (env["DASHCACHE_PROFILE"], env["DASHCACHE_WORKERS"], env["MORE"]) == ("development", "2", "1")
        assert env["DASHCACHE_KEY_SECRET"] == proxy.key_secret
        assert Path(env["DASHCACHE_DATA_DIR"]).is_dir()
        assert env["DASHCACHE_HTTP_LISTEN"] == env["DASHCACHE_ADMIN_LISTEN"] == "127.0.0.1:0"
        assert len(proxy.worker_pids()) == 2
        assert (proxy.http_port, proxy.http_url) == (1, "http://127.0.0.1:1")
        assert (proxy.https_url, proxy.grpc_address, proxy.grpcs_address) == ("https://127.0.0.1:2", "h:3", "h:4")
    assert not proxy.data_dir.exists()


def test_the_admin_api_by_method():
    with product(redis_url="redis://x", env={"DASHCACHE_ADMIN_TOKEN": "t0"}) as proxy:
        stats = proxy.stats()
        assert (stats["path"], stats["token"], stats["env"]["REDIS_URL"]) == ("/v1/stats", "Bearer t0", "redis://x")
        assert proxy.mode("bypass", for_s=5, reason="test") == {"mode": "bypass", "for_s": 5, "reason": "test"}
        assert proxy.modes()["path"] == "/v1/mode"
        assert (proxy.health(), proxy.ready(), proxy.metrics()) == (True, False, "a 1\n")
        assert proxy.admin("GET", "/v1/nothing").status == 404
        assert proxy.admin_url.startswith("http://127.0.0.1:")
        proxy.stop()
        assert not proxy.health()


def test_logs_are_collected_however_many_and_never_block_the_product():
    with product("noisy") as proxy:
        assert proxy.output.count(b"not json") == 20_000
        assert b"on stdout" in proxy.output
        assert proxy.wait_log("ready") in proxy.logs
        seen = len(proxy.logs)
        tick = proxy.wait_log("tick", after=seen, pid=proxy.pid)
        assert proxy.logs.index(tick) >= 0
        with pytest.raises(LookupError, match="not within"):
            proxy.wait_log("never", timeout=0.1)
    with pytest.raises(LookupError, match="the output ended"):
        proxy.wait_log("never")
    assert proxy.wait_log("bye", level="info")


def test_a_polite_product_ends_by_itself():
    with product() as proxy:
        workers = proxy.worker_pids()
        assert len(workers) == 1
        assert proxy.is_running
        assert proxy.stop() == 0
        assert proxy.stop() == 0
        assert not proxy.is_running
    assert proxy.left_behind == []
    assert process_state(workers[0]) is None


def test_a_stubborn_product_is_killed():
    with product("stubborn") as proxy:
        assert proxy.stop(timeout=0.3) == -signal.SIGKILL


def test_a_stopped_product_is_ended_too():
    with product() as proxy:
        os.kill(proxy.pid, signal.SIGSTOP)
        assert proxy.stop() == 0


def test_nothing_is_left_behind_even_in_another_session():
    with product("leaves", workers=2) as proxy:
        wait_until_sync(lambda: len(descendants(proxy.pid)) == 5, 5, "the grandchild")
        assert proxy.stop() == 0
    assert len(proxy.left_behind) == 5
    assert [info for info in proxy.left_behind if process_state(info.pid) not in {None, "Z"}] == []


def test_a_kill_takes_all_of_it():
    with product(workers=2) as proxy:
        pids = [proxy.pid, *proxy.worker_pids()]
        assert proxy.kill() == -signal.SIGKILL
        assert {process_state(pid) for pid in pids} <= {None, "Z"}


def test_a_product_that_does_not_start_is_told_with_its_log():
    with pytest.raises(ProxyStartError, match=r"(?s)exit code 3.*no config"):
        product("dies").start()
    proxy = product("never-ready", start_timeout_s=0.5)
    with pytest.raises(ProxyStartError, match=r"not within 0\.5 s"):
        proxy.start()
    assert not proxy.is_running
    assert not proxy.data_dir.exists()


def test_a_data_folder_of_the_callers_is_kept(data_dir):
    with product(data_dir=data_dir) as proxy:
        assert proxy.data_dir == data_dir
    assert data_dir.is_dir()


async def test_it_starts_and_ends_within_a_loop_too():
    async with product() as proxy:
        assert proxy.health()
        info = process_info(proxy.pid)
        assert info is not None
        assert info.command[1:] == FAKE[1:]
    assert proxy.exit_code == 0


def test_a_child_dies_with_the_process_that_started_it():
    program = "from tests.support.child import spawn; import time; print(spawn(['sleep', '600']).pid); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-uc", program], stdout=subprocess.PIPE, cwd=ROOT)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_until_sync(lambda: (info := process_info(child)) and info.command == ("sleep", "600"), 5, "exec")
        parent.kill()
    wait_until_sync(lambda: process_state(child) in {None, "Z"}, 5, "the child to die")


def test_a_child_has_a_session_of_its_own():
    child = spawn(["sleep", "600"])
    try:
        info = wait_until_sync(lambda: process_info(child.pid), 5)
        assert (info.session, info.parent) == (child.pid, os.getpid())
    finally:
        child.kill()
        child.wait()


def test_a_program_that_is_missing_ends_at_once():
    started = time.monotonic()
    assert spawn(["/no/such/program"]).wait(10) != 0
    assert time.monotonic() - started < 5
