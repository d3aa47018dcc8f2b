"""An upstream's answer on its way to the client: as it came, or with a beginning that was read already."""

from collections.abc import AsyncIterator

from proxy.core.answer import Answer, Stream
from proxy.core.coding import decoded
from proxy.core.held_bytes import FREE_BYTES, Hold
from proxy.core.ports import UpstreamReply


def relayed(reply: UpstreamReply, body: bytes | Stream) -> Answer:
    """The upstream's answer as it is; *body* is its body, read already or not."""
    length = reply.length if not isinstance(body, bytes) else len(body)
    return Answer(reply.status, reply.reason, reply.headers, body, length, grpc_status=reply.grpc_status)


async def start_of(reply: UpstreamReply, limit: int, hold: Hold) -> tuple[bytes, Stream | None]:
    """
    The body up to about *limit* bytes, and, if that is not all, a stream of the whole.

    What is read counts in *hold*; where that has no room it is not all.
    """
    pieces: list[bytes] = []
    left, step, is_whole = limit, FREE_BYTES, False
    while left >= 0 and not is_whole:
        piece, is_whole = await reply.read(min(step, left))
        pieces.append(piece)
        left -= len(piece)
        step *= 2
        if not hold.add(len(piece)):
            break
    text = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    return text, None if is_whole and left >= 0 else _Resumed(text, reply)


class _Resumed:
    """A body of which some was read already; implements ``core.answer.Stream``."""

    def __init__(self, start: bytes, reply: UpstreamReply) -> None:
        self._start = start
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """What was read, then what still comes."""
        start, _ = self.at_hand()
        if start:
            yield start
        async for piece in self._reply:
            yield piece

    def at_hand(self) -> tuple[bytes, bool]:
        """What was read."""
        start, self._start = self._start, b""
        return start, False

    def close(self) -> None:
        """Let go of the upstream."""
        self._reply.close()


def content_of(reply: UpstreamReply, text: bytes, limit: int) -> bytes:
    """The whole body *text* of *reply* without its content coding. Raises NotStorable."""
    codings = tuple(value for name, value in reply.headers if name.lower() == b"content-encoding")
    return decoded(text, codings, limit)
