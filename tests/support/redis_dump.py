"""Everything that a Redis holds, as plain bytes. Used by `redis_server` for the searches that look for secrets."""

from collections.abc import Callable, Iterable
from typing import Any

import redis

# By type, not by DUMP: DUMP compresses, and then a search for a secret would find nothing.
_READERS: dict[bytes, tuple[str | int, ...]] = {
    b"string": ("GET",),
    b"list": ("LRANGE", 0, -1),
    b"set": ("SMEMBERS",),
    b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
    b"hash": ("HGETALL",),
    b"stream": ("XRANGE", "-", "+"),
}


def dump_server(client: redis.Redis) -> dict[bytes, bytes]:
    """
    Every key of every database with the bytes of its value; the members of a collection are joined by line feeds.

    A key that exists in several databases gets its values one after the other. Raises on a type it cannot read.
    """
    found: dict[bytes, bytes] = {}
    databases = client.info("keyspace")
    for name in databases:
        number = int(name.removeprefix("db"))
        other = _connection(client, number)
        try:
            for key, value in _dump_database(other.execute_command):
                found[key] = found.get(key, b"") + value
        finally:
            other.close()
    return found


def _connection(client: redis.Redis, number: int) -> redis.Redis:
    options = {**client.connection_pool.connection_kwargs, "db": number}
    return redis.Redis(connection_pool=redis.ConnectionPool(client.connection_pool.connection_class, **options))


def _dump_database(run: Callable[..., Any]) -> Iterable[tuple[bytes, bytes]]:
    cursor: Any = 0
    seen: set[bytes] = set()
    while True:
        cursor, keys = run("SCAN", cursor, "COUNT", 1000)
        for key in set(keys) - seen:  # SCAN may name a key twice
            seen.add(key)
            kind = run("TYPE", key)
            if kind != b"none":  # expired since
                name, *rest = _READERS[kind]
                yield key, _flat(run(name, key, *rest))
        if int(cursor) == 0:
            return


def _flat(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, list | tuple | set | frozenset):
        return b"\n".join(_flat(part) for part in value)
    return str(value).encode()
