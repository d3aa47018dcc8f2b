"""
The faults of R3: each a way to break a healthy Redis and to mend it again, and what the breaker should say of it.

All but a name that no longer resolves happen while the product runs. Used by the matrix and by the tests of bypass.
"""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from tests.support.fault_proxy import Direction, FaultProxy
from tests.support.redis_server import RedisServer
from tests.support.toxics import BlackHole, Garbage, Latency, ResetPeer, Slicer, Toxic
from tests.support.waiting import wait_until

Breaking = Callable[[RedisServer, FaultProxy], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Case:
    """
    One fault.

    *kinds*: what it may be counted as, of which one must be. *opens*: what the breaker has to do; None: either will do.
    """

    name: str
    breaking: Breaking
    kinds: frozenset[str] = frozenset()
    opens: bool | None = True
    deadline_ms: int = 100


def _on_the_line(*toxics: Toxic, direction: Direction = Direction.TO_CLIENT) -> Breaking:
    @contextlib.asynccontextmanager
    async def breaking(_: RedisServer, line: FaultProxy) -> AsyncIterator[None]:
        for toxic in toxics:
            line.add(toxic, direction)
        yield
        line.remove(*toxics)

    return breaking


@contextlib.asynccontextmanager
async def _refused(_: RedisServer, line: FaultProxy) -> AsyncIterator[None]:
    await line.down()
    yield
    await line.up()


@contextlib.contextmanager
def _sent(redis: RedisServer, command: bytes) -> Iterator[None]:
    """A connection on which *command* was sent; nobody waits for its answer."""
    with socket.create_connection(("127.0.0.1", redis.port)) as line:
        line.sendall(command + b"\r\n")
        yield


def _refuses_with(redis: RedisServer, word: bytes) -> bool:
    with socket.create_connection(("127.0.0.1", redis.port)) as line:
        line.settimeout(1.0)
        line.sendall(b"DBSIZE\r\n")
        return line.recv(64).startswith(b"-" + word)


@contextlib.asynccontextmanager
async def _loading(redis: RedisServer, _: FaultProxy) -> AsyncIterator[None]:
    # Really loading: it reads 40 MB of its own data back in a good second, and answers every 2 MB.
    redis.config_set("rdbcompression", "no")
    redis.command("DEBUG", "POPULATE", 400, "ballast", 100_000)
    redis.config_set("key-load-delay", 3_000)
    with _sent(redis, b"DEBUG RELOAD"):
        await wait_until(lambda: _refuses_with(redis, b"LOADING"), what="Redis to load")
        yield
        await wait_until(lambda: not _refuses_with(redis, b"LOADING"), what="Redis to have loaded")


@contextlib.asynccontextmanager
async def _busy(redis: RedisServer, _: FaultProxy) -> AsyncIterator[None]:
    redis.config_set("lua-time-limit", 5)
    with _sent(redis, b'EVAL "while true do end" 0'):
        await wait_until(lambda: _refuses_with(redis, b"BUSY"), what="Redis to be busy")
        yield
        redis.command("SCRIPT", "KILL")
        await wait_until(lambda: not _refuses_with(redis, b"BUSY"), what="Redis to be free again")


@contextlib.asynccontextmanager
async def _password_set(redis: RedisServer, line: FaultProxy) -> AsyncIterator[None]:
    redis.config_set("requirepass", "a-new-one")  # the rig's own connection stays in, as open ones do
    line.drop_connections()
    yield
    redis.config_set("requirepass", "")


@contextlib.asynccontextmanager
async def _max_clients(redis: RedisServer, line: FaultProxy) -> AsyncIterator[None]:
    redis.config_set("maxclients", 1)  # the rig's own connection is the one
    line.drop_connections(by_reset=True)
    yield
    redis.config_set("maxclients", 1000)


@contextlib.asynccontextmanager
async def _refusing(redis: RedisServer, _: FaultProxy) -> AsyncIterator[None]:
    # By the server itself: reads are pipelined, and an error for each piece of the stream is not one for each command.
    commands = ("mget", "set", "eval")
    redis.command("ACL", "SETUSER", "default", *(f"-{name}" for name in commands))
    yield
    redis.command("ACL", "SETUSER", "default", *(f"+{name}" for name in commands))


@contextlib.asynccontextmanager
async def _flushed(redis: RedisServer, _: FaultProxy) -> AsyncIterator[None]:
    redis.command("FLUSHALL")
    yield
    redis.command("FLUSHALL")


@contextlib.asynccontextmanager
async def _wrong_types(redis: RedisServer, _: FaultProxy) -> AsyncIterator[None]:
    for key in redis.entries():
        redis.command("DEL", key)
        redis.command("LPUSH", key, "not", "a", "string")
    yield


@contextlib.asynccontextmanager
async def _foreign_values(redis: RedisServer, _: FaultProxy) -> AsyncIterator[None]:
    first, *others = redis.entries()
    genuine = redis.command("GET", first)
    # Cut short, altered at the end, another key's, empty, and somebody's text.
    spoilt = [genuine[:20], genuine[:-1] + b"\x00", genuine, b"", b"hello" * 100]
    for number, key in enumerate(others):
        redis.command("SET", key, spoilt[number % len(spoilt)])
    yield


@contextlib.asynccontextmanager
async def _restarting(redis: RedisServer, _: FaultProxy) -> AsyncIterator[None]:
    redis.restart(empty=True)
    yield
    redis.restart(empty=True)


def _garbage(name: str, data: bytes, *kinds: str) -> Case:
    return Case(name, _on_the_line(Garbage(data)), frozenset(kinds))


CASES = (
    Case("refused", _refused, frozenset({"connection"})),
    Case("black-hole", _on_the_line(BlackHole(), direction=Direction.BOTH), frozenset({"timeout"})),
    Case("reset-in-a-reply", _on_the_line(ResetPeer(after_bytes=20)), frozenset({"connection"})),
    Case("200-ms-late", _on_the_line(Latency(0.2)), frozenset({"timeout"})),
    Case("one-byte-slices", _on_the_line(Slicer(1)), opens=False, deadline_ms=1000),
    Case("loading", _loading, frozenset({"loading"})),
    Case("busy", _busy, frozenset({"connection"})),
    Case("password-set", _password_set, frozenset({"authentication", "connection"})),
    Case("max-clients", _max_clients, frozenset({"connection"})),
    _garbage("cluster-down", b"-CLUSTERDOWN Hash slot not served\r\n", "cluster-down"),
    _garbage("master-down", b"-MASTERDOWN Link with MASTER is down\r\n", "cluster-down", "connection"),
    _garbage("not-redis", b"HTTP/1.1 400 Bad Request\r\n\r\n", "garbage", "connection"),
    _garbage("wrong-shape", b"+OK\r\n", "garbage", "connection"),
    _garbage("half-an-error", b"-MOVED\r\n", "garbage", "connection"),
    Case("commands-refused", _refusing, frozenset({"rejected"}), opens=False, deadline_ms=1000),
    Case("flushall", _flushed, opens=False, deadline_ms=1000),
    Case("wrong-types", _wrong_types, opens=False, deadline_ms=1000),
    Case("foreign-values", _foreign_values, opens=False, deadline_ms=1000),
    Case("restarting", _restarting, frozenset({"connection"}), opens=None, deadline_ms=1000),
)
