"""
The supervisor's watch over Redis: whether it can be used, and whether its data went back (``incarnation``).

The latest record that was seen stands in the data folder, so that what runs next knows it too. After a stop in order it
says so: then the embedded Redis, whose snapshot was written at that stop, is believed although it is another server.
"""

import asyncio
from pathlib import Path

from proxy.cache.invalidation.incarnation import RECORD_BYTES, Incarnation, read_look
from proxy.cache.redis.commands import Garbage
from proxy.control.redis_link import LinkDown, RedisLink
from proxy.runtime.data_folder import replace_file
from proxy.telemetry.log_output import logger

RECORD_FILE = "redis.record"
STRANGER = "refused: another deployment (another key_secret or version) uses this Redis under the same redis.key_prefix"

_EVERY_S = 1.0
_FIRST_TRIES = 2
_RUNNING, _STOPPED = b"running ", b"stopped "


class RecordFile:
    """The latest record, in *folder*."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECORD_FILE
        self._written: bytes | None = None
        self._is_well = True

    def take(self) -> tuple[bytes, bytes]:
        """
        The record that was left, and the one that the embedded Redis was stopped with in order, each empty if none.

        From now on the file says that we run: what ends otherwise than in order is not taken for it.
        """
        try:
            stored = self._path.read_bytes()
        except OSError:
            return b"", b""
        record = stored[len(_RUNNING) :]
        if len(record) != RECORD_BYTES or not stored.startswith((_RUNNING, _STOPPED)):
            return b"", b""
        is_trusted = self.keep(record) and stored.startswith(_STOPPED)
        return record, record if is_trusted else b""

    def keep(self, record: bytes, *, is_stopped: bool = False) -> bool:
        """Put *record* there; whether it is."""
        content = (_STOPPED if is_stopped else _RUNNING) + record
        if content == self._written:
            return True
        try:
            replace_file(self._path, content)
        except OSError as error:
            if self._is_well:
                logger().warning("redis_record_not_written", error=type(error).__name__)
            self._is_well = False
            return False
        self._written, self._is_well = content, True
        return True


class RedisWatch:
    """Looks once a second from ``first`` to ``stop``; *trusted* is the record that Redis was stopped with in order."""

    def __init__(self, link: RedisLink, incarnation: Incarnation, file: RecordFile, trusted: bytes) -> None:
        self._link = link
        self._incarnation = incarnation
        self._file = file
        self._trusted = trusted
        self.trouble = ""
        """Why Redis cannot be used, in its own words where it has some; empty if it can."""

    async def first(self) -> None:
        """Before anybody else asks Redis: look, if it can be reached within about a second."""
        for _ in range(_FIRST_TRIES):
            await self.look()
            if not self.trouble:
                return

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.look()

    async def stop(self) -> None:
        """Nobody writes any more: what Redis holds now is what it is stopped with."""
        await self.look()
        if not self.trouble and self._incarnation.token:
            await asyncio.to_thread(self._file.keep, self._incarnation.record, is_stopped=True)

    async def look(self) -> None:
        """Look once; a line in the log for each change."""
        trouble = ""
        words = self._incarnation.words(is_new_connection=self._link.is_new, trusted=self._trusted)
        try:
            look = read_look(await self._link.evaluate(words))
        except LinkDown as down:
            trouble = down.words
        except Garbage:
            trouble = "refused: it does not answer as Redis does"
        else:
            self._incarnation.heard(look)
            if not self._incarnation.is_stranger:
                self._trusted = b""
        self._link.is_barred = self._incarnation.is_stranger
        trouble = trouble or (STRANGER if self._incarnation.is_stranger else "")
        self._say(trouble)
        if not trouble and self._incarnation.record:
            await asyncio.to_thread(self._file.keep, self._incarnation.record)

    def _say(self, trouble: str) -> None:
        if trouble == self.trouble:
            return
        self.trouble = trouble
        if trouble.startswith("refused"):
            logger().error("redis_not_usable", error=trouble, consequence="everything is asked of the vendors")
        elif trouble:
            logger().warning("redis_not_usable", error=trouble)
        else:
            logger().info("redis_usable")
