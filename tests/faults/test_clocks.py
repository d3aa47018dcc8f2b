"""R16: setting the date changes nothing. In this process, because the date of a machine is not a test's to set."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from benchmarks.inprocess import serving
from proxy.core.ports import Clock
from proxy.settings.model import Breaker, Lifetimes, Memory, Redis, Settings
from tests.faults.observed import stored
from tests.faults.redis_tap import RedisTap
from tests.faults.workload import Workload
from tests.support.clock import FakeClock
from tests.support.redis_server import RedisServer
from tests.vendor_sim import ProcessSim

HOUR_S = 3600.0


@contextlib.asynccontextmanager
async def _worker(settings: Settings, redis_url: str, clock: Clock) -> AsyncIterator[Workload]:
    async with serving(settings, redis_url, clock) as (port, _, _), Workload(f"http://127.0.0.1:{port}") as load:
        yield load


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S], ids=["forward", "back"])
async def test_r16_the_breaker_keeps_its_time(step_s: float, redis_server: RedisServer, sim: ProcessSim) -> None:
    clock = FakeClock(wall_unix_s=time.time())
    settings = Settings(
        dashscope_url=sim.url,
        redis=Redis(deadline_ms=300),
        breaker=Breaker(fail_max=1, reset_s=10.0),
        memory=Memory(max_bytes=0),
    )
    async with (
        RedisTap(redis_server.url) as tap,
        _worker(settings, tap.instead_of(redis_server.url), Clock(clock.monotonic, clock.wall)) as load,
    ):
        redis_server.hang()
        assert (await load.ask("opens it")).is_right
        redis_server.resume()
        seen = tap.asked

        clock.step_wall(step_s)
        clock.advance(9.9)
        assert (await load.ask("too early")).is_right
        assert tap.asked == seen

        clock.step_wall(step_s)
        clock.advance(0.2)
        assert (await load.ask("in time")).is_right
        assert tap.asked > seen


@dataclass
class _SteppedClock:
    """The machine's clocks, of which the wall clock was set."""

    step_s: float = 0.0

    def wall(self) -> float:
        return time.time() + self.step_s


@pytest.mark.parametrize("memory_bytes", [0, 2**20], ids=["redis", "memory"])
@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S], ids=["forward", "back"])
async def test_r16_no_entry_outlives_its_lifetime(
    step_s: float, memory_bytes: int, redis_server: RedisServer, sim: ProcessSim
) -> None:
    stepped = _SteppedClock()
    settings = Settings(
        dashscope_url=sim.url,
        redis=Redis(deadline_ms=2000),
        memory=Memory(max_bytes=memory_bytes, max_age_s=60.0),
        lifetimes=Lifetimes(embedding_s=1.0, jitter=0.0),
    )
    async with _worker(settings, redis_server.url, Clock(time.monotonic, stepped.wall)) as load:
        assert (await load.ask("lives a second")).is_right
        await stored(redis_server, 1)
        stepped.step_s = step_s
        assert (await load.ask("filled meanwhile")).is_right
        await asyncio.sleep(1.1)  # the lifetime itself has to pass, whatever the dates say
        # Its lifetime has passed, whatever the date: set since it was stored, or set right since.
        for text, now_step_s in (("lives a second", step_s), ("filled meanwhile", 0.0)):
            stepped.step_s = now_step_s
            reply = await load.ask(text)
            assert reply.is_right
            assert not reply.is_cached, reply.cache_status
