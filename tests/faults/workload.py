"""
Load whose every answer is known beforehand: single texts, some asked again and again, some new.

An answer is correct when its bytes are the vendor's, but for the request id. Used by these tests and by
``benchmarks.redis_faults``.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Self

import aiohttp
import orjson

from tests.support.open_loop import Outcome, Report, run_open_loop
from tests.vendor_sim import answer

PATH = "/api/v1/services/embeddings/text-embedding/text-embedding"
MODEL = "text-embedding-v4"
DIMENSION = 64
HEADERS = {"Authorization": "Bearer sk-faults", "Content-Type": "application/json"}

_AT_ONCE = 8
_MARK = "request-id-goes-here"


@lru_cache(maxsize=50_000)
def _truth(text: str) -> tuple[bytes, bytes]:
    """What the vendor answers to *text*, before and after the request id."""
    body = answer(MODEL, [text], request_id=_MARK, dimension=DIMENSION)
    before, _, after = body.partition(_MARK.encode())
    return before, after


def is_right(text: str, body: bytes) -> bool:
    """Whether *body* is, byte for byte, what the vendor answers to *text*."""
    before, after = _truth(text)
    middle = len(body) - len(before) - len(after)
    return 0 < middle < 64 and body.startswith(before) and body.endswith(after)


def question(*texts: str) -> bytes:
    """The body of a request for *texts*."""
    return orjson.dumps({"model": MODEL, "input": {"texts": texts}, "parameters": {"dimension": DIMENSION}})


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer to one text."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_right: bool

    @property
    def is_cached(self) -> bool:
        """Whether it says that it came from the cache."""
        return "hit" in self.cache_status.split("; ")

    @property
    def cache_status(self) -> str:
        """The Cache-Status line, empty without one."""
        return self.headers.get("Cache-Status", "")


@dataclass(slots=True)
class Running:
    """Load that runs; *report* is there at the end."""

    began_s: float = field(default_factory=time.monotonic)
    report: Report = field(default_factory=lambda: Report(0.0))

    @property
    def now_s(self) -> float:
        """Seconds since its start, as the report counts them."""
        return time.monotonic() - self.began_s

    async def until(self, at_s: float) -> None:
        """Sleep until *at_s* seconds after its start."""
        await asyncio.sleep(self.began_s + at_s - time.monotonic())


class Workload:
    """
    A client of *url* that asks *known* texts again and again, and new ones for the rest of the calls.

    *repeats* is the share of the known. *name* keeps two loads apart from each other.
    """

    def __init__(self, url: str, *, known: int = 40, repeats: float = 0.8, name: str = "load", seed: int = 1) -> None:
        self.texts = [f"{name} {number} 已知" for number in range(known)]
        self._url = url + PATH
        self._name = name
        self._repeats = repeats
        self._chance = random.Random(seed)
        self._session: aiohttp.ClientSession | None = None
        self._new = 0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=HEADERS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, text: str, **headers: str) -> Reply:
        """Ask for one text; ``Cache_Control="no-store"`` is a header of that name."""
        assert self._session is not None
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._session.post(self._url, data=question(text), headers=fields) as response:
            body = await response.read()
            return Reply(response.status, dict(response.headers), body, is_right(text, body))

    async def warm_up(self, within_s: float = 10.0) -> None:
        """Ask for every known text, a few at a time, until all are hits; insist on right answers."""
        deadline_s = time.monotonic() + within_s
        while not all(reply.is_cached for reply in await self.ask_all()):
            assert time.monotonic() < deadline_s, "the cache does not fill"

    async def ask_all(self) -> list[Reply]:
        """The answers to all known texts, asked a few at a time; all are right."""
        replies: list[Reply] = []
        for start in range(0, len(self.texts), _AT_ONCE):
            replies += await asyncio.gather(*(self.ask(text) for text in self.texts[start : start + _AT_ONCE]))
        for reply in replies:
            assert reply.is_right, (reply.status, reply.body[:200])
        return replies

    def new_text(self) -> str:
        """One that was not asked before."""
        self._new += 1
        return f"{self._name} new {self._new}"

    async def call(self, _index: int) -> Outcome:
        """One call of the load."""
        is_repeat = self._chance.random() < self._repeats
        text = self._chance.choice(self.texts) if is_repeat else self.new_text()
        reply = await self.ask(text)
        error = f"HTTP {reply.status}" if reply.status != 200 else None
        return Outcome(reply.is_right, error, reply.is_cached)

    @contextlib.asynccontextmanager
    async def running(self, rate: float, duration_s: float) -> AsyncIterator[Running]:
        """Load while the block runs; it ends when both have ended."""
        running = Running()
        async with asyncio.TaskGroup() as group:
            load = group.create_task(run_open_loop(self.call, rate, duration_s=duration_s))
            yield running
            running.report = await load
