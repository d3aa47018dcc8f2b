"""
Lines to a file descriptor without ever making the event loop wait for it.

Standard error is often a pipe, and whoever reads it may stop. Setting the pipe to non-blocking would change it for
every process that holds it, so a thread writes and the loop only queues. When the queue is full, lines are dropped and
counted.
"""

import collections
import contextlib
import os
import select
import threading
import time
from collections.abc import Callable

# POSIX: a write of up to PIPE_BUF bytes is not torn apart by what other processes write to the same pipe.
_WHOLE_BYTES = select.PIPE_BUF
_MAX_LINES = 20_000
_BATCH_S = 0.01


class LineWriter:
    """Writes whole lines to *descriptor*; *dropped_line* words the notice about dropped ones."""

    def __init__(self, descriptor: int, dropped_line: Callable[[int], bytes], *, max_lines: int = _MAX_LINES) -> None:
        self._descriptor = descriptor
        self._dropped_line = dropped_line
        self._max_lines = max_lines
        self._lines: collections.deque[bytes] = collections.deque()
        self._dropped = 0
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue *line* (with its line feed); never waits."""
        if len(self._lines) >= self._max_lines:
            self._dropped += 1
            return
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is queued, but wait no longer than *timeout_s*."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            self._write_queued()
            if self._closing:
                self._write_queued()
                return
            # Whatever comes within this time is written at once: fewer system calls, and fewer turns taken from the
            # loop, which shares the interpreter with this thread.
            time.sleep(_BATCH_S)

    def _write_queued(self) -> None:
        while self._lines:
            chunk = [self._lines.popleft()]
            size = len(chunk[0])
            while self._lines and size + len(self._lines[0]) <= _WHOLE_BYTES:
                chunk.append(self._lines.popleft())
                size += len(chunk[-1])
            self._write_all(b"".join(chunk))
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._write_all(self._dropped_line(dropped))

    def _write_all(self, chunk: bytes) -> None:
        # Whoever read the log has gone: that is no reason to stop serving.
        with contextlib.suppress(OSError):
            while chunk:
                try:
                    chunk = chunk[os.write(self._descriptor, chunk) :]
                except BlockingIOError:  # somebody else made the shared pipe non-blocking
                    select.select((), (self._descriptor,), ())
