"""A folder that is a disk of a proxy's own (``namespace.in_namespaces``): filled and emptied from outside."""

import contextlib
from pathlib import Path

_FILLING = "filling"


def seen_by(pid: int, folder: Path) -> Path:
    """*folder* as process *pid* sees it, which has other disks than we."""
    return Path(f"/proc/{pid}/root{folder}")


def fill(pid: int, folder: Path) -> None:
    """Leave no byte free on that disk."""
    with (seen_by(pid, folder) / _FILLING).open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def relieve(pid: int, folder: Path) -> None:
    """Give back what `fill` took."""
    (seen_by(pid, folder) / _FILLING).unlink()
