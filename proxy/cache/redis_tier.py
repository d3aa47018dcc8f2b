"""
The shared tier: sealed entries in Redis, one round trip per request; the only importer of redis.

Whatever goes wrong here is a miss. Errors that speak of Redis' health (unreachable, slow, loading, busy, garbage) count
against the breaker; errors about one command (read-only replica, out of memory) do not, so that a Redis that can read
but not write goes on serving hits.
"""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MaxConnectionsError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from proxy.cache import scripts
from proxy.cache.deadline import Deadline
from proxy.cache.guard import Guard, Neutral, Unavailable
from proxy.cache.pipe import Garbage, Pipe
from proxy.cache.reads import Reads

Result = TypeVar("Result")

Tokens = tuple[bytes, ...]

# How many deadlines anybody waits for one of our own connections: a burst must not look like a slow Redis, nor a Redis
# that is slow, but always just in time, hold a request for as long as the queue before it.
_PATIENCE = 4

# Tokens outlive every entry kept under them; an absent one costs hits only.
_TOKEN_MS = 30 * 86_400_000

ACCEPTED = b"1"
"""The standing of a credential that the vendor has not refused; any other is the mark of a refusal."""

FAILURES: tuple[type[Exception], ...] = (
    RedisConnectionError,
    RedisTimeoutError,
    InvalidResponse,
    Garbage,
    ClusterDownError,
    OSError,
    EOFError,
)
"""What counts against Redis; BusyLoadingError and AuthenticationError are connection errors too."""


def failure_kind(error: BaseException) -> str:
    """A name from a small set, for metrics and logs: a message could hold an address or a password."""
    kinds: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
        ((RedisTimeoutError, TimeoutError), "timeout"),
        ((BusyLoadingError,), "loading"),
        ((AuthenticationError,), "authentication"),
        ((InvalidResponse, Garbage), "garbage"),
        ((ClusterDownError,), "cluster-down"),
        ((RedisConnectionError, OSError, EOFError), "connection"),
        ((ResponseError,), "rejected"),
    )
    return next((kind for classes, kind in kinds if isinstance(error, classes)), "other")


def entries_prefix(prefix: bytes) -> bytes:
    """How the names of all entries begin, and no other names, where all of ours begin with *prefix*."""
    return prefix + b":e:"


class RedisTier:
    """Reads and writes sealed entries; every operation through *guard*."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        deadline_s: float,
        max_connections: int,
        guard: Guard,
        on_rejected: Callable[[str], None],
    ) -> None:
        # Without these, redis-py waits 5 s and tries ten times more: a hung server held one GET for 58 s. The guard's
        # deadline comes first; the socket's is for Python 3.11, where a cancellation during a send can be swallowed.
        backstop_s = max(1.0, 20 * deadline_s)
        self._pool: ConnectionPool = ConnectionPool.from_url(
            url,
            socket_timeout=backstop_s,
            socket_connect_timeout=backstop_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=max(1, max_connections - 1),  # one is for reads
            decode_responses=False,
            protocol=2,
            driver_info=None,  # or every new connection begins with two commands that nobody needs
        )
        self._redis: Redis = Redis(connection_pool=self._pool)
        self._prefix = entries_prefix(prefix.encode("ascii"))
        self._tokens, self._holds = prefix.encode("ascii") + b":g:", prefix.encode("ascii") + b":h:"
        self._claims = prefix.encode("ascii") + b":c:"
        self._standings = prefix.encode("ascii") + b":s:"
        self._fill = self._redis.register_script(scripts.FILL)
        self._claim = self._redis.register_script(scripts.CLAIM)
        self._renew = self._redis.register_script(scripts.RENEW)
        self._release = self._redis.register_script(scripts.RELEASE)
        self._accept = self._redis.register_script(scripts.ACCEPT)
        self._guard = guard
        self._deadline_s = deadline_s
        self._wait_s = _PATIENCE * deadline_s
        self._reads = Reads(guard, self._connect)
        self._on_rejected = on_rejected
        # Shares of the connections, so that a burst of stores, which nobody waits for, never stands before a read, nor
        # before the word that answers have become stale.
        self._void_places = asyncio.Semaphore(max(1, max_connections // 8))
        self._write_places = asyncio.Semaphore(max(1, max_connections // 2 - max_connections // 8))
        self._read_places = asyncio.Semaphore(max(1, max_connections - max_connections // 2))

    async def read(self, keys: Sequence[bytes], owner: bytes) -> tuple[list[bytes | None], bytes | None] | None:
        """The sealed values under *keys*, in order, and *owner*'s standing; ``None`` when Redis could not be asked."""
        reply = await self._reads.values([*map(self._name, keys), self._standing(owner)])
        return None if reply is None else (reply[:-1], reply[-1])

    async def write(self, values: Sequence[tuple[bytes, bytes, int]]) -> int:
        """Write (key, sealed value, lifetime in ms) triples in one round trip; how many Redis took."""

        async def send() -> int:
            pipeline = self._redis.pipeline(transaction=False)
            for key, sealed, ttl_ms in values:
                pipeline.set(self._name(key), sealed, px=ttl_ms)
            replies = await self._asked(pipeline.execute(raise_on_error=False)) or []
            for reply in replies:
                if isinstance(reply, FAILURES):
                    raise reply
                if isinstance(reply, Exception):
                    self._refused(reply)
            return sum(reply is True for reply in replies)

        try:
            async with self._write_places:
                return await self._guard.run(send, vouches=False)
        except Unavailable:
            return 0

    async def read_guarded(
        self, keys: Sequence[bytes], scopes: Sequence[bytes], owner: bytes
    ) -> tuple[list[bytes | None], list[bytes | None], bool, bytes | None] | None:
        """
        Values, tokens, whether any scope is held, and *owner*'s standing, in one round trip.

        ``None`` when Redis could not be asked.
        """
        names = [*map(self._name, keys), *map(self._token, scopes), *map(self._hold, scopes), self._standing(owner)]
        reply = await self._reads.values(names)
        if reply is None:
            return None
        *found, standing = reply
        at_tokens, at_holds = len(keys), len(keys) + len(scopes)
        is_held = any(hold is not None for hold in found[at_holds:])
        return found[:at_tokens], found[at_tokens:at_holds], is_held, standing

    async def make_tokens(self, scopes: Sequence[bytes], tokens: Sequence[bytes]) -> tuple[Tokens, bool] | None:
        """
        The tokens of *scopes*, those that were absent set to the given ones, and whether any scope is held.

        ``None`` when Redis was no help.
        """

        async def send() -> list[object] | None:
            pipeline = self._redis.pipeline(transaction=False)
            for scope, token in zip(scopes, tokens, strict=True):
                pipeline.set(self._token(scope), token, px=_TOKEN_MS, nx=True)
            pipeline.mget([*map(self._token, scopes), *map(self._hold, scopes)])
            return await self._asked(pipeline.execute())

        try:
            async with self._place(self._read_places):
                replies = await self._guard.run(send, vouches=False)
        except Unavailable:
            return None
        found = replies[-1] if replies else None
        if not isinstance(found, list) or len(found) != 2 * len(scopes):
            return None
        current = tuple(token for token in found[: len(scopes)] if isinstance(token, bytes))
        is_held = any(hold is not None for hold in found[len(scopes) :])
        return (current, is_held) if len(current) == len(scopes) else None

    async def fill_guarded(
        self, key: bytes, sealed: bytes, ttl_ms: int, scopes: Sequence[bytes], tokens: Tokens
    ) -> bool:
        """Keep *sealed* if the tokens are still *tokens* and nothing holds; whether it was kept."""

        async def send() -> object:
            names = [self._name(key), *map(self._token, scopes), *map(self._hold, scopes)]
            return await self._asked(self._fill(keys=names, args=[sealed, ttl_ms, len(scopes), *tokens]))

        try:
            async with self._write_places:
                return await self._guard.run(send, vouches=False) == 1
        except Unavailable:
            return False

    async def void(self, tokens: Mapping[bytes, bytes], hold_ms: int) -> tuple[bytes | None, ...] | None:
        """New tokens and a hold for each scope, all or none: the tokens replaced; ``None``: Redis did not take them."""

        async def send() -> list[object] | None:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.mget([self._token(scope) for scope in tokens])
            for scope, token in tokens.items():
                pipeline.set(self._token(scope), token, px=_TOKEN_MS)
                pipeline.set(self._hold(scope), b"1", px=hold_ms)
            return await self._asked(pipeline.execute())

        try:
            async with self._place(self._void_places):
                replies = await self._guard.run(send, vouches=False)
        except Unavailable:
            return None
        replaced, *taken = replies or [None]
        if not isinstance(replaced, list) or not all(reply is True for reply in taken):
            return None
        return tuple(token if isinstance(token, bytes) else None for token in replaced)

    async def claim(
        self, keys: Sequence[bytes], entries: Sequence[bytes | None], owner: bytes, lease_ms: int
    ) -> list[int] | None:
        """
        For each of *keys*: the value of a ``claims.Claim``; ``None``: Redis was no help.

        *entries* are the entries' keys, ``None`` where it does not matter whether there is one.
        """

        async def send() -> object:
            names = [*map(self._claim_name, keys), *(self._name(entry or b"") for entry in entries)]
            looks = [0 if entry is None else 1 for entry in entries]
            return await self._asked(self._claim(keys=names, args=[owner, lease_ms, len(keys), *looks]))

        try:
            async with self._place(self._read_places):
                answers = await self._guard.run(send, vouches=False)
        except Unavailable:
            return None
        return answers if isinstance(answers, list) and len(answers) == len(keys) else None

    async def renew(self, keys: Sequence[bytes], owner: bytes, lease_ms: int) -> None:
        """Let those of *keys* that *owner* holds be held for another *lease_ms*."""
        await self._of_claims(self._renew, keys, owner, lease_ms)

    async def release(self, keys: Sequence[bytes], owner: bytes, nobody_ms: int = 0) -> None:
        """Give up those of *keys* that *owner* holds; for *nobody_ms* everybody who claims them is told to go on."""
        await self._of_claims(self._release, keys, owner, nobody_ms)

    async def _of_claims(self, script: AsyncScript, keys: Sequence[bytes], owner: bytes, span_ms: int) -> None:
        async def send() -> object:
            return await self._asked(script(keys=list(map(self._claim_name, keys)), args=[owner, span_ms]))

        with contextlib.suppress(Unavailable):
            async with self._write_places:
                await self._guard.run(send, vouches=False)

    async def refuse(self, owner: bytes, mark: bytes, life_ms: int, *, is_known: bool) -> None:
        """Set *mark* against *owner*; unless it *is known* here, only if it has a standing."""

        async def send() -> object:
            return await self._asked(self._redis.set(self._standing(owner), mark, px=life_ms, xx=not is_known))

        with contextlib.suppress(Unavailable):
            async with self._place(self._read_places):
                await self._guard.run(send, vouches=False)

    async def accept(self, owner: bytes, mark: bytes | None, life_ms: int) -> bool:
        """*owner* has a standing for so long, without *mark*, but with any other that there is; whether Redis knows."""

        async def send() -> object:
            return await self._asked(self._accept(keys=[self._standing(owner)], args=[ACCEPTED, life_ms, mark or b""]))

        try:
            async with self._write_places:
                return await self._guard.run(send, vouches=False) == 1
        except Unavailable:
            return False

    async def close(self) -> None:
        """Close all connections."""
        await self._reads.close()
        await self._pool.disconnect()

    async def _asked(self, command: Awaitable[Result]) -> Result | None:
        """The reply to *command*; ``None`` when Redis is well but refuses this command."""
        try:
            return await command
        except MaxConnectionsError as error:  # a ConnectionError by class, but it speaks of our own pool
            raise Neutral from error
        except FAILURES:
            raise
        except ResponseError as error:
            self._refused(error)
            return None
        # Not only RedisError: redis-py stumbles over half an error (ValueError), and uvloop has a RuntimeError for
        # writing to a connection that has just broken.
        except Exception as error:
            raise RedisConnectionError("unexpected") from error

    def _refused(self, error: Exception) -> None:
        """Count a refused command; raises when Redis cannot serve anybody just now."""
        if str(error).startswith(("BUSY ", "MASTERDOWN", "LOADING")):
            raise RedisConnectionError("busy") from error
        self._on_rejected(failure_kind(error))

    # --- how it is asked ----------------------------------------------------------------------------------------------

    async def _connect(self) -> Pipe | None:
        """redis-py connects, as it knows every kind of URL, and hands over what it made."""
        connection: Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await self._asked(connection.connect())  # type: ignore[no-untyped-call]
            reader, writer = connection._reader, connection._writer  # noqa: SLF001  there is no other way to them
            if reader is None or writer is None:
                return None
            is_usable = not await connection.can_read() and not writer.is_closing()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if not is_usable:  # it has no room for another client, for example
            await connection.disconnect(nowait=True)
            raise RedisConnectionError("closed, or more came than was asked for")
        connection._reader = connection._writer = None  # noqa: SLF001  ours from here on
        return Pipe(
            writer,
            deadline_s=self._deadline_s,
            parse_error=connection._parser.parse_error,  # noqa: SLF001
            judge=self._failure,
            ended=self._guard.end,
        )

    def _failure(self, error: Exception) -> Exception | None:
        """Which failure of Redis the *error* in a reply is; ``None`` when Redis is well but refuses this command."""
        if isinstance(error, FAILURES):
            return error
        try:
            self._refused(error)
        except RedisConnectionError as busy:
            return busy
        return None

    # --- places and names ---------------------------------------------------------------------------------------------

    def _claim_name(self, key: bytes) -> bytes:
        return self._claims + base64.urlsafe_b64encode(key).rstrip(b"=")

    @contextlib.asynccontextmanager
    async def _place(self, places: asyncio.Semaphore) -> AsyncIterator[None]:
        """One of *places*. Raises Unavailable when there is none for a while."""
        try:
            async with Deadline(self._wait_s) if places.locked() else contextlib.nullcontext():
                await places.acquire()
        except TimeoutError as error:
            raise Unavailable("no place") from error
        try:
            yield
        finally:
            places.release()

    def _token(self, scope: bytes) -> bytes:
        return self._tokens + base64.urlsafe_b64encode(scope).rstrip(b"=")

    def _hold(self, scope: bytes) -> bytes:
        return self._holds + base64.urlsafe_b64encode(scope).rstrip(b"=")

    def _standing(self, owner: bytes) -> bytes:
        return self._standings + base64.urlsafe_b64encode(owner).rstrip(b"=")

    def _name(self, key: bytes) -> bytes:
        return self._prefix + base64.urlsafe_b64encode(key).rstrip(b"=")
