"""R6a at its hardest: hundreds of identical requests are the very first that fresh workers see, on few cores."""

import os
from collections.abc import Callable

import pytest

from tests.faults.flock import ask_all, is_right
from tests.faults.observed import redis_failures
from tests.scenario.telling import native, telling
from tests.support import answers
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_upstream import RawUpstream
from tests.support.redis_server import RedisServer

ROUNDS = int(os.environ.get("DASHCACHE_TEST_ROUNDS", "30"))
CLIENTS, WORKERS = 500, 2
LATENCY_S = 0.5
SECRET = "one secret for all rounds: another one would not be let into the same Redis"
# A crowd that takes this machine a few seconds to be served is no flight that hangs.
PATIENT = {"DASHCACHE_FLIGHTS_LOCK_S": "60"}


def shared_connections(redis: RedisServer) -> int:
    """How many connections have been used for scripts, which is what workers do on theirs before there are requests."""
    return redis.command("CLIENT", "LIST").decode().count("cmd=eval")


async def test_r14_a_worker_that_serves_is_connected(redis_server: RedisServer) -> None:
    async with (
        RawUpstream(telling()) as upstream,
        ProxyProcess(
            dashscope_url=upstream.url,
            redis_url=redis_server.url,
            workers=WORKERS,
            env={"DASHCACHE_REDIS_DEADLINE_MS": "3000"},
        ),
    ):
        assert shared_connections(redis_server) == 2 * WORKERS


async def once(redis: RedisServer, text: str) -> tuple[int, int]:
    """All ask for *text*: how often the upstream was called, how many operations of Redis are said to have failed."""
    async with (
        RawUpstream(answers.after(LATENCY_S, telling())) as upstream,
        ProxyProcess(
            dashscope_url=upstream.url, redis_url=redis.url, key_secret=SECRET, workers=WORKERS, env=PATIENT
        ) as proxy,
    ):
        bodies = [native(text)] * CLIENTS
        responses = await ask_all(bodies, proxy.http_port)
        assert all(map(is_right, responses, bodies))
        failures = await redis_failures(proxy)
        return len(upstream.requests), sum(failures.values())


@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * ROUNDS)
async def test_r6a_500_at_once_to_fresh_workers(
    redis_server: RedisServer, record_property: Callable[[str, object], None]
) -> None:
    """``DASHCACHE_TEST_ROUNDS`` says how often."""
    rounds = [await once(redis_server, f"cold {number}") for number in range(ROUNDS)]
    calls, failures = [calls for calls, _ in rounds], [failures for _, failures in rounds]
    record_property(
        "figure",
        f"{CLIENTS} at once to {WORKERS} fresh workers, {ROUNDS} times, a deadline of 50 ms: "
        f"at most {max(calls)} call, {sum(failures)} failures of Redis counted",
    )
    assert set(calls) == {1}, calls
    assert set(failures) == {0}, failures
