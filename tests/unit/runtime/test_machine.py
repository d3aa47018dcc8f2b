"""What the supervisor takes from the machine: the data folder, ports, the surroundings of its children."""

import asyncio
import os
import socket
import sys
from pathlib import Path

import grpc.aio
import pytest

from proxy.core.errors import ConfigError
from proxy.runtime.data_folder import SECRET_FILE, DataFolder, replace_file
from proxy.runtime.process import Backoff, child_environment, python_module
from proxy.settings.model import Listen, Settings, UpstreamRule
from proxy.supervisor import sockets
from tests.support.ports import PortReservation


def test_the_folder_is_ours_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    folder = DataFolder(tmp_path / "data")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError) as refused:
        DataFolder(tmp_path / "data")
    assert f"in use by another dashcache (process {os.getpid()})" in refused.value.mistakes[0]
    folder.close()
    DataFolder(tmp_path / "data").close()


def test_a_folder_that_cannot_be_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as refused:
        DataFolder(tmp_path / "file" / "data")
    assert refused.value.mistakes[0].startswith("data_dir: ")


def test_the_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    secret = folder.key_secret()
    assert len(secret) == 64
    assert folder.key_secret() == secret
    assert (tmp_path / SECRET_FILE).stat().st_mode & 0o777 == 0o600
    folder.close()


def test_a_damaged_secret_is_not_replaced_in_silence(tmp_path: Path) -> None:
    (tmp_path / SECRET_FILE).write_text("short\n")
    folder = DataFolder(tmp_path)
    with pytest.raises(ConfigError):
        folder.key_secret()
    assert (tmp_path / SECRET_FILE).read_text() == "short\n"
    folder.close()


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "modes.json"
    replace_file(path, b"old")

    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["modes.json"]


def test_a_port_chosen_once_is_the_same_for_all_and_stays_taken() -> None:
    settings = Settings(
        listen=Listen(http="127.0.0.1:0"),
        upstreams=(UpstreamRule(name="us", url="us", listen="127.0.0.1:0"),),
    )
    held = sockets.reserve_all(settings)
    assert [reserved.port.upstream for reserved in held] == ["", "us"]
    port = held[0].port.number
    workers = []
    for _ in range(2):
        worker = socket.socket()
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.bind(("127.0.0.1", port))
        worker.listen()
        workers.append(worker)
    with pytest.raises(OSError, match="in use"), socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))
    for taken in (*workers, *(reserved.socket for reserved in held)):
        taken.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "0.0.0.0"])
async def test_grpc_servers_share_a_held_port(host: str) -> None:
    listen = Listen(http="127.0.0.1:0", grpc=f"{host}:0")
    held = sockets.reserve_all(Settings(listen=listen, dashvector_url="https://cluster.example"))
    (port,) = [reserved.port for reserved in held if reserved.port.protocol == "grpc"]
    assert port.host in ("127.0.0.1", "::1", "0.0.0.0")  # a name could mean more than what is held
    servers = [grpc.aio.server() for _ in range(2)]
    assert [server.add_insecure_port(port.address) for server in servers] == [port.number] * 2
    for server in servers:
        await server.start()
    async with grpc.aio.insecure_channel(f"{host}:{port.number}".replace("0.0.0.0", "127.0.0.1")) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
    for server in servers:
        await server.stop(None)
    for reserved in held:
        reserved.socket.close()


def test_a_port_that_only_waits_refuses_connections() -> None:
    (held,) = sockets.reserve_all(Settings(listen=Listen(http="127.0.0.1:0")))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", held.port.number), timeout=5)
    held.socket.close()


def test_every_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_PATIENCE_S", 0.0)
    reservations = [PortReservation(), PortReservation()]
    listeners = [reservation.listen() for reservation in reservations]
    addresses = [f"127.0.0.1:{reservation.port}" for reservation in reservations]
    settings = Settings(
        listen=Listen(http=addresses[0]),
        upstreams=(UpstreamRule(name="us", url="us", listen=addresses[1]),),
    )
    with pytest.raises(ConfigError) as refused:
        sockets.reserve_all(settings)
    assert len(refused.value.mistakes) == 2
    for taken in (*reservations, *listeners):
        taken.close()


def test_another_proxy_cannot_join_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """SO_REUSEPORT lets every process of the same user in: two proxies would share requests unnoticed."""
    monkeypatch.setattr(sockets, "_PATIENCE_S", 0.0)
    (held,) = sockets.reserve_all(Settings(listen=Listen(http="127.0.0.1:0")))
    with socket.socket() as worker:
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        worker.bind(("127.0.0.1", held.port.number))
        worker.listen()
        with pytest.raises(ConfigError):
            sockets.reserve_all(Settings(listen=Listen(http=f"127.0.0.1:{held.port.number}")))
    held.socket.close()


def test_children_inherit_no_secret_and_nobody_elses_folder() -> None:
    environ = {
        "PATH": "/bin",
        "DASHCACHE_KEY_SECRET": "canary",
        "DASHCACHE_ADMIN_TOKEN": "canary",
        "REDIS_URL": "redis://:canary@x",
        "PROMETHEUS_MULTIPROC_DIR": "/elsewhere",
        "prometheus_multiproc_dir": "/elsewhere",
    }
    assert child_environment(environ) == {"PATH": "/bin"}


def test_a_folder_named_proxy_where_we_are_started_is_not_taken_for_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_root = Path(__file__).parents[3]
    monkeypatch.chdir(tmp_path)
    assert python_module(package_root) == [sys.executable, "-P", "-m", "proxy"]
    monkeypatch.chdir(package_root)
    assert python_module(package_root) == [sys.executable, "-m", "proxy"]


def test_who_dies_young_waits_longer_and_who_lived_long_does_not() -> None:
    backoff = Backoff()
    assert [backoff.wait_s(0.5) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.wait_s(60) == 0.0
    assert backoff.wait_s(0.5) == 0.1
