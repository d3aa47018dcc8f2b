"""The embedded Redis: a real redis-server, started, killed, restarted, stopped."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from proxy.runtime.tasks import Tasks
from proxy.supervisor import redis_child
from proxy.supervisor.redis_child import DATA_FILE, RedisChild, find_program
from tests.support.child import process_state
from tests.support.waiting import wait_until

CONFIG = Path(__file__).parents[3] / "config" / "redis.conf"


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    made = Tasks(lambda error: pytest.fail(f"in the background: {error!r}"))
    yield made
    await made.wait_done(0)


def child(folder: Path, tasks: Tasks) -> RedisChild:
    program = find_program()
    assert program is not None
    return RedisChild(program, CONFIG, folder, tasks)


def pid(server: RedisChild) -> int:
    assert server._process is not None
    return server._process.pid


async def test_it_serves_on_a_socket_and_keeps_its_data(data_dir: Path, tasks: Tasks) -> None:
    for value in (None, b"kept"):
        server = child(data_dir, tasks)
        assert await server.start()
        async with Redis.from_url(server.url) as client:
            assert await client.get("key") == value
            await client.set("key", "kept")
        number = pid(server)
        await server.stop()
        assert process_state(number) is None
        assert not [name for name in os.listdir(data_dir) if name.endswith(".sock")]  # noqa: PTH208
    assert (data_dir / DATA_FILE).stat().st_mode & 0o077 == 0


async def test_it_is_restarted_on_the_same_socket(data_dir: Path, tasks: Tasks) -> None:
    server = child(data_dir, tasks)
    assert await server.start()
    killed = pid(server)
    os.kill(killed, signal.SIGKILL)
    await wait_until(lambda: server._process is not None and server._process.pid != killed)
    await wait_until(server.answers)
    await server.stop()


async def test_a_hung_server_ends_too(data_dir: Path, tasks: Tasks) -> None:
    server = child(data_dir, tasks)
    assert await server.start()
    number = pid(server)
    os.kill(number, signal.SIGSTOP)
    await server.stop()
    assert process_state(number) is None


async def test_a_server_that_cannot_save_ends_too(data_dir: Path, tasks: Tasks) -> None:
    server = child(data_dir, tasks)
    assert await server.start()
    (data_dir / DATA_FILE / "in the way").mkdir(parents=True)
    await server.stop()


async def test_leftovers_of_a_killed_run_do_not_matter(data_dir: Path, tasks: Tasks) -> None:
    left = child(data_dir, tasks)
    assert await left.start()
    (data_dir / "redis-0badcafe.sock").touch()
    server = child(data_dir, tasks)
    assert await server.start()
    await left.stop()  # and so removes its socket by name
    assert await server.answers()
    await server.stop()


async def test_data_that_cannot_be_read_are_set_aside(data_dir: Path, tasks: Tasks) -> None:
    (data_dir / DATA_FILE).write_bytes(b"not a dump at all")
    server = child(data_dir, tasks)
    assert await server.start()
    assert (data_dir / "cache.rdb.damaged").exists()
    await server.stop()


async def test_a_long_path_gets_a_socket_elsewhere(data_dir: Path, tasks: Tasks) -> None:
    folder = data_dir / ("long" * 25)
    folder.mkdir()
    server = child(folder, tasks)
    assert await server.start()
    assert server._private is not None
    assert server._private.stat().st_mode & 0o777 == 0o700
    await server.stop()
    assert not server._private.exists()


async def test_a_path_with_odd_characters_works(data_dir: Path, tasks: Tasks) -> None:
    folder = data_dir / "a b%20?#\u00fc"
    folder.mkdir()
    server = child(folder, tasks)
    assert await server.start()
    async with Redis.from_url(server.url) as client:
        assert await client.ping()
    await server.stop()


async def test_a_program_that_cannot_run_is_no_failure(
    data_dir: Path, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_child, "_START_S", 0.05)
    server = RedisChild(data_dir / "missing", CONFIG, data_dir, tasks)
    assert not await server.start()
    await server.stop()


def test_without_a_program_on_the_path_the_one_beside_the_interpreter_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    beside = tmp_path / "redis-server"
    beside.write_text("#!/bin/sh\n")
    beside.chmod(0o755)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert find_program() == beside


def test_without_any_program_none_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert find_program() is None
