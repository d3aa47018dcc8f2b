"""Commands find the running proxy by its note in the data folder, whatever is wrong with the settings on disk."""

import errno
import os
import signal
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli import main
from proxy.core.errors import ConfigError
from proxy.runtime import running
from proxy.runtime.data_folder import DataFolder
from proxy.runtime.running import Running
from proxy.settings.model import Listen, Settings
from proxy.supervisor import sockets
from proxy.supervisor.port_owner import owner_of
from tests.support.child import send_signal
from tests.support.proxy_process import ProxyProcess
from tests.support.waiting import wait_until_sync
from tests.unit.supervisor.test_supervisor import STUB

TOKEN = "a token that is long enough"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """An operator's file, to be broken once the proxy runs."""
    file = tmp_path / "dashcache.toml"
    file.write_text("")
    return file


def started(data_dir: Path, config: Path) -> ProxyProcess:
    env = {"PATH": "/nonexistent", "DASHCACHE_ADMIN_TOKEN": TOKEN, "DASHCACHE_CONFIG": str(config)}
    return ProxyProcess(command=STUB, redis_url="redis://127.0.0.1:1/0", data_dir=data_dir, env=env)


def command(data_dir: Path, config: Path, *arguments: str, **environ: str) -> Result:
    env: dict[str, str | None] = {"DASHCACHE_DATA_DIR": str(data_dir), "DASHCACHE_CONFIG": str(config), **environ}
    return CliRunner().invoke(main, arguments, env=env)


@pytest.mark.parametrize("mistake", ["[[[", "[log]\nlevel = 'warn'"])
def test_commands_work_with_a_mistake_in_the_files(data_dir: Path, broken: Path, mistake: str) -> None:
    with started(data_dir, broken) as proxy:
        assert (data_dir / running.FILE).stat().st_mode & 0o777 == 0o600
        assert TOKEN not in (data_dir / running.FILE).read_text()
        broken.write_text(mistake)
        for arguments in (["stats"], ["health"], ["bypass", "on"], ["bypass", "off"], ["purge", "--all", "--yes"]):
            done = command(data_dir, broken, *arguments)
            assert (arguments, done.exit_code) == (arguments, 0), done.output
        # One that was changed on disk only is not the running proxy's.
        assert command(data_dir, broken, "health", DASHCACHE_ADMIN_TOKEN="another token").exit_code == 0
        refused = command(data_dir, broken, "reload")
        assert refused.exit_code == 1
        assert "dashcache.toml" in refused.output
        assert proxy.stop() == 0
    assert not (data_dir / running.FILE).exists()
    assert "no running proxy was found" in command(data_dir, broken, "health").output


def test_a_note_that_was_left_behind_is_not_believed(data_dir: Path, broken: Path) -> None:
    with started(data_dir, broken) as proxy:
        send_signal(proxy.pid, signal.SIGKILL)
        wait_until_sync(lambda: not proxy.is_running)
        assert (data_dir / running.FILE).exists()
        # Its address may be another's by now, who would be given the token.
        assert running.find(data_dir) is None
        assert "is the proxy running?" in command(data_dir, broken, "health").output


def test_an_address_in_the_environment_of_the_command_wins(data_dir: Path, broken: Path) -> None:
    with started(data_dir, broken):
        done = command(data_dir, broken, "health", DASHCACHE_ADMIN_LISTEN="127.0.0.1:1")
        assert "no answer from http://127.0.0.1:1" in done.output


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"pid":"x"}'])
def test_a_damaged_note_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / running.FILE).write_bytes(content)
    assert running.find(tmp_path) is None


def test_a_note_is_believed_while_its_writer_holds_the_folder_and_others_cannot_read_it(data_dir: Path) -> None:
    noted = Running(os.getpid(), "127.0.0.1:0", "127.0.0.1:1234", TOKEN)
    folder = DataFolder(data_dir)
    running.write(data_dir, noted)
    assert running.find(data_dir) == noted
    (data_dir / running.FILE).chmod(0o640)
    assert running.find(data_dir) is None
    (data_dir / running.FILE).chmod(0o600)
    folder.close()
    assert running.find(data_dir) is None


def test_a_port_in_use_names_the_setting_its_variable_and_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_PATIENCE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError) as caught:
            sockets.reserve_all(Settings(listen=Listen(http=address)))
        said = f"listen.http (DASHCACHE_HTTP_LISTEN): cannot listen on {address}: Address already in use, by process "
        (mistake,) = caught.value.mistakes
        assert mistake.startswith(f"{said}{os.getpid()} (")


def test_other_faults_of_a_port_name_the_setting_too() -> None:
    refused = OSError(errno.EACCES, "Permission denied")
    said = sockets.cannot_listen(("listen", "admin"), "listen.admin", "127.0.0.1:80", refused)
    assert said == "listen.admin (DASHCACHE_ADMIN_LISTEN): cannot listen on 127.0.0.1:80: Permission denied"


def test_nobody_on_a_port_is_said_so() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert owner_of(bound.getsockname()[1]) == "a process that cannot be seen from here"
