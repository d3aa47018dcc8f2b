"""
What the heads of an upstream's answers look like before they are parsed.

aiohttp's parser takes a bare LF for the end of a line, joins folded lines and skips what comes before the first line.
RFC 9112 §2.2 and §5.2 allow that much; but then a value with an LF in it is one line to some readers and two to others,
and with those two an answer can be made to say what its author never wrote.
"""

import re

_ODD_END = re.compile(rb"(?<!\r)\n|\n[ \t]")
_END = b"\r\n\r\n"
_LONG_ENOUGH = len(b"HTTP/1.1 101")


class Heads:
    """The heads of one answer, interim ones (1xx) included, seen as their bytes arrive."""

    def __init__(self) -> None:
        self._start = b""
        self._carried = b""  # the end of what came before: an end may lie across two reads
        self._is_over = False

    def are_odd(self, data: bytes) -> bool:
        """Whether *data*, which comes next, holds a line of a head that not everybody would end at the same place."""
        while data and not self._is_over:
            text, known = self._carried + data, len(self._carried)
            end = text.find(_END)
            stop = len(text) if end < 0 else end + len(_END)
            self._start = (self._start + text[known:stop])[:_LONG_ENOUGH]
            if self._start[:1] in (b"\r", b"\n") or _ODD_END.search(text, max(0, known - 1), stop):
                return True
            self._carried = text[-3:] if end < 0 else b""
            data = text[stop:]
            if end >= 0:
                self._is_over = not self._is_interim()
                self._start = b""
        return False

    def _is_interim(self) -> bool:
        """Whether another head follows the one that has ended; what follows 101 is another protocol."""
        status = self._start.partition(b" ")[2]
        return status.startswith(b"1") and status != b"101"
