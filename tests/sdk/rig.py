"""
One simulator, one Redis and one proxy for a module of SDK tests, and the comparison that they all make.

A test asks its question three times: straight at the vendor, through the proxy before it knows the answer, and through
the proxy when it does. The results must be equal, and the third must not have reached the vendor.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.vendor_sim.runner import ThreadSim, sim_thread
from tests.vendor_sim.settings import SimSettings


@dataclass(frozen=True)
class Rig:
    """What the SDKs talk to."""

    sim: ThreadSim
    proxy: ProxyProcess

    @property
    def urls(self) -> tuple[str, str]:
        """The vendor's address and the proxy's."""
        return self.sim.url, self.proxy.http_url

    def calls(self) -> int:
        """How many requests the vendor has seen."""
        return len(self.sim.requests)

    def three_ways(self, ask: Callable[[str], Any], *, is_cached: bool = True) -> list[Any]:
        """What *ask* returns at the vendor, at the cold proxy, at the warm one: all equal, the last without a call."""
        direct = ask(self.sim.url)
        cold = ask(self.proxy.http_url)
        before = self.calls()
        warm = ask(self.proxy.http_url)
        assert cold == direct
        assert warm == direct
        assert self.calls() - before == (0 if is_cached else 1)
        return [direct, cold, warm]


@contextmanager
def serving(settings: SimSettings | None = None, **env: str) -> Iterator[Rig]:
    """A rig; a busy machine's pauses are no trouble with Redis, so its deadline is a long one."""
    with (
        sim_thread(settings) as sim,
        RedisServer() as redis,
        ProxyProcess(
            dashscope_url=sim.url, redis_url=redis.url, env={"DASHCACHE_REDIS_DEADLINE_MS": "2000", **env}
        ) as proxy,
    ):
        yield Rig(sim, proxy)
