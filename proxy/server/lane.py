"""
The fast lane: requests answered from memory before, known again by their bytes before anybody parses them.

aiohttp's parser is most of a hit's cost, and the same bytes, met in the same state of the parser, cannot mean anything
else the second time: every line that tells who is asking, and for what, is among them. So a connection asks the lane
only where a message begins and nothing else is under way (``Boundary``), and only for bytes that the parser once took
for exactly one request, which was then answered from memory. What changes with time (modes, purges, lifetimes, refused
credentials) is looked at each time, by ``core.answer.Again``; whatever it does not like goes to the parser.

Clients often send head and body in two writes. A head that is known waits a moment for its body.
"""

from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.web_protocol import _ErrInfo
from cachetools import LRUCache

from proxy.core.answer import Again

HOLD_S = 0.005
"""How long a known head is held back for its body; on a network that is not much longer than a head takes itself."""

_MAX_BYTES = 8 << 20
_MAX_REQUEST_BYTES = 16 * 1024
_MAX_HEADS_BYTES = 1 << 20
_BESIDE_BYTES = 4_096
"""What an answer's plan takes, about, beside a few times the request."""
_BESIDE_HEAD_BYTES = 200

_END = b"\r\n\r\n"


class Lane:
    """One per port, as the port is part of what a request means; bounded in bytes."""

    def __init__(self) -> None:
        self._known: LRUCache[bytes, tuple[Again, int]] = LRUCache(_MAX_BYTES, lambda known: known[1])
        self._heads: LRUCache[bytes, int] = LRUCache(_MAX_HEADS_BYTES, lambda size: size)

    def find(self, request: bytes) -> Again | None:
        """What answers exactly these bytes."""
        try:
            return self._known[request][0] if len(request) <= _MAX_REQUEST_BYTES else None
        except KeyError:
            return None

    def is_head(self, data: bytes) -> bool:
        """Whether *data* is the head of requests that are known, and their bodies are still to come."""
        return data in self._heads

    def learn(self, request: bytes, again: Again) -> None:
        """From now on *again* answers these bytes, one whole request."""
        if len(request) > _MAX_REQUEST_BYTES:
            return
        self._known[request] = (again, _BESIDE_BYTES + 8 * len(request))
        head = request[: request.index(_END) + len(_END)]
        if len(head) < len(request):
            self._heads[head] = _BESIDE_HEAD_BYTES + len(head)


class Boundary:
    """
    Where the messages of one connection begin, as the parser has found them and their Content-Length says.

    ``left`` is how many bytes of the last one are still to come: zero, the next byte begins a message; ``None``, nobody
    knows, and never will.
    """

    __slots__ = ("left", "message", "request")

    def __init__(self) -> None:
        self.left: int | None = 0
        self.request = b""
        """The last message, as far as it has come."""
        self.message: RawRequestMessage | _ErrInfo | None = None
        """What the parser made of its head."""

    def pass_by(self, data: bytes, messages: "list[RawRequestMessage | _ErrInfo]") -> None:
        """*data* went to the parser, which found these *messages* begin in it."""
        if self.left is None:
            return
        if self.left == 0 and len(messages) == 1:
            self.message, self.request = messages[0], data
            self.left = _left(data, messages[0])
        elif self.left and not messages and len(self.request) <= _MAX_REQUEST_BYTES:
            self.left, self.request = self.left - len(data), self.request + data
        elif self.left and not messages:
            self.left -= len(data)
        else:
            self.left = None
        if self.left is None or self.left < 0:
            self.left, self.message, self.request = None, None, b""

    def whole(self, message: RawRequestMessage) -> bytes:
        """The bytes of *message*, if it was the last one and all of it has come; else nothing."""
        return self.request if message is self.message and self.left == 0 else b""


def _left(data: bytes, message: "RawRequestMessage | _ErrInfo") -> int | None:
    """How many bytes of the only message in *data* are still to come; ``None`` where that is not beyond doubt."""
    end = data.find(_END)
    if end < 0 or isinstance(message, _ErrInfo) or message.version != HttpVersion11:
        return None
    if message.chunked or message.upgrade or message.should_close:
        return None
    # Line ends that the parser may forgive: then the head may have ended before.
    if data.count(b"\n", 0, end) != data.count(b"\r\n", 0, end):
        return None
    lengths = [value for name, value in message.raw_headers if name.lower() == b"content-length"]
    if len(lengths) != 1 or not lengths[0].isdigit() or message.headers.get("Expect") is not None:
        return None
    return end + len(_END) + int(lengths[0]) - len(data)
