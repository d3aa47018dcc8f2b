"""
The fast lane: requests answered from memory before, known again by their bytes before anybody parses them.

aiohttp's parser is most of a hit's cost, and the same bytes, met in the same state of the parser, cannot mean anything
else the second time: every line that tells who is asking, and for what, is among them. So a connection asks the lane
only where a message begins and nothing else is under way (``Boundary``), and only for bytes that the parser once took
for exactly one request, which was then answered from memory. What changes with time (modes, purges, lifetimes, refused
credentials) is looked at each time, by ``core.answer.Again``; whatever it does not like goes to the parser.

Clients often send head and body in two writes. A head that is known waits a moment for its body.
"""

from aiohttp import hdrs
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.web_protocol import _ErrInfo
from cachetools import LRUCache

from proxy.core.answer import Again

HOLD_S = 0.005
"""How long a known head is held back for its body; on a network that is not much longer than a head takes itself."""

_MAX_BYTES = 16 << 20
_MAX_REQUEST_BYTES = 16 * 1024
_MAX_HEADS_BYTES = 1 << 20
_MAX_SEEN = 16_384
_MAX_HEAD_BYTES = 4 * 1024
_BESIDE_BYTES = 8_192
"""What a head and an answer's plan take, at most, beside a few times the body."""
_BESIDE_HEAD_BYTES = 200

_END = b"\r\n\r\n"


class Lane:
    """One per port, as the port is part of what a request means; bounded in bytes."""

    def __init__(self) -> None:
        self._known: LRUCache[bytes, tuple[Again, int]] = LRUCache(
            _MAX_BYTES, lambda known: _BESIDE_BYTES + 10 * known[1]
        )
        self._heads: LRUCache[bytes, int] = LRUCache(_MAX_HEADS_BYTES, lambda size: size)
        self._seen: set[int] = set()

    def find(self, request: bytes) -> tuple[Again, int] | None:
        """What answers exactly these bytes, and how many of them are body."""
        try:
            return self._known[request] if len(request) <= _MAX_REQUEST_BYTES else None
        except KeyError:
            return None

    def is_head(self, data: bytes) -> bool:
        """Whether *data* is the head of requests that are known, and their bodies are still to come."""
        return data in self._heads

    def learn(self, request: bytes, body_bytes: int, again: Again) -> None:
        """
        *again* has answered these bytes, one whole request that ends in so many bytes of body.

        If that was not the first time, it does so from now on.
        """
        if len(request) > _MAX_REQUEST_BYTES or len(request) - body_bytes > _MAX_HEAD_BYTES:
            return
        # Where each request has an id of its own, none comes twice, and to keep them all would cost more than it gives.
        number = hash(request)
        if number not in self._seen:
            if len(self._seen) >= _MAX_SEEN:
                self._seen.clear()
            self._seen.add(number)
            return
        self._known[request] = (again, body_bytes)
        if body_bytes:
            head = request[:-body_bytes]
            self._heads[head] = _BESIDE_HEAD_BYTES + len(head)


class Boundary:
    """
    Where the messages of one connection begin, as the parser has found them and their Content-Length says.

    ``left`` is how many bytes of the last one are still to come: zero, the next byte begins a message; ``None``, nobody
    knows, and never will.
    """

    __slots__ = ("_body_at", "_message", "_request", "left")

    def __init__(self) -> None:
        self.left: int | None = 0
        self._request = b""  # the last message, as far as it has come and is not too long; what its head was parsed to
        self._message: RawRequestMessage | _ErrInfo | None = None
        self._body_at = 0

    def pass_by(self, data: bytes, messages: "list[RawRequestMessage | _ErrInfo]") -> None:
        """*data* went to the parser, which found these *messages* begin in it."""
        if self.left is None:
            return
        if self.left == 0 and len(messages) == 1:
            self._begin(data, messages[0])
        elif self.left and not messages:
            self.left -= len(data)
            if self._request:
                self._request = _short(self._request + data)
        else:
            self.left = None
        if self.left is None or self.left < 0:
            self.left, self._message, self._request = None, None, b""

    def whole(self, message: "RawRequestMessage | _ErrInfo") -> tuple[bytes, bytes]:
        """The bytes of *message* and its body, if it was the last one and all of it has come; else nothing."""
        if message is not self._message or self.left != 0:
            return b"", b""
        return self._request, self._request[self._body_at :]

    def _begin(self, data: bytes, message: "RawRequestMessage | _ErrInfo") -> None:
        """*data* begins with *message*, and holds no other."""
        self._message, self._request = message, _short(data)
        end = data.find(_END)
        length = None if end < 0 or isinstance(message, _ErrInfo) else _length(data, end, message)
        self._body_at = end + len(_END)
        self.left = None if length is None else self._body_at + length - len(data)


def _short(request: bytes) -> bytes:
    """*request*, unless nobody would remember it."""
    return request if len(request) <= _MAX_REQUEST_BYTES else b""


def _length(data: bytes, end: int, message: RawRequestMessage) -> int | None:
    """How long *message*'s body is, whose head ends at *end* of *data*; ``None`` where that is not beyond doubt."""
    if message.version != HttpVersion11 or message.chunked or message.upgrade or message.should_close:
        return None
    # Line ends that the parser may forgive: then the head may have ended before.
    if data.count(b"\n", 0, end) != data.count(b"\r\n", 0, end):
        return None
    length = message.headers.get(hdrs.CONTENT_LENGTH, "0")  # RFC 9112 §6.3; the parser has refused a second one
    if not (length.isascii() and length.isdigit()) or hdrs.EXPECT in message.headers:
        return None
    return int(length)
