"""``dashcache try``: its lines run as printed, and it ends with its terminal, its parent or Ctrl-C, leaving nothing."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from proxy.cli import main
from proxy.tools import try_out
from tests.support.child import descendants, process_state
from tests.support.proxy_process import PASSED_ON, ROOT
from tests.support.waiting import LONG_S, wait_until_sync

_IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
LAST = "leaves nothing behind."


class Terminal:
    """``dashcache try`` in a terminal of its own, until it has printed all that it has to say."""

    def __init__(self, temporary: Path, **env: str) -> None:
        self._master, slave = pty.openpty()
        self._said = b""
        self.temporary = temporary
        surroundings = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_TERMINAL, "-m", "proxy", "try"],
            cwd=ROOT,
            env={
                **surroundings,
                "DASHCACHE_HTTP_LISTEN": "127.0.0.1:0",
                "DASHCACHE_ADMIN_LISTEN": "127.0.0.1:0",
                "TMPDIR": str(temporary),
                **env,
            },
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.children: list[int] = []

    def wait_ready(self) -> str:
        """All that it has printed by then."""
        while LAST not in (text := self.read_some()):
            assert text, "it ended"
        self.children = [info.pid for info in descendants(self.process.pid)]
        return text

    def read_some(self) -> str:
        """The output so far; nothing when it has ended."""
        try:
            self._said += os.read(self._master, 65_536)
        except OSError:
            return ""
        return self._said.decode().replace("\r\n", "\n")

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def close(self) -> None:
        """The window is closed: the kernel sends SIGHUP."""
        os.close(self._master)
        self._master = -1

    def wait_gone(self) -> int:
        """Until it and all that it started have ended; its status."""
        status = self.process.wait(LONG_S)
        for pid in self.children:
            wait_until_sync(lambda pid=pid: process_state(pid) in (None, "Z"), LONG_S, "its children to end")
        return status

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._master >= 0:
            self.close()


@pytest.fixture
def terminal(data_dir: Path) -> Iterator[Terminal]:
    # A REDIS_URL and settings of the user's must not matter.
    made = Terminal(data_dir, REDIS_URL="redis://127.0.0.1:1/0", DASHCACHE_KEY_SECRET="", DASHCACHE_WORKERS="many")
    yield made
    made.end()


def test_the_printed_lines_run_as_they_stand_and_ctrl_c_leaves_nothing(terminal: Terminal) -> None:
    lines = re.findall(r"^  (curl .+)$", terminal.wait_ready(), re.MULTILINE)
    assert len(lines) == 2
    miss, hit = (subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True) for line in lines)
    assert (miss.stderr, hit.stderr) == ("", "")
    for answer, expected in ((miss, "dashcache; fwd=miss; fwd-status=200; stored"), (hit, "dashcache; hit; ttl=")):
        assert answer.stdout.startswith("HTTP/1.1 200 OK")
        assert f"Cache-Status: {expected}" in answer.stdout
        assert re.search(r"^answered in [\d.]+ s$", answer.stdout, re.MULTILINE)
    # What is said of the line about the content type is true.
    form = re.sub(r"-H 'Content-Type[^']*' ", "", lines[0])
    assert form != lines[0]
    asked = subprocess.run(["sh", "-c", form], capture_output=True, text=True, check=True)
    assert "hit" not in asked.stdout
    terminal.type(b"\x03")
    assert terminal.wait_gone() == 0
    assert list(terminal.temporary.iterdir()) == []


@pytest.mark.parametrize("how", ["terminal closed", signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_ends_what_it_has_started(terminal: Terminal, how: Any) -> None:
    terminal.wait_ready()
    assert len(terminal.children) >= 3  # simulator, supervisor, worker, usually a Redis
    if how == "terminal closed":
        terminal.close()
    else:
        terminal.process.send_signal(how)
    assert terminal.wait_gone() == (-how if how == signal.SIGKILL else 0)
    if how != signal.SIGKILL:
        assert list(terminal.temporary.iterdir()) == []


def test_a_port_in_use_is_told_and_ends_it(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        terminal = Terminal(data_dir, DASHCACHE_HTTP_LISTEN=address)
        said = text = terminal.read_some()
        while text:
            said, text = text, terminal.read_some()
        assert terminal.wait_gone() != 0
        terminal.end()
    assert address in said


def test_without_a_checkout_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(try_out, "_ROOT", tmp_path)
    done = CliRunner().invoke(main, ["try"])
    assert done.exit_code == 1
    assert "make try" in done.output
    assert "checkout" in CliRunner().invoke(main, ["try", "--help"]).output


def test_the_readme_has_the_lines_as_they_are_printed() -> None:
    line = try_out._CURL.format(http="127.0.0.1:8080")
    assert (ROOT / "README.md").read_text().count(f"$ {line}\n") == 2
