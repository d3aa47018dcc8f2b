"""
Load for the tests of restarts: every kind of call that a restart could break, over a balancer that heeds ``/readyz``.

In turn: hits and misses over kept connections, hits over a connection each, streams that take a while, gRPC calls;
on demand also gRPC calls over a connection each (``dial``).
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
import grpc
import grpc.aio
import orjson

from tests.faults.workload import HEADERS, PATH, Running, is_right, question
from tests.support.open_loop import Outcome, run_open_loop
from tests.support.proxy_process import ProxyProcess
from tests.support.waiting import wait_until

LOOK_S = 0.05
"""How often the balancer asks; a notice must be a few times that."""

METHOD = "/restarts.Test/Echo"
CHAT = "/compatible-mode/v1/chat/completions"
_CHAT_BODY = orjson.dumps({"model": "qwen-plus", "stream": True, "messages": [{"role": "user", "content": "hello"}]})
_STREAM_ENDS = b"data: [DONE]\n\n"
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
KINDS = ("hit", "miss", "alone", "stream", "call")


class EchoVendor:
    """A gRPC server that answers every call with its own message, after *latency_s* seconds."""

    def __init__(self, latency_s: float = 0.02) -> None:
        self._latency_s = latency_s
        self._server: Any = None
        self.port = 0
        self.messages: list[bytes] = []

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(handlers=(self,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def service(self, _details: Any) -> Any:
        async def handle(message: bytes, _context: Any) -> bytes:
            self.messages.append(message)
            await asyncio.sleep(self._latency_s)
            return message

        return grpc.unary_unary_rpc_method_handler(handle)


@dataclass(slots=True, eq=False)
class Replica:
    """One address that requests may go to."""

    http_url: str
    admin_url: str
    grpc_address: str
    channel: grpc.aio.Channel
    is_ready: bool = False


@dataclass
class Balancer:
    """A client that sends each call to the next replica of those that say that they are ready."""

    replicas: list[Replica] = field(default_factory=list)
    texts: list[str] = field(default_factory=lambda: [f"restart {number} 已知" for number in range(20)])
    kinds: tuple[str, ...] = KINDS

    async def __aenter__(self) -> Self:
        self._turns = itertools.count()
        self._new = itertools.count()
        self._kept = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=HEADERS)
        self._alone = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True), headers=HEADERS)
        self._looking = asyncio.ensure_future(self._look())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._looking.cancel()
        await asyncio.gather(self._looking, return_exceptions=True)
        await self._kept.close()
        await self._alone.close()
        for replica in self.replicas:
            await replica.channel.close()

    async def add(self, proxy: ProxyProcess) -> Replica:
        """Send to *proxy* too, once it is ready."""
        address = proxy.grpc_address
        replica = Replica(proxy.http_url, proxy.admin_url, address, grpc.aio.insecure_channel(address))
        self.replicas.append(replica)
        await wait_until(lambda: replica.is_ready, 10.0, "the balancer to see a replica")
        return replica

    async def warm_up(self) -> None:
        """Until every known text is a hit."""
        for text in self.texts:
            await wait_until(lambda text=text: self._is_hit(text), 10.0, "the cache to fill")

    async def _is_hit(self, text: str) -> bool:
        return bool((await self._ask(self._kept, text)).cached)

    async def call(self, index: int) -> Outcome:
        """One call of the load; a failure says of which kind it was."""
        kind = self.kinds[index % len(self.kinds)]
        try:
            return await self._called(kind, index)
        except grpc.aio.AioRpcError as error:
            return Outcome(correct=False, error=f"{kind}: {error.code().name}: {error.details()}")
        except (aiohttp.ClientError, OSError) as error:
            return Outcome(correct=False, error=f"{kind}: {type(error).__name__}: {error}"[:120])

    async def _called(self, kind: str, index: int) -> Outcome:
        if kind == "call":
            message = b"%d" % index
            answer = await self._next().channel.unary_unary(METHOD)(message, timeout=20)
            return Outcome(correct=answer == message)
        if kind == "dial":
            address, message = self._next().grpc_address, b"%d" % index
            async with grpc.aio.insecure_channel(address, options=_OWN_CONNECTION) as channel:
                return Outcome(correct=await channel.unary_unary(METHOD)(message, timeout=20) == message)
        if kind == "stream":
            return await self._stream()
        text = f"restart new {next(self._new)}" if kind == "miss" else self.texts[index % len(self.texts)]
        return await self._ask(self._alone if kind == "alone" else self._kept, text)

    async def _ask(self, session: aiohttp.ClientSession, text: str) -> Outcome:
        async with session.post(self._next().http_url + PATH, data=question(text)) as response:
            body = await response.read()
        error = f"HTTP {response.status}" if response.status != 200 else None
        return Outcome(is_right(text, body), error, "hit" in response.headers.get("Cache-Status", "").split("; "))

    async def _stream(self) -> Outcome:
        async with self._kept.post(self._next().http_url + CHAT, data=_CHAT_BODY) as response:
            body = await response.read()
        error = f"HTTP {response.status}" if response.status != 200 else None
        return Outcome(body.endswith(_STREAM_ENDS), error)

    @staticmethod
    async def passed(proxy: ProxyProcess) -> str:
        """What *proxy* says in Cache-Status of a request that is not its to cache; empty if nothing."""
        async with (
            aiohttp.ClientSession(headers=HEADERS) as session,
            session.post(proxy.http_url + CHAT, data=_CHAT_BODY) as response,
        ):
            await response.read()
            return response.headers.get("Cache-Status", "")

    def _next(self) -> Replica:
        # None ready is what must not be; then the first one gets it, and what comes of it is counted.
        ready = [replica for replica in self.replicas if replica.is_ready] or self.replicas
        return ready[next(self._turns) % len(ready)]

    async def _look(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                for replica in self.replicas:
                    replica.is_ready = await _says_yes(session, replica.admin_url + "/readyz")
                await asyncio.sleep(LOOK_S)

    @contextlib.asynccontextmanager
    async def running(self, rate: float, duration_s: float) -> AsyncIterator[Running]:
        """Load while the block runs, and at least for *duration_s*."""
        running = Running()
        async with asyncio.TaskGroup() as group:
            load = group.create_task(run_open_loop(self.call, rate, duration_s=duration_s, drain_s=20.0))
            yield running
            running.report = await load


async def _says_yes(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=1.0)) as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
