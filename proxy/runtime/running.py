"""
The note in the data folder by which commands find the running proxy: its admin address, and a token for this run.

A mistake in a file on disk must not keep anybody from looking at, or switching, a proxy that runs with the settings of
before. The token is made for each run, and is not the operator's. The note is readable by its owner alone, as the
folder and the key secret in it are, and goes when the proxy ends. It is believed only while the process that wrote it
holds the folder's lock: its address may be another's by now.
"""

import contextlib
import os
from pathlib import Path

import msgspec

from proxy.runtime.data_folder import LOCK_FILE, replace_file

FILE = "running.json"
_MAX_BYTES = 16 * 1024


class Running(msgspec.Struct, frozen=True):
    """A proxy that runs: its supervisor's process, where it was told to listen, where it does, and its token."""

    pid: int
    stated: str
    admin: str
    token: str = ""


def write(folder: Path, running: Running) -> None:
    """Leave the note in the data folder. Raises OSError."""
    replace_file(folder / FILE, msgspec.json.encode(running) + b"\n")


def remove(folder: Path) -> None:
    """Take it away."""
    with contextlib.suppress(OSError):
        (folder / FILE).unlink()


def find(folder: Path) -> Running | None:
    """The proxy that runs with this data folder; None if none does, or if it left no note that can be believed."""
    try:
        with (folder / FILE).open("rb") as file:
            is_private = os.fstat(file.fileno()).st_mode & 0o077 == 0
            noted = msgspec.json.decode(file.read(_MAX_BYTES), type=Running)
        holds = _holds_lock(noted.pid, (folder / LOCK_FILE).stat().st_ino)
    except (OSError, msgspec.MsgspecError):
        return None
    return noted if is_private and holds else None


def _holds_lock(pid: int, inode: int) -> bool:
    """Whether *pid* holds a lock on the file *inode*: looked up, as to try for it could keep a proxy from starting."""
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()  # 1: FLOCK  ADVISORY  WRITE 4711 00:2a:1234 0 EOF
        if words[1:2] == ["FLOCK"] and words[4:5] == [str(pid)] and words[5].rpartition(":")[2] == str(inode):
            return True
    return False
