"""The processes, with a worker that does next to nothing: who starts, who is replaced, and that nobody is left."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.admin.health import Phase
from proxy.control.share import Share
from proxy.settings.model import Listen, Redis, Settings
from proxy.settings.types import SecretText
from proxy.supervisor.supervisor import Supervisor
from tests.support.certificate import made_certificate
from tests.support.child import descendants, process_state, send_signal
from tests.support.proxy_process import ProxyProcess, ProxyStartError
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until, wait_until_sync

STUB = (sys.executable, "-m", "tests.unit.supervisor.stub_proxy", "run")

Start = Callable[..., ProxyProcess]


@pytest.fixture
def start(data_dir: Path) -> Iterator[Start]:  # asks for the folder, so that it is removed after the processes
    started: list[ProxyProcess] = []

    def begin(**options: Any) -> ProxyProcess:
        # Without a server of its own unless asked for: most of these tests are about workers.
        env = {"PATH": "/nonexistent", **options.pop("env", {})}
        options.setdefault("redis_url", "redis://127.0.0.1:1/0")
        started.append(ProxyProcess(command=STUB, env=env, **options))
        return started[-1].start()

    yield begin
    for proxy in started:
        proxy.close()
        assert proxy.left_behind == []


def connect(proxy: ProxyProcess, word: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", proxy.http_port), timeout=10)
    connection.sendall(word.encode() + b"\n")
    return connection


def answer(connection: socket.socket) -> Any:
    with connection, connection.makefile("rb") as file:
        line = file.readline()
    return json.loads(line) if line else None


def say(proxy: ProxyProcess, word: str = "who") -> Any:
    return answer(connect(proxy, word))


def test_workers_share_one_port_and_know_what_they_need(start: Start) -> None:
    proxy = start(workers=2, env={"DASHCACHE_ADMIN_TOKEN": "canary"})
    told = wait_until_sync(lambda: say(proxy))
    assert told["pid"] in proxy.worker_pids()
    assert told["secret"] == proxy.key_secret
    assert told["redis"] == "redis://127.0.0.1:1/0"
    assert not [name for name in told["environ"] if name.startswith("DASHCACHE_") or name == "REDIS_URL"]
    ready = proxy.wait_log("ready")
    assert (ready["workers"], ready["redis"]) == (2, "unreachable: connection refused")
    assert proxy.ready()
    # Both listen: the kernel spreads connections over them.
    wait_until_sync(lambda: say(proxy)["pid"] != told["pid"])
    assert proxy.stop() == 0


def test_every_port_is_held_reported_and_handed_on(start: Start, tmp_path: Path) -> None:
    certificate, key = made_certificate(tmp_path)
    tls = {"DASHCACHE_HTTPS_LISTEN": "127.0.0.1:0", "DASHCACHE_GRPCS_LISTEN": "127.0.0.1:0"}
    tls |= {"DASHCACHE_TLS_CERTIFICATE": str(certificate), "DASHCACHE_TLS_KEY": str(key)}
    proxy = start(dashvector_url="https://cluster.example", env=tls)
    ports = [tuple(port) for port in say(proxy)["ports"]]
    assert [port[:3] for port in ports] == [
        ("http", "", "127.0.0.1"),
        ("https", "", "127.0.0.1"),
        ("grpc", "dashvector", "127.0.0.1"),
        ("grpcs", "dashvector", "127.0.0.1"),
    ]
    assert 0 not in [port[3] for port in ports]
    addresses = [proxy.http_url, proxy.https_url, proxy.grpc_address, proxy.grpcs_address]
    assert [int(address.rpartition(":")[2]) for address in addresses] == [port[3] for port in ports]
    listeners = proxy.admin("GET", "/healthz").json()["listeners"]
    assert listeners["grpc"] == [proxy.grpc_address]


def test_workers_know_their_numbers_and_the_folder(start: Start, data_dir: Path) -> None:
    proxy = start(workers=2, data_dir=data_dir)
    seen: dict[int, dict[str, Any]] = {}

    def both_seen() -> bool:
        told = say(proxy)
        seen[told["number"]] = told
        return len(seen) == 2

    wait_until_sync(both_seen)
    assert sorted(seen) == [1, 2]
    assert {(told["count"], told["data_dir"]) for told in seen.values()} == {(2, str(data_dir))}
    assert say(proxy, "crash") is None
    replaced = {told["pid"] for told in seen.values()}
    seen.clear()
    wait_until_sync(lambda: both_seen() and {told["pid"] for told in seen.values()} != replaced)
    assert sorted(seen) == [1, 2]


def test_a_worker_that_dies_is_replaced_and_its_figures_stay(start: Start) -> None:
    proxy = start(workers=1)
    first = say(proxy, "observe")["pid"]
    assert say(proxy, "crash") is None
    proxy.wait_log("worker_ended", status=1)
    second = wait_until_sync(lambda: _try(proxy))["pid"]
    assert second != first
    say(proxy, "observe")
    wait_until_sync(proxy.ready)
    stats = proxy.stats()
    assert stats["operations"]["embedding"]["hits"] == {"memory": 2, "redis": 0}
    assert stats["operations"]["embedding"]["hit_ratio"] == 1.0
    rates = stats["rates"]["last_minute"]["operations"]["embedding"]
    assert (rates["hit_ratio"], rates["calls_per_s"]) == (1.0, 0.0)
    assert rates["hits_per_s"] > 0
    assert 'dashcache_requests_total{operation="embedding",state="hit"} 2.0' in proxy.metrics()
    assert stats["workers"] == {"serving": 1, "wanted": 1}


def _try(proxy: ProxyProcess) -> Any:
    try:
        return say(proxy)
    except OSError:
        return None


def test_a_switch_is_in_every_worker_when_it_is_answered_and_survives(start: Start, data_dir: Path) -> None:
    proxy = start(workers=2, data_dir=data_dir)
    assert proxy.mode("bypass", for_s=600)["workers"] == {"confirmed": 2, "serving": 2, "unconfirmed": []}
    assert {say(proxy)["mode"] for _ in range(10)} == {"bypass"}
    say(proxy, "crash")
    assert wait_until_sync(lambda: _try(proxy))["mode"] == "bypass"
    assert proxy.stop() == 0
    again = start(workers=1, data_dir=data_dir)
    assert say(again)["mode"] == "bypass"


def test_a_worker_that_hangs_does_not_hold_up_a_switch_or_the_end(start: Start) -> None:
    proxy = start(workers=1, env={"DASHCACHE_LIMITS_DRAIN_S": "0"})
    with connect(proxy, "hang") as hanging:
        assert hanging.recv(3)
        switched = proxy.mode("bypass")
        assert switched["workers"] == {"confirmed": 0, "serving": 1, "unconfirmed": [1]}
        send_signal(proxy.pid, signal.SIGTERM)
        proxy.wait_log("draining")
        assert proxy.stop() == 0  # a second signal: hurry


def test_at_the_end_readiness_fails_first_and_what_runs_is_answered(start: Start) -> None:
    proxy = start(workers=2)
    held = connect(proxy, "hold")
    assert proxy.stop() == 0
    assert answer(held)["pid"]
    assert [line["event"] for line in proxy.logs if line["event"] in ("ready", "draining", "stopped")] == [
        "ready",
        "draining",
        "stopped",
    ]


def test_after_kill_9_nobody_is_left_and_the_next_start_works(start: Start, data_dir: Path) -> None:
    proxy = start(workers=2, data_dir=data_dir, redis_url=None, env={"PATH": os.environ["PATH"]})
    assert proxy.wait_log("ready")["redis"] == "embedded"
    family = descendants(proxy.pid)
    assert len(family) == 3
    port = proxy.http_port
    os.kill(proxy.pid, signal.SIGKILL)
    wait_until_sync(lambda: all(process_state(info.pid) in (None, "Z") for info in family), 10, "the children to go")
    proxy.close()
    address = {"PATH": os.environ["PATH"], "DASHCACHE_HTTP_LISTEN": f"127.0.0.1:{port}"}
    again = start(workers=1, data_dir=data_dir, redis_url=None, env=address)
    assert again.stats()["redis"]["ok"] is True


def test_two_proxies_do_not_share_a_folder(start: Start, data_dir: Path) -> None:
    start(workers=1, data_dir=data_dir)
    other = ProxyProcess(data_dir=data_dir, env={"DASHCACHE_ADMIN_LISTEN": "127.0.0.1:0"})
    with pytest.raises(ProxyStartError):
        other.start()
    assert other.exit_code == 2
    assert b"in use by another dashcache" in other.output


def test_without_any_redis_it_runs_on_memory_and_says_so_once(start: Start, tmp_path: Path) -> None:
    for name in ("default.toml", "production.toml"):
        source = Path(__file__).parents[3] / "config" / name
        (tmp_path / name).write_bytes(source.read_bytes())
    proxy = start(workers=1, redis_url=None, env={"DASHCACHE_CONFIG_DIR": str(tmp_path)})
    assert proxy.wait_log("ready")["redis"] == "none"
    assert [line["event"] for line in proxy.logs].count("no_redis") == 1
    assert say(proxy)["redis"] is None
    assert proxy.health()


def test_a_switch_reaches_another_replica(start: Start, redis_server: RedisServer) -> None:
    secret = "one deployment's secret"
    one, other = (start(workers=1, redis_url=redis_server.url, key_secret=secret) for _ in range(2))
    one.mode("bypass")
    wait_until_sync(lambda: say(other)["mode"] == "bypass", 5.0, "the other replica to know")
    assert all(b"one deployment" not in value for value in redis_server.dump().values())


def test_ctrl_c_in_a_terminal_drains_too(start: Start) -> None:
    proxy = start(workers=1)
    held = connect(proxy, "hold")
    os.killpg(os.getpgid(proxy.pid), signal.SIGINT)
    assert answer(held)["pid"]
    assert proxy.stop() == 0


async def test_what_other_replicas_ordered_is_asked_before_any_worker_starts(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        data_dir=tmp_path,
        workers=1,
        listen=Listen(http="127.0.0.1:0", admin="127.0.0.1:0"),
        redis=Redis(url=SecretText(redis_server.url)),
    )
    supervisor = Supervisor(settings, tmp_path, worker_command=[*STUB[:-1], "worker"])
    workers_at_first: list[object] = []

    async def first(_share: Share) -> None:
        workers_at_first.append(supervisor.state.workers)

    monkeypatch.setattr(Share, "first", first)
    running = asyncio.ensure_future(supervisor.run())
    await wait_until(lambda: running.done() or supervisor.state.phase is Phase.SERVING, 20.0, "the worker to serve")
    supervisor.stop()
    await running
    assert workers_at_first == [None]
