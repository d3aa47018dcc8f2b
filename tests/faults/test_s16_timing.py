"""
S16: what one tenant has asked for tells another nothing, not by the time that an answer takes either (Gu et al. 2025).

500 probes by B of texts that A has asked for, 500 of texts that nobody has, interleaved; two-sample Kolmogorov-Smirnov.
A true difference shows each time. Chance shows in one of a hundred tests, so that one is asked twice more: three in a
row are chance once in a million.
"""

import bisect
import math
import random
import time
from collections.abc import Sequence

import pytest

from tests.scenario.telling import NATIVE, bearer, heard, native, telling, told
from tests.support import answers
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient
from tests.support.raw_upstream import RawUpstream
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

PROBES = 500
LEAST_P = 0.01
TRIES = 3
UPSTREAM_S = 0.003
KNOWN, UNKNOWN = "asked for by A", "asked for by nobody"


def ks_p(left: Sequence[float], right: Sequence[float]) -> float:
    """How probable a distance as large as that between two samples is, if they are of one distribution (asymptotic)."""
    left, right = sorted(left), sorted(right)
    places = sorted({*left, *right})
    distance = max(
        abs(bisect.bisect_right(left, place) / len(left) - bisect.bisect_right(right, place) / len(right))
        for place in places
    )
    root = math.sqrt(len(left) * len(right) / (len(left) + len(right)))
    at = (root + 0.12 + 0.11 / root) * distance
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (at * k) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, sum(terms))) if at > 0.2 else 1.0


def test_the_statistic_tells_what_is_different_from_what_is_not() -> None:
    chance = random.Random(16)
    same = [[chance.gauss(5, 1) for _ in range(PROBES)] for _ in range(2)]
    assert ks_p(*same) > LEAST_P
    assert ks_p(same[0], [value + 0.5 for value in same[1]]) < 1e-6
    assert ks_p([1.0] * 50, [1.0] * 50) == 1.0
    # Of equal distributions, p is below 0.05 in about one of twenty.
    pairs = [[[chance.random() for _ in range(100)] for _ in range(2)] for _ in range(400)]
    assert 5 <= sum(ks_p(*pair) < 0.05 for pair in pairs) <= 40


async def probes(client: RawClient, lines, texts: Sequence[tuple[str, str]]) -> dict[str, list[float]]:
    """Seconds that each text took, by its kind."""
    found: dict[str, list[float]] = {}
    for kind, text in texts:
        body = native(text)
        started_s = time.perf_counter()
        response = await client.request("POST", NATIVE, lines, body)
        found.setdefault(kind, []).append(time.perf_counter() - started_s)
        assert heard(response) == told(NATIVE, lines, body)
    return found


def texts(prefix: str, seed: int) -> list[tuple[str, str]]:
    """Both kinds in a random order, so that whatever the machine does meanwhile happens to both; equally long."""
    both = [(kind, f"{prefix} {kind[-1]} {number:04}") for number in range(PROBES) for kind in (KNOWN, UNKNOWN)]
    random.Random(seed).shuffle(both)
    return both


async def test_s16_what_another_tenant_has_costs_a_call_as_anything_else_does(redis_server: RedisServer) -> None:
    """Both ways are timed at the same work: one call each, and answers that differ in nothing but the text's own."""
    async with (
        RawUpstream(telling()) as upstream,
        ProxyProcess(dashscope_url=upstream.url, redis_url=redis_server.url) as proxy,
        await RawClient.connect(proxy.http_port) as client,
    ):
        await client.request("POST", NATIVE, bearer("sk-a"), native(KNOWN))
        await wait_until(lambda: redis_server.count_entries() == 1, what="A's entry")
        lines = []
        for text in (KNOWN, UNKNOWN):
            response = await client.request("POST", NATIVE, bearer("sk-b"), native(text))
            lines.append([name for name, _ in response.head.headers])
            assert heard(response) == told(NATIVE, bearer("sk-b"), native(text))
            assert b"hit" not in (response.header("Cache-Status") or b"")
        assert lines[0] == lines[1]
        assert [request.body for request in upstream.requests][1:] == [native(KNOWN), native(UNKNOWN)]


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["memory", "Redis"])
async def test_s16_hits_of_one_tenant_tell_another_nothing(
    tier: str, redis_server: RedisServer, record_property
) -> None:
    tenant_a, tenant_b = bearer("sk-a"), bearer("sk-b")
    env = {"DASHCACHE_REDIS_DEADLINE_MS": "2000", "DASHCACHE_MEMORY_MAX_BYTES": str(2**26 if tier == "memory" else 0)}
    async with (
        RawUpstream(answers.after(UPSTREAM_S, telling())) as upstream,
        ProxyProcess(dashscope_url=upstream.url, redis_url=redis_server.url, env=env) as proxy,
        await RawClient.connect(proxy.http_port) as client,
    ):
        seen_p: list[float] = []
        for attempt in range(TRIES):
            tried = texts(f"try {attempt}", attempt)
            before = redis_server.count_entries()
            for start in range(0, len(tried), 10):
                batch = [text for kind, text in tried[start : start + 10] if kind == KNOWN]
                if batch:
                    await client.request("POST", NATIVE, tenant_a, native(*batch))
            await wait_until(
                lambda: redis_server.count_entries() == before + PROBES,  # noqa: B023
                10.0,
                "A's entries",
            )
            own = [(kind, text) for kind, text in tried if kind == KNOWN][:50]
            hits_s = (await probes(client, tenant_a, own))[KNOWN]
            took_s = await probes(client, tenant_b, tried)
            assert ks_p(hits_s, took_s[UNKNOWN]) < 1e-6, "A's own hits are told: there is something to be found out"
            seen_p.append(ks_p(took_s[KNOWN], took_s[UNKNOWN]))
            if seen_p[-1] > LEAST_P:
                break
        asked = sum(b"sk-b" in request.raw for request in upstream.requests)
        assert asked == 2 * PROBES * len(seen_p), "every probe of B's went upstream"
    assert seen_p[-1] > LEAST_P, seen_p
    record_property("figure", f"{PROBES} + {PROBES} probes, {tier}: p = {', '.join(f'{p:.3f}' for p in seen_p)}")
