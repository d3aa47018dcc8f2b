"""Which process listens on a port, as far as /proc tells: for the message that the port is taken."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

_LISTENS = "0A"
_PROC = Path("/proc")


def owner_of(port: int) -> str:
    """``process 4711 (nginx)``; a guess in words where that cannot be seen."""
    inodes = {f"socket:[{inode}]" for inode in _listening(port)}
    for process in _PROC.iterdir() if inodes else ():
        if not process.name.isdigit():
            continue
        # Of others we may not look, and some end meanwhile.
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) in inodes for link in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return "a process of another user or container" if inodes else "a process that cannot be seen from here"


def _listening(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTENS and int(words[1].rpartition(":")[2], 16) == port:
                    yield words[9]
