"""
R11: restarts are quiet, and so are reloads.

Under load, over kept connections, connections of one request each, streams and gRPC: nobody sees an error when a
replica is restarted or takes up other settings, and a worker that is killed takes only its own connections along.
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.faults.restart_load import KINDS, Balancer, EchoVendor
from tests.faults.workload import HEADERS, PATH, question
from tests.support.child import send_signal
from tests.support.open_loop import Report
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient, RawResponse
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.vendor_sim import ProcessSim

NOTICE_S = 0.5
KERNEL_S = 0.05
"""Within this the kernel closes what a killed process had open."""
QUICK: dict[str, str] = {
    "DASHCACHE_LIMITS_NOTICE_S": str(NOTICE_S),
    "DASHCACHE_LIMITS_DRAIN_S": "10",
    "DASHCACHE_LIMITS_GRPC_CONNECTION_S": "2",
}
Record = Callable[[str, object], None]
"""pytest's ``record_property``."""

SECRET = "0123456789abcdef" * 4


@pytest.fixture
async def vendor() -> AsyncIterator[EchoVendor]:
    async with EchoVendor() as echo:
        yield echo


@pytest.fixture
def slow_sim(sim: ProcessSim) -> ProcessSim:
    """Misses and streams take a while, so that some are always under way."""
    sim.configure(latency_ms=50.0, frame_delay_ms=100.0)
    return sim


def options(sim: ProcessSim, vendor: EchoVendor, redis: RedisServer, **env: str) -> dict[str, Any]:
    return {
        "dashscope_url": sim.url,
        "dashvector_url": vendor.url,
        "dashvector_grpc_url": vendor.url,
        "redis_url": redis.url,
        "key_secret": SECRET,
        "workers": 2,
        "env": {**QUICK, **env},
    }


async def restarted(old: ProxyProcess, stack: contextlib.AsyncExitStack, **made: Any) -> ProxyProcess:
    """*old* stopped politely, and another one on its ports and its folder."""
    env = {
        **made["env"],
        "DASHCACHE_HTTP_LISTEN": f"127.0.0.1:{old.http_port}",
        "DASHCACHE_GRPC_LISTEN": old.grpc_address,
        "DASHCACHE_ADMIN_LISTEN": old.admin_address,
    }
    assert await asyncio.to_thread(old.stop) == 0
    return await stack.enter_async_context(ProxyProcess(**{**made, "env": env, "data_dir": old.data_dir}))


async def rolling(sim: ProcessSim, vendor: EchoVendor, redis: RedisServer, rate: float, rounds: int) -> Report:
    made = options(sim, vendor, redis)
    async with contextlib.AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(ProxyProcess(**made)) for _ in range(2)]
        balancer = await stack.enter_async_context(Balancer())
        replicas = [await balancer.add(proxy) for proxy in proxies]
        await balancer.warm_up()
        async with balancer.running(rate, rounds * 3.0) as running:
            for number in list(range(2)) * rounds:
                proxies[number] = await restarted(proxies[number], stack, **made)
                await wait_until(lambda: all(replica.is_ready for replica in replicas), 10.0, "both to be ready")
        assert running.report.errors == {}, running.report.summary()
        assert running.report.correct == running.report.count > 0
        return running.report


def figure(report: Report, what: str) -> str:
    return (
        f"{what}: {report.count} calls at {report.rate:g}/s, {sum(report.errors.values())} errors, "
        f"p99 {report.latency(99) * 1000:.0f} ms"
    )


async def test_r11_a_rolling_restart_of_two_replicas_is_not_noticed(
    slow_sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer, record_property: Record
) -> None:
    report = await rolling(slow_sim, vendor, redis_server, rate=50.0, rounds=1)
    record_property("figure", figure(report, "each of two replicas restarted once"))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_r11_many_rolling_restarts_are_not_noticed(
    slow_sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer, record_property: Record
) -> None:
    report = await rolling(slow_sim, vendor, redis_server, rate=200.0, rounds=8)
    record_property("figure", figure(report, "each of two replicas restarted 8 times"))


async def reloading(
    sim: ProcessSim,
    vendor: EchoVendor,
    redis: RedisServer,
    tmp: Path,
    *,
    rate: float,
    times: int,
    kinds: tuple[str, ...] = KINDS,
) -> Report:
    """Reload so often, each time as soon as the one before is answered, with other settings."""
    file = tmp / "mine.toml"
    file.write_text("cache_status_on_pass = false\n")
    made = options(sim, vendor, redis, DASHCACHE_CONFIG=str(file))
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(ProxyProcess(**made))
        balancer = await stack.enter_async_context(Balancer(kinds=kinds))
        await balancer.add(proxy)
        await balancer.warm_up()
        await asyncio.to_thread(proxy.mode, "on", reason="to be kept")
        async with balancer.running(rate, 2.0 * times) as running:
            before = set(proxy.worker_pids())
            for number in range(times):
                file.write_text(f"cache_status_on_pass = {'false' if number % 2 else 'true'}\n")
                answer = await asyncio.to_thread(proxy.admin, "POST", "/v1/reload", {})
                assert answer.status == 200, answer.body
                assert answer.json()["workers"] == {"serving": 2, "wanted": 2}
            await wait_until(lambda: len(proxy.worker_pids()) == 2, 30.0, "the old to end")
        assert not before & set(proxy.worker_pids())
        assert running.report.errors == {}, running.report.summary()
        assert running.report.correct == running.report.count > 0
        assert (await Balancer.passed(proxy)).startswith("dashcache; fwd=bypass") == bool(times % 2)
        assert [rule["reason"] for rule in proxy.modes()["rules"] if rule["source"] == "switched"] == ["to be kept"]
        return running.report


async def test_r11_reloads_in_a_row_under_load_are_not_noticed(
    slow_sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer, tmp_path: Path, record_property: Record
) -> None:
    report = await reloading(slow_sim, vendor, redis_server, tmp_path, rate=50.0, times=2)
    record_property("figure", figure(report, "2 reloads in a row"))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_r11_many_reloads_under_load_are_not_noticed(
    slow_sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer, tmp_path: Path, record_property: Record
) -> None:
    report = await reloading(slow_sim, vendor, redis_server, tmp_path, rate=200.0, times=12)
    record_property("figure", figure(report, "12 reloads in a row"))


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("alone",), ("dial",), ("call",)])
async def test_r11_nothing_of_one_kind_is_lost_by_a_reload(
    slow_sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    """Somebody is always in the queue of a worker that stops listening, shaking hands with it, or calling it."""
    await reloading(slow_sim, vendor, redis_server, tmp_path, rate=200.0, times=1, kinds=kinds)


async def test_r11_who_waits_in_the_queue_of_a_worker_is_answered_by_its_successor(
    sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer
) -> None:
    made = {**options(sim, vendor, redis_server), "workers": 1}
    async with ProxyProcess(**made) as proxy, Balancer() as balancer:
        await balancer.add(proxy)
        await balancer.warm_up()
        (old,) = proxy.worker_pids()
        send_signal(old, signal.SIGSTOP)
        clients = [await RawClient.connect(proxy.http_url) for _ in range(20)]
        asked = [asyncio.ensure_future(post(client, balancer.texts[0])) for client in clients]
        answer = await asyncio.to_thread(proxy.admin, "POST", "/v1/reload", {})
        assert answer.status == 200, answer.body
        assert [(await one).status for one in asked] == [200] * 20
        send_signal(old, signal.SIGCONT)
        for client in clients:
            await client.close()


async def test_r11_kept_connections_of_a_replaced_worker_may_bring_one_more_request(
    sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer
) -> None:
    made = {**options(sim, vendor, redis_server), "workers": 1}
    async with ProxyProcess(**made) as proxy, Balancer() as balancer:
        await balancer.add(proxy)
        await balancer.warm_up()
        (old,) = proxy.worker_pids()
        clients = [await RawClient.connect(proxy.http_url) for _ in range(20)]
        for client in clients:
            assert (await post(client, balancer.texts[0])).status == 200
        answer = await asyncio.to_thread(proxy.admin, "POST", "/v1/reload", {})
        assert answer.status == 200, answer.body
        answers = [await post(client, balancer.texts[0]) for client in clients[1:]]
        assert [answer.status for answer in answers] == [200] * 19
        assert answers[-1].header("Connection") == b"close"
        assert await clients[0].read_until_closed() == b""  # in the end those too that brought none
        assert not clients[0].was_reset
        await wait_until(lambda: old not in proxy.worker_pids(), 10.0, "the old worker to end")
        for client in clients:
            await client.close()


async def test_r11_a_stop_does_not_wait_for_connections_of_a_worker_that_was_replaced(
    sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer
) -> None:
    made = options(sim, vendor, redis_server, DASHCACHE_LIMITS_GRPC_CONNECTION_S="600", DASHCACHE_LIMITS_DRAIN_S="1")
    async with ProxyProcess(**{**made, "workers": 1}) as proxy, Balancer() as balancer:
        await balancer.add(proxy)
        await balancer.warm_up()
        (old,) = proxy.worker_pids()
        assert (await balancer.call(4)).correct
        assert (await asyncio.to_thread(proxy.admin, "POST", "/v1/reload", {})).status == 200
        assert (await balancer.call(4)).correct  # over the same connection, which is young
        assert old in proxy.worker_pids()
        began_s = time.monotonic()
        assert await asyncio.to_thread(proxy.stop) == 0
        assert time.monotonic() - began_s < 6
        assert not [line for line in proxy.logs if line["event"] == "worker_killed"]


async def test_r11_a_websocket_outlives_a_reload_until_draining_ends(redis_server: RedisServer) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    application = web.Application()
    application.router.add_get("/", echo)
    async with (
        TestServer(application) as server,
        ProxyProcess(
            dashscope_url=f"http://127.0.0.1:{server.port}",
            redis_url=redis_server.url,
            env={"DASHCACHE_LIMITS_DRAIN_S": "2"},
        ) as proxy,
        aiohttp.ClientSession() as session,
        session.ws_connect(proxy.http_url + "/") as line,
    ):
        assert (await asyncio.to_thread(proxy.admin, "POST", "/v1/reload", {})).status == 200
        await line.send_str("still there?")
        assert (await line.receive(5)).data == "still there?"
        told = await line.receive(10)
        assert (told.type, told.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.GOING_AWAY)


async def test_r11_readiness_fails_while_everything_is_still_answered(
    sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer
) -> None:
    made = options(sim, vendor, redis_server, DASHCACHE_LIMITS_NOTICE_S="60")
    async with ProxyProcess(**made) as proxy, Balancer() as balancer:
        await balancer.add(proxy)
        await balancer.warm_up()
        kept, unused = await RawClient.connect(proxy.http_url), await RawClient.connect(proxy.http_url)
        assert (await post(kept, balancer.texts[0])).header("Connection") is None
        send_signal(proxy.pid, signal.SIGTERM)
        await wait_until(lambda: not proxy.ready(), 10.0, "readiness to fail")
        assert proxy.admin("GET", "/healthz").status == 200
        for client in (kept, unused, await RawClient.connect(proxy.http_url)):
            answer = await post(client, balancer.texts[1])
            assert (answer.status, answer.header("Connection")) == (200, b"close")
            assert await client.read_until_closed() == b""
            assert not client.was_reset
            await client.close()
        assert (await balancer.call(4)).correct  # a gRPC call
        send_signal(proxy.pid, signal.SIGTERM)  # nobody balances here: do not wait for the notice
        assert await asyncio.to_thread(proxy.stop) == 0


async def test_r11_who_was_let_in_and_has_not_asked_yet_is_answered(
    sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer
) -> None:
    made = options(sim, vendor, redis_server, DASHCACHE_LIMITS_NOTICE_S="0")
    async with ProxyProcess(**made) as proxy, Balancer() as balancer:
        await balancer.add(proxy)
        await balancer.warm_up()
        idle, fresh = await RawClient.connect(proxy.http_url), await RawClient.connect(proxy.http_url)
        assert (await post(idle, balancer.texts[0])).status == 200
        # Under way when the ports close: it ends well.
        sim.configure(frame_delay_ms=300.0)
        seen = len(sim.requests)
        slow = asyncio.ensure_future(balancer.call(3))
        await wait_until(lambda: len(sim.requests) > seen, 5.0, "the stream to begin")
        send_signal(proxy.pid, signal.SIGTERM)
        await wait_until(lambda: is_refused(proxy), 5.0, "the port to be closed")
        answer = await post(fresh, balancer.texts[0])
        assert (answer.status, answer.header("Connection")) == (200, b"close")
        assert await idle.read_until_closed() == b""
        assert not idle.was_reset
        assert (await slow).correct
        assert await asyncio.to_thread(proxy.stop) == 0
        for client in (idle, fresh):
            await client.close()


async def test_r11_a_killed_worker_takes_only_its_own_connections_along(
    sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer
) -> None:
    made = options(sim, vendor, redis_server)
    async with ProxyProcess(**made) as proxy, Balancer(kinds=("alone",)) as balancer:
        await balancer.add(proxy)
        await balancer.warm_up()
        kept = [await RawClient.connect(proxy.http_url) for _ in range(40)]
        for client in kept:
            assert (await post(client, balancer.texts[0])).status == 200
        async with balancer.running(200.0, 2.0) as running:
            await running.until(0.5)
            killed_s = running.now_s
            os.kill(proxy.worker_pids()[0], signal.SIGKILL)
            dead_s = running.now_s + KERNEL_S
            await asyncio.to_thread(proxy.wait_log, "worker_ended")
            gone = [client for client in kept if await is_over(client)]
            left = [client for client in kept if client not in gone]
            for client in left:
                assert (await post(client, balancer.texts[1])).status == 200
        assert gone
        assert left
        failed = [sample for sample in running.report.samples if sample.outcome.error]
        # What was with it at that moment, however much a busy machine lets pile up; new connections wait for its
        # successor, or are the other's.
        for sample in failed:
            assert sample.started_s <= dead_s, (killed_s, dead_s, sample)
            assert sample.planned_s + sample.latency_s >= killed_s, (killed_s, dead_s, sample)
        for client in kept:
            await client.close()


async def test_r11_two_protocols_of_one_port_number_survive_a_reload(
    sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer
) -> None:
    """As with TLS, where vectors want 443 for both: each at its own address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    listen = {"DASHCACHE_HTTP_LISTEN": f"127.0.0.1:{number}", "DASHCACHE_GRPC_LISTEN": f"127.0.0.2:{number}"}
    made = {**options(sim, vendor, redis_server, **listen), "workers": 1}
    async with ProxyProcess(**made) as proxy, Balancer() as balancer:
        await balancer.add(proxy)
        await balancer.warm_up()
        before = proxy.worker_pids()
        assert (await asyncio.to_thread(proxy.admin, "POST", "/v1/reload", {})).status == 200
        await wait_until(lambda: not set(before) & set(proxy.worker_pids()), 20.0, "the old worker to end")
        client = await asyncio.wait_for(RawClient.connect(proxy.http_url), 5)
        assert (await post(client, balancer.texts[0])).status == 200
        assert (await balancer.call(4)).correct
        await client.close()


async def test_r11_a_signal_to_all_processes_is_one_to_the_supervisor(
    sim: ProcessSim, vendor: EchoVendor, redis_server: RedisServer
) -> None:
    """As service managers send it."""
    made = options(sim, vendor, redis_server, DASHCACHE_LIMITS_NOTICE_S="60")
    async with ProxyProcess(**made) as proxy, Balancer() as balancer:
        await balancer.add(proxy)
        await balancer.warm_up()
        workers = proxy.worker_pids()
        for pid in (*workers, proxy.pid):
            send_signal(pid, signal.SIGTERM)
        await wait_until(lambda: not proxy.ready(), 10.0, "readiness to fail")
        for _ in range(20):
            client = await asyncio.wait_for(RawClient.connect(proxy.http_url), 5)
            answer = await post(client, balancer.texts[1])
            assert (answer.status, answer.header("Connection")) == (200, b"close")
            await client.close()
        assert proxy.worker_pids() == workers
        send_signal(proxy.pid, signal.SIGTERM)  # nobody balances here: do not wait for the notice
        assert await asyncio.to_thread(proxy.stop) == 0


async def test_r11_a_client_that_takes_nothing_does_not_keep_a_worker_from_its_end(
    redis_server: RedisServer,
) -> None:
    """It is broken off when its time is over, and told of like any other; the worker is not killed half-way."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(bytes(65_536))
        return response

    application = web.Application()
    application.router.add_get("/", endless)
    env = {"DASHCACHE_LIMITS_DRAIN_S": "0"}
    async with (
        TestServer(application) as server,
        ProxyProcess(dashscope_url=f"http://127.0.0.1:{server.port}", redis_url=redis_server.url, env=env) as proxy,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.http_port, limit=1_024)
        writer.write(b"GET / HTTP/1.1\r\nHost: dashscope\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        # Nothing is read from now on: what the kernels hold fills up, and then the proxy waits.
        assert await asyncio.to_thread(proxy.stop, 15.0) == 0
        assert [line["state"] for line in proxy.logs if line["event"] == "request"] == ["pass"]
        writer.transport.abort()


async def post(client: RawClient, text: str) -> RawResponse:
    fields = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    return await client.request("POST", PATH, fields, question(text))


async def is_over(client: RawClient) -> bool:
    """Whether the other side has ended the connection by now."""
    try:
        return await client.read_until_closed(timeout=0.05) == b""
    except TimeoutError:
        return False


def is_refused(proxy: ProxyProcess) -> bool:
    try:
        socket.create_connection(("127.0.0.1", proxy.http_port), timeout=0.05).close()
    except ConnectionRefusedError:
        return True
    except TimeoutError:  # a knock that is dropped, so that nobody is left in the queue
        return False
    return False
