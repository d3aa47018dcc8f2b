"""
The files that prometheus_client counts in, never without the space they need.

The library makes a file longer and maps it. On a full disk there is nothing behind such a map: the first figure that is
written to it ends the process by SIGBUS, which nobody can catch. So the space is taken before, and where there is none
(or no folder, or one that is read-only) the worker counts in its own memory, where nobody gathers it: that is logged.
"""

import contextlib
import errno
import mmap
import os
from pathlib import Path
from typing import Any

from prometheus_client import mmap_dict, values

from proxy.telemetry.log_output import logger

_FIRST_BYTES = 1 << 16
# A key's length, its padding to eight bytes, and two doubles.
_MOST_BESIDE_KEY_BYTES = 32

# Both come without types.
_MmapedDict: Any = mmap_dict.MmapedDict
_values: Any = values


def install() -> None:
    """Let the metrics that this process makes from now on count in files with space. Does nothing without a folder."""
    _values.MmapedDict = RoomyDict


class RoomyDict(_MmapedDict):  # type: ignore[misc]
    """prometheus_client's file of figures, by its own format."""

    def __init__(self, filename: str) -> None:
        try:
            _prepare(Path(filename))
            super().__init__(filename)
        except OSError as error:
            self._f: Any = None
            self._fname = filename
            self._capacity = _FIRST_BYTES
            self._positions: dict[str, int] = {}
            self._used = 8
            self._m = mmap.mmap(-1, self._capacity)
            self._leave_file(error)

    def _init_value(self, key: str) -> None:
        while self._used + len(key.encode()) + _MOST_BESIDE_KEY_BYTES > self._capacity:
            self._grow(2 * self._capacity)
        super()._init_value(key)

    def _grow(self, capacity: int) -> None:
        known = self._m[: self._used]
        try:
            if self._f is not None:
                _allocate(self._f.fileno(), capacity)
            self._m = mmap.mmap(-1 if self._f is None else self._f.fileno(), capacity)
        except OSError as error:
            self._f.close()
            self._f, self._m = None, mmap.mmap(-1, capacity)
            self._leave_file(error)
        self._m[: self._used] = known
        self._capacity = capacity

    def _leave_file(self, error: OSError) -> None:
        # Figures that stand still would be taken for those of now.
        with contextlib.suppress(OSError):
            Path(self._fname).unlink()
        kind = Path(self._fname).name.partition("_")[0]
        logger().error("metrics_not_gathered", kind=kind, error=error.strerror or type(error).__name__)


def _prepare(path: Path) -> None:
    """Make the file *path* of its first length; and its folder, should somebody have removed that."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with path.open("a+b") as file:
        if os.fstat(file.fileno()).st_size == 0:
            _allocate(file.fileno(), _FIRST_BYTES)


def _allocate(number: int, size: int) -> None:
    """Let the open file *number* be *size* bytes long, with space for all of them. Raises OSError."""
    try:
        os.posix_fallocate(number, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        # A file system that cannot promise space: what is written has it.
        missing = bytes(size - os.fstat(number).st_size)
        if os.write(number, missing) != len(missing):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
