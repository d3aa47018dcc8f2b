"""Each toxic does what it says, in its direction only, to open connections as to new ones, and stops when removed."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support import answers, toxics
from tests.support.fault_proxy import Direction, FaultProxy
from tests.support.ports import PortReservation
from tests.support.raw_client import IncompleteResponseError, RawClient, ask
from tests.support.raw_upstream import RawUpstream
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


@dataclass
class EchoServer:
    """Sends back what comes, and remembers the pieces in which it came."""

    proxy: FaultProxy
    pieces: list[bytes] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    @property
    def received(self) -> bytes:
        return b"".join(self.pieces)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1_000_000):
                self.pieces.append(data)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.ends.append(time.monotonic())
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[EchoServer]:
    with_port = PortReservation()
    async with FaultProxy(with_port.port) as proxy:
        echo = EchoServer(proxy)
        server = await asyncio.start_server(echo.serve, sock=with_port.listen(), limit=1_000_000)
        yield echo
        await proxy.down()
        server.close()
        await server.wait_closed()
    with_port.close()


@pytest.fixture
async def client(echo) -> AsyncIterator[RawClient]:
    async with await RawClient.connect(echo.proxy.port) as client:
        await exchange(client, b"hello")
        yield client


async def exchange(client: RawClient, data: bytes, expected: bytes | None = None) -> float:
    """Send, read as much back, and return how long that took."""
    started = time.monotonic()
    await client.send(data)
    wanted = data if expected is None else expected
    assert await asyncio.wait_for(client.reader.readexactly(len(wanted)), 10) == wanted
    return time.monotonic() - started


async def test_without_toxics_it_is_only_a_line(echo, client):
    data = bytes(range(256)) * 20_000
    await exchange(client, data)
    client.half_close()
    assert await client.read_until_closed() == b""
    assert not client.was_reset
    assert echo.received == b"hello" + data
    await echo.proxy.wait_connections(0)


@pytest.mark.parametrize("direction", list(Direction))
async def test_latency_delays_each_way_it_is_on(echo, client, direction):
    with echo.proxy.toxic(toxics.Latency(0.2), direction):
        took = await exchange(client, b"x")
    expected = 0.4 if direction is Direction.BOTH else 0.2
    assert expected <= took < expected + 0.19
    assert await exchange(client, b"x") < 0.19


async def test_latency_costs_time_but_not_throughput(echo, client):
    with echo.proxy.toxic(toxics.Latency(0.1)):
        started = time.monotonic()
        for _ in range(10):
            await client.send(b"x")
            await asyncio.sleep(0.01)  # so that they arrive one by one
        await client.reader.readexactly(10)
    assert time.monotonic() - started < 0.7


async def test_jitter_varies_and_keeps_the_order(echo, client):
    with echo.proxy.toxic(toxics.Latency(0.03, jitter_s=0.03)):
        times = [await exchange(client, bytes([i])) for i in range(10)]
        await exchange(client, bytes(range(200)))
    assert max(times) - min(times) > 0.01


async def test_bandwidth_is_a_rate(echo, client):
    with echo.proxy.toxic(toxics.Bandwidth(100_000)):
        took = await exchange(client, b"x" * 30_000)
    assert 0.29 <= took < 1


async def test_bandwidth_holds_the_sender_back(echo, client):
    with echo.proxy.toxic(toxics.Bandwidth(1), Direction.TO_TARGET):
        client.writer.write(b"x" * 50_000_000)
        await wait_until(lambda: client.writer.transport.get_write_buffer_size() > 1_000_000, what="a full buffer")
        client.abort()


async def test_the_slicer_cuts_into_small_pieces(echo, client):
    echo.pieces.clear()
    with echo.proxy.toxic(toxics.Slicer(2, delay_s=0.002), Direction.TO_TARGET):
        await exchange(client, b"0123456789")
    assert len(echo.pieces) >= 3
    assert max(map(len, echo.pieces)) < 10
    assert echo.received == b"0123456789"


async def test_limit_data_ends_the_line_in_an_orderly_way(echo, client):
    echo.proxy.add(toxics.LimitData(5))
    await client.send(b"0123")
    assert await client.reader.readexactly(4) == b"0123"
    await client.send(b"456789")
    assert await client.read_until_closed() == b"4"
    assert not client.was_reset


async def test_reset_peer_breaks_the_line_in_the_middle(echo, client):
    echo.proxy.add(toxics.ResetPeer(after_bytes=3))
    await client.send(b"0123456789")
    assert await client.read_until_closed() == b"012"
    assert client.was_reset


async def test_reset_peer_acts_on_new_connections_each_for_itself(echo):
    echo.proxy.add(toxics.ResetPeer(), Direction.TO_TARGET)
    for _ in range(2):
        async with await RawClient.connect(echo.proxy.port) as client:
            await client.send(b"x")
            assert await client.read_until_closed() == b""
            assert client.was_reset
    assert echo.received == b""


async def test_a_black_hole_swallows_and_ends_what_it_spoiled(echo, client):
    async with await RawClient.connect(echo.proxy.port) as untouched:
        await exchange(untouched, b"x")
        hole = echo.proxy.add(toxics.BlackHole())
        await client.send(b"lost")
        await wait_until(lambda: echo.received.endswith(b"lost"), what="the request to arrive")
        with pytest.raises(TimeoutError):
            await client.read_until_closed(timeout=0.05)
        echo.proxy.remove(hole)
        assert await client.read_until_closed() == b""
        await exchange(untouched, b"y")


async def test_a_black_hole_towards_the_target_accepts_even_if_there_is_none():
    nobody = PortReservation()
    async with FaultProxy(nobody.port) as proxy:
        hole = proxy.add(toxics.BlackHole(), Direction.BOTH)
        async with await RawClient.connect(proxy.port) as client:
            await client.send(b"x")
            with pytest.raises(TimeoutError):
                await client.read_until_closed(timeout=0.05)
            proxy.remove(hole)
            assert await client.read_until_closed() == b""
        async with await RawClient.connect(proxy.port) as client:
            assert await client.read_until_closed() == b""
            assert client.was_reset
    nobody.close()


async def test_slow_close_delays_only_the_end(echo, client):
    with echo.proxy.toxic(toxics.SlowClose(0.1), Direction.TO_TARGET):
        await exchange(client, b"x")
        closed = time.monotonic()
        client.half_close()
        assert await client.read_until_closed() == b""
        assert echo.ends[-1] - closed >= 0.1


async def test_garbage_replaces_what_arrives(echo, client):
    with echo.proxy.toxic(toxics.Garbage(b"!?", skip=1)):
        await exchange(client, b"first")
        await exchange(client, b"second", b"!?")
    await exchange(client, b"third")


async def test_toxics_add_up(echo, client):
    echo.proxy.add(toxics.Latency(0.05))
    echo.proxy.add(toxics.Slicer(1))
    echo.proxy.add(toxics.LimitData(2))
    started = time.monotonic()
    await client.send(b"0123456789")
    assert await client.read_until_closed() == b"01"
    assert time.monotonic() - started >= 0.05
    echo.proxy.clear()
    async with await RawClient.connect(echo.proxy.port) as fresh:
        await exchange(fresh, b"0123")


async def test_down_refuses_and_breaks_and_up_is_the_same_port(echo, client):
    port = echo.proxy.port
    await echo.proxy.down()
    assert await client.read_until_closed() == b""
    with pytest.raises(ConnectionRefusedError):
        await RawClient.connect(port)
    await echo.proxy.up()
    async with await RawClient.connect(port) as fresh:
        await exchange(fresh, b"x")


@pytest.mark.parametrize("by_reset", [False, True])
async def test_connections_can_be_dropped_even_inside_a_black_hole(echo, client, by_reset):
    echo.proxy.add(toxics.BlackHole(), Direction.BOTH)
    await client.send(b"lost")
    echo.proxy.drop_connections(by_reset=by_reset)
    assert await client.read_until_closed() == b""
    if by_reset:
        assert client.was_reset
    await echo.proxy.wait_connections(0)


async def test_lines_that_are_ended_are_no_errors_of_the_rigs(echo, client):
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    for by_reset in (False, True):
        async with await RawClient.connect(echo.proxy.port) as other:
            await exchange(other, b"x")
            echo.proxy.drop_connections(by_reset=by_reset)
            await echo.proxy.wait_connections(0)
    await asyncio.sleep(0)
    assert told == []


async def test_who_leaves_with_a_reset_is_seen_to_leave_by_the_target(echo, client):
    client.abort()
    await wait_until(lambda: echo.ends, what="the target to see it")
    await echo.proxy.wait_connections(0)


async def test_an_upstreams_reset_reaches_the_client_after_the_bytes_before_it():
    script = answers.truncated(b"0123456789", 4, by_reset=True)
    async with RawUpstream(script) as upstream, FaultProxy(upstream.url) as proxy:
        with pytest.raises(IncompleteResponseError) as caught:
            await ask(proxy.instead_of(upstream.url + "/base"), "GET", "/")
    assert caught.value.partial.body == b"0123"
    assert "reset" in str(caught.value)


@pytest.mark.parametrize("unix_socket", [False, True])
async def test_redis_behind_it_by_tcp_or_socket(unix_socket):
    with RedisServer(tcp=not unix_socket, unix_socket=unix_socket, password="pw") as server:
        async with FaultProxy(server.url) as proxy:
            url = proxy.instead_of(server.url)
            assert url == f"redis://:pw@127.0.0.1:{proxy.port}/0"
            options = {"socket_timeout": 0.1, "retry": Retry(NoBackoff(), 0)}
            async with redis.asyncio.Redis.from_url(url, **options) as client:
                assert await client.set("a", b"1")
                with proxy.toxic(toxics.Latency(0.2)), pytest.raises(redis.TimeoutError):
                    await client.get("a")
                with (
                    proxy.toxic(toxics.Garbage(b"-LOADING Redis is loading\r\n")),
                    pytest.raises(redis.BusyLoadingError),
                ):
                    await client.get("a")
                await proxy.down()
                with pytest.raises(redis.ConnectionError):
                    await client.get("a")
                await proxy.up()
                assert await client.get("a") == b"1"


def test_only_loopback_can_be_a_target():
    with pytest.raises(ValueError, match="loopback"):
        FaultProxy("http://example.com:80")
