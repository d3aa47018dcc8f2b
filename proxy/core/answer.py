"""The answer to a client: a head, and a body that is either at hand or still arriving."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol

from proxy.core.found import Found
from proxy.core.grpc_status import GrpcStatus
from proxy.core.outcome import Outcome
from proxy.core.request import HeaderLines


class Stream(Protocol):
    """A body that arrives in pieces."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The pieces as they arrive. Raises UpstreamError when the body ends before it is complete."""

    def at_hand(self) -> tuple[bytes, bool]:
        """What has come of it by now, without waiting, and whether that is all; the pieces are then those to follow."""

    def close(self) -> None:
        """Let go of whoever sends it. Safe to call at any time, and more than once."""


class Body(Protocol):
    """A client's request body: read whole up to a limit, or passed on as it arrives."""

    @property
    def length(self) -> int | None:
        """Declared length in bytes; ``None`` for a chunked body."""

    @property
    def is_empty(self) -> bool:
        """Whether the request has no body at all (a body of zero bytes counts as one)."""

    async def read(self, limit: int) -> bytes | None:
        """The whole body, or ``None`` when it is longer than *limit*; nothing of it is lost for ``pieces``."""

    def at_hand(self, limit: int) -> bytes | None:
        """
        The whole body if all of it has come, declared its length, and is not longer than *limit*.

        Nothing of it is lost for ``read`` and ``pieces``.
        """

    async def begun(self, limit: int) -> bool:
        """
        Wait until all of the body has come, if it is said to be no longer than *limit*, else until its first piece has.

        Nothing of it is lost for ``read`` and ``pieces``. Whether all of it is here.
        """

    def pieces(self) -> AsyncIterator[bytes]:
        """All of the body, what ``read`` has already taken included."""

    async def before_end(self) -> None:
        """
        To be awaited before the last of it goes out, by whoever does not send what ``pieces`` gives.

        Raises what forbids to send it.
        """


def nothing() -> None:
    """What there is to do after an answer that leaves nothing to do."""


class Again(Protocol):
    """What has answered a request once, and may answer equal ones; hashable, the same for all that mean the same."""

    def __call__(self, outcome: Outcome) -> "Answer | None":
        """
        Another answer, its body at hand, and how it came about; ``None``: the request has to go the whole way.

        Does not wait, and answers anew each time: an id and an age of its own, by the modes and purges of the moment.
        """

    def lacks_entries(self) -> bool:
        """Whether it gave no answer for want of entries, and Redis could have them."""

    async def look_up(self, outcome: Outcome) -> "Answer | Found | None":
        """
        The same with what Redis holds; or, where that is no answer, all that was found.

        ``None``: something was switched or purged meanwhile, and it has to be looked up anew.
        """

    def same_until_unix_s(self) -> float:
        """
        Until when its answers differ in nothing but their ids, unless something is switched, purged or refused.

        What has passed if that cannot be said.
        """


@dataclass(slots=True)
class Answer:
    """
    What the client is told. ``headers`` holds end-to-end lines without framing; the server frames.

    ``length`` is the declared length of a streamed body, if the upstream declared one. ``after`` is called once, when
    the last byte was handed to the transport: work that no client should wait for.
    """

    status: int
    reason: str
    headers: HeaderLines
    body: bytes | Stream
    length: int | None = None
    after: Callable[[], None] = field(default=nothing)
    grpc_status: GrpcStatus | None = None
    again: Again | None = None
    """What answers the very same request next time; ``None``: it has to go the whole way."""

    def close(self) -> None:
        """Let go of a body that nobody will read."""
        if not isinstance(self.body, bytes):
            self.body.close()
