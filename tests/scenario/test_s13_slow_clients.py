"""S13: slow clients cost little. Each kind is closed after its time, and the others do not notice."""

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from tests.scenario.wire_rig import WireRig, wire_rig
from tests.support import answers, wire
from tests.support.gate import Gate
from tests.support.open_loop import Outcome, Report, run_open_loop
from tests.support.raw_client import IncompleteResponseError, RawClient, RawResponse, request_bytes
from tests.support.recorded import RecordedRequest
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 2**20
PATIENCE_S = 0.6
EMBEDDINGS = b"/api/v1/services/embeddings/text-embedding/text-embedding"
KEYED = [(b"Host", b"a"), (b"Authorization", b"Bearer k"), (b"Content-Type", b"application/json")]


def patience(seconds: float, **others: str) -> dict[str, str]:
    limits = {f"LIMITS_{name}": str(seconds) for name in ("HEADER_WAIT_S", "BODY_IDLE_S", "WRITE_IDLE_S")}
    return {f"DASHCACHE_{name}": value for name, value in {**limits, **others}.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient() -> AsyncIterator[WireRig]:
    async with wire_rig(**patience(PATIENCE_S, LIMITS_BODY_BYTES_PER_S="10")) as rig:
        yield rig


@pytest_asyncio.fixture(loop_scope="module")
async def rig(impatient: WireRig) -> AsyncIterator[WireRig]:
    await impatient.renew()
    yield impatient
    assert not impatient.upstream.failures


async def ended(rig: WireRig, reason: str) -> float:
    text = await asyncio.to_thread(rig.proxy.metrics)
    found = re.search(rf'^dashcache_connections_ended_total{{reason="{reason}"}} (\S+)$', text, re.MULTILINE)
    assert found, text
    return float(found.group(1))


def unfinished(body: bytes = b"{", target: bytes = EMBEDDINGS, length: int | None = 100) -> bytes:
    """A POST whose body does not come to its end."""
    framing = (b"Transfer-Encoding", b"chunked") if length is None else (b"Content-Length", b"%d" % length)
    return wire.head_bytes(b"POST " + target + b" HTTP/1.1", [*KEYED, framing]) + body


async def slow_reader(port: int, window: int = 4096) -> RawClient:
    """Asks, and reads nothing: its window is shut soon."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    line.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(line, ("127.0.0.1", port))
    reader = wire.PatientReader(limit=4096)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.create_connection(lambda: protocol, sock=line)
    client = RawClient(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
    transport.pause_reading()
    await client.send(request_bytes("GET", "/large"))
    return client


def large(size: int = 24 * MIB) -> answers.Answer:
    """An answer that fits into no buffer, written as fast as it is taken."""
    block = bytes(65536)

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.head_bytes(b"HTTP/1.1 200 OK", [(b"Content-Length", b"%d" % size)]))
        for _ in range(size // len(block)):
            writer.write(block)
            await writer.drain()

    return answer


# --- heads ------------------------------------------------------------------------------------------------------------


async def test_a_connection_that_says_nothing_ends(rig: WireRig) -> None:
    before = await ended(rig, "RequestTimeout")
    async with await rig.client() as client:
        assert await client.read_until_closed() == b""
    assert await ended(rig, "RequestTimeout") == before + 1


@pytest.mark.parametrize("after_a_request", [False, True])
async def test_half_a_head_ends_however_busily_it_drips(rig: WireRig, after_a_request: bool) -> None:
    async with await rig.client() as client:
        if after_a_request:
            assert (await client.request("GET", "/x")).status == 200
        closed = asyncio.ensure_future(client.read_until_closed())
        await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\nX: ")
        with contextlib.suppress(ConnectionError):
            while not closed.done():
                await client.send(b"x")
                await asyncio.sleep(0.02)
        assert await closed == b""
    assert len(rig.upstream.requests) == after_a_request


async def test_between_two_requests_a_connection_is_left_alone(rig: WireRig) -> None:
    async with await rig.client() as kept, await rig.client() as silent:
        assert (await kept.request("GET", "/x")).status == 200
        async with await rig.client() as later:  # whose time begins when the other's has run long already
            await silent.read_until_closed()
            await later.read_until_closed()
        assert (await kept.request("GET", "/x")).status == 200


# --- bodies -----------------------------------------------------------------------------------------------------------


def told_too_slow(response: RawResponse) -> bool:
    return (response.status, response.header("X-Dashcache-Error"), response.header("Connection")) == (
        408,
        b"RequestTimeout",
        b"close",
    )


@pytest.mark.parametrize("target", [EMBEDDINGS, b"/upload"])
@pytest.mark.parametrize("framing", ["length", "chunks", "no chunk", "half a chunk size", "trailers"])
async def test_half_a_body_is_told_and_closed(rig: WireRig, target: bytes, framing: str) -> None:
    body = {"length": b"{", "chunks": b"1\r\n{\r\n", "no chunk": b"", "half a chunk size": b"1"}.get(
        framing, b"1\r\n{\r\n0\r\nX: y\r\n"
    )
    async with await rig.client() as client:
        await client.send(unfinished(body, target, 100 if framing == "length" else None))
        response = await client.read_response()
        assert told_too_slow(response), response
        assert await client.read_until_closed(timeout=5) == b""
    await wait_until(lambda: rig.upstream.connections_open == 0, what="the upstream to be let go")
    assert not rig.upstream.requests
    line = rig.proxy.wait_log(
        event="request", detail="RequestTimeout", request_id=response.header("X-Request-Id").decode()
    )
    assert (line["state"], line["status"]) == ("refused", 408)


async def test_a_body_that_keeps_coming_is_waited_for(rig: WireRig) -> None:
    async with await rig.client() as client, await rig.client() as silent:
        await client.send(unfinished(b"", b"/upload", 60))
        for _ in range(60):  # three times what silence may last
            await client.send(b"x")
            await asyncio.sleep(PATIENCE_S / 20)
        assert (await client.read_response(method="POST")).status == 200
        assert await silent.read_until_closed() == b""


@pytest.mark.parametrize("target", [EMBEDDINGS, b"/upload"])
@pytest.mark.parametrize(("setting", "value"), [("BODY_BYTES_PER_S", "1000"), ("BODY_WAIT_S", "0.5")])
async def test_s13_a_body_that_drips_is_told_and_closed(target: bytes, setting: str, value: str) -> None:
    """However steadily: below the least rate, or longer than all the time that there is."""
    options = {f"DASHCACHE_LIMITS_{setting}": value, "DASHCACHE_LIMITS_BODY_IDLE_S": "0.4"}
    if setting == "BODY_WAIT_S":
        options["DASHCACHE_LIMITS_BODY_BYTES_PER_S"] = "0"
    async with wire_rig(**options) as rig, await rig.client() as client:
        await client.send(unfinished(b"", target, 100_000))
        answer = asyncio.ensure_future(client.read_response(method="POST"))
        while not answer.done():
            with contextlib.suppress(ConnectionError):
                await client.send(b" ")
            await asyncio.sleep(0.02)
        assert told_too_slow(await answer), answer
        assert not rig.upstream.requests


async def test_a_client_is_not_blamed_for_an_upstream_that_does_not_read(rig: WireRig) -> None:
    held = Gate("upload")

    async def hold(head: wire.Head, writer: asyncio.StreamWriter) -> bool:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await held.wait()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        return False

    rig.upstream.on_head = hold
    async with await rig.client() as client:
        head = wire.head_bytes(b"POST /x HTTP/1.1", [(b"Host", b"a"), (b"Content-Length", b"%d" % (32 * MIB))])
        sending = asyncio.ensure_future(client.send(head + bytes(32 * MIB)))
        await held.wait_arrived()
        for _ in range(2):  # more than its time goes by
            async with await rig.client() as silent:
                await silent.read_until_closed()
        held.open()
        await sending
        assert (await client.read_response(method="POST", timeout=30)).status == 200


async def test_an_answer_that_began_before_the_body_ended_goes_on_and_so_does_the_body(rig: WireRig) -> None:
    async def early(head: wire.Head, writer: asyncio.StreamWriter) -> bool:
        writer.write(wire.head_bytes(b"HTTP/1.1 200 OK", [(b"Transfer-Encoding", b"chunked")]) + wire.chunk(b"early"))
        return False

    rig.upstream.on_head = early
    rig.upstream.answer = answers.raw(wire.chunk(b"late"), b"0\r\n\r\n")
    async with await rig.client() as client:
        await client.send(unfinished(b"{", b"/duplex", 100_000))  # a short one is sent on when it is here
        await client.reader.readuntil(b"early\r\n")
        for _ in range(2):  # longer than a body may be silent while there is no answer
            async with await rig.client() as silent:
                await silent.read_until_closed()
        await client.send(b"}" * 99_999)
        async with asyncio.timeout(5):
            assert await client.reader.readuntil(b"0\r\n\r\n") == b"4\r\nlate\r\n0\r\n\r\n"
    assert rig.only_request().body == b"{" + b"}" * 99_999


# --- readers ----------------------------------------------------------------------------------------------------------


async def test_a_reader_that_reads_nothing_is_broken_off(rig: WireRig) -> None:
    rig.upstream.answer = large()
    before = await ended(rig, "ClientTooSlow")
    client = await slow_reader(rig.proxy.http_port)
    line = await asyncio.to_thread(rig.proxy.wait_log, "request", 15, after=0, detail="ClientTooSlow")
    assert line["client_gone"]
    await rig.upstream.wait_closed()
    assert await ended(rig, "ClientTooSlow") == before + 1
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    with pytest.raises(IncompleteResponseError):
        await client.read_response()
    await client.close()


async def test_who_reads_nothing_holds_a_slot_at_the_upstream_no_longer_than_that() -> None:
    options = patience(PATIENCE_S, UPSTREAM_MAX_INFLIGHT="2", UPSTREAM_QUEUE_WAIT_S="0.05")
    async with wire_rig(**options) as rig:
        rig.upstream.answer = large()
        clients = [await slow_reader(rig.proxy.http_port) for _ in range(2)]
        await wait_until(lambda: len(rig.upstream.requests) == 2, what="both at the upstream")
        rig.upstream.answer = answers.respond(b"fine")

        async def ask() -> RawResponse:
            async with await rig.client() as client:
                return await client.request("GET", "/small")

        assert (await ask()).header("X-Dashcache-Error") == b"UpstreamBusy"

        async def is_served() -> bool:
            return (await ask()).body == b"fine"

        await wait_until(is_served, what="a slot")
        await wait_until(lambda: rig.upstream.connections_open <= 1, what="the upstream to be let go")
        for client in clients:
            client.abort()
        text = await asyncio.to_thread(rig.proxy.metrics)
        assert await ended(rig, "ClientTooSlow") == 2, text
        inflight = re.findall(r"^dashcache_upstream_inflight{.*} (\S+)$", text, re.MULTILINE)
        assert {float(count) for count in inflight} == {0.0}


async def test_a_reader_that_is_only_slow_gets_everything() -> None:
    """So slow that the kernel before it asks for nothing more for longer than the limit; but it takes what there is."""
    limit_s, lasts_s, rate = 1.5, 5.0, 320_000
    async with wire_rig(DASHCACHE_LIMITS_WRITE_IDLE_S=str(limit_s)) as rig:
        rig.upstream.answer = large()
        client = await slow_reader(rig.proxy.http_port, window=2**18)
        client.writer.transport.max_size = 16384  # type: ignore[attr-defined]  # of one read from the kernel
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        taken, began_s = 0, time.monotonic()
        async with asyncio.timeout(40):
            while (passed_s := time.monotonic() - began_s) < lasts_s:
                if taken < passed_s * rate:
                    taken += len(await client.reader.read(16384))
                else:
                    await asyncio.sleep(0.01)
            while taken < 24 * MIB and (data := await client.reader.read(MIB)):
                taken += len(data)
        assert taken >= 24 * MIB
        await client.close()


# --- how many ---------------------------------------------------------------------------------------------------------


async def test_one_connection_too_many_is_told_and_closed() -> None:
    async with wire_rig(DASHCACHE_LIMITS_MAX_CONNECTIONS="3") as rig:
        rig.upstream.answer = answers.respond(b"fine")
        clients = [await rig.client() for _ in range(3)]
        for client in clients:
            assert (await client.request("GET", "/x")).body == b"fine"
        for _ in range(20):
            async with await rig.client() as extra:
                with contextlib.suppress(ConnectionError):  # closed already
                    await extra.send(request_bytes("GET", "/x"))
                response = await extra.read_response()
                assert (response.status, response.header("Retry-After")) == (503, b"1")
                assert response.header("X-Dashcache-Error") == b"TooManyConnections"
                assert b'"code":"TooManyConnections"' in response.body
                assert await extra.read_until_closed() == b""
                await extra.send(b"more")  # nobody is angry at who was still speaking
                await asyncio.sleep(0.01)
                assert not extra.was_reset
        assert await ended(rig, "TooManyConnections") == 20
        assert len(rig.upstream.requests) == 3
        clients.pop().abort()

        async def has_room() -> bool:
            async with await rig.client() as client:
                return (await client.request("GET", "/x")).status == 200

        await wait_until(has_room, what="room for one more")
        for client in clients:
            assert (await client.request("GET", "/x")).body == b"fine"
            await client.close()


# --- the others -------------------------------------------------------------------------------------------------------


async def load(rig: WireRig, duration_s: float) -> Report:
    async with aiohttp.ClientSession(rig.proxy.http_url, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call(index: int) -> Outcome:
            async with session.get(f"/good/{index}") as response:
                return Outcome(await response.read() == b"fine")

        return await run_open_loop(call, 50, duration_s=duration_s)


async def crowd(rig: WireRig, count: int) -> list[RawClient]:
    """A third says nothing, a third stops in its head, a third in its body."""
    openings = (b"", b"POST /x HTTP/1.1\r\nHost: a\r\nX-Half: ", unfinished(b'{"model":'))
    clients = [await rig.client() for _ in range(count)]
    for number, client in enumerate(clients):
        await client.send(openings[number % len(openings)])
    return clients


async def idle(rig: WireRig) -> bool:
    """Whether the metrics say that nothing is at an upstream."""
    return 'dashcache_upstream_inflight{upstream="dashscope"} 0.0' in await asyncio.to_thread(rig.proxy.metrics)


async def endure(count: int, readers: int, patience_s: float) -> None:
    async with wire_rig(**patience(patience_s)) as rig:
        to_readers = large(8 * MIB)
        fine = answers.respond(b"fine")

        async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
            await (to_readers if request.target == b"/large" else fine)(request, writer)

        rig.upstream.answer = answer
        await load(rig, 1)
        usual = await load(rig, 3)
        rig.forget_peak()
        before = rig.rss_bytes()
        clients = await crowd(rig, count - readers)
        reading = [await slow_reader(rig.proxy.http_port) for _ in range(readers)]
        await load(rig, 1)  # until all that the readers' buffers hold is in them
        crowded = await load(rig, 3)
        grown = rig.rss_bytes(peak=True) - before
        print(f"\nusual: {usual.summary()}\nwith {count} slow: {crowded.summary()}; {grown / MIB:.1f} MiB more")
        assert usual.correct == usual.count
        assert crowded.correct == crowded.count, crowded.summary()
        # A tenth is the promise; the rest is for the machine, on which both ends of all connections live.
        assert crowded.latency(99) <= usual.latency(99) * 1.1 + 0.2, (usual.summary(), crowded.summary())

        await asyncio.gather(*(client.read_until_closed(patience_s * 1.25 + 20) for client in clients))

        async def all_broken_off() -> bool:
            return await ended(rig, "ClientTooSlow") == readers

        await wait_until(all_broken_off, patience_s * 1.25 + 20, "the readers to be broken off")
        for client in (*clients, *reading):
            client.abort()
        assert (await load(rig, 1)).errors == {}
        await wait_until(lambda: idle(rig), what="the upstream to be let go")


async def test_s13_others_do_not_notice_500_slow_clients() -> None:
    await endure(500, 20, 6.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_s13_in_full() -> None:
    await endure(2000, 100, 10.0)
