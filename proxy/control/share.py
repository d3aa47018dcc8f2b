"""
Orders between replicas: a Redis key per book, which each replica reads twice a second and writes when it knows better.

The values are sealed with the deployment's secret. Two replicas that write at once overwrite each other, and the one
whose order is missing sees so half a second later and writes again; merging takes the later order in each scope, so all
end with the same orders in whatever order things happen. While Redis is down everything stays as it is, here.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from proxy.control.order_store import Book
from proxy.control.redis_link import LinkDown, RedisLink
from proxy.control.stored import BadOrders, Value, seal, unseal
from proxy.core.key import Secret, item_key
from proxy.telemetry.log_output import logger

POLL_S = 0.5
_FIRST_TRIES = 2


class Share:
    """Keeps *books* and their keys in step while ``run`` runs."""

    def __init__(self, link: RedisLink, secret: Secret, books: Sequence[Book[Any]], poll_s: float = POLL_S) -> None:
        self._link = link
        self._secret = secret
        self._books = books
        self._poll_s = poll_s
        self._is_up = True
        self._refused: set[bytes] = set()

    def key(self, book: Book[Any]) -> bytes:
        """Where the orders of *book* are shared."""
        # Deployments with different secrets cannot read each other's orders; with one key they would fight over it.
        name = book.form.name.encode()
        return self._link.prefix + b":" + name + b":" + item_key(self._secret, name, b"").hex()[:16].encode()

    async def first(self) -> None:
        """Learn what the others have ordered, if Redis can be reached within about a second."""
        for _ in range(_FIRST_TRIES):
            if all([await self.synchronise(book) for book in self._books]):
                return

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            self._report([await self._exchange(book) for book in self._books])
            await asyncio.sleep(self._poll_s)

    async def synchronise(self, book: Book[Value]) -> bool:
        """One exchange: read, merge, write if Redis knows less. Whether Redis now holds what we hold."""
        return not await self._exchange(book)

    async def _exchange(self, book: Book[Value]) -> str:
        """See ``synchronise``; what went wrong, or nothing."""
        key = self.key(book)
        try:
            theirs = self._opened(book, key, await self._link.read(key, book.form.max_bytes))
            await book.merge(theirs)
            if book.held not in (book.form.empty, theirs):
                await self._link.write(key, seal(self._secret, key, book.form.encode(book.held)))
        except LinkDown as error:
            return error.kind
        return ""

    def _opened(self, book: Book[Value], key: bytes, stored: bytes) -> Value:
        if not stored:
            return book.form.empty
        try:
            theirs = book.form.decode(unseal(self._secret, key, stored))
        except BadOrders as error:
            if key not in self._refused:
                self._refused.add(key)
                logger().warning(f"shared_{book.form.name}_refused", error=str(error))
            return book.form.empty
        self._refused.discard(key)
        return theirs

    def _report(self, troubles: Sequence[str]) -> None:
        """One line per change, none per poll."""
        trouble = next(filter(None, troubles), "")
        if (not trouble) == self._is_up:
            return
        self._is_up = not trouble
        if trouble:
            logger().warning("orders_not_shared", error=trouble)
        else:
            logger().info("orders_shared_again")
