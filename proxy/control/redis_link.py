"""
The supervisor's own line to Redis: a few small commands under a hard deadline, for health, shared orders and sweeping.

Never on the way of a request. Single server, TLS, ACL and Unix sockets, whatever the URL says.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from proxy.cache.redis.tier import failure_kind
from proxy.control.redis_words import redis_words
from proxy.runtime.tasks import Tasks

Result = TypeVar("Result")

DEADLINE_S = 0.3
"""For one call; well below the second within which a switch must reach every replica."""

_PROBE_LIFE_MS = 10_000


class LinkDown(Exception):  # noqa: N818  a fork in the road, never an error for anybody
    """
    Redis was not reached in time or refused; *kind* is a class of error without any data.

    *words* say it to a person, in Redis' own words where it has some: never a password.
    """

    def __init__(self, kind: str, words: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.words = words or f"unreachable: {kind}"


class RedisLink:
    """A client for *url*."""

    def __init__(self, url: str, prefix: str, tasks: Tasks, deadline_s: float = DEADLINE_S) -> None:
        self.prefix = prefix.encode()
        self._tasks = tasks
        self._deadline_s = deadline_s
        self.is_barred = False
        """Another deployment uses this Redis: nothing is asked of it but whether that is still so."""
        self.is_new = True
        """A connection was made since the last answer, or none has been."""
        self._redis: Redis = Redis.from_url(
            url,
            socket_timeout=deadline_s,
            socket_connect_timeout=deadline_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=8,
            decode_responses=False,
            protocol=2,
            driver_info=None,  # or every new connection begins with two commands that nobody needs, nor may allow
        )

    async def evaluate(self, words: Sequence[bytes | str | int]) -> object:
        """The answer of a script, which EVAL is given as *words* with its keys and arguments."""
        reply = await self.command("EVAL", *words)
        self.is_new = False
        return reply

    async def command(self, *words: bytes | str | int) -> object:
        """Redis' answer to *words*; also asked of a Redis that is another deployment's."""

        async def command() -> object:
            execute: Callable[..., Awaitable[object]] = self._redis.execute_command  # redis-py leaves it untyped
            return await execute(*words)

        return await self._call(command, is_allowed=True)

    async def read(self, key: bytes, max_bytes: int) -> bytes:
        """The value of *key*; empty if there is none. A value longer than *max_bytes* comes cut, one byte longer."""

        async def command() -> bytes:
            # GETRANGE, as somebody may have put half a gigabyte there.
            value = await self._redis.getrange(key.decode(), 0, max_bytes)
            return value if isinstance(value, bytes) else value.encode()

        return await self._call(command)

    async def write(self, key: bytes, value: bytes) -> None:
        """Set *key*, without an end: it may be evicted, and is then written again."""

        async def command() -> None:
            await self._redis.set(key, value)

        await self._call(command)

    async def remove_some(self, beginning: bytes, cursor: int, count: int) -> tuple[int, int]:
        """
        One step, of about *count* keys, of a walk over all: those whose names have this *beginning* are removed.

        Returns where the next step starts (0: that was all), and how many were removed.
        """

        async def command() -> tuple[int, int]:
            after, found = await self._redis.scan(cursor, match=beginning.decode() + "*", count=count)
            names = [name for name in found if isinstance(name, bytes) and name.startswith(beginning)]
            return int(after), int(await self._redis.unlink(*names)) if names else 0

        return await self._call(command)

    async def round_trip_ms(self) -> float:
        """Milliseconds for setting a key that nobody else has, reading it back and comparing."""
        key = self.prefix + b":probe:" + secrets.token_hex(8).encode()
        value = secrets.token_bytes(16)

        async def command() -> None:
            await self._redis.set(key, value, px=_PROBE_LIFE_MS)
            if await self._redis.get(key) != value:
                raise LinkDown("garbage")

        started_s = time.monotonic()
        await self._call(command)
        return (time.monotonic() - started_s) * 1000

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def _call(self, command: Callable[[], Awaitable[Result]], *, is_allowed: bool = False) -> Result:
        if self.is_barred and not is_allowed:
            raise LinkDown("stranger")
        # A task of its own, left behind at the deadline: on Python 3.11 redis-py can swallow a cancellation.
        task: asyncio.Task[Any] = self._tasks.start(_quiet(command))
        done, _ = await asyncio.wait({task}, timeout=self._deadline_s)
        if not done:
            task.cancel()
            await self._renew()
            raise LinkDown("timeout", "unreachable: no answer in time")
        outcome = task.result()
        if isinstance(outcome, LinkDown):
            await self._renew()
            raise outcome
        result: Result = outcome
        return result

    async def _renew(self) -> None:
        """Connect anew next time: the name may lead to another server than the one that we are still connected to."""
        self.is_new = True
        await self._redis.connection_pool.disconnect(inuse_connections=False)


async def _quiet(command: Callable[[], Awaitable[Result]]) -> Result | LinkDown:
    """What *command* gives; trouble as a value, so that a task left behind is no failure in the background."""
    try:
        return await command()
    except LinkDown as error:
        return error
    except (RedisError, OSError, EOFError, TimeoutError) as error:
        return LinkDown(failure_kind(error), redis_words(error))
    except Exception:  # noqa: BLE001  redis-py stumbles over half an answer in more ways than it names
        return LinkDown("garbage")
