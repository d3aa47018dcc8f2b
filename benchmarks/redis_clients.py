"""
What a read from Redis costs in this process, by client: processor time per GET of 4 KB, 64 of them at any time.

One redis-server, each client in a process of its own on uvloop. Time is the process's, all threads, per command, of
the middle round. Clients that are not installed are left out: ``pip install coredis valkey-glide`` for all of them.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import uvloop
from redis.asyncio import Redis
from redis.asyncio.connection import DefaultParser

from proxy.cache.redis.breaker import Guard
from proxy.cache.redis.commands import values
from proxy.cache.redis.pipe import Pipe
from proxy.cache.redis.tier import FAILURES, RedisTier
from proxy.runtime.tasks import Tasks
from tests.support.redis_server import RedisServer

Get = Callable[[bytes], Awaitable[bytes | None]]

KEYS = [b"bench:%d" % number for number in range(200)]
VALUE_BYTES, AT_ONCE, GETS, DEADLINE_S = 4096, 64, 20_000, 5.0


@contextlib.asynccontextmanager
async def redis_py_pool(port: int) -> AsyncIterator[Get]:
    """A connection for each command that is under way."""
    client = Redis(port=port, max_connections=AT_ONCE)
    yield client.get
    await client.aclose()


@contextlib.asynccontextmanager
async def redis_py_guarded(port: int) -> AsyncIterator[Get]:
    """The same behind the breaker, with a task and a deadline for each command: how the tier did it before."""
    client, guard = Redis(port=port, max_connections=AT_ONCE), _guard()
    yield lambda key: guard.run(lambda: client.get(key))
    await client.aclose()


@contextlib.asynccontextmanager
async def coredis(port: int) -> AsyncIterator[Get]:
    import coredis  # noqa: PLC0415

    async with coredis.Redis(port=port) as client:
        yield client.get


@contextlib.asynccontextmanager
async def valkey_glide(port: int) -> AsyncIterator[Get]:
    import glide  # noqa: PLC0415

    client = await glide.GlideClient.create(
        glide.GlideClientConfiguration([glide.NodeAddress("127.0.0.1", port)], request_timeout=int(DEADLINE_S * 1000))
    )
    yield client.get
    await client.close()


@contextlib.asynccontextmanager
async def pipe(port: int) -> AsyncIterator[Get]:
    """``proxy.cache.redis.pipe`` alone."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    line = Pipe(
        writer,
        deadline_s=DEADLINE_S,
        parse_error=DefaultParser(1).parse_error,
        judge=lambda error: error,
        ended=lambda _mark, _error: None,
    )

    async def get(key: bytes) -> bytes | None:
        reply = await line.ask(values([key]), 0)
        assert isinstance(reply, list)
        return reply[0]

    yield get
    await line.close()


@contextlib.asynccontextmanager
async def tier(port: int) -> AsyncIterator[Get]:
    """The tier as a hit uses it: names made, two values (the other is the credential's standing), and the breaker."""
    redis = RedisTier(
        f"redis://127.0.0.1:{port}/0",
        prefix="bench",
        deadline_s=DEADLINE_S,
        max_connections=AT_ONCE,
        guard=_guard(),
        on_rejected=_no_failure,
    )
    await redis.write([(key, bytes(VALUE_BYTES), 600_000) for key in KEYS])

    async def get(key: bytes) -> bytes | None:
        reply = await redis.read([key], b"owner")
        assert reply is not None
        return reply[0][0]

    yield get
    await redis.close()


Client = Callable[[int], AbstractAsyncContextManager[Get]]
CLIENTS: dict[str, Client] = {
    "redis-py, pool": redis_py_pool,
    "redis-py, pool, behind the breaker": redis_py_guarded,
    "coredis": coredis,
    "valkey-glide": valkey_glide,
    "pipe": pipe,
    "pipe in the tier, behind the breaker, two values": tier,
}


def _guard() -> Guard:
    return Guard(
        fail_max=5,
        reset_s=2.0,
        deadline_s=DEADLINE_S,
        failures=FAILURES,
        tasks=Tasks(_no_failure),
        on_change=_no_failure,
        on_failure=_no_failure,
    )


def _no_failure(*told: object) -> None:
    raise AssertionError(told)


async def _round(get: Get, gets: int) -> tuple[float, float]:
    """Processor time and time of the clock per command, in seconds."""

    async def some(first: int) -> None:
        for number in range(gets // AT_ONCE):
            value = await get(KEYS[(first + number) % len(KEYS)])
            assert value is not None
            assert len(value) == VALUE_BYTES

    began, began_cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(some(first) for first in range(AT_ONCE)))
    return time.process_time() - began_cpu, time.perf_counter() - began


def _measure(name: str, port: int, rounds: int, gets: int, out: "multiprocessing.connection.Connection") -> None:
    async def measure() -> list[tuple[float, float]]:
        async with CLIENTS[name](port) as get:
            await _round(get, gets // 4)  # connect, and let caches of the interpreter fill
            return [await _round(get, gets) for _ in range(rounds)]

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            out.send(runner.run(measure()))
    except ImportError:
        out.send(None)


def _in_a_process(name: str, port: int, rounds: int, gets: int) -> list[tuple[float, float]] | None:
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_measure, args=(name, port, rounds, gets, there))
    process.start()
    there.close()
    try:
        measured: list[tuple[float, float]] | None = here.recv()
    finally:
        process.join()
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gets", type=int, default=GETS)
    options = parser.parse_args()
    with RedisServer() as server:
        for key in KEYS:
            server.client.set(key, os.urandom(VALUE_BYTES))
        print("| client | processor µs per GET, median [least-most] | GETs a second, median |")
        print("|---|---|---|")
        for name in CLIENTS:
            measured = _in_a_process(name, server.port, options.rounds, options.gets)
            if measured is None:
                print(f"| {name} | not installed | |")
                continue
            done = options.gets // AT_ONCE * AT_ONCE
            cpu = sorted(cpu_s / done * 1e6 for cpu_s, _ in measured)
            rate = done / statistics.median(wall_s for _, wall_s in measured)
            print(f"| {name} | {statistics.median(cpu):.1f} [{cpu[0]:.1f}-{cpu[-1]:.1f}] | {rate:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
