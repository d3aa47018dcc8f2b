"""R9: memory is bounded, whatever one side sends and the other does not take, and however many names there are."""

import asyncio
import os
import time

import pytest

from tests.scenario.wire_rig import WireRig, wire_rig
from tests.support import answers, wire
from tests.support.raw_client import RawClient, request_bytes
from tests.support.recorded import RecordedRequest

MIB = 2**20
RATE = 10 * 1024
EMBEDDINGS = "/api/v1/services/embeddings/text-embedding/text-embedding"
BLOCK = os.urandom(65536)


async def settled(rig: WireRig) -> int:
    """What is resident once buffers and code paths are there."""
    rig.upstream.answer = answers.respond(bytes(MIB))
    async with await rig.client() as client:
        for _ in range(3):
            await client.request("POST", "/x", body=bytes(MIB))
    await rig.renew()
    rig.forget_peak()
    return rig.rss_bytes()


def grown(rig: WireRig, before: int) -> float:
    growth = (rig.rss_bytes(peak=True) - before) / MIB
    print(f"{growth:.1f} MiB more")
    return growth


async def read_slowly(client: RawClient, seconds: float) -> int:
    """10 KiB a second for so long; how much came."""
    began, taken = time.monotonic(), 0
    while (passed_s := time.monotonic() - began) < seconds:
        if taken < passed_s * RATE:
            data = await client.reader.read(1024)
            assert data, "the connection ended"
            taken += len(data)
        else:
            await asyncio.sleep(0.05)
    return taken


async def trickle_down(seconds: float) -> None:
    size = 200 * MIB

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.head_bytes(b"HTTP/1.1 200 OK", [(b"Content-Length", b"%d" % size)]))
        for _ in range(size // len(BLOCK)):
            writer.write(BLOCK)
            await writer.drain()

    async with wire_rig() as rig:
        before = await settled(rig)
        rig.upstream.answer = answer
        async with await RawClient.connect(rig.proxy.http_port, read_buffer=4096) as client:
            await client.send(request_bytes("GET", "/x"))
            taken = await read_slowly(client, seconds)
            assert grown(rig, before) <= 16
            while taken < size and (data := await client.reader.read(MIB)):
                taken += len(data)
            assert taken >= size
        assert grown(rig, before) <= 16


async def test_r9_a_long_answer_and_a_slow_reader() -> None:
    await trickle_down(4)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_r9_a_slow_reader_is_no_idle_one() -> None:
    """The kernels between the two take megabytes at a time, so that nothing moves for a while; a minute must do."""
    await trickle_down(100)


async def test_r9_a_long_upload_and_a_slow_upstream() -> None:
    size = 100 * MIB
    may_hurry = asyncio.Event()

    async def read_head_slowly(head: wire.Head, writer: asyncio.StreamWriter) -> bool:
        transport = writer.transport
        for _ in range(20):  # takes what there is, twenty times in two seconds
            transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(0.1)
            transport.resume_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        may_hurry.set()
        return False

    async with wire_rig() as rig:
        before = await settled(rig)
        rig.upstream.on_head = read_head_slowly
        async with await rig.client() as client:
            head = wire.head_bytes(b"POST /x HTTP/1.1", [(b"Host", b"a"), (b"Content-Length", b"%d" % size)])
            await client.send(head)

            async def send_all() -> None:
                for _ in range(size // len(BLOCK)):
                    await client.send(BLOCK)

            sending = asyncio.ensure_future(send_all())
            await asyncio.wait_for(may_hurry.wait(), 20)
            assert grown(rig, before) <= 16
            await sending
            assert (await client.read_response(method="POST", timeout=30)).status == 200
        assert len(rig.only_request().body) == size
        assert grown(rig, before) <= 16


def series(text: str) -> set[str]:
    return {line.rpartition(" ")[0] for line in text.splitlines() if line and not line.startswith("#")}


async def names(count: int) -> None:
    """Paths, models and header names that were never seen before, over one connection."""
    async with wire_rig() as rig:
        rig.upstream.answer = answers.respond(b"{}")
        async with await rig.client() as client:

            async def ask(number: int) -> None:
                await client.request("GET", f"/path/{number}?q={number}", [(b"X-Name-%d" % number, b"v")])
                body = b'{"model":"model-%d","input":{"texts":["t"]}}' % number
                response = await client.post(EMBEDDINGS, body, [(b"Authorization", b"Bearer %d" % number)])
                assert response.status == 200

            for number in range(300):
                await ask(number)
            before_series = series(await asyncio.to_thread(rig.proxy.metrics))
            rig.forget_peak()
            before = rig.rss_bytes()
            for number in range(300, 300 + count):
                await ask(number)
            rig.forget()
            assert series(await asyncio.to_thread(rig.proxy.metrics)) == before_series
            assert grown(rig, before) <= 16
            assert len(before_series) < 2000


async def test_r9_names_are_not_gathered() -> None:
    await names(1500)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_r9_two_hundred_thousand_names_are_not_gathered() -> None:
    await names(100_000)
