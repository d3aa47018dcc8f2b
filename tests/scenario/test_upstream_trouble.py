"""Trouble with a vendor has its cause in the log, the metrics, health and stats; no address of it reaches a client."""

import asyncio
import contextlib
import http.client
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from tests.support import answers
from tests.support.gate import Gate
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import IncompleteResponseError, RawClient, request_bytes
from tests.support.raw_upstream import RawUpstream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NATIVE = "/api/v1/services/embeddings/text-embedding/text-embedding"
AS_JSON = [(b"Content-Type", b"application/json")]
GOOD = 'dashcache_upstream_calls_total{end="2xx",upstream="dashscope"}'

UNREACHABLE = {
    "refused": "http://127.0.0.1:1",
    "unknown-host": "http://nowhere.invalid",
    "plain": "https://127.0.0.1:{port}",
}
"""By name of an upstream: where it is."""


@dataclass(frozen=True, slots=True)
class Rig:
    upstream: RawUpstream
    proxy: ProxyProcess
    plain_port: int
    """The server there does not speak TLS."""

    async def ask(self, host: str) -> tuple[int, bytes]:
        """Status and body of a request for the upstream of that name."""
        return await asyncio.to_thread(self._ask, host)

    def _ask(self, host: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.http_port, timeout=30)
        try:
            headers = {"Host": f"{host}.test", "Authorization": "Bearer k"}
            connection.request("POST", "/api/v1/services/some", b"{}", headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    async def broken(self, path: str, number: int) -> None:
        """Ask for something of its own whose answer may break off."""
        body = b'{"model":"text-embedding-v4","input":{"texts":["%d"]}}' % number
        headers = ((b"Authorization", b"Bearer k"), (b"Content-Type", b"application/json"))
        async with await RawClient.connect(self.proxy.http_port) as client:
            with contextlib.suppress(IncompleteResponseError, ConnectionError):
                await client.request("POST", path, headers, body)

    async def wait_count(self, sample: str, wanted: float) -> None:
        """Wait until the series has that figure."""
        await wait_until(lambda: self._count(sample) == wanted, what=f"{sample} {wanted}")

    async def count(self, sample: str) -> float:
        """The figure of a series; 0 if there is none."""
        return await asyncio.to_thread(self._count, sample)

    def _count(self, sample: str) -> float:
        lines = (line.rpartition(" ") for line in self.proxy.metrics().splitlines())
        return next((float(value) for name, _, value in lines if name == sample), 0.0)

    async def health(self) -> dict[str, object]:
        return (await asyncio.to_thread(self.proxy.admin, "GET", "/healthz")).json()

    async def metrics(self) -> str:
        return await asyncio.to_thread(self.proxy.metrics)


async def _plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


def _configure(file: Path, port: int) -> None:
    rules = (
        f'[[upstreams]]\nname = "{name}"\nurl = "{url.format(port=port)}"\nhosts = ["{name}.test"]\n'
        for name, url in UNREACHABLE.items()
    )
    file.write_text("".join(rules) + "[upstream]\nread_timeout_s = 1\n")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    file = tmp_path_factory.mktemp("config") / "mine.toml"
    async with RawUpstream(answers.respond()) as upstream, await asyncio.start_server(_plain, "127.0.0.1", 0) as plain:
        port = plain.sockets[0].getsockname()[1]
        _configure(file, port)
        async with ProxyProcess(
            dashscope_url=upstream.url,
            dashvector_url="http://127.0.0.1:1",
            dashvector_grpc_url=f"https://127.0.0.1:{port}",
            env={"DASHCACHE_CONFIG": str(file)},
        ) as proxy:
            yield Rig(upstream, proxy, port)


@pytest.mark.parametrize(
    ("name", "reason", "told"),
    [
        ("refused", "refused", "refuses connections"),
        ("unknown-host", "unknown-host", "name has no address"),
        ("plain", "tls", "TLS is refused"),
    ],
)
async def test_why_there_is_no_connection_is_told_apart(rig: Rig, name: str, reason: str, told: str) -> None:
    for _ in range(5):
        status, body = await rig.ask(name)
        assert status == 502
        assert told in json.loads(body)["message"]
        assert b"127.0.0.1" not in body
        assert b"nowhere" not in body
    lines = [line for line in rig.proxy.logs if line["event"] == "upstream_trouble" and line["upstream"] == name]
    (line,) = lines  # one, not one per request
    assert (line["level"], line["reason"]) == ("warning", reason)
    assert line["host"] == UNREACHABLE[name].format(port=rig.plain_port).partition("://")[2]
    assert f'dashcache_upstream_calls_total{{end="{reason}",upstream="{name}"}} 5.0' in await rig.metrics()
    health = await rig.health()
    assert health["status"] == "degraded"
    upstreams = health["upstreams"]
    assert isinstance(upstreams, dict)
    assert upstreams[name]["cause"] == reason
    assert " since 20" in upstreams[name]["state"]
    assert await asyncio.to_thread(rig.proxy.ready)


@pytest.mark.parametrize("status", [401, 403, 429])
async def test_what_one_credential_is_told_is_logged_and_counted_apart(rig: Rig, status: int) -> None:
    rig.upstream.answer = answers.respond(status=status)
    for _ in range(3):
        assert (await rig.ask("default"))[0] == status
    line = await asyncio.to_thread(rig.proxy.wait_log, "upstream_trouble", upstream="dashscope", reason=str(status))
    assert line["level"] == "warning"
    metrics = await rig.metrics()
    assert f'dashcache_upstream_calls_total{{end="{status}",upstream="dashscope"}} 3.0' in metrics
    assert f'dashcache_answers_total{{status="{status}"}} 3.0' in metrics
    upstreams = (await rig.health())["upstreams"]
    assert isinstance(upstreams, dict)
    assert upstreams["dashscope"]["state"] == "ok"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(answers.hang(), "timeout"), (answers.close(), "closed"), (answers.respond(status=503), "5xx")],
    ids=["timeout", "closed", "5xx"],
)
async def test_an_upstream_that_does_not_answer_fails_after_three_calls_and_is_well_after_one(
    rig: Rig, answer: answers.Answer, reason: str
) -> None:
    rig.upstream.answer = answer
    await asyncio.gather(*(rig.ask("default") for _ in range(3)))
    await asyncio.to_thread(rig.proxy.wait_log, "upstream_trouble", upstream="dashscope", reason=reason)
    upstreams = (await rig.health())["upstreams"]
    assert isinstance(upstreams, dict)
    assert upstreams["dashscope"]["cause"] == reason
    before = len(rig.proxy.logs)
    rig.upstream.answer = answers.respond()
    assert (await rig.ask("default"))[0] == 200
    await asyncio.to_thread(rig.proxy.wait_log, "upstream_answers_again", upstream="dashscope", after=before)
    upstreams = (await rig.health())["upstreams"]
    assert isinstance(upstreams, dict)
    assert upstreams["dashscope"]["state"] == "ok"


@pytest.mark.parametrize(
    "answer",
    [
        answers.truncated(b"whole answer", 5, headers=AS_JSON),
        answers.truncated(b"whole answer", 5, headers=AS_JSON, by_reset=True),
        answers.truncated_chunks(b"piece", headers=AS_JSON),
        answers.truncated_chunks(b"piece", headers=[(b"Content-Type", b"text/html")]),
    ],
    ids=["length", "reset", "chunks", "html"],
)
@pytest.mark.parametrize("path", ["/api/v1/services/some", NATIVE], ids=["passed", "embedding"])
async def test_an_answer_that_breaks_off_after_its_head_is_trouble(rig: Rig, answer: answers.Answer, path: str) -> None:
    reason = "broken-off"
    counted = f'dashcache_upstream_calls_total{{end="{reason}",upstream="dashscope"}}'
    rig.upstream.answer = answers.respond()
    assert (await rig.ask("default"))[0] == 200
    before, good_before = await rig.count(counted), await rig.count(GOOD)
    rig.upstream.answer = answer
    await asyncio.gather(*(rig.broken(path, number) for number in range(3)))
    await asyncio.to_thread(rig.proxy.wait_log, "upstream_trouble", upstream="dashscope", reason=reason)
    await rig.wait_count(counted, before + 3)
    assert await rig.count(GOOD) == good_before  # a call ends once
    health = await rig.health()
    upstreams = health["upstreams"]
    assert isinstance(upstreams, dict)
    assert (health["status"], upstreams["dashscope"]["cause"]) == ("degraded", reason)
    rig.upstream.answer = answers.respond()
    assert (await rig.ask("default"))[0] == 200
    upstreams = (await rig.health())["upstreams"]
    assert isinstance(upstreams, dict)
    assert upstreams["dashscope"]["state"] == "ok"


async def test_a_client_that_leaves_in_the_middle_of_an_answer_is_no_trouble(rig: Rig) -> None:
    gate = Gate()
    rig.upstream.answer = answers.chunked(b"first", gate)
    good_before = await rig.count(GOOD)
    async with await RawClient.connect(rig.proxy.http_port) as client:
        await client.send(request_bytes("GET", "/x"))
        await client.reader.readuntil(b"first\r\n")
    await rig.upstream.wait_closed()
    gate.open()
    await rig.wait_count(GOOD, good_before + 1)  # told of when the connections are gone


async def test_over_grpc_the_cause_is_told_too(rig: Rig) -> None:
    async with grpc.aio.insecure_channel(rig.proxy.grpc_address) as channel:
        call = channel.unary_unary("/com.aliyun.dashvector.proto.DashVectorService/query")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call(b"", timeout=20, metadata=(("dashvector-auth-token", "k"),))
    assert "127.0.0.1" not in (ended.value.details() or "")
    await asyncio.to_thread(rig.proxy.wait_log, "upstream_trouble", upstream="dashvector", reason="tls")
