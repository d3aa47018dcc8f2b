"""The benchmark of Redis clients still runs, with those that are always installed."""

import pytest

from benchmarks import redis_clients


@pytest.mark.parametrize("name", [name for name in redis_clients.CLIENTS if name not in ("coredis", "valkey-glide")])
async def test_each_client_gets_what_it_asks_for(redis_server, name):
    for key in redis_clients.KEYS:
        redis_server.client.set(key, bytes(redis_clients.VALUE_BYTES))
    async with redis_clients.CLIENTS[name](redis_server.port) as get:
        cpu_s, wall_s = await redis_clients._round(get, 4 * redis_clients.AT_ONCE)
        assert cpu_s > 0
        assert wall_s > 0
        assert await get(b"absent") is None
