"""R21: no stranger can hold what others need: slots of an upstream."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Callable

import pytest

from tests.scenario.wire_rig import WireRig, wire_rig
from tests.support import answers, wire
from tests.support.raw_client import RawClient
from tests.support.waiting import wait_until

Record = Callable[[str, object], None]
EMBEDDINGS = "/api/v1/services/embeddings/text-embedding/text-embedding"
VENDOR_S = 0.2
OK = b'{"output":{"embeddings":[{"text_index":0,"embedding":[0.5]}]},"usage":{"total_tokens":1},"request_id":"r"}'


def head(target: bytes, *framing: tuple[bytes, bytes]) -> bytes:
    return wire.head_bytes(b"POST " + target + b" HTTP/1.1", [(b"Host", b"a"), *framing])


DRIPPERS = {
    "short, to be passed": head(b"/api/v1/other", (b"Content-Length", b"500")),
    "short, to be keyed": head(EMBEDDINGS.encode(), (b"Content-Length", b"500")),
    "a write": head(b"/v1/collections/c/docs", (b"Content-Length", b"500")),
    "long": head(b"/api/v1/other", (b"Content-Length", b"900000")),
    "chunked": head(b"/api/v1/other", (b"Transfer-Encoding", b"chunked")),
    "expecting": head(b"/api/v1/other", (b"Content-Length", b"500"), (b"Expect", b"100-continue")),
}
"""Heads without a credential, of bodies that do not come to their end."""


@contextlib.asynccontextmanager
async def dripping(rig: WireRig, count: int) -> AsyncIterator[None]:
    """So many connections, of all kinds, that go on sending a byte now and then."""
    heads = list(DRIPPERS.values())
    clients = [await rig.client() for _ in range(count)]

    async def drip(client: RawClient, opening: bytes) -> None:
        piece = b"1\r\n \r\n" if b"chunked" in opening else b" "
        with contextlib.suppress(ConnectionError):
            await client.send(opening + piece)
            while True:
                await asyncio.sleep(0.5)
                await client.send(piece)

    drips = [asyncio.ensure_future(drip(client, heads[at % len(heads)])) for at, client in enumerate(clients)]
    try:
        yield
    finally:
        for drip_ in drips:
            drip_.cancel()
        await asyncio.gather(*drips, return_exceptions=True)
        for client in clients:
            client.abort()


async def miss(client: RawClient, text: str) -> float:
    """How long a text that nobody knows takes."""
    body = b'{"model":"text-embedding-v4","input":{"texts":["%b"]}}' % text.encode()
    began_s = time.monotonic()
    response = await client.post(EMBEDDINGS, body, [(b"Authorization", b"Bearer k")])
    assert response.status == 200, response
    return time.monotonic() - began_s


async def misses(rig: WireRig, count: int, name: str) -> list[float]:
    async with await rig.client() as client:
        return [await miss(client, f"{name} {number}") for number in range(count)]


async def strangers_drip(connections: int, inflight: int, count: int, record: Record) -> None:
    async with wire_rig(DASHCACHE_UPSTREAM_MAX_INFLIGHT=str(inflight)) as rig:
        rig.upstream.answer = answers.after(VENDOR_S, answers.respond_json(OK))
        alone = await misses(rig, count, "alone")
        async with dripping(rig, connections):
            long_ones = (connections // len(DRIPPERS)) * 2
            taken = min(long_ones, inflight * 3 // 4)
            await wait_until(lambda: rig.upstream.connections_open >= taken, what="the uploads to begin")
            beside = await misses(rig, count, "beside")
    alone_s, beside_s = statistics.median(alone), statistics.median(beside)
    record("figure", f"{connections} strangers that drip, {inflight} slots: a miss takes {beside_s * 1000:.0f} ms, "
           f"alone {alone_s * 1000:.0f} ms")  # fmt: skip
    assert beside_s <= 2 * alone_s


async def test_r21_strangers_that_drip_bodies_hold_no_slot_that_others_need(record_property: Record) -> None:
    await strangers_drip(60, 8, 5, record_property)


@pytest.mark.slow
async def test_r21_210_strangers_that_drip_bodies(record_property: Record) -> None:
    await strangers_drip(210, 200, 40, record_property)


@pytest.mark.parametrize("kind", DRIPPERS)
async def test_r21_each_kind_of_dripping_body_leaves_a_slot(kind: str) -> None:
    """With four slots, eight of one kind."""
    async with wire_rig(DASHCACHE_UPSTREAM_MAX_INFLIGHT="4") as rig:
        rig.upstream.answer = answers.respond_json(OK)
        clients = [await rig.client() for _ in range(8)]
        for client in clients:
            await client.send(DRIPPERS[kind] + (b"1\r\n \r\n" if kind == "chunked" else b" "))
        for text in ("one", "two", "three"):
            assert await misses(rig, 1, text)
        for client in clients:
            client.abort()
