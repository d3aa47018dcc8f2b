"""Many clients at once, each on a connection of its own, and what their answers must be."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from tests.scenario.telling import NATIVE, bearer, heard, native, told
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient, RawResponse, request_bytes
from tests.support.raw_upstream import RawUpstream
from tests.support.waiting import wait_until

LINES = bearer("sk-flock")


class Flock:
    """Connected clients. They send all at once, or leave; *ports* are taken in turn."""

    def __init__(self, clients: Sequence[RawClient]) -> None:
        self.clients = clients

    async def send(self, bodies: Sequence[bytes], *extra: tuple[bytes, bytes]) -> None:
        """One request per client, all written before any answer is read."""
        requests = [request_bytes("POST", NATIVE, (*LINES, *extra), body) for body in bodies]
        await asyncio.gather(
            *(client.send(request) for client, request in zip(self.clients, requests, strict=True)),
        )

    async def read(self) -> list[RawResponse]:
        """All their answers."""
        return await asyncio.gather(*(client.read_response(method="POST", timeout=30) for client in self.clients))


@asynccontextmanager
async def flock(size: int, *ports: int) -> AsyncIterator[Flock]:
    """*size* clients of the proxies at *ports*."""
    clients = [await RawClient.connect(ports[number % len(ports)]) for number in range(size)]
    try:
        yield Flock(clients)
    finally:
        await asyncio.gather(*(client.close() for client in clients))


async def ask_all(bodies: Sequence[bytes], *ports: int) -> list[RawResponse]:
    """The answers to *bodies*, asked at once."""
    async with flock(len(bodies), *ports) as clients:
        await clients.send(bodies)
        return await clients.read()


def is_right(response: RawResponse, body: bytes) -> bool:
    """Whether the vectors are the upstream's for just this request."""
    return response.status == 200 and heard(response) == told(NATIVE, LINES, body)


def cache_status(response: RawResponse) -> str:
    """The Cache-Status line, empty without one."""
    return (response.header("Cache-Status") or b"").decode()


def collapsed(responses: Iterable[RawResponse]) -> int:
    """How many say that they waited for another's request."""
    return sum("; collapsed" in cache_status(response) for response in responses)


def asked_texts(upstream: RawUpstream) -> Counter[str]:
    """How often the upstream was asked for each text."""
    return Counter(text for request in upstream.requests for text in json.loads(request.body)["input"]["texts"])


async def all_wait(proxy: ProxyProcess, warm: str) -> None:
    """
    Wait until whatever was sent to the only worker of *proxy* before has come to wait for the upstream.

    There is no sign of that from outside. But whoever asks for the *warm* text now goes the same way behind them, over
    the same Redis connections, and by the third time none of them can still be on it.
    """
    for _ in range(3):
        (response,) = await ask_all([native(warm)], proxy.http_port)
        assert "hit" in cache_status(response), cache_status(response)


async def make_warm(proxy: ProxyProcess, upstream: RawUpstream, *texts: str) -> None:
    """Have *texts* stored, and forget that the upstream was asked for them."""

    async def is_hit(text: str) -> bool:
        (response,) = await ask_all([native(text)], proxy.http_port)
        return "hit" in cache_status(response)

    for text in texts:
        await wait_until(lambda text=text: is_hit(text), what="a hit")
    upstream.requests.clear()
