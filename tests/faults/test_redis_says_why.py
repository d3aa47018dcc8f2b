"""Trouble with Redis is told in the log, the ready line and by ``check --connect``: never a password."""

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from proxy.cache.redis import scripts
from proxy.tools.redis_check import rights
from tests.scenario.telling import NATIVE, bearer, native, post, telling
from tests.support.proxy_process import PASSED_ON, ROOT, ProxyProcess
from tests.support.raw_upstream import RawUpstream
from tests.support.redis_server import RedisServer

PASSWORD = "the-password-of-redis"
WRONG = "canary-of-a-password"
NO_REDIS = "refused: what listens there does not answer as Redis does"
KINDS = {
    "wrong password": ("refused: WRONGPASS", "redis://default:{wrong}@127.0.0.1:{port}/0"),
    "no password": ("refused: NOAUTH", "redis://127.0.0.1:{port}/0"),
    "user without rights": ("refused: NOPERM", "redis://weak:{wrong}@127.0.0.1:{port}/0"),
    "database": ("refused: ERR", "redis://:{password}@127.0.0.1:{port}/99"),
    "tls to none": ("unreachable: ", "rediss://:{password}@127.0.0.1:{port}/0"),
    "http": (NO_REDIS, "redis://:{wrong}@127.0.0.1:{http}/0"),
    "nobody": ("unreachable: connection refused", "redis://:{wrong}@127.0.0.1:{nobody}/0"),
}


@contextlib.contextmanager
def no_redis() -> Iterator[int]:
    """The port of a server that answers whatever is sent with a line of HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.fixture(scope="module")
def places() -> Iterator[dict[str, str | int]]:
    with RedisServer(password=PASSWORD) as server, no_redis() as http, socket.socket() as silent:
        server.command("ACL", "SETUSER", "weak", "on", f">{WRONG}", "~*", "+ping", "+select")
        silent.bind(("127.0.0.1", 0))  # bound and not listening: connecting is refused
        nobody = silent.getsockname()[1]
        yield {"port": server.port, "http": http, "nobody": nobody, "password": PASSWORD, "wrong": WRONG}


def check_connect(env: dict[str, str]) -> tuple[int, str]:
    """Status and output."""
    command = (sys.executable, "-m", "proxy", "check", "--connect")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
async def test_why_redis_cannot_be_used_is_said_wherever_one_looks(places: dict[str, str | int], kind: str) -> None:
    words, form = KINDS[kind]
    async with (
        RawUpstream(telling()) as upstream,
        ProxyProcess(dashscope_url=upstream.url, redis_url=form.format(**places)) as proxy,
    ):
        told = proxy.wait_log("redis_not_usable")
        assert told["error"].startswith(words)
        assert told["level"] == ("error" if words.startswith("refused") else "warning")
        assert proxy.wait_log("ready")["redis"].startswith(words)
        status, output = await asyncio.to_thread(check_connect, proxy.env)
        assert (status, output.splitlines()[-1].startswith(f"redis: {words}")) == (1, True), output
        assert (await post(proxy.http_port, NATIVE, bearer("sk-a"), native("one"))).status == 200
        shown = output + proxy.output.decode()
    assert PASSWORD not in shown
    assert WRONG not in shown


async def test_check_tells_a_usable_redis_from_one_of_another_deployment(redis_server: RedisServer) -> None:
    async with (
        RawUpstream(telling()) as upstream,
        ProxyProcess(dashscope_url=upstream.url, redis_url=redis_server.url) as proxy,
    ):
        status, output = await asyncio.to_thread(check_connect, proxy.env)
        assert (status, output.splitlines()[-1]) == (0, "redis: usable")
        other = {**proxy.env, "DASHCACHE_KEY_SECRET": "of another deployment"}
        status, output = await asyncio.to_thread(check_connect, other)
        assert (status, output.splitlines()[-1].startswith("redis: refused: another deployment")) == (1, True)


COMMANDS = ("eval", "exists", "get", "getrange", "mget", "pttl", "scan", "set", "time", "unlink")


@pytest.mark.parametrize("missing", COMMANDS)
def test_check_names_each_right_that_is_missing(places: dict[str, str | int], data_dir: Path, missing: str) -> None:
    with closing(redis.Redis(port=int(places["port"]), password=PASSWORD)) as server:
        server.execute_command("ACL", "SETUSER", "nearly", "reset", "on", f">{WRONG}", "~*", "+@all", f"-{missing}")
    env = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"DASHCACHE_DATA_DIR": str(data_dir)}
    status, output = check_connect({**env, "REDIS_URL": f"redis://nearly:{WRONG}@127.0.0.1:{places['port']}/0"})
    said = output.splitlines()[-1]
    assert (status, said.startswith("redis: refused: NOPERM")) == (1, True), output
    assert missing in said.lower()
    assert WRONG not in output


def test_check_tries_every_command_that_scripts_run() -> None:
    called = set(re.findall(r"redis\.p?call\('([A-Z]+)'", Path(scripts.__file__).read_text()))
    assert called == {*rights(b"key"), "INFO"}  # which may be missing


def test_check_wants_no_more_than_the_documentation_grants(places: dict[str, str | int], data_dir: Path) -> None:
    page = (ROOT / "docs" / "redis.md").read_text()
    granted = re.findall(r"[+]([a-z]+)", next(line for line in page.splitlines() if "+eval" in line))
    assert {*COMMANDS} <= {*granted}
    with closing(redis.Redis(port=int(places["port"]), password=PASSWORD)) as server:
        server.execute_command(
            *("ACL", "SETUSER", "granted", "reset", "on", f">{WRONG}", "~*"), *(f"+{name}" for name in granted)
        )
    env = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"DASHCACHE_DATA_DIR": str(data_dir)}
    status, output = check_connect({**env, "REDIS_URL": f"redis://granted:{WRONG}@127.0.0.1:{places['port']}/0"})
    assert (status, output.splitlines()[-1]) == (0, "redis: usable")
