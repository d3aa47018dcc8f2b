"""
Ready-made answers for `raw_upstream`: whole, in pieces, late, wrong, cut short or never.

Each function returns a script's callable. Nothing is added to what is said here: no Date, no Server, no Content-Type.
Steps in between are bytes to write, or anything with an async ``wait`` (asyncio.Event, Gate) that holds the answer.
"""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Protocol

from tests.support import wire
from tests.support.raw_upstream import Answer
from tests.support.recorded import RecordedRequest


class Waitable(Protocol):
    """asyncio.Event, Gate, ..."""

    async def wait(self) -> Any:
        """Return when the answer may go on."""


Step = bytes | Waitable
Fields = Sequence[tuple[bytes, bytes]]


def status_line(status: int, reason: bytes | None = None) -> bytes:
    """The first line of an answer, with the usual reason unless another is given."""
    if reason is None:
        reason = HTTPStatus(status).phrase.encode() if status in HTTPStatus._value2member_map_ else b"Other"
    return b"HTTP/1.1 %d %b" % (status, reason)


def raw(*steps: Step) -> Answer:
    """Write exactly these bytes, holding at each barrier; the connection stays open."""

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        await _play(steps, writer)

    return answer


def respond(body: bytes = b"", status: int = 200, headers: Fields = (), *, reason: bytes | None = None) -> Answer:
    """A whole answer with a Content-Length; to a HEAD request it goes without the body."""
    head = wire.head_bytes(status_line(status, reason), [*headers, (b"Content-Length", b"%d" % len(body))])

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(head if request.method == b"HEAD" else head + body)

    return answer


def respond_json(body: bytes, status: int = 200, headers: Fields = ()) -> Answer:
    """The same with the content type that the vendors use."""
    return respond(body, status, [(b"Content-Type", b"application/json"), *headers])


def echo(status: int = 200) -> Answer:
    """Answer with the exact bytes of the request, to see what difference a difference makes."""

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        await respond(request.raw, status)(request, writer)

    return answer


def chunked(*steps: Step, status: int = 200, headers: Fields = (), trailers: Fields = ()) -> Answer:
    """Each piece of bytes is one chunk; the head goes out first, even when the first step is a barrier."""
    head = wire.head_bytes(status_line(status), [*headers, (b"Transfer-Encoding", b"chunked")])
    last = wire.head_bytes(b"0", list(trailers))
    return raw(head, *(wire.chunk(step) if isinstance(step, bytes) else step for step in steps), last)


def until_close(*steps: Step, status: int = 200, headers: Fields = ()) -> Answer:
    """A body without a length, which ends with the connection."""
    return closing(raw(wire.head_bytes(status_line(status), list(headers)), *steps))


def truncated(body: bytes, sent: int, *, status: int = 200, headers: Fields = (), by_reset: bool = False) -> Answer:
    """Promise all of *body* and send only its first *sent* bytes, then end politely or with a reset."""
    head = wire.head_bytes(status_line(status), [*headers, (b"Content-Length", b"%d" % len(body))])
    part = raw(head + body[:sent])
    return resetting(part) if by_reset else closing(part)


def truncated_chunks(*steps: Step, status: int = 200, headers: Fields = (), by_reset: bool = False) -> Answer:
    """Chunks without the last one, then the end."""
    head = wire.head_bytes(status_line(status), [*headers, (b"Transfer-Encoding", b"chunked")])
    part = raw(head, *(wire.chunk(step) if isinstance(step, bytes) else step for step in steps))
    return resetting(part) if by_reset else closing(part)


def reset() -> Answer:
    """A RST instead of an answer."""
    return resetting(raw())


def close() -> Answer:
    """An orderly end instead of an answer."""
    return closing(raw())


def hang() -> Answer:
    """No answer, for as long as anybody waits: until the other side leaves or the test ends."""

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        await request.connection.peer_closed.wait()
        writer.close()

    return answer


def closing(answer: Answer) -> Answer:
    """*answer*, after which the connection is closed whatever the request had asked for."""

    async def then_close(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        await answer(request, writer)
        writer.close()

    return then_close


def resetting(answer: Answer) -> Answer:
    """*answer*, then a RST; what was written is on its way before."""

    async def then_reset(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        await answer(request, writer)
        await wire.flush(writer)
        wire.reset(writer)

    return then_reset


def after(step: Waitable | float, answer: Answer) -> Answer:
    """*answer*, once the barrier is open, or after so many seconds: a double's latency is 0.05 unless said."""

    async def later(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        if isinstance(step, int | float):
            await asyncio.sleep(step)
        else:
            await step.wait()
        await answer(request, writer)

    return later


def in_turn(*answers: Answer) -> Answer:
    """The first request gets the first answer, and so on; the last one serves all the rest."""
    turns = iter(answers)
    current = answers[-1]

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        await next(turns, current)(request, writer)

    return answer


async def _play(steps: Sequence[Step], writer: asyncio.StreamWriter) -> None:
    for step in steps:
        if isinstance(step, bytes):
            writer.write(step)
            await writer.drain()
        else:
            await step.wait()
