"""R12: upstreams may close an idle connection at any moment; reads never notice, and no write is sent twice."""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from tests.scenario.telling import NATIVE, Lines, bearer, heard, native, telling, told
from tests.support import answers, wire
from tests.support.gate import Gate
from tests.support.open_loop import Outcome, Report, run_open_loop
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient, ask
from tests.support.raw_upstream import RawUpstream
from tests.support.recorded import RecordedRequest

KEY = bearer("sk-a")
TOKEN = ((b"dashvector-auth-token", b"sk-a"), (b"Content-Type", b"application/json"))
METHODS = ("POST", "PUT", "DELETE")
WRITE = "/v1/collections/abc/docs"
QUERY = "/v1/collections/abc/query"
LONGEST_S = 0.3
UNANSWERED = 0.05


def fickle(chance: random.Random, executed: Counter[bytes]) -> answers.Answer:
    """
    Answers at once, and closes the connection a random moment later, whatever has come on it since.

    Of requests on a kept connection, some are carried out and never answered.
    """
    vectors = telling()
    kept: set[int] = set()

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        executed[request.body] += request.target.startswith(b"/v1/")
        if request.connection.number in kept and chance.random() < UNANSWERED:
            wire.reset(writer)
            return
        kept.add(request.connection.number)
        if request.target.startswith(b"/v1/"):
            document = {"code": 0, "message": "", "request_id": "v", "output": []}
            await answers.respond_json(json.dumps(document).encode())(request, writer)
        elif request.method == b"GET":
            await answers.respond(request.target)(request, writer)
        else:
            await vectors(request, writer)
        # From each answer on, the connection has its own end; the first that comes counts.
        asyncio.get_running_loop().call_later(chance.uniform(0, LONGEST_S), writer.close)

    return answer


class Clients:
    """Kept connections to the proxy: nothing is closed on this side."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[RawClient] = []

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[RawClient]:
        client = self._idle.pop() if self._idle else await RawClient.connect(self._port)
        yield client
        self._idle.append(client)

    async def close(self) -> None:
        for client in self._idle:
            await client.close()


@pytest.mark.parametrize("kind", ["passed", "embedding", "query"])
async def test_r12_a_read_that_is_sent_again_goes_over_a_connection_of_its_own(kind: str) -> None:
    gate, vectors = Gate(), telling()

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        if b"again" in request.raw:
            if request.connection.number < 3:
                wire.reset(writer)  # as if its end and the request had crossed
            elif request.target.startswith(b"/v1/"):
                await answers.respond_json(b'{"code":0,"message":"","request_id":"v","output":[]}')(request, writer)
            else:
                await (vectors if request.method == b"POST" else answers.respond())(request, writer)
        else:
            await gate.wait()
            await answers.respond()(request, writer)

    asked: dict[str, tuple[str, str, Lines, bytes | None]] = {
        "passed": ("GET", "/again", (), None),
        "embedding": ("POST", NATIVE, KEY, native("again")),
        "query": ("POST", QUERY, TOKEN, b'{"vector":[0.5],"filter":"again"}'),
    }
    async with (
        RawUpstream(answer) as upstream,
        ProxyProcess(dashscope_url=upstream.url, dashvector_url=upstream.url) as proxy,
    ):
        lines = TOKEN[:1] if kind == "query" else ()  # which leads to the upstream whose connections are meant
        warming = [
            asyncio.ensure_future(ask(proxy.http_port, "GET", f"/v1/collections/abc{number}" if lines else "/x", lines))
            for number in range(3)
        ]
        await gate.wait_arrived(3)
        gate.open()
        await asyncio.gather(*warming)
        response = await ask(proxy.http_port, *asked[kind])
        assert response.status == 200
        tried = [request.connection.number for request in upstream.requests if b"again" in request.raw]
        assert len(tried) == 2
        assert tried[0] < 3 <= tried[1]


async def endure(reads: int, writes: int, rate: float, record_property) -> None:
    executed: Counter[bytes] = Counter()
    chance = random.Random(12)
    async with (
        RawUpstream(fickle(chance, executed)) as upstream,
        ProxyProcess(
            dashscope_url=upstream.url, dashvector_url=upstream.url, env={"DASHCACHE_REDIS_DEADLINE_MS": "2000"}
        ) as proxy,
    ):
        clients = Clients(proxy.http_port)

        async def read(index: int) -> Outcome:
            async with clients.one() as client:
                if index % 3 == 0:
                    response = await client.request("GET", f"/x/{index}")
                    is_right = response.body == b"/x/%d" % index
                elif index % 3 == 1:
                    response = await client.request("POST", NATIVE, KEY, native(f"text {index}"))
                    is_right = heard(response) == told(NATIVE, KEY, native(f"text {index}"))
                else:
                    response = await client.request("POST", QUERY, TOKEN, b'{"vector":[%d]}' % index)
                    is_right = response.status == 200 and json.loads(response.body)["code"] == 0
            return Outcome(is_right, None if response.status == 200 else str(response.status))

        async def write(index: int) -> Outcome:
            async with clients.one() as client:
                body = b'{"docs":[{"id":"%d"}]}' % index
                response = await client.request(METHODS[index % len(METHODS)], WRITE, TOKEN, body)
            return Outcome(response.status in (200, 502), None if response.status == 200 else str(response.status))

        reading, writing = await asyncio.gather(
            run_open_loop(read, rate, count=reads), run_open_loop(write, rate * writes / reads, count=writes)
        )
        await clients.close()
        used = len(upstream.connections)
    assert reading.correct == reading.count == reads, reading.summary()
    check_writes(writing, executed)
    assert used > reads / 50, "the connections did end again and again"
    record_property(
        "figure",
        f"{reads} reads over {used} connections: 0 errors; {writes} writes: {writing.errors.total()} errors told, "
        "0 executed twice",
    )


def check_writes(report: Report, executed: Counter[bytes]) -> None:
    """Each at most once, and whoever was answered 200 exactly once; every failure was told."""
    written = {body: times for body, times in executed.items() if b"docs" in body}
    assert report.errors, "some were lost on their way"
    assert set(written.values()) == {1}, {body: times for body, times in written.items() if times > 1}
    assert set(report.errors) <= {"502"}, report.summary()
    for sample in report.samples:
        if sample.outcome.error is None:
            assert written[b'{"docs":[{"id":"%d"}]}' % sample.index] == 1


async def test_r12_idle_connections_may_close_at_any_moment(record_property) -> None:
    await endure(900, 200, 300, record_property)


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_r12_in_full(record_property) -> None:
    await endure(10_000, 1_000, 300, record_property)
