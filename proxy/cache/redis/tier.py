"""
The shared tier: sealed entries in Redis, one round trip per request; the only importer of redis.

Whatever goes wrong here is a miss. Errors that speak of Redis' health (unreachable, slow, loading, busy, garbage) count
against the breaker; errors about one command (read-only replica, out of memory) do not, so that a Redis that can read
but not write goes on serving hits.
"""

import asyncio
import base64
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MaxConnectionsError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from proxy.cache.invalidation.incarnation import Incarnation, Look, Names
from proxy.cache.redis import commands, scripts
from proxy.cache.redis.breaker import Guard, Neutral, Unavailable
from proxy.cache.redis.commands import Command, Garbage, Values
from proxy.cache.redis.deadline import Deadline
from proxy.cache.redis.line import Line
from proxy.cache.redis.pipe import Pipe

Result = TypeVar("Result")

Tokens = tuple[bytes, ...]

# How many deadlines anybody waits for one of our own connections: a burst must not look like a slow Redis, nor a Redis
# that is slow, but always just in time, hold a request for as long as the queue before it.
_PATIENCE = 4

_LINES = 2
"""Connections that are shared; the others are for one command at a time."""
_STORES = 16
_NAMES_KEPT = 1_024
"""Commands for reads that may come again, of about a kilobyte each."""

# Tokens outlive every entry kept under them; an absent one costs hits only.
_TOKEN_MS = 30 * 86_400_000

ACCEPTED = b"1"
"""How the standing of a credential begins that the vendor has accepted; the incarnation's token follows."""
MARK_BYTES = 16
"""Standings of this length are marks of a refusal, and no others are."""

_RENEW_EVERY_S = 3.0
"""How often connections are made anew while Redis says that it is read-only, as its name may lead elsewhere by now."""

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
    """
    Reads and writes sealed entries; every operation through *guard*.

    Entries and standings that writes or refusals can void count only under *incarnation*.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        deadline_s: float,
        max_connections: int,
        guard: Guard,
        on_rejected: Callable[[str], None],
        on_read_only: Callable[[bool], None] = lambda _: None,
        incarnation: Incarnation | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        # Without these, redis-py waits 5 s and tries ten times more: a hung server held one GET for 58 s. The guard's
        # deadline comes first; the socket's is for Python 3.11, where a cancellation during a send can be swallowed.
        backstop_s = max(1.0, 20 * deadline_s)
        self._pool: ConnectionPool = ConnectionPool.from_url(
            url,
            socket_timeout=backstop_s,
            socket_connect_timeout=backstop_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=max_connections - _LINES,
            decode_responses=False,
            protocol=2,
            driver_info=None,  # or every new connection begins with two commands that nobody needs
        )
        self._prefix = entries_prefix(prefix.encode("ascii"))
        self._tokens, self._holds = prefix.encode("ascii") + b":g:", prefix.encode("ascii") + b":h:"
        self._claims = prefix.encode("ascii") + b":c:"
        self._standings = prefix.encode("ascii") + b":s:"
        self._guard = guard
        self.incarnation = incarnation = incarnation or Incarnation(Names.under(prefix.encode("ascii")), hold_ms=1)
        self._deadline_s = deadline_s
        self._monotonic = monotonic
        self._renewed_s = -_RENEW_EVERY_S
        self._wait_s = _PATIENCE * deadline_s
        # Six names take a tenth of our part in a vector query's hit.
        self._guarded = functools.lru_cache(maxsize=_NAMES_KEPT)(self._guarded_names)
        # What is asked for is waited for, and must not stand behind a burst of stores, which nobody waits for.
        self._asking, self._telling = (Line(guard, self._connect, incarnation, self._heard) for _ in range(_LINES))
        self._on_rejected = on_rejected
        self._on_read_only = on_read_only
        self._is_read_only = False
        # A row of stores that is longer than Redis can take within a deadline would look like a slow Redis.
        self._write_places = asyncio.Semaphore(_STORES)
        self._void_places = asyncio.Semaphore(max_connections - _LINES)

    async def connect(self) -> None:
        """
        Make the connections that all requests share, and have Redis read the script that they wait for.

        To be called before there are requests: hundreds of them at once would wait for a connection that is made
        between their own turns. Trouble is counted as ever, and the first request tries again.
        """
        await self._asking.ask(commands.script(scripts.CLAIM, [], [b"", 1, 0], answers=0))
        await self._telling.ask(commands.script(scripts.RENEW, [], [b"", 1]))

    async def read(self, keys: Sequence[bytes], owner: bytes) -> tuple[Values, bytes | None] | None:
        """The sealed values under *keys*, in order, and *owner*'s standing; ``None`` when Redis could not be asked."""
        reply = await self._asking.ask(commands.values([*map(self._name, keys), self._standing(owner)]))
        return None if reply is None else (reply[:-1], reply[-1])

    async def write(self, values: Sequence[tuple[bytes, bytes, int]]) -> int:
        """Write (key, sealed value, lifetime in ms) triples; how many Redis took."""
        async with self._write_places:
            stores = [commands.put(self._name(key), sealed, ttl_ms) for key, sealed, ttl_ms in values]
            return sum(reply is True for reply in await self._telling.ask_all(stores))

    async def look(self) -> None:
        """Look whether Redis' data are still those that we know. Never raises."""
        await self._asking.look()

    async def read_guarded(
        self, keys: Sequence[bytes], scopes: Sequence[bytes], owner: bytes
    ) -> tuple[Values, Values, bool, bytes | None, bytes] | None:
        """
        Values, tokens, whether any scope is held, *owner*'s standing and the incarnation's token, in one round trip.

        ``None`` when Redis could not be asked, or has gone back and is not to be believed yet.
        """
        command = self._guarded(tuple(keys), tuple(scopes), owner)
        reply = await self._asking.ask(command)
        if reply is not None and not self.incarnation.stands(reply[-1]):
            await self._asking.look()
            reply = await self._asking.ask(command)
        if reply is None or not self.incarnation.stands(reply[-1]):
            return None
        at_tokens, at_holds = len(keys), len(keys) + len(scopes)
        is_held = reply[at_holds:-2].count(None) < len(scopes) or self.incarnation.holds
        return reply[:at_tokens], reply[at_tokens:at_holds], is_held, reply[-2], self.incarnation.token

    async def make_tokens(self, scopes: Sequence[bytes], tokens: Sequence[bytes]) -> tuple[Tokens, bool, bytes] | None:
        """
        The tokens of *scopes*, those that were absent set to the given ones, and whether any scope is held.

        The incarnation's token comes last. ``None`` when Redis was no help.
        """
        made = [
            commands.put(self._token(scope), token, _TOKEN_MS, b"NX")
            for scope, token in zip(scopes, tokens, strict=True)
        ]
        if None in await self._asking.ask_all(made):
            return None
        found = await self._asking.ask(self._guarded((), tuple(scopes), b""))
        if found is None or not self.incarnation.stands(found[-1]):
            return None
        current = tuple(token for token in found[: len(scopes)] if token is not None)
        is_held = found[len(scopes) : -2].count(None) < len(scopes) or self.incarnation.holds
        return (current, is_held, self.incarnation.token) if len(current) == len(scopes) else None

    async def fill_guarded(
        self, key: bytes, sealed: bytes, ttl_ms: int, scopes: Sequence[bytes], tokens: Tokens
    ) -> bool:
        """
        Keep *sealed* if the tokens are still *tokens* and nothing holds; whether it was kept.

        The last of *tokens* is the incarnation's.
        """
        record = self.incarnation.names.record
        names = [self._name(key), record, *map(self._token, scopes), *map(self._hold, scopes)]
        async with self._write_places:
            return await self._telling.ask(
                commands.script(scripts.FILL, names, [sealed, ttl_ms, len(scopes), *tokens])
            ) == [1]

    async def void(self, tokens: Mapping[bytes, bytes], hold_ms: int) -> tuple[bytes | None, ...] | None:
        """New tokens and a hold for each scope, all or none: the tokens replaced; ``None``: Redis did not take them."""
        names = [self.incarnation.names.record, *map(self._token, tokens), *map(self._hold, tokens)]
        arguments: list[bytes | int] = [len(tokens), _TOKEN_MS, hold_ms, *tokens.values()]
        try:
            async with self._place(self._void_places):
                reply = await self._asking.ask(commands.void(scripts.VOID, names, arguments, len(tokens)))
        except Unavailable:
            return None
        if reply is None:
            return None
        if not self.incarnation.stands(reply[-1]):
            await self._asking.look()
        return tuple(reply[:-1])

    async def claim(
        self, keys: Sequence[bytes], entries: Sequence[bytes | None], owner: bytes, lease_ms: int
    ) -> list[int] | None:
        """
        For each of *keys*: the value of a ``claims.Claim``; ``None``: Redis was no help.

        *entries* are the entries' keys, ``None`` where it does not matter whether there is one. Who cannot claim has
        the upstream asked twice, so a connection that breaks must not decide that: it is asked for once more, in what
        is left of the deadline, as nobody waits for a hung Redis twice. Not where Redis refuses the command.
        """
        names = [*map(self._claim_name, keys), *(self._name(entry or b"") for entry in entries)]
        looks = [0 if entry is None else 1 for entry in entries]
        command = commands.script(scripts.CLAIM, names, [owner, lease_ms, len(keys), *looks], answers=len(keys))
        command = command._replace(refused=[])
        began_s = time.monotonic()
        claimed = await self._asking.ask(command)
        left_s = self._deadline_s - (time.monotonic() - began_s)
        if claimed is None and left_s > 0:
            with contextlib.suppress(TimeoutError):
                async with Deadline(left_s):
                    claimed = await self._asking.ask(command)
        return claimed or None

    async def renew(self, keys: Sequence[bytes], owner: bytes, lease_ms: int) -> None:
        """Let those of *keys* that *owner* holds be held for another *lease_ms*."""
        await self._telling.ask(commands.script(scripts.RENEW, [*map(self._claim_name, keys)], [owner, lease_ms]))

    async def release(self, keys: Sequence[bytes], owner: bytes, nobody_ms: int = 0) -> None:
        """Give up those of *keys* that *owner* holds; for *nobody_ms* everybody who claims them is told to go on."""
        await self._telling.ask(commands.script(scripts.RELEASE, [*map(self._claim_name, keys)], [owner, nobody_ms]))

    async def refuse(self, owner: bytes, mark: bytes, life_ms: int, *, is_known: bool) -> None:
        """Set *mark* against *owner*; unless it *is known* here, only if it has a standing."""
        names = [self._standing(owner), self.incarnation.names.record]
        await self._asking.ask(commands.script(scripts.REFUSE, names, [mark, life_ms, int(is_known)]))

    @property
    def accepted(self) -> bytes | None:
        """The standing of an owner that was accepted under the present incarnation; ``None`` while that is unknown."""
        token = self.incarnation.token
        return ACCEPTED + token if token else None

    async def accept(self, owner: bytes, mark: bytes | None, life_ms: int) -> bool:
        """*owner* has a standing for so long, without *mark*, but with any other that there is; whether Redis knows."""
        name, accepted = self._standing(owner), self.accepted
        if accepted is None:
            return False
        arguments: list[bytes | int] = [accepted, life_ms, mark or b"", MARK_BYTES]
        return await self._telling.ask(commands.script(scripts.ACCEPT, [name], arguments)) == [1]

    async def close(self) -> None:
        """Close all connections."""
        await self._asking.close()
        await self._telling.close()
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
        if isinstance(error, ReadOnlyError) or str(error).startswith("READONLY"):
            self._read_only()
        self._on_rejected(failure_kind(error))

    def _heard(self, look: Look | None) -> None:
        """Take in the result of a look."""
        self.incarnation.heard(look)
        if look is not None and look.role == b"slave":
            self._read_only()
        elif look is not None and look.role == b"master" and self._is_read_only:
            self._is_read_only = False
            self._on_read_only(False)
        if self.incarnation.is_stranger:
            for line in (self._asking, self._telling):
                line.renew()

    def _read_only(self) -> None:
        """
        Redis takes no writes: connect anew, as its name may lead to another server than the one we are connected to.

        If it does not, hits go on, and the next try is a few seconds away.
        """
        if not self._is_read_only:
            self._is_read_only = True
            self._on_read_only(True)
        now_s = self._monotonic()
        if now_s - self._renewed_s >= _RENEW_EVERY_S:
            self._renewed_s = now_s
            for line in (self._asking, self._telling):
                line.renew()

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

    def _guarded_names(self, keys: Tokens, scopes: Tokens, owner: bytes) -> Command[Values]:
        """What ``read_guarded`` asks for."""
        names = [*map(self._name, keys), *map(self._token, scopes), *map(self._hold, scopes)]
        return commands.values([*names, self._standing(owner), self.incarnation.names.record])

    def _token(self, scope: bytes) -> bytes:
        return self._tokens + base64.urlsafe_b64encode(scope).rstrip(b"=")

    def _hold(self, scope: bytes) -> bytes:
        return self._holds + base64.urlsafe_b64encode(scope).rstrip(b"=")

    def _standing(self, owner: bytes) -> bytes:
        return self._standings + base64.urlsafe_b64encode(owner).rstrip(b"=")

    def _name(self, key: bytes) -> bytes:
        return self._prefix + base64.urlsafe_b64encode(key).rstrip(b"=")
