"""The real Redis of the rig: each way to hurt it does what it says, and nothing is left behind."""

import os
import socket
import subprocess
import time

import pytest
import redis

from proxy.supervisor import redis_child
from tests.support.child import process_state
from tests.support.redis_server import RedisServer, RedisServerError, find_redis_program, find_redis_programs


def connect(server: RedisServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=1)


def test_the_program_is_found():
    assert os.access(find_redis_program(), os.X_OK)
    assert find_redis_program() in find_redis_programs()


def test_a_program_that_is_a_link_is_run_by_its_own_name(tmp_path, monkeypatch):
    """As Debian's redis-server is: what it links to is another program when it is run by that name."""
    several = tmp_path / "redis-check-rdb"
    several.write_text('#!/bin/sh\ntest "${0##*/}" = redis-server && echo "Redis server v=7.0.15"\n')
    several.chmod(0o755)
    (tmp_path / "redis-server").symlink_to(several)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    programs = find_redis_programs()
    assert str(tmp_path / "redis-server") in programs
    for program in {*programs, find_redis_program(), str(redis_child.find_program())}:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        assert "v=" in told


def test_it_answers_at_its_url_and_persists_nothing(redis_server):
    client = redis.Redis.from_url(redis_server.url)
    assert client.set("a", b"\x00\xff")
    assert redis_server.command("GET", "a") == b"\x00\xff"
    assert not redis_server.client.config_get("save")["save"]
    assert redis_server.client.config_get("appendonly")["appendonly"] == "no"
    client.close()


def test_two_servers_are_two(redis_server):
    with RedisServer() as other:
        other.command("SET", "a", "1")
        assert other.port != redis_server.port
        assert redis_server.keys() == []


def test_a_hung_server_still_accepts_but_does_not_answer_until_it_goes_on(redis_server):
    with connect(redis_server) as line:
        redis_server.hang()
        assert process_state(redis_server.pid) == "T"
        with connect(redis_server) as late:
            late.settimeout(0.1)
            late.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                late.recv(10)
        line.sendall(b"PING\r\n")
        redis_server.resume()
        assert line.recv(10) == b"+PONG\r\n"


def test_a_killed_server_breaks_connections_and_refuses_new_ones(redis_server):
    with connect(redis_server) as line:
        line.sendall(b"PING\r\n")
        assert line.recv(10) == b"+PONG\r\n"
        redis_server.kill()
        assert line.recv(10) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(redis_server)
    assert not redis_server.is_running
    with pytest.raises(RedisServerError, match="not running"):
        _ = redis_server.pid


@pytest.mark.parametrize("hurt", [RedisServer.kill, RedisServer.hang, RedisServer.stop, lambda server: None])
def test_a_restart_is_empty_and_on_the_same_port_whatever_came_before(redis_server, hurt):
    port, pid = redis_server.port, redis_server.pid
    redis_server.command("SET", "a", "1")
    hurt(redis_server)
    redis_server.restart()
    assert (redis_server.port, redis_server.keys()) == (port, [])
    assert redis_server.pid != pid
    assert process_state(pid) is None


def test_a_restart_may_keep_the_data(redis_server):
    redis_server.command("SET", "a", "1")
    redis_server.restart(empty=False)
    assert redis_server.dump() == {b"a": b"1"}
    redis_server.command("SET", "b", "2")
    redis_server.kill()
    redis_server.restart(empty=False)
    assert redis_server.keys() == [b"a"]
    redis_server.restart()
    assert redis_server.keys() == []


def test_config_lines_and_changes_take_effect():
    with RedisServer(["maxmemory 3mb", "maxmemory-policy noeviction"]) as server:
        server.config_set("maxmemory", 1)
        with pytest.raises(redis.OutOfMemoryError):
            server.command("SET", "a", "1")
        server.config_set("maxmemory", 0)
        before = server.memory_used()
        server.command("SET", "a", b"x" * 2_000_000)
        assert server.memory_used() > before + 2_000_000


def test_a_password_is_in_the_url_and_needed():
    with RedisServer(password="pw-1") as server:
        assert server.url == f"redis://:pw-1@127.0.0.1:{server.port}/0"
        with connect(server) as line:
            line.sendall(b"PING\r\n")
            assert line.recv(100).startswith(b"-NOAUTH")


def test_a_unix_socket_alone_or_beside_the_port():
    with RedisServer(tcp=False, unix_socket=True) as server:
        assert server.url == server.unix_url
        assert server.port == 0
        server.command("SET", "a", "1")
        assert server.keys() == [b"a"]
    with RedisServer(unix_socket=True, password="pw") as server:
        with redis.Redis.from_url(server.unix_url) as client:
            client.set("b", "1")
        assert server.keys() == [b"b"]
        assert not server.url.startswith("unix")


def test_the_dump_has_all_bytes_of_every_type_in_every_database(redis_server):
    long_text = b"canary" * 1000  # long enough for Redis to compress it in a DUMP
    redis_server.command("SET", b"str\xff", long_text)
    redis_server.command("RPUSH", "list", "one", "two")
    redis_server.command("SADD", "set", "member")
    redis_server.command("ZADD", "zset", 1.5, "scored")
    redis_server.command("HSET", "hash", "field", "value")
    redis_server.command("XADD", "stream", "*", "name", "entry")
    with redis.Redis.from_url(redis_server.url.replace("/0", "/3")) as other:
        other.set("elsewhere", "third")
    dump = redis_server.dump()
    assert dump[b"str\xff"] == long_text
    assert dump[b"list"] == b"one\ntwo"
    assert dump[b"set"] == b"member"
    assert dump[b"elsewhere"] == b"third"
    assert b"scored" in dump[b"zset"]
    assert dump[b"hash"] == b"field\nvalue"
    assert b"entry" in dump[b"stream"]
    assert len(redis_server.keys()) == 7


def test_an_unusable_config_is_told_with_the_servers_own_words():
    started = time.monotonic()
    with pytest.raises(RedisServerError, match="ended at once"), RedisServer(["no-such-setting yes"]):
        pass
    assert time.monotonic() - started < 5


def test_nothing_is_left_behind_even_of_a_hung_server():
    with RedisServer(unix_socket=True) as server:
        pid, folder = server.pid, server.socket_path.parent
        server.hang()
    assert process_state(pid) is None
    assert not folder.exists()
    server.close()
