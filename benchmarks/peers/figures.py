"""The figures of the comparison: what stands over what, and the target that it has."""

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Figure:
    """One line of the table; *better* tells on which side of *target* it should be."""

    name: str
    target: float
    better: Better
    unit: str = ""

    def is_met(self, value: float) -> bool:
        """Whether *value* is on the right side."""
        return value >= self.target if self.better == "higher" else value <= self.target


REPEAT = Figure("repeat hit ÷ nginx proxy_cache", 1.0, "higher")
PARSED = Figure("hit in memory, bytes never seen ÷ bare aiohttp (read, hash, dict)", 0.7, "higher")
REDIS_NGINX = Figure("hit in Redis ÷ nginx + Lua + Redis", 0.7, "higher")
REDIS_BARE = Figure("hit in Redis ÷ bare aiohttp + pipelined hiredis, straight write", 0.6, "higher")
P99_MEMORY = Figure("p99 of a hit in memory at 1 connection ÷ nginx + Lua + Redis", 0.8, "lower")
P99_REDIS = Figure("p99 of a hit in Redis at 1 connection ÷ nginx + Lua + Redis", 1.5, "lower")
LITELLM = Figure("repeat hit ÷ LiteLLM, cached in its memory", 200, "higher")
TEN = Figure("batch of 10, all hit ÷ bare aiohttp sending the same bytes", 0.6, "higher")
NINE = Figure("batch of 10, 9 hit: time ÷ direct call for the missing one, 50 ms upstream", 1.05, "lower")
MISS_P50 = Figure("miss: p50 added to a direct call", 0.6, "lower", "ms")
MISS_P99 = Figure("miss: p99 added to a direct call", 2.0, "lower", "ms")
PASS_SMALL = Figure("plain pass-through, small bodies ÷ nginx as reverse proxy", 0.25, "higher")
PASS_LARGE = Figure("plain pass-through, 10 MB bodies ÷ nginx as reverse proxy", 0.6, "higher")
GRPC = Figure("gRPC hit ÷ bare grpc.aio server with the same answer", 0.8, "higher")
WORKERS = Figure("2 workers ÷ 1 worker", 1.9, "higher")
CROWD = Figure("p99 with 1,000 idle and 256 busy connections ÷ with 64", 5.0, "lower")
REDIS_BYTES = Figure("Redis bytes per 1,024-number embedding, key and all", 4_300, "lower", "bytes")
RESIDENT = Figure("resident memory of a worker, memory tier off", 90, "lower", "MiB")

ALL = (
    REPEAT,
    PARSED,
    REDIS_NGINX,
    REDIS_BARE,
    P99_MEMORY,
    P99_REDIS,
    LITELLM,
    TEN,
    NINE,
    MISS_P50,
    MISS_P99,
    PASS_SMALL,
    PASS_LARGE,
    GRPC,
    WORKERS,
    CROWD,
    REDIS_BYTES,
    RESIDENT,
)

NEED_CORES = (REDIS_NGINX, REDIS_BARE, PASS_SMALL, PASS_LARGE, GRPC, WORKERS, CROWD)
"""Means little where wrk shares a core with Redis and the upstream: what shares it is measured along."""
