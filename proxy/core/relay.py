"""An upstream's answer on its way to the client: as it came, or with a beginning that was read already."""

from collections.abc import AsyncIterator

from proxy.core.answer import Answer, Stream
from proxy.core.coding import decoded
from proxy.core.held_bytes import Hold
from proxy.core.ports import UpstreamReply


def relayed(reply: UpstreamReply, body: bytes | Stream) -> Answer:
    """The upstream's answer as it is; *body* is its body, read already or not."""
    length = reply.length if not isinstance(body, bytes) else len(body)
    return Answer(reply.status, reply.reason, reply.headers, body, length, grpc_status=reply.grpc_status)


async def start_of(reply: UpstreamReply, limit: int, hold: Hold) -> tuple[bytes, Stream | None]:
    """The body up to about *limit* bytes or as far as *hold* has room; if that is not all, a stream of all."""
    text, is_whole = await reply.read(limit, hold.add)
    return text, None if is_whole else _Resumed(text, reply)


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
