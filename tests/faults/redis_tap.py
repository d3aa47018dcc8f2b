"""A `FaultProxy` in front of Redis that notes which commands of the cache went through, and when."""

import asyncio
import re
import time

from tests.support import wire
from tests.support.fault_proxy import FaultProxy, _Line

# The cache reads by MGET and writes by SET, of keys of entries; it says nothing else, not even at a connection's start.
# The supervisor, which looks at Redis by itself, uses neither with such keys.
_COMMAND = re.compile(rb"\$4\r\nMGET\r\n|\$3\r\nSET\r\n\$\d+\r\n[A-Za-z0-9_.-]+:e:")


class RedisTap(FaultProxy):
    """Commands are noted on their way to Redis, whether or not it ever answers."""

    def __init__(self, target: int | str) -> None:
        super().__init__(target)
        self.asked_at: list[float] = []
        """Monotonic time of each command."""

    @property
    def asked(self) -> int:
        """How many commands so far."""
        return len(self.asked_at)

    def between(self, start_s: float, end_s: float) -> int:
        """How many commands in this span of monotonic time."""
        return sum(start_s <= at_s < end_s for at_s in self.asked_at)

    async def _carry(self, line: _Line, reader: wire.PatientReader, writer: asyncio.StreamWriter) -> bool:
        try:
            return await super()._carry(line, reader, writer)
        except* OSError:  # one side was gone before the other's end could be passed on
            pass
        return True

    async def _dial(self) -> tuple[wire.PatientReader, asyncio.StreamWriter]:
        reader, writer = await super()._dial()
        plain = writer.write

        def write(data: bytes) -> None:
            self.asked_at += [time.monotonic()] * len(_COMMAND.findall(data))
            plain(data)

        setattr(writer, "write", write)  # noqa: B010 (a method of this one object, which a type checker would refuse)
        return reader, writer
