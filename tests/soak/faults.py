"""
What goes wrong during a soak, one thing at a time, drawn from a seeded deck: each fault comes before any comes twice.

Faults of the process strike replica B alone, so that replica A lives from the beginning to the end and the growth of
its processes can be told over the whole time.
"""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from proxy.vendors.dashscope.embedding_request import COMPATIBLE, NATIVE
from tests.consistency.calls import PROTOCOLS
from tests.soak.history import Excuse, History, Trouble
from tests.soak.rig import WORKERS, Rig
from tests.support import small_disk
from tests.support.child import send_signal
from tests.support.fault_proxy import Direction, FaultProxy
from tests.support.proxy_process import ProxyProcess
from tests.support.toxics import BlackHole, Latency, ResetPeer, Slicer, Toxic
from tests.support.waiting import wait_until

Break = Callable[[Rig, History], AbstractAsyncContextManager[None]]
"""What goes wrong when entered, and ends when left."""
PAUSED_MS = 2_500
SEEN_BACK_S = 3.0
"""For so long a Redis that was set back may go unnoticed."""
SILENT_CALLS = 2
"""Of each dialect's and protocol's. A call that is made once more after it failed is one of these, too."""
SILENT = {"embedding": SILENT_CALLS, "compatible embedding": SILENT_CALLS, "vector read": 2 * SILENT_CALLS}


@dataclass(frozen=True, slots=True)
class Fault:
    """
    One kind of trouble.

    *excuse*: what no proxy could save from it, for at most so many calls of a kind as *allowances* say.
    *keeps_untold*: Redis cannot be told of writes meanwhile, or forgets them.
    """

    name: str
    enter: Break
    excuse: Excuse | None = None
    keeps_untold: bool = False
    longest_s: float = 4.0
    allowances: Mapping[str, int] | None = None


# --- Redis ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _hung(rig: Rig, _: History) -> AsyncIterator[None]:
    rig.redis.hang()
    try:
        yield
    finally:
        rig.redis.resume()


@asynccontextmanager
async def _dead(rig: Rig, _: History) -> AsyncIterator[None]:
    rig.redis.kill()
    try:
        yield
    finally:
        await rig.aside(rig.redis.restart)


@asynccontextmanager
async def _failed_over(rig: Rig, _: History) -> AsyncIterator[None]:
    """Connections to the old primary stay open: whoever keeps them hears READONLY for every write."""
    await rig.aside(rig.fail_over)
    yield


@asynccontextmanager
async def _set_back(rig: Rig, _: History) -> AsyncIterator[None]:
    """A crash, and the data of an older snapshot: writes and purges that came after it are not in them."""
    await rig.aside(rig.redis.command, "SAVE")
    yield
    rig.redis.kill()
    await rig.aside(lambda: rig.redis.restart(empty=False))
    await asyncio.sleep(SEEN_BACK_S)


def _on(line: Callable[[Rig], FaultProxy], toxic: Callable[[], Toxic], direction: Direction) -> Break:
    @asynccontextmanager
    async def within(rig: Rig, _: History) -> AsyncIterator[None]:
        with line(rig).toxic(toxic(), direction):
            yield

    return within


def _redis(toxic: Callable[[], Toxic], direction: Direction = Direction.TO_CLIENT) -> Break:
    return _on(lambda rig: rig.redis_line, toxic, direction)


@asynccontextmanager
async def _emptied(rig: Rig, _: History) -> AsyncIterator[None]:
    await rig.aside(rig.redis.command, "FLUSHALL")
    yield


@asynccontextmanager
async def _full(rig: Rig, _: History) -> AsyncIterator[None]:
    await rig.aside(rig.redis.config_set, "maxmemory-policy", "noeviction")
    await rig.aside(rig.redis.config_set, "maxmemory", 1)
    try:
        yield
    finally:
        await rig.aside(rig.redis.config_set, "maxmemory", "64mb")
        await rig.aside(rig.redis.config_set, "maxmemory-policy", "allkeys-lru")


@asynccontextmanager
async def _paused(rig: Rig, _: History) -> AsyncIterator[None]:
    # Its end has to be said before, as the server then listens to nobody.
    await rig.aside(rig.redis.command, "CLIENT", "PAUSE", PAUSED_MS)
    yield
    await rig.aside(rig.redis.command, "PING")


@asynccontextmanager
async def _redis_resets(rig: Rig, _: History) -> AsyncIterator[None]:
    rig.redis_line.drop_connections(by_reset=True)
    with rig.redis_line.toxic(ResetPeer(after_bytes=2_000)):
        yield


# --- upstream ---------------------------------------------------------------------------------------------------------


def _vendor(rule: dict[str, Any], *vector_rules: dict[str, Any]) -> Break:
    """Both vendors by rules of the simulator's; half of all calls."""

    @asynccontextmanager
    async def within(rig: Rig, _: History) -> AsyncIterator[None]:
        await rig.aside(rig.sim.control, "PUT", "faults", [{"probability": 0.5, **rule}])
        await rig.aside(
            rig.sim.control, "PUT", "dashvector/faults", [{"probability": 0.5, **one} for one in vector_rules]
        )
        try:
            yield
        finally:
            await rig.clear_vendor()

    return within


@asynccontextmanager
async def _silent(rig: Rig, history: History) -> AsyncIterator[None]:
    """Each call that the vendor leaves unanswered is one client's trouble: others are told apart and go on."""
    allowances = history.spells[-1].allowances
    assert allowances is not None
    scope = [{"latency_ms": 90_000, "times": SILENT_CALLS, "path": form.path} for form in (NATIVE, COMPATIBLE)]
    vector = [
        {"wrong": "timeout", "times": SILENT_CALLS, "operation": "query_doc", "protocol": protocol}
        for protocol in PROTOCOLS
    ]
    await rig.aside(rig.sim.control, "PUT", "faults", scope)
    await rig.aside(rig.sim.control, "PUT", "dashvector/faults", vector)
    try:
        yield
    finally:
        native, compatible, *vectors = await rig.clear_vendor()
        applied = {"embedding": native, "compatible embedding": compatible, "vector read": sum(vectors)}
        allowances.subtract({kind: SILENT[kind] - count for kind, count in applied.items()})


@asynccontextmanager
async def _upstream_resets(rig: Rig, _: History) -> AsyncIterator[None]:
    lines = (rig.scope_line, rig.vector_line, rig.grpc_line)
    toxics = [(line, line.add(ResetPeer(after_bytes=20_000))) for line in lines]
    for line in lines:
        line.drop_connections(by_reset=True)
    try:
        yield
    finally:
        for line, toxic in toxics:
            line.remove(toxic)
            line.drop_connections(by_reset=True)


@asynccontextmanager
async def _upstream_slices(rig: Rig, _: History) -> AsyncIterator[None]:
    toxics = [(line, line.add(Slicer(200, 0.0005))) for line in (rig.scope_line, rig.vector_line, rig.grpc_line)]
    try:
        yield
    finally:
        for line, toxic in toxics:
            line.remove(toxic)


# --- processes, orders, clients ---------------------------------------------------------------------------------------


@asynccontextmanager
async def _worker_killed(rig: Rig, _: History) -> AsyncIterator[None]:
    proxy = rig.replicas[1].proxy
    pids = proxy.worker_pids()
    send_signal(pids[0], signal.SIGKILL)
    yield
    await wait_until(lambda: len(proxy.worker_pids()) == len(pids), 15.0, "a new worker")


@asynccontextmanager
async def _worker_hung(rig: Rig, _: History) -> AsyncIterator[None]:
    proxy = rig.replicas[1].proxy
    pids = proxy.worker_pids()
    send_signal(pids[0], signal.SIGSTOP)
    yield
    await wait_until(lambda: len(now := proxy.worker_pids()) == len(pids) and pids[0] not in now, 40.0, "a new worker")


@asynccontextmanager
async def _disk_full(rig: Rig, _: History) -> AsyncIterator[None]:
    """Of replica B's data and metrics; and its workers are replaced meanwhile, and once more when there is room."""
    proxy, disks = rig.replicas[1].proxy, rig.replicas[1].small_disks
    for disk in disks:
        small_disk.fill(proxy.pid, disk)
    await _reloaded(proxy)
    yield
    for disk in disks:
        small_disk.relieve(proxy.pid, disk)
    await _reloaded(proxy)


async def _reloaded(proxy: ProxyProcess) -> None:
    answer = await asyncio.to_thread(proxy.admin, "POST", "/v1/reload", {})
    if answer.status != 200 or answer.json()["workers"]["serving"] != WORKERS:
        raise RuntimeError(f"the reload was answered {answer.status} {answer.body!r}")


@asynccontextmanager
async def _rolled(rig: Rig, _: History) -> AsyncIterator[None]:
    """As an orchestrator does it: out of the load balancer, SIGTERM while calls are under way, back when ready."""
    await rig.aside(rig.sim.control, "PUT", "faults", [{"latency_ms": 400}])
    await rig.aside(rig.sim.control, "PUT", "dashvector/faults", [{"latency_ms": 400}])
    replica = rig.replicas[1]
    await asyncio.sleep(0.5)
    replica.is_serving = False
    await asyncio.sleep(0.1)  # what was sent to it has arrived
    restarting = asyncio.ensure_future(replica.restart())
    try:
        yield
    finally:
        await rig.clear_vendor()
        await restarting
        replica.is_serving = True


@asynccontextmanager
async def _bypassed(rig: Rig, history: History) -> AsyncIterator[None]:
    for replica in rig.replicas:
        await asyncio.to_thread(replica.proxy.mode, "bypass", reason="soak")
    history.bypassed_since_s = time.monotonic()
    yield
    history.bypassed_since_s = None
    for replica in rig.replicas:
        await asyncio.to_thread(replica.proxy.mode, "on")


@asynccontextmanager
async def _purged(rig: Rig, history: History) -> AsyncIterator[None]:
    answer = await asyncio.to_thread(rig.replicas[0].proxy.admin, "POST", "/v1/purge", {"all": True})
    if answer.status != 200:
        raise RuntimeError(f"the purge was answered {answer.status} {answer.body!r}")
    history.purged_s = time.monotonic()
    yield


@asynccontextmanager
async def _leaving(_: Rig, history: History) -> AsyncIterator[None]:
    history.are_leaving = True
    yield
    history.are_leaving = False


FAULTS = (
    Fault("Redis hung (SIGSTOP)", _hung, keeps_untold=True),
    Fault("Redis killed, back empty", _dead, keeps_untold=True),
    Fault("Redis in a black hole", _redis(BlackHole, Direction.BOTH), keeps_untold=True),
    Fault("Redis late by 300 ms", _redis(lambda: Latency(0.3, 0.1)), keeps_untold=True),
    Fault("Redis late by 20 ms", _redis(lambda: Latency(0.02, 0.01)), keeps_untold=True),
    Fault("Redis resets", _redis_resets, keeps_untold=True),
    Fault("Redis in slices of 7 bytes", _redis(lambda: Slicer(7)), keeps_untold=True),
    Fault("Redis paused (CLIENT PAUSE)", _paused, keeps_untold=True),
    Fault("Redis full (OOM)", _full, keeps_untold=True),
    Fault("Redis emptied (FLUSHALL)", _emptied),
    Fault("Redis failed over, connections open", _failed_over, keeps_untold=True),
    Fault("Redis set back (crash, older snapshot)", _set_back, keeps_untold=True),
    Fault("upstream 500", _vendor({"error": "internal"}, {"http_status": 500, "grpc_status": "INTERNAL"}), "vendor"),
    Fault(
        "upstream 429",
        _vendor({"error": "rate_quota"}, {"http_status": 429, "grpc_status": "RESOURCE_EXHAUSTED"}),
        "vendor",
    ),
    Fault("upstream errors in a 200", _vendor({"wrong": "code_in_200"}, {"code": -2994}), "vendor"),
    Fault(
        "upstream leaves items out",
        # After: over gRPC an empty message says success, and a write that was not executed must not say so.
        _vendor({"wrong": "drop_index"}, {"wrong": "empty_body", "stage": "after"}),
        "vendor",
    ),
    Fault("upstream late by 700 ms", _vendor({"latency_ms": 700}, {"latency_ms": 700})),
    Fault(
        "upstream ends in the middle",
        _vendor(
            {"wrong": "truncated_body"},
            {"wrong": "truncated_body", "stage": "after", "protocol": "http"},
            # Half of a message would come as a whole one over gRPC: wrong, not broken off.
            {"wrong": "disconnect", "stage": "after", "protocol": "grpc"},
        ),
        "upstream line",
    ),
    Fault(
        "upstream hangs up",
        _vendor({"wrong": "disconnect"}, {"wrong": "disconnect", "stage": "after"}),
        "upstream line",
    ),
    Fault(
        "upstream silent, a few calls",
        _silent,
        "silent call",
        allowances=SILENT,
    ),
    Fault("upstream resets", _upstream_resets, "upstream line"),
    Fault("upstream in slices", _upstream_slices),
    Fault("worker killed (SIGKILL)", _worker_killed, "worker killed", longest_s=1.0),
    Fault("worker hung (SIGSTOP)", _worker_hung, "worker hung", longest_s=1.0),
    Fault("replica restarted (SIGTERM)", _rolled),
    Fault("disk full", _disk_full),
    Fault("bypass on and off", _bypassed),
    Fault("purge of everything", _purged, longest_s=1.0),
    Fault("clients leave", _leaving),
)


class Deck:
    """Draws faults and plays them."""

    def __init__(self, rig: Rig, history: History, seed: int, only: str = "") -> None:
        self._rig, self._history = rig, history
        self._faults = [fault for fault in FAULTS if only in fault.name and self._can(fault)]
        self._chance = random.Random(f"faults:{seed}")
        self._left: list[Fault] = []

    def _can(self, fault: Fault) -> bool:
        return fault.enter is not _disk_full or bool(self._rig.replicas[1].small_disks)

    async def play(self, every_s: float, until_s: float) -> None:
        """A fault every so many seconds until monotonic *until_s*; the world is well when this returns."""
        next_s = time.monotonic() + every_s / 2
        while next_s + every_s / 2 < until_s:
            await asyncio.sleep(next_s - time.monotonic())
            if not self._left:
                self._left = self._chance.sample(self._faults, len(self._faults))
            await self.one(self._left.pop(), every_s)
            next_s = max(next_s + every_s, time.monotonic() + 1.0)

    async def one(self, fault: Fault, every_s: float) -> None:
        """This fault, from its beginning until everything about it is over."""
        lasts_s = self._chance.uniform(0.4, 1.0) * min(fault.longest_s, every_s / 2)
        trouble = Trouble(time.monotonic())
        if fault.keeps_untold:
            self._history.troubles.append(trouble)
        with self._history.spell(fault.name, fault.excuse, fault.allowances):
            async with fault.enter(self._rig, self._history):
                await asyncio.sleep(lasts_s)
        await self._settled(trouble)

    async def _settled(self, trouble: Trouble) -> None:
        await self._rig.wait_settled()
        trouble.settled_s = time.monotonic()


async def watch_untold(rig: Rig, history: History) -> None:
    """On a busy machine Redis can be too late for a write without any fault: that is a trouble too."""
    known = await rig.untold()
    while True:
        await asyncio.sleep(0.7)
        now = await rig.untold()
        if now > known and all(trouble.settled_s is not None for trouble in history.troubles):
            trouble = Trouble(time.monotonic() - 2.0)
            history.troubles.append(trouble)
            await rig.wait_settled()
            trouble.settled_s = time.monotonic()
        known = now
