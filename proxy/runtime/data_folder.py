"""
The data folder: who may use it, the key secret in it, and how files in it are replaced.

It holds ``lock``, ``key.secret`` (unless one is given), ``modes.json``, ``purges.json``, ``running.json``,
the workers' journals, and the embedded Redis' data.
"""

import contextlib
import fcntl
import os
import secrets
import tempfile
from pathlib import Path

from proxy.core.errors import ConfigError

SECRET_FILE = "key.secret"  # noqa: S105  a file's name
LOCK_FILE = "lock"
_SECRET_BYTES = 32


class DataFolder:
    """The folder *path*, made if need be, readable by us alone, and ours until ``close``."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            # Not inherited by children: the kernel lets go of it when this process ends, however that happens.
            self._lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError([f"data_dir: {self.path} cannot be used: {error.strerror or error}"]) from error
        try:
            self._take()
        except BaseException:
            os.close(self._lock)
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip()
            who = f" (process {owner})" if owner.isdigit() else ""
            raise ConfigError(
                [f"data_dir: {self.path} is in use by another dashcache{who}; give each its own DASHCACHE_DATA_DIR"]
            ) from error
        except OSError as error:
            raise ConfigError([f"data_dir: {self.path} cannot be locked: {error.strerror or error}"]) from error
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def key_secret(self) -> bytes:
        """The deployment secret kept here; made on the first call ever."""
        path = self.path / SECRET_FILE
        try:
            if not path.exists():
                replace_file(path, secrets.token_hex(_SECRET_BYTES).encode() + b"\n")
            path.chmod(0o600)
            secret = path.read_bytes().strip()
        except OSError as error:
            raise ConfigError([f"key_secret: {path} cannot be used: {error.strerror or error}"]) from error
        if len(secret) < _SECRET_BYTES:
            # Never replaced silently: every entry and rule made under the old one would be lost.
            raise ConfigError([f"key_secret: {path} is damaged; restore it, or delete it to start with an empty cache"])
        return secret

    def close(self) -> None:
        """Let go of the folder."""
        with contextlib.suppress(OSError):
            os.close(self._lock)


def secret_of_own(data_dir: Path) -> str:
    """In words: whether a key secret was made in the folder *data_dir*, and where. Makes nothing."""
    path = data_dir.expanduser().absolute() / SECRET_FILE
    try:
        path.lstat()
    except FileNotFoundError:
        return f"(none yet: the first start makes {path})"
    except OSError as error:
        return f"({path} cannot be looked at: {error.strerror or error})"
    return f"(made by a start, in {path})"


def replace_file(path: Path, content: bytes) -> None:
    """Put *content* at *path*, readable by us alone; whoever reads sees the old or the new, whole. Raises OSError."""
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
