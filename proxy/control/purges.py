"""The purges of a running proxy: what each worker asks per request, and the supervisor's book of them."""

import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from proxy.control.order_store import Book, Confirmation, Reached
from proxy.control.stored import BadOrders, Document, Form, check_name, check_time, read
from proxy.core.plan import Scope
from proxy.core.purges import EVERY, MAX_MARKS, NO_MARKS, TOKEN_BYTES, Extent, Mark, Marks
from proxy.telemetry.log_output import logger

MAX_MODEL = 128
MAX_STORED_BYTES = 2**20
_TOKEN = re.compile(rf"[0-9a-f]{{{2 * TOKEN_BYTES}}}")
_COLLECTION = re.compile(r"\*|[a-zA-Z0-9_-]{3,32}")


class _Stored(Document, kw_only=True):
    marks: tuple[Mark, ...]


class LivePurges:
    """The marks that a worker makes its keys with."""

    def __init__(self, marks: Marks = NO_MARKS) -> None:
        self._marks = marks
        self.version = 0

    def replace(self, marks: Marks) -> None:
        """From now on *marks* hold."""
        self._marks = marks
        self.version += 1

    def tokens_for(self, upstream: str, operation: str, model: str, scopes: Sequence[Scope]) -> tuple[bytes, ...]:
        """See ``core.ports.PurgeSource``."""
        return self._marks.tokens_for(upstream, operation, model, scopes)


class PurgeBook(Book[Marks]):
    """One per supervisor; *push* reaches its workers."""

    def __init__(
        self,
        folder: Path,
        push: Callable[[Marks], Awaitable[Reached]],
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(PURGES, folder, push, unix_s)

    async def purge(self, extent: Extent) -> tuple[Mark, Confirmation]:
        """Purge *extent* (names that were checked) with a new mark."""
        mark = Mark(
            secrets.token_hex(TOKEN_BYTES), self._now_after(known.set_unix_s for known in self.held.marks), *extent
        )
        logger().info("purged", **named(extent), token=mark.token)
        return mark, await self._apply(self._with(Marks((mark,))))

    def _with(self, others: Marks) -> Marks:
        return self.held.merged(others.marks)


def named(extent: Extent) -> dict[str, object]:
    """*extent* as operators write it: ``all``, or what is named."""
    names = zip(("upstream", "operation", "model", "collection"), extent, strict=True)
    return {kind: name for kind, name in names if name != EVERY} or {"all": True}


def is_model(name: str) -> bool:
    """Whether a purge can name such a model; the vendor's names are not known here."""
    return 0 < len(name) <= MAX_MODEL and name.isprintable()


def encode(marks: Marks) -> bytes:
    """*marks* as JSON."""
    return msgspec.json.encode(_Stored(format=1, marks=marks.marks))


def decode(stored: bytes) -> Marks:
    """
    The marks in *stored*, strictly checked.

    Raises:
        BadOrders: another format, unknown fields, or values that no purge could have set.
    """
    marks = read(stored, _Stored, MAX_STORED_BYTES).marks
    if len(marks) > MAX_MARKS:
        raise BadOrders("too many")
    for mark in marks:
        _check(mark)
    return NO_MARKS.merged(marks)


def _check(mark: Mark) -> None:
    check_name(mark.upstream)
    check_name(mark.operation)
    check_time(mark.set_unix_s)
    if not is_model(mark.model) or not _COLLECTION.fullmatch(mark.collection):
        raise BadOrders("a name that cannot be")
    if not _TOKEN.fullmatch(mark.token):
        raise BadOrders("a token that cannot be")


PURGES = Form("purges", NO_MARKS, MAX_STORED_BYTES, encode, decode)
