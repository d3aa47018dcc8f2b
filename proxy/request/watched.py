"""The call that an answer belongs to ends with its body, not with its head: an answer may break off."""

from collections.abc import AsyncIterator, Callable

from proxy.core.errors import UpstreamError
from proxy.core.grpc_status import GrpcStatus
from proxy.core.ports import UpstreamReply
from proxy.core.trouble import Trouble


class Watched:
    """
    An upstream's *reply*, which tells once how its call ended; implements ``core.ports.UpstreamReply``.

    *ended* gets the HTTP *status* when the body was read to its end, or nobody reads on; the trouble if it broke off. A
    head that tells of trouble itself is told of at once, and so is an answer whose body is at hand.
    """

    def __init__(self, reply: UpstreamReply, status: int, ended: Callable[[int | Trouble], None]) -> None:
        self._reply = reply
        self._ended: Callable[[int | Trouble], None] | None = ended
        self._status = status
        self.status = reply.status
        self.reason = reply.reason
        self.headers = reply.headers
        self.length = reply.length
        self.grpc_status: GrpcStatus | None = reply.grpc_status
        if status >= 400 or self.grpc_status is not None:
            self._tell(status)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """See ``core.answer.Stream``."""
        try:
            async for piece in self._reply:
                yield piece
        except UpstreamError as error:
            self._broke_off(error)
            raise
        self._tell(self._status)

    def at_hand(self) -> tuple[bytes, bool]:
        """See ``core.answer.Stream``."""
        start, is_all = self._reply.at_hand()
        if is_all:
            self._tell(self._status)
        return start, is_all

    async def read(self, limit: int, has_room: Callable[[int], bool]) -> tuple[bytes, bool]:
        """See ``core.ports.UpstreamReply``."""
        try:
            text, is_whole = await self._reply.read(limit, has_room)
        except UpstreamError as error:
            self._broke_off(error)
            raise
        except BaseException:
            self._tell(self._status)
            raise
        if is_whole:
            self._tell(self._status)
        return text, is_whole

    def close(self) -> None:
        """See ``core.answer.Stream``."""
        self._tell(self._status)
        self._reply.close()

    def _broke_off(self, error: UpstreamError) -> None:
        self._tell(Trouble.TIMEOUT if error.trouble is Trouble.TIMEOUT else Trouble.BROKEN_OFF)

    def _tell(self, end: int | Trouble) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(end)
