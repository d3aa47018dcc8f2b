"""Everything that a soak runs on: two replicas, one Redis, one vendor, and a line with faults to each of them."""

import asyncio
import contextlib
import http.client
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.consistency.calls import Answer, Call, Clients, Door, Protocol
from tests.support.fault_proxy import FaultProxy
from tests.support.namespace import in_namespaces
from tests.support.process_log import Record
from tests.support.proxy_process import COMMAND, ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.vendor_sim import ProcessSim, sim_process

WORKERS = 2
UPSTREAM_MS = 20
VISIBLE_S = 0.1
SETTLE_S = 1.0
VECTOR_LIFETIME_S = 20.0
JITTER = 0.1
SETTLED_S = 30.0
KEY_SECRET = "0123456789abcdef" * 4
DISK_SIZE = "size=3m"
DIRECT_TOKEN = "sk-dv-soak"

# Short lifetimes and small tiers, so that everything that grows has reached its bound within minutes.
ENVIRONMENT = {
    "DASHCACHE_VECTOR_SETTLE_S": str(SETTLE_S),
    "DASHCACHE_VECTOR_UNKNOWN_SETTLE_S": str(SETTLE_S),
    "DASHCACHE_LIFETIMES_VECTOR_QUERY_S": str(VECTOR_LIFETIME_S),
    "DASHCACHE_LIFETIMES_VECTOR_STATS_S": str(VECTOR_LIFETIME_S),
    "DASHCACHE_LIFETIMES_EMBEDDING_S": "60",
    "DASHCACHE_LIFETIMES_JITTER": str(JITTER),
    "DASHCACHE_MEMORY_MAX_BYTES": str(2**20),
    "DASHCACHE_MEMORY_MAX_AGE_S": "5",
    # A busy machine is no slow Redis; and its faults last for seconds.
    "DASHCACHE_REDIS_DEADLINE_MS": "200",
    "DASHCACHE_BREAKER_RESET_S": "1",
    "DASHCACHE_LOG_REQUESTS": "false",
}
SIMULATOR = (
    *("--no-record", "--base64", "--latency-ms", str(UPSTREAM_MS), "--frame-delay-ms", "20"),
    *("--dashvector-grpc-port", "0", "--dashvector-visibility-ms", str(VISIBLE_S * 1000)),
)


@dataclass(slots=True)
class Replica:
    """One proxy, which may be started anew; *is_serving*: clients are sent to it, as a load balancer would."""

    name: str
    data_dir: Path
    small_disks: Sequence[Path]
    """Folders that are a file system of a few MiB each for its processes, and for nobody else."""
    options: dict[str, Any]
    proxy: ProxyProcess
    is_serving: bool = True
    restarts: int = 0
    ended: list[Record] = field(default_factory=list)
    """Log lines of its earlier processes."""
    faults: list[str] = field(default_factory=list)
    """What was wrong with how one of them ended."""

    def door(self, clients: Clients, protocol: Protocol, token: str) -> Door:
        """A way through it."""
        return Door(clients, protocol, self.proxy.http_url, self.proxy.grpc_address, token)

    @property
    def logs(self) -> list[Record]:
        """All lines so far."""
        return [*self.ended, *self.proxy.logs]

    async def restart(self) -> None:
        """SIGTERM, wait for the end, start again with the same data folder (and other ports)."""
        code = await asyncio.to_thread(self.proxy.stop)
        if code != 0 or self.proxy.left_behind:
            self.faults.append(f"ended with {code}, left behind {len(self.proxy.left_behind)} processes")
        self.ended += self.proxy.logs
        self.proxy = ProxyProcess(data_dir=self.data_dir, **self.options)
        await self.proxy.__aenter__()
        self.restarts += 1


@dataclass(slots=True)
class Rig:
    """What the load and the faults have to do with."""

    redis: RedisServer
    """The one that the line leads to."""
    standby: RedisServer
    """Its replica, which takes its place in a failover."""
    sim: ProcessSim
    redis_line: FaultProxy
    scope_line: FaultProxy
    vector_line: FaultProxy
    grpc_line: FaultProxy
    replicas: list[Replica]
    clients: Clients
    thread: ThreadPoolExecutor
    """For what blocks. One thread that stays: a child dies with the thread that started it."""

    async def aside(self, work: Any, *arguments: Any) -> Any:
        """Call *work* on the other thread."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *arguments)

    async def direct(self, call: Call, protocol: Protocol = "http") -> Answer:
        """Make a call past the proxies that must succeed."""
        door = Door(self.clients, protocol, self.sim.url, self.sim.grpc_address, DIRECT_TOKEN)
        answer = await door.ask(call)
        if not answer.is_success:
            raise RuntimeError(f"{call}: {answer}")
        return answer

    async def clear_vendor(self) -> list[int]:
        """The vendor is well again; how often each of its faults was applied, DashScope's before DashVector's."""
        ends = [await self.aside(self.sim.control, "PUT", name, []) for name in ("faults", "dashvector/faults")]
        return [count for end in ends for count in end["replaced"]]

    async def wait_settled(self) -> None:
        """Until every replica has told Redis all that it has to know, and asks it again."""

        async def is_settled() -> bool:
            told = await self.stats()
            return all(one["invalidations"]["pending"] == 0 and one["breaker"]["open_workers"] == 0 for one in told)

        await wait_until(is_settled, SETTLED_S, "every replica to have told Redis all")

    def fail_over(self) -> None:
        """The standby becomes the primary, and the other its replica; connections to the old one stay open."""
        self.standby.command("REPLICAOF", "NO", "ONE")
        self.redis.command("REPLICAOF", "127.0.0.1", self.standby.port)
        self.redis, self.standby = self.standby, self.redis
        self.redis_line.lead_to(self.redis.url)

    async def untold(self) -> int:
        """How many writes Redis was not told of at once, so far."""
        return sum(int(one["invalidations"]["untold"]) for one in await self.stats())

    async def stats(self) -> list[Any]:
        """The statistics of the replicas that serve; one that is just being stopped is left out."""
        found = []
        for replica in self.replicas:
            if replica.is_serving:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    found.append(await asyncio.to_thread(replica.proxy.stats))
        return found


@asynccontextmanager
async def rig(seed: int, *, has_small_disks: bool = False) -> AsyncIterator[Rig]:
    """All of it, gone afterwards; *has_small_disks*: replica B's folders can be filled, which needs root."""
    async with AsyncExitStack() as stack:
        thread = stack.enter_context(ThreadPoolExecutor(1))
        # Bounded, as a shared Redis is; what falls out of it is a miss.
        redis, standby = (
            stack.enter_context(closing(RedisServer(["maxmemory 64mb", "maxmemory-policy allkeys-lru"])))
            for _ in range(2)
        )
        redis.start()
        standby.start()
        standby.command("REPLICAOF", "127.0.0.1", redis.port)
        sim = stack.enter_context(sim_process(*SIMULATOR))
        grpc_port = int(sim.grpc_address.rpartition(":")[2])
        lines = [
            await stack.enter_async_context(FaultProxy(target, seed=seed))
            for target in (redis.url, sim.url, sim.url, grpc_port)
        ]
        options: dict[str, Any] = {
            "redis_url": lines[0].instead_of(redis.url),
            "dashscope_url": lines[1].instead_of(sim.url),
            "dashvector_url": lines[2].instead_of(sim.url),
            "dashvector_grpc_url": f"http://127.0.0.1:{lines[3].port}",
            "workers": WORKERS,
            "key_secret": KEY_SECRET,
            "env": ENVIRONMENT,
        }
        replicas = []
        for name in ("A", "B"):
            data, temporary = (Path(tempfile.mkdtemp(prefix="dashcache-")) for _ in range(2))
            for folder in (data, temporary):
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
            disks = (data, temporary) if name == "B" and has_small_disks else ()
            own = {**options, **(_on_small_disks(disks) if disks else {})}
            replica = Replica(name, data, disks, own, ProxyProcess(data_dir=data, **own))
            stack.push_async_callback(_closed, replica)
            await replica.proxy.__aenter__()
            replicas.append(replica)
        clients = Clients()
        stack.push_async_callback(clients.close)
        yield Rig(redis, standby, sim, lines[0], lines[1], lines[2], lines[3], replicas, clients, thread)


def _on_small_disks(disks: Sequence[Path]) -> dict[str, Any]:
    """Options of a proxy whose data and metrics are on disks of their own."""
    _, temporary = disks
    command = in_namespaces(COMMAND, own_network=False, disks=dict.fromkeys(disks, DISK_SIZE))
    return {"command": command, "env": {**ENVIRONMENT, "TMPDIR": str(temporary)}}


async def _closed(replica: Replica) -> None:
    await asyncio.to_thread(replica.proxy.close)
