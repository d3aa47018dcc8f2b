"""What a vendor's adapter says about a request: pass it, read its items from the cache, or forward it as a write."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from proxy.core.entry import Row
from proxy.core.request import HeaderLines, Request


class PassReason(enum.StrEnum):
    """Why a request goes straight through; the strings are log values, metric labels and Cache-Status details."""

    NOT_CACHED = "not-cached"
    """The path is not one that the cache knows."""
    NO_CREDENTIAL = "no-credential"
    """Nobody to whom an entry could belong."""
    ASYNC_TASK = "async-task"
    """X-DashScope-Async: the answer is a task, not a result."""
    EVENT_STREAM = "event-stream"
    """The client asks for server-sent events."""
    ENCRYPTED = "encrypted"
    """X-DashScope-EncryptionKey: a body that is new each time."""
    TEMPORARY_REFERENCE = "temporary-reference"
    """``oss://`` references live for 48 hours and then mean nothing."""
    CONTENT_CODING = "content-coding"
    """The request body is compressed; it is passed as it is."""
    CONTENT_TYPE = "content-type"
    """Not declared as JSON in UTF-8."""
    BODY_TOO_LARGE = "body-too-large"
    """Larger than the configured body limit for keyed requests."""
    AMBIGUOUS = "ambiguous"
    """Not JSON, or JSON that two parsers may read differently."""
    UNKNOWN_SHAPE = "unknown-shape"
    """JSON, but not the documented form: the vendor's own error is the best answer."""
    OVER_CAP = "over-cap"
    """More items than the vendor takes in one call; it says so itself."""
    BYPASS = "bypass"
    """An operator's switch."""
    NO_STORE = "no-store"
    """The client's Cache-Control: no-store."""
    SHADOW = "shadow"
    """An operator's switch: looked up and compared, but always forwarded."""
    IDENTITY_REFUSED = "identity-refused"
    """The client's Accept-Encoding forbids an unencoded answer."""


class Refusal(enum.StrEnum):
    """Why an answer was not stored."""

    STATUS = "status"
    VENDOR_ERROR = "vendor-error"
    CREDENTIAL = "credential"
    """An error of the vendor's again: it does not accept who asks."""
    TOO_LARGE = "too-large"
    CONTENT_CODING = "content-coding"
    CONTENT_TYPE = "content-type"
    NO_STORE = "no-store"
    VARY = "vary"
    SET_COOKIE = "set-cookie"
    SHAPE = "shape"
    """Not the documented form."""
    INCOMPLETE = "incomplete"
    """An index missing, twice, or outside the request."""
    WRONG_DIMENSION = "wrong-dimension"
    NOT_FINITE = "not-finite"
    """A vector with something else than finite numbers."""
    SETTLING = "settling"
    """Moments after a write: the vendor may not show it yet."""


class ErrorKind(enum.StrEnum):
    """What a vendor can find wrong with a request's content, and would find wrong again."""

    INVALID_PARAMETER = "invalid-parameter"
    EMPTY_INPUT = "empty-input"
    ILLEGAL_INPUT = "illegal-input"
    TOO_LARGE = "too-large"


class NotStorable(Exception):  # noqa: N818  a verdict, not a fault
    """The answer goes to the client as it is, and nothing of it is kept."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Pass:
    """Forward untouched, streaming both ways."""

    reason: PassReason
    operation: str = "other"
    read: "Read | None" = None
    """The plan of the request, where the answer to it is worth reading: it may teach its ``trial``."""


Scope = tuple[str, ...]
"""
What a write can make stale: ``("endpoint",)`` for everything under one endpoint, ``("catalog",)`` for its list of
collections, ``("collection", name)`` for one collection and all in it. ``flow`` adds the endpoint.
"""


class Verdict(enum.Enum):
    """How the vendor took a write, as far as its answer tells."""

    DONE = enum.auto()
    REFUSED = enum.auto()
    """The credential was not accepted: nothing has changed."""
    NO_ROUTE = enum.auto()
    """The vendor does not know what was asked for either: nothing has changed."""
    NOT_SENT = enum.auto()
    """The vendor never had all of it: nothing has changed."""
    FAILED = enum.auto()
    """The vendor has done what it will do of it, and that may be a part."""
    UNKNOWN = enum.auto()
    """Anything else; the write may have happened, in whole or in part, or may happen yet."""


class Write(Protocol):
    """A request to forward once; whatever hangs on its scopes becomes stale."""

    @property
    def operation(self) -> str:
        """The operation's name in metrics and logs."""

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """What it can make stale."""

    @property
    def credential(self) -> bytes:
        """Who is writing, as a part of a key."""

    @property
    def has_credential(self) -> bool:
        """Whether anybody in particular is."""

    def verdict(self, status: int, grpc_code: int | None, body: bytes) -> Verdict:
        """What an answer with this status, gRPC code (``None`` over HTTP) and (decoded) *body* says."""


class Read(Protocol):
    """
    A request whose items may be answered from the cache.

    ``identity`` is everything that can change the answer but the items themselves, as parts of a key; ``items`` is the
    key material of each item in the client's order. Duplicates are allowed: equal material is the same item.
    """

    @property
    def operation(self) -> str:
        """The operation's name in modes, metrics and logs: ``embedding``."""

    @property
    def model(self) -> str:
        """The vendor's model, as asked for; chooses the lifetime."""

    @property
    def identity(self) -> tuple[bytes, ...]:
        """Parts of the key that all items share."""

    @property
    def items(self) -> tuple[bytes, ...]:
        """Key material, one per item."""

    @property
    def credential(self) -> bytes:
        """Who is asking, as a part of a key."""

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """What the answer hangs on; empty for answers that never change."""

    @property
    def plain(self) -> "Read | None":
        """
        The same request without asking for more than the client did; ``None`` when this one does not.

        While there is one, the upstream's answer is not the client's: only what ``join`` makes of it is.
        """

    @property
    def batchable(self) -> "Batchable | None":
        """The same as what can be asked for with others' items or in several requests; ``None`` when it cannot."""

    @property
    def trial(self) -> "Trial | None":
        """The learner of how many items the vendor takes at once, if the request asks for more than are known."""

    def refusal(self, status: int, headers: HeaderLines) -> Refusal | None:
        """Why an answer with this head is not kept; ``None`` when its body decides."""

    def lasting_error(self, status: int, body: bytes) -> ErrorKind | None:
        """What kind of error the (decoded) *body* is, if it depends on the content alone; ``None`` for any other."""

    def narrowed(self, positions: Sequence[int]) -> bytes:
        """The body of a smaller request that asks only for the items at *positions*, in that order."""

    def answer_weight(self, body: bytes) -> int:
        """How many bytes of plain text would take about as long to split as the (decoded) answer *body*."""

    def split(self, body: bytes, positions: Sequence[int]) -> tuple[Row, ...]:
        """
        The rows in the vendor's answer *body* (decoded) to the items at *positions*, in that order.

        Raises:
            NotStorable: the answer is not complete and right.
        """

    def join(self, rows: Sequence[Row], request_id: str) -> bytes:
        """The answer body made of *rows*, one per item in the client's order, with our *request_id*."""


class Trial(Protocol):
    """Learns how many items a vendor takes at once; what it knows may change, and with it what a request means."""

    def taken(self, items: int) -> None:
        """The vendor has answered a request for so many, completely and rightly."""

    def refused(self, items: int) -> None:
        """The vendor has found fault with a request for so many."""


class Batchable(Read, Protocol):
    """A read whose items need not be asked for together, and may be asked for with those of others like it."""

    @property
    def cap(self) -> int:
        """How many items the vendor takes in one request."""

    def merged(self, parts: Sequence[tuple[Self, int]]) -> Self:
        """
        One read for several items, each a position in a read of the same ``identity``; ``self`` is one of those reads.

        Where the reads differ in what changes no answer, it says nothing: that would be one client's word for others.
        """


class Adapter(Protocol):
    """One vendor operation."""

    def wants(self, method: str, path: str) -> bool:
        """Whether the route is this adapter's; told before the body is read."""

    def operation_of(self, method: str, path: str) -> str:
        """The operation's name in modes, metrics and logs."""

    def write_of(self, method: str, path: str, headers: HeaderLines) -> Write | None:
        """The write that the request is, whatever its body says; ``None`` for reads."""

    def precheck(self, request: Request) -> PassReason | None:
        """A reason to pass that the headers alone give, so that the body can stream."""

    def weight(self, body: bytes) -> int:
        """How many bytes of plain text would take about as long to plan as *body*; see ``runtime.offload``."""

    def plan(self, request: Request) -> Read | Pass:
        """What to do with *request*, which is no write and whose body is there."""
