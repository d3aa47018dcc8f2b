"""
WebSocket frames as they pass, one way: checked by their heads, and never gathered (RFC 6455 §5).

Sound frames go on byte for byte, masks and compression included: those are the two ends' own affair. A message of
any size takes no memory here. Only heads and control frames, of 139 bytes at most, wait until they are complete.
"""

import struct
from typing import NamedTuple

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_KINDS = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_LAST, _RESERVED, _KIND, _MASKED, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F
_LONGEST_CONTROL = 125

GOING_AWAY, PROTOCOL_ERROR = 1001, 1002
# RFC 6455 §7.4: of those below 3000, 1004 to 1006 and 1015 are never sent, and the rest is not given out.
_CODES = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})


class _Head(NamedTuple):
    kind: int
    is_last: bool
    bytes: int
    """Of the head itself, the mask included."""
    content: int
    """Bytes that follow it."""


class FrameError(Exception):
    """Bytes that are no frame, or not here; they must not go on."""


class Frames:
    """
    The frames that one end sends.

    *is_masked*: that end is the client (§5.1). *is_extended*: an extension was agreed on, so reserved bits may be set.
    """

    def __init__(self, *, is_masked: bool, is_extended: bool) -> None:
        self._is_masked = is_masked
        self._reserved = 0 if is_extended else _RESERVED
        self._held = b""
        self._left = 0
        self._is_inside = False  # a message
        self.said_goodbye = False
        """A close frame went by, or was sent in this end's place; nothing may follow it (§5.5.1)."""

    @property
    def is_between(self) -> bool:
        """Whether another frame may be put in here."""
        return not self._left

    def passing(self, data: bytes) -> bytes:
        """
        The bytes of *data*, and of those held back, that may go on.

        Raises:
            FrameError: with what may go on before the fault as its argument.
        """
        data, self._held = self._held + data, b""
        at = 0
        while at < len(data) and not self.said_goodbye:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            try:
                step = self._begin(data, at)
            except FrameError:
                raise FrameError(data[:at]) from None
            if not step:
                self._held = data[at:]
                break
            at += step
        return data[:at]

    def _begin(self, data: bytes, at: int) -> int:
        """How much goes on of the frame that begins there: its head, or all of a control frame; 0 if it is not here."""
        head = self._head(data, at)
        if head is None:
            return 0
        if head.kind < CLOSE:
            if (head.kind == CONTINUATION) != self._is_inside:
                raise FrameError
            self._is_inside, self._left = not head.is_last, head.content
            return head.bytes
        if not head.is_last or head.content > _LONGEST_CONTROL:
            raise FrameError
        if len(data) < at + head.bytes + head.content:
            return 0
        if head.kind == CLOSE:
            content = data[at + head.bytes : at + head.bytes + head.content]
            mask = data[at + head.bytes - 4 : at + head.bytes] if self._is_masked else bytes(4)
            _check_goodbye(bytes(byte ^ mask[number % 4] for number, byte in enumerate(content)))
            self.said_goodbye = True
        return head.bytes + head.content

    def _head(self, data: bytes, at: int) -> _Head | None:
        if len(data) < at + 2:
            return None
        first, second = data[at], data[at + 1]
        if first & self._reserved or first & _KIND not in _KINDS or bool(second & _MASKED) != self._is_masked:
            raise FrameError
        form = {126: "!H", 127: "!Q"}.get(second & _LENGTH, "")
        size = 2 + struct.calcsize(form) + (4 if self._is_masked else 0)
        if len(data) < at + size:
            return None
        content = struct.unpack_from(form, data, at + 2)[0] if form else second & _LENGTH
        if content >> 63:
            raise FrameError
        return _Head(first & _KIND, bool(first & _LAST), size, content)


def _check_goodbye(content: bytes) -> None:
    """Raises FrameError unless it is a code that may be sent and text, or nothing (§5.5.1)."""
    if not content:
        return
    if int.from_bytes(content[:2], "big") not in _CODES or len(content) < 2:
        raise FrameError
    try:
        content[2:].decode("utf-8")
    except UnicodeDecodeError:
        raise FrameError from None


def goodbye(code: int, *, is_masked: bool) -> bytes:
    """A close frame of ours; masked with zeros, as there is nothing in it to hide from a cache on the way (§10.3)."""
    mask = bytes(4) if is_masked else b""
    return bytes((_LAST | CLOSE, (_MASKED if is_masked else 0) | 2)) + mask + code.to_bytes(2, "big")
