"""
Clients that send JSON bodies that are dear, twenty at once. A process of its own: it slows nobody who measures.

``python -m tests.support.large_bodies SHAPES PORT PARALLEL EVERY_S SECONDS``: every *EVERY_S* seconds, *PARALLEL*
bodies at the same time, each on its own connection: large ones of nearly 4 MiB, or smaller ones of many values.
Prints how many were sent, and the answers by status.
"""

import asyncio
import json
import sys
from collections import Counter
from typing import Self

from tests.support.child import spawn
from tests.support.raw_client import RawClient

PATH = "/api/v1/services/embeddings/text-embedding/text-embedding"
SIZE = 4 * 2**20 - 1024
_HEADERS = ((b"Authorization", b"Bearer sk-large"), (b"Content-Type", b"application/json"))
_BEFORE, _AFTER = b'{"model":"text-embedding-v4","input":{"texts":[', b"]}}"


def bodies(shapes: str) -> tuple[bytes, ...]:
    """One of each kind of *shapes*; in each stands ``0000000000`` once, to make it another."""
    return {"large": _large, "many": _many}[shapes]()


def _many() -> tuple[bytes, ...]:
    """
    Less than 256 KiB, and dear for what is in them: members more than any operation has, and as many as may be.

    The last two are planned: a list of 30,000 numbers, as no text is one, and 250 members beside a text.
    """

    def with_members(count: int, member: bytes) -> bytes:
        members = b",".join(member % number for number in range(count))
        return b'{"model":"text-embedding-v4","input":{"texts":["0000000000"]},"parameters":{' + members + b"}}"

    numbers = _BEFORE + b'"0000000000",' + b",".join([b"1.5"] * 30_000) + _AFTER
    return (
        with_members(16_000, b'"member-%06d":1'),
        with_members(6_300, b'"%d":1'),
        with_members(8_000, b'"%d":{"a":1}'),
        numbers,
        with_members(250, b'"member-%d":"' + b"x" * 100 + b'"'),
    )


def _large() -> tuple[bytes, ...]:
    """All of ``SIZE``."""
    room = SIZE - len(_BEFORE) - len(_AFTER) - 200
    escaped = b",".join([b'"%b"' % (b'said \\"no\\", then left\\n' * (room // 10 // 25))] * 9)
    chinese = b",".join([b'"%b"' % ("已知文本" * (room // 10 // 12)).encode()] * 9)
    numbers = b"1," * (room // 2) + b"1"  # refused by the vendor, and dear to parse
    return tuple(_BEFORE + b'"0000000000",' + kind + _AFTER for kind in (escaped, chinese, numbers))


async def send(shapes: str, port: int, parallel: int, every_s: float, seconds: float) -> Counter[int]:
    """Send them; statuses of the answers by number."""
    kinds, statuses, loop = bodies(shapes), Counter[int](), asyncio.get_running_loop()
    began_s = loop.time()

    async def client(number: int) -> None:
        sent = 0
        async with await RawClient.connect(port) as connection:
            while (now_s := loop.time() - began_s) < seconds:
                await asyncio.sleep(max(0.0, sent * every_s - now_s))
                body = kinds[(number + sent) % len(kinds)]
                sent += 1
                body = body.replace(b"0000000000", b"%010d" % (number * 1_000_000 + sent), 1)
                response = await connection.request("POST", PATH, _HEADERS, body, timeout=60)
                statuses[response.status] += 1

    await asyncio.gather(*(client(number) for number in range(parallel)))
    return statuses


class LargeBodies:
    """Such a process, within ``async with``; ``statuses`` is there at the end."""

    def __init__(
        self, port: int, *, shapes: str = "large", parallel: int = 20, every_s: float = 1.0, seconds: float
    ) -> None:
        self._command = [sys.executable, "-m", __name__, shapes, *map(str, (port, parallel, every_s, seconds))]
        self.statuses: Counter[int] = Counter()

    async def __aenter__(self) -> Self:
        self._process = spawn(self._command, stdout=-1)
        return self

    async def __aexit__(self, *_: object) -> None:
        out, _ = await asyncio.to_thread(self._process.communicate)
        self.statuses = Counter({int(status): count for status, count in json.loads(out).items()})


if __name__ == "__main__":
    shapes, port, parallel, every_s, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(send(shapes, int(port), int(parallel), float(every_s), float(seconds)))))
