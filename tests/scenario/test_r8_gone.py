"""R8: who leaves is let go: a client that has gone takes its upstream connection with it, at once."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.inprocess import serving
from proxy.core.ports import SYSTEM_CLOCK
from proxy.settings.model import Settings
from proxy.worker.build import Worker
from tests.scenario.wire_rig import WireRig
from tests.support import answers, wire
from tests.support.gate import Gate
from tests.support.open_loop import percentile
from tests.support.raw_client import RawClient, request_bytes
from tests.support.raw_upstream import RawUpstream
from tests.support.recorded import Connection, RecordedRequest
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT_MOST_S = 0.25
EMBEDDINGS = "/api/v1/services/embeddings/text-embedding/text-embedding"
BATCH = b'{"model":"text-embedding-v4","input":{"texts":["a","b"]}}'


async def leave(client: RawClient, how: str) -> float:
    """Leave one way or the other; when that was."""
    at = time.monotonic()
    if how == "reset":
        client.abort()
    else:
        await client.close()
    return at


both_ways = pytest.mark.parametrize("how", ["close", "reset"])


@both_ways
@pytest.mark.parametrize("target", ["/x", EMBEDDINGS])
async def test_r8_a_client_that_waits_for_the_head(rig: WireRig, how: str, target: str) -> None:
    rig.upstream.answer = answers.hang()
    client = await rig.client()
    fields = [(b"Authorization", b"Bearer k"), (b"Content-Type", b"application/json")]
    await client.send(request_bytes("POST", target, fields, BATCH))
    await rig.upstream.wait_requests()
    left_at = await leave(client, how)
    assert await rig.upstream.wait_closed() - left_at <= AT_MOST_S


@both_ways
async def test_r8_a_client_in_the_middle_of_a_stream(rig: WireRig, how: str) -> None:
    gate = Gate()
    rig.upstream.answer = answers.chunked(b"first", gate)
    client = await rig.client()
    await client.send(request_bytes("GET", "/x"))
    async with asyncio.timeout(5):
        await client.reader.readuntil(b"first\r\n")
    left_at = await leave(client, how)
    assert await rig.upstream.wait_closed() - left_at <= AT_MOST_S
    gate.open()


@both_ways
async def test_r8_a_client_that_leaves_before_a_lookup_has_a_state_of_its_own(rig: WireRig, how: str) -> None:
    counted = 'dashcache_requests_total{operation="embedding",state="client-closed"}'
    before = len(rig.proxy.logs)
    client = await rig.client()
    lines = [(b"Host", b"a"), (b"Authorization", b"Bearer k"), (b"Content-Type", b"application/json")]
    await client.send(wire.head_bytes(b"POST %b HTTP/1.1" % EMBEDDINGS.encode(), [*lines, (b"Content-Length", b"99")]))
    await client.send(b'{"model":')
    await leave(client, how)
    line = await asyncio.to_thread(rig.proxy.wait_log, "request", 15, after=before, operation="embedding")
    assert (line["state"], line["detail"], line["client_gone"]) == ("client-closed", "", True)
    assert counted in await asyncio.to_thread(rig.proxy.metrics)
    assert not rig.upstream.requests


@both_ways
async def test_r8_a_client_in_the_middle_of_its_upload(rig: WireRig, how: str) -> None:
    client = await rig.client()
    # A longer body than one that is waited for whole before the upstream is asked.
    lines = [(b"Host", b"a"), (b"Content-Length", b"100000")]
    await client.send(wire.head_bytes(b"POST /x HTTP/1.1", lines) + b"part")
    await wait_until(lambda: b"part" in rig.upstream_bytes(), what="the first piece upstream")
    left_at = await leave(client, how)
    assert await rig.upstream.wait_closed() - left_at <= AT_MOST_S
    await wait_until(lambda: rig.upstream.incomplete or rig.upstream.malformed)
    assert not rig.upstream.requests


@both_ways
async def test_r8_a_client_whose_chunked_upload_hangs(rig: WireRig, how: str) -> None:
    """Nothing may make a cut upload look whole: the last chunk must not be sent for the client."""
    client = await rig.client()
    head = wire.head_bytes(b"POST /x HTTP/1.1", [(b"Host", b"a"), (b"Transfer-Encoding", b"chunked")])
    await client.send(head + wire.chunk(b"part"))
    await wait_until(lambda: b"part" in rig.upstream_bytes(), what="the first piece upstream")
    left_at = await leave(client, how)
    assert await rig.upstream.wait_closed() - left_at <= AT_MOST_S
    assert b"0\r\n\r\n" not in rig.upstream_bytes()
    assert not rig.upstream.requests


# --- a thousand -------------------------------------------------------------------------------------------------------

AT_ONCE = 25
KINDS = ("waiting", "a miss", "a stream", "a kept stream", "an upload")


@dataclass(frozen=True)
class Baseline:
    """What a worker that does nothing has open."""

    tasks: int
    files: int

    @classmethod
    def now(cls) -> "Baseline":
        return cls(len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir())))

    def is_reached(self, worker: Worker) -> bool:
        """Whether all is as it was, but for two; and nothing at all is left of what is counted."""
        now = self.now()
        counted = (len(worker.tasks), worker.front.clients.count, *(slots.inflight for slots in worker.slots.values()))
        return now.tasks <= self.tasks + 2 and now.files <= self.files + 2 and not any(counted)


async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
    """Nothing, a head and a piece, or (to whom stays) all of it."""
    if request.target == b"/fine":
        await answers.respond(b"fine")(request, writer)
    elif b"part" in request.raw:
        writer.write(wire.head_bytes(b"HTTP/1.1 200 OK", [*JSON, (b"Content-Length", b"1000")]) + b"first")
        await request.connection.peer_closed.wait()
    else:
        await answers.hang()(request, writer)


JSON = [(b"Content-Type", b"application/json")]
KEYED = [(b"Authorization", b"Bearer k"), *JSON]


def request_of(kind: str, number: int) -> bytes:
    """A request of that kind, with a line that no other has."""
    text = b"part" if kind == "a kept stream" else b"text"
    batch = b'{"model":"text-embedding-v4","input":{"texts":["%b %d"]}}' % (text, number)
    method, target, fields, body = {
        "waiting": ("GET", "/wait", [], None),
        "a stream": ("GET", "/part", [], None),
        "a miss": ("POST", EMBEDDINGS, KEYED, batch),
        "a kept stream": ("POST", EMBEDDINGS, KEYED, batch),
        "an upload": ("POST", "/upload", [(b"Content-Length", b"100000")], b"half"),
    }[kind]
    return request_bytes(method, target, [*fields, (b"X-Number", b"%d" % number)], body)


async def come_and_go(port: int, upstream: RawUpstream, kind: str, number: int) -> tuple[Connection, float]:
    """A client that leaves once its request is where it has to be; its connection upstream, and when it left."""
    client = await RawClient.connect(port)
    await client.send(request_of(kind, number))

    def arrived() -> Connection | None:
        found = [each for each in upstream.connections if b"X-Number: %d\r\n" % number in each.received]
        return found[0] if found and (kind != "an upload" or b"half" in found[0].received) else None

    connection = await wait_until(arrived, 10.0, f"{kind} upstream")
    if kind == "a stream":
        async with asyncio.timeout(10):
            await client.reader.readuntil(b"first")
    left_s = time.monotonic()
    if number % 2:
        client.abort()
    else:
        await client.close()
    return connection, left_s


async def test_r8_a_thousand_who_left_leave_nothing_behind(record_property: Callable[[str, object], None]) -> None:
    """In the test's own loop, where a worker's tasks can be counted."""
    async with RawUpstream(answer) as upstream:
        settings = Settings(data_dir=Path("/nowhere"), dashscope_url=upstream.url, workers=1)
        async with serving(settings, None, SYSTEM_CLOCK) as (port, worker, recorder):
            async with await RawClient.connect(port) as client:
                assert (await client.request("GET", "/fine")).body == b"fine"
            await wait_until(lambda: worker.front.clients.count == 0)
            upstream.drop_connections()
            await wait_until(lambda: not upstream.connections_open)
            baseline, closings_s = Baseline.now(), []
            for batch in range(1000 // AT_ONCE):
                left = await asyncio.gather(
                    *(
                        come_and_go(port, upstream, KINDS[number % len(KINDS)], batch * AT_ONCE + number)
                        for number in range(AT_ONCE)
                    )
                )
                await wait_until(lambda: not upstream.connections_open, 10.0, "the upstream to be let go")
                closings_s += [(each.peer_closed_at or 0) - left_s for each, left_s in left]
                upstream.connections.clear()
            await wait_until(lambda: baseline.is_reached(worker), 5.0, lambda: f"{baseline}; now {Baseline.now()}")
            async with await RawClient.connect(port) as client:
                assert (await client.request("GET", "/fine")).body == b"fine"
            assert not recorder.failures
    assert len(closings_s) == 1000
    # All ends of all connections share one loop here: the promise is for one who leaves, and for most of a crowd.
    assert percentile(closings_s, 50) <= AT_MOST_S
    assert max(closings_s) <= 8 * AT_MOST_S
    record_property(
        "figure",
        f"1,000 aborts: upstream closed after p50 {percentile(closings_s, 50) * 1000:.1f} ms, "
        f"max {max(closings_s) * 1000:.0f} ms; tasks, files, slots back to baseline",
    )
