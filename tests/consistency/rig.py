"""Proxies, Redis and vendor together, and the questions that every row of the table asks."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.consistency.calls import PROTOCOLS, Answer, Call, Clients, Door, Protocol
from tests.consistency.vendor import Vendor
from tests.support.fault_proxy import FaultProxy
from tests.support.process_log import Record
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

ANN, BOB = "sk-dv-ann", "sk-dv-bob"
KEY_SECRET = "0123456789abcdef" * 4
SETTLE_S = 0.03

Environment = Mapping[str, str]
CALM: Environment = {
    "DASHCACHE_VECTOR_SETTLE_S": str(SETTLE_S),
    "DASHCACHE_VECTOR_UNKNOWN_SETTLE_S": str(SETTLE_S),
    # A busy machine must not look like a slow Redis where nothing is wrong with it.
    "DASHCACHE_REDIS_DEADLINE_MS": "2000",
    "DASHCACHE_LIMITS_DRAIN_S": "1",
}
FAULTY: Environment = {**CALM, "DASHCACHE_REDIS_DEADLINE_MS": "150", "DASHCACHE_BREAKER_RESET_S": "0.2"}


@dataclass(slots=True)
class Rig:
    """What a test has to do with."""

    vendor: Vendor
    clients: Clients
    redis: RedisServer
    proxies: Sequence[ProxyProcess]

    @property
    def proxy(self) -> ProxyProcess:
        """The first, or only, one."""
        return self.proxies[0]

    def door(self, protocol: Protocol, token: str = ANN, replica: int = 0) -> Door:
        """A way through a proxy."""
        proxy = self.proxies[replica]
        return Door(self.clients, protocol, proxy.http_url, proxy.grpc_address, token)

    def doors(self, *tokens: str) -> list[Door]:
        """Every way: each protocol of each replica, for each of these (or both usual) credentials."""
        everybody, replicas = tokens or (ANN, BOB), range(len(self.proxies))
        return [self.door(*way) for way in itertools.product(PROTOCOLS, everybody, replicas)]

    def direct(self, protocol: Protocol, token: str = ANN) -> Door:
        """The way past the proxies."""
        return Door(self.clients, protocol, self.vendor.http_url, self.vendor.grpc_address, token)

    def count(self, kind: str) -> int:
        """How many keys Redis has of ``e`` (entries), ``g`` (tokens), ``h`` (holds)."""
        return len(self.names(kind))

    def names(self, kind: str) -> list[bytes]:
        """Their names."""
        return sorted(self.redis.command("KEYS", f"*:{kind}:*"))

    async def settled(self) -> None:
        """Until nothing holds any more, so that only tokens can keep an old answer out."""
        await wait_until(lambda: not self.names("h"), 10.0, "the holds to end")


@asynccontextmanager
async def rig(
    vendor: Vendor, clients: Clients, redis: RedisServer, *, replicas: int = 1, env: Environment = CALM, **options: Any
) -> AsyncIterator[Rig]:
    """Proxies of a test's own."""
    async with AsyncExitStack() as stack:
        made = [
            ProxyProcess(**{**_options(vendor), "redis_url": redis.url, "env": env, **options}) for _ in range(replicas)
        ]
        started = await asyncio.gather(*(stack.enter_async_context(proxy) for proxy in made))
        yield Rig(vendor, clients, redis, started)


def through(vendor: Vendor, line: FaultProxy, redis: RedisServer, data_dir: Path, **options: Any) -> ProxyProcess:
    """A proxy that reaches Redis by *line*, and keeps *data_dir* for the next one."""
    urls = {"redis_url": line.instead_of(redis.url), "data_dir": data_dir}
    return ProxyProcess(**{**_options(vendor), **urls, "env": FAULTY, **options})


def _options(vendor: Vendor) -> dict[str, Any]:
    return {
        "dashvector_url": vendor.http_url,
        "dashvector_grpc_url": vendor.grpc_url,
        "key_secret": KEY_SECRET,
    }


async def warm(door: Door, call: Call, *, version: int | None = None) -> list[Answer]:
    """
    Ask until the answer comes from the cache; all answers, of which the last is the hit.

    An old entry that was kept in the background shows here, so with *version* every answer must be of that one.
    """
    answers: list[Answer] = []

    async def is_hit() -> bool:
        answer = await door.ask(call)
        answers.append(answer)
        assert answer.is_success, answer
        assert version is None or answer.version == version, (answer, version)
        return answer.is_hit

    await wait_until(is_hit, 15.0, lambda: f"a hit for {call} at {door.protocol} (last: {answers[-1].cache})")
    return answers


async def all_warm(doors: Iterable[Door], calls: Iterable[Call], *, version: int | None = None) -> None:
    """Every call warm at every door."""
    ways = itertools.product(doors, list(calls))
    await asyncio.gather(*(warm(door, call, version=version) for door, call in ways))


async def assert_true(rig: Rig, doors: Iterable[Door], calls: Iterable[Call]) -> None:
    """Whatever comes from the cache is what the vendor says at this moment."""

    async def check(door: Door, call: Call) -> None:
        answer = await door.ask(call)
        if answer.is_hit:
            now = await rig.direct(door.protocol, door.token).ask(call)
            assert (answer.code, answer.output) == (now.code, now.output), (door.protocol, door.token, call, answer)

    await asyncio.gather(*(check(door, call) for door, call in itertools.product(doors, list(calls))))


def sample(proxy: ProxyProcess, name: str) -> float:
    """A metric without labels."""
    for line in proxy.metrics().splitlines():
        if line.startswith((f"{name} ", f"{name}{{")):
            return float(line.rpartition(" ")[2])
    raise LookupError(name)


async def wait_pending(proxy: ProxyProcess, wanted: bool) -> None:
    """Until the metric says that there are, or are no, invalidations that Redis has to be told of."""

    async def is_so() -> bool:
        return (await asyncio.to_thread(sample, proxy, "dashcache_pending_invalidations") > 0) is wanted

    await wait_until(is_so, 10.0, f"pending invalidations: {wanted}")


async def wait_request(proxy: ProxyProcess, after: int, **fields: Any) -> Record:
    """The log line of a request that is over."""
    return await asyncio.to_thread(proxy.wait_log, "request", 10.0, after=after, **fields)
