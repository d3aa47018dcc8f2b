"""R21: one budget of bytes for all that is held before it is answered, whatever strangers leave unfinished."""

import asyncio
import base64
import contextlib
import functools
import hashlib
import io
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from pathlib import Path

import aiohttp
import grpc.aio
import pytest

from tests.support import answers, http2, wire
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient
from tests.support.raw_upstream import RawUpstream
from tests.support.waiting import wait_until

Record = Callable[[str, object], None]
MIB = 2**20
BLOCK = bytes(256 * 1024)
EMBEDDINGS = b"/api/v1/services/embeddings/text-embedding/text-embedding"
QUERY = b"/proxima.dashvector.proto.DashVectorService/query_doc"
OK = b'{"output":{"embeddings":[{"text_index":0,"embedding":[0.5]}]},"usage":{"total_tokens":1},"request_id":"r"}'
TEXT = b'{"model":"text-embedding-v4","input":{"texts":["small"]}}'
KEYED = [(b"Host", b"a"), (b"Authorization", b"Bearer k"), (b"Content-Type", b"application/json")]


class Rig:
    """A proxy of one worker with a budget, and an upstream that answers texts."""

    def __init__(self, proxy: ProxyProcess, upstream: RawUpstream, budget: int) -> None:
        self.proxy = proxy
        self.upstream = upstream
        self.budget = budget
        self.taken: list[int] = []
        """Bytes that came across a WebSocket, in their pieces."""

    def rss_bytes(self, field: str = "VmRSS:") -> int:
        (pid,) = self.proxy.worker_pids()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    def forget_peak(self) -> None:
        (pid,) = self.proxy.worker_pids()
        Path(f"/proc/{pid}/clear_refs").write_text("5")

    def held_bytes(self) -> float:
        (line,) = (line for line in self.proxy.metrics().splitlines() if line.startswith("dashcache_held_bytes "))
        return float(line.split()[1])

    async def hit(self) -> None:
        async with await RawClient.connect(self.proxy.http_port) as client:
            response = await client.post(EMBEDDINGS.decode(), TEXT, [(b"Authorization", b"Bearer k")])
        assert response.status == 200, response


class Drop(asyncio.Protocol):
    """Bytes that it is sent are counted in *taken* and not kept; *before* is told of the end."""

    def __init__(self, before: asyncio.BaseProtocol, taken: list[int]) -> None:
        self._before = before
        self._taken = taken
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._taken.append(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._before.connection_lost(exc)
        self.ended.set_result(None)


async def switch(taken: list[int], asked: wire.Head, writer: asyncio.StreamWriter) -> bool:
    """An upstream that speaks WebSocket, where it is asked to, and listens."""
    if asked.get("Upgrade") is None:
        return False
    key = (asked.get("Sec-WebSocket-Key") or b"") + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key, usedforsecurity=False).digest())
    lines = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Accept", accept)]
    writer.write(wire.head_bytes(b"HTTP/1.1 101 Switching Protocols", lines))
    drop = Drop(writer.transport.get_protocol(), taken)
    writer.transport.set_protocol(drop)
    await drop.ended
    return True


@contextlib.asynccontextmanager
async def running(budget: int, **limits: str) -> AsyncIterator[Rig]:
    env = {f"DASHCACHE_LIMITS_{name}": value for name, value in {"HELD_BYTES": str(budget), **limits}.items()}
    async with (
        RawUpstream(answers.respond_json(OK)) as upstream,
        ProxyProcess(
            dashscope_url=upstream.url,
            dashvector_url=upstream.url,
            dashvector_grpc_url=upstream.url,
            env=env,
        ) as proxy,
    ):
        rig = Rig(proxy, upstream, budget)
        upstream.on_head = functools.partial(switch, rig.taken)
        for _ in range(3):
            await rig.hit()
        yield rig


# --- what strangers leave unfinished; each sends until it has sent all or is turned away ------------------------------


async def pour(client: RawClient, opening: bytes, size: int, piece: bytes = BLOCK) -> None:
    """*opening*, then *size* bytes, or as many as are taken; then silence, and what comes back is read."""

    async def read() -> None:
        with contextlib.suppress(OSError):
            while await client.reader.read(65536):
                pass

    reading = asyncio.ensure_future(read())
    try:
        with contextlib.suppress(OSError):
            await client.send(opening)
            for _ in range(size // len(piece)):
                if reading.done():
                    return
                await client.send(piece)
            await reading
    finally:
        reading.cancel()
        client.abort()


async def body(rig: Rig, size: int) -> None:
    """Of a request that is to be keyed, all but its end."""
    client = await RawClient.connect(rig.proxy.http_port)
    head = wire.head_bytes(b"POST " + EMBEDDINGS + b" HTTP/1.1", [*KEYED, (b"Content-Length", b"%d" % (size + 1))])
    await pour(client, head, size)


async def head(rig: Rig, size: int) -> None:
    """Lines of 60,000 bytes, without an end."""
    client = await RawClient.connect(rig.proxy.http_port)
    await pour(client, b"GET /x HTTP/1.1\r\nHost: a\r\n", size, b"X-Long: " + b"x" * 60_000 + b"\r\n")


async def socket(rig: Rig, size: int) -> None:
    """A WebSocket message that lacks its end; asked for again where the upstream double was too busy to switch."""
    lines = [(b"Host", b"a"), (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    ours = [(b"Sec-WebSocket-Version", b"13"), (b"Sec-WebSocket-Key", base64.b64encode(bytes(16)))]
    opening = (
        wire.head_bytes(b"GET /ws HTTP/1.1", [*lines, *ours]) + b"\x82\xff" + (size + 1).to_bytes(8, "big") + bytes(4)
    )
    while not rig.taken:
        await pour(await RawClient.connect(rig.proxy.http_port), opening, size)
        await asyncio.sleep(0)


async def calls(rig: Rig, count: int, size: int) -> None:
    """So many gRPC calls over one connection, each with a message that lacks its end."""
    client = await RawClient.connect(int(rig.proxy.grpc_address.rpartition(":")[2]))
    update = (2**31 - 2**16 - 1).to_bytes(4, "big")
    opening = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, b"") + http2.frame(http2.WINDOW_UPDATE, 0, 0, update)
    streams = range(1, 2 * count, 2)
    for stream in streams:
        opening += http2.frame(http2.HEADERS, http2.END_HEADERS, stream, http2.grpc_head(QUERY))
        opening += http2.frame(http2.DATA, 0, stream, b"\0" + (size + 1).to_bytes(4, "big"))
    await client.send(opening)
    windows: dict[int, int] = dict.fromkeys((0, *streams), 65_535)
    left = dict.fromkeys(streams, size)

    async def read() -> None:
        buffer = b""
        while data := await client.reader.read(65536):
            buffer += data
            while len(buffer) >= 9 and len(buffer) >= 9 + (length := int.from_bytes(buffer[:3], "big")):
                kind, stream = buffer[3], int.from_bytes(buffer[5:9], "big")
                if kind == http2.WINDOW_UPDATE and stream in windows:
                    windows[stream] += int.from_bytes(buffer[9:13], "big")
                if kind in (http2.RESET, http2.HEADERS):  # the call has ended
                    left.pop(stream, None)
                buffer = buffer[9 + length :]

    reading = asyncio.ensure_future(read())
    try:
        with contextlib.suppress(OSError):
            while left and not reading.done():
                for stream in tuple(left):
                    room = min(windows[0], windows[stream], 16_384, left[stream])
                    if room > 0:
                        windows[0] -= room
                        windows[stream] -= room
                        left[stream] -= room
                        await client.send(http2.frame(http2.DATA, 0, stream, bytes(room)))
                await asyncio.sleep(0)
            await reading
    finally:
        reading.cancel()
        client.abort()


KINDS: dict[str, Callable[[Rig, int], list[Coroutine[None, None, None]]]] = {
    "bodies": lambda rig, scale: [body(rig, scale * MIB) for _ in range(200)],
    "heads": lambda rig, scale: [head(rig, 4 * scale * MIB) for _ in range(40)],
    "sockets": lambda rig, scale: [socket(rig, 200 * scale * MIB)],
    "calls": lambda rig, scale: [calls(rig, 4, 30 * scale * MIB) for _ in range(2)],
}
"""By kind, what the attack has, in parts of so many MiB."""


async def strangers(rig: Rig, kinds: Iterable[str], scale: int, seconds: float, record: Record) -> None:
    rig.forget_peak()
    before = rig.rss_bytes()
    tasks = [asyncio.ensure_future(each) for kind in kinds for each in KINDS[kind](rig, scale)]
    hits, slowest_s, ends_s = 0, 0.0, time.monotonic() + seconds
    try:
        while time.monotonic() < ends_s:
            began_s = time.monotonic()
            await rig.hit()
            hits, slowest_s = hits + 1, max(slowest_s, time.monotonic() - began_s)
            await asyncio.sleep(0.01)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in ended} <= {type(None), asyncio.CancelledError}
    grown = (rig.rss_bytes("VmHWM:") - before) / MIB
    record(
        "figure",
        f"unfinished {', '.join(kinds)} for {seconds:.0f} s: {grown:.0f} MiB more at "
        f"a budget of {rig.budget // MIB} MiB; {hits} hits beside, none later than {slowest_s * 1000:.0f} ms",
    )
    assert grown <= rig.budget / MIB + 64
    assert ("sockets" in kinds) == (sum(rig.taken) > 64 * MIB)


ALONE = [pytest.param([kind], marks=pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kinds", [*ALONE, list(KINDS)], ids="-".join)
async def test_r21_what_is_unfinished_has_one_budget(kinds: list[str], record_property: Record) -> None:
    async with running(32 * MIB) as rig:
        await strangers(rig, kinds, 1, 3, record_property)
        await rig.hit()


async def refusal(rig: Rig, size: int) -> grpc.StatusCode:
    """How a call with a message of *size* bytes ends; the upstream speaks no gRPC."""
    async with grpc.aio.insecure_channel(rig.proxy.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(QUERY.decode())(bytes(size))
    return refused.value.code()


async def test_r21_what_finds_no_room_is_told_so_and_what_is_small_does_not_notice() -> None:
    text = b'{"model":"text-embedding-v4","input":{"texts":["%b"]}}' % (b"x" * MIB)
    lines = {"Authorization": "Bearer k", "Content-Type": "application/json"}
    async with running(3 * MIB) as rig, aiohttp.ClientSession(rig.proxy.http_url, headers=lines) as session:

        async def ask() -> tuple[int, str | None]:
            async with session.post(EMBEDDINGS.decode(), data=io.BytesIO(text)) as response:
                await response.read()
                return response.status, response.headers.get("X-Dashcache-Error")

        async def is_told(status: int, error: str | None) -> bool:
            return await ask() == (status, error)

        assert await is_told(200, None)
        strangers = [asyncio.ensure_future(body(rig, MIB - len(BLOCK))) for _ in range(2)]
        await wait_until(lambda: rig.held_bytes() > 2 * (MIB - len(BLOCK)) - 16_384)
        assert await is_told(503, "TooMuchHeld")
        await rig.hit()
        assert await refusal(rig, MIB) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await refusal(rig, 1_024) is not grpc.StatusCode.RESOURCE_EXHAUSTED
        for stranger in strangers:
            stranger.cancel()
        await asyncio.gather(*strangers, return_exceptions=True)
        await wait_until(lambda: is_told(200, None))
        await wait_until(lambda: not rig.held_bytes())


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_r21_what_is_unfinished_has_one_budget_for_a_minute(record_property: Record) -> None:
    async with running(256 * MIB) as rig:
        await strangers(rig, KINDS, 4, 60, record_property)
