"""S20, any request and any answer: what three kinds of upstream parse is what was meant, and each answer is its own."""

import asyncio
import contextlib
import json
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
import pytest_asyncio
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import wire
from tests.support.child import spawn
from tests.support.ports import PortReservation
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import IncompleteResponseError, RawClient
from tests.support.raw_upstream import RawUpstream
from tests.support.recorded import RecordedRequest
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

EMBEDDINGS = "/api/v1/services/embeddings/text-embedding/text-embedding"
WRITES = "/v1/collections/c/docs"
OURS = {400, 408, 502, 504}


@dataclass(frozen=True)
class Ask:
    """A request in parts; what it means is its method, its target and its body."""

    method: str
    path: str
    size: int | None
    framing: str
    lines: tuple[tuple[bytes, bytes], ...]
    answer: str
    pieces: int

    def body(self, number: int) -> bytes:
        """It looks like requests, for whoever reads it as such."""
        hidden = b"GET /hidden/%d HTTP/1.1\r\nHost: a\r\n\r\n" % number
        return (hidden * ((self.size or 0) // len(hidden) + 1))[: self.size or 0]

    def target(self, number: int) -> str:
        return f"{self.path}?n={number}&answer={self.answer}"

    def raw(self, number: int) -> tuple[bytes, bytes]:
        """Head and body as they go over the wire."""
        body, lines = self.body(number), [(b"Host", b"a"), *self.lines]
        if self.framing == "chunks":
            lines.append((b"Transfer-Encoding", b"chunked"))
            step = max(1, len(body) // 3)
            chunks = b"".join(wire.chunk(body[at : at + step]) for at in range(0, len(body), step)) + b"0\r\n\r\n"
        elif self.size is not None:
            lines.append((b"Content-Length", b"%d" % len(body)))
            chunks = body
        else:
            chunks = b""
        start = f"{self.method} {self.target(number)} HTTP/1.1".encode()
        return wire.head_bytes(start, lines), chunks


SIZES = st.sampled_from([None, 0, 1, 37, 5_000, 60_000, 300_000])
UPGRADE = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
KEYED = ((b"Authorization", b"Bearer k"), (b"Content-Type", b"application/json"), (b"dashvector-auth-token", b"k"))
HANDSHAKE = (*UPGRADE, (b"Sec-WebSocket-Key", b"AAAAAAAAAAAAAAAAAAAAAA=="), (b"Sec-WebSocket-Version", b"13"))
LINES = st.sampled_from(
    [
        (),
        KEYED,
        ((b"Connection", b"Content-Length"),),
        ((b"Connection", b"close"),),
        ((b"Connection", b"Upgrade"), (b"Upgrade", b"h2c")),
        HANDSHAKE,
        UPGRADE,
        ((b"TE", b"trailers"), (b"Trailer", b"X-Sum")),
        ((b"X-HTTP-Method-Override", b"DELETE"),),
    ]
)
ANSWERS = ["200", "204", "304", "401", "413", "500", "early-200", "early-401", "early-204"]
FRAMINGS, PIECES = st.sampled_from(["length", "chunks"]), st.sampled_from([1, 2, 5])
PLAIN = st.builds(
    Ask,
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
    path=st.sampled_from(["/x", "/ws", EMBEDDINGS, WRITES]),
    size=SIZES,
    framing=FRAMINGS,
    lines=LINES,
    answer=st.sampled_from(ANSWERS),
    pieces=PIECES,
)
HANDSHAKES = st.builds(
    Ask,
    method=st.just("GET"),
    path=st.sampled_from(["/ws", EMBEDDINGS]),
    size=SIZES,
    framing=FRAMINGS,
    lines=st.just(HANDSHAKE),
    answer=st.sampled_from(ANSWERS),
    pieces=PIECES,
)
ASKS = st.one_of(PLAIN, HANDSHAKES)


@dataclass(frozen=True)
class Parsed:
    """A request as an upstream read it; *body* is ``None`` where it cannot tell."""

    method: str
    target: str
    body: bytes | None


class Parser(Protocol):
    """An upstream and what it has parsed."""

    port: int

    def parsed(self) -> list[Parsed]:
        """All requests that it took for whole, so far."""


class Own:
    """`raw_upstream`, which is strict: anything that it cannot parse fails the test."""

    def __init__(self, upstream: RawUpstream) -> None:
        self.upstream = upstream
        self.port = upstream.port
        upstream.answer, upstream.on_head = self._late, self._early

    async def _early(self, head: wire.Head, writer: asyncio.StreamWriter) -> bool:
        target = head.start_line.split()[1]
        if b"answer=early" in target:
            writer.write(answer_to(head.start_line.split()[0], target))
        return False

    async def _late(self, request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        if b"answer=early" not in request.target:
            writer.write(answer_to(request.method, request.target))

    def parsed(self) -> list[Parsed]:
        assert not [fault for fault in self.upstream.malformed if "the stream ended" not in str(fault)]
        return [Parsed(r.method.decode(), r.target.decode(), r.body) for r in self.upstream.requests]


def answer_to(method: bytes, target: bytes) -> bytes:
    """The answer that *target* asks for, which says what it is an answer to."""
    status = int(target.partition(b"answer=")[2].removeprefix(b"early-") or b"200")
    body = b"" if status in (204, 304) else b"to " + target
    lines = [(b"X-Echo", target), *([] if status == 204 else [(b"Content-Length", b"%d" % len(body))])]
    head = wire.head_bytes(b"HTTP/1.1 %d Some" % status, lines)
    return head if method == b"HEAD" else head + body


class Aiohttp:
    """aiohttp's server; what is early is answered before it has read the body."""

    def __init__(self) -> None:
        self.port = 0
        self._found: list[Parsed] = []

    def parsed(self) -> list[Parsed]:
        return self._found

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        body = None if "answer=early" in request.raw_path else await request.read()
        self._found.append(Parsed(request.method, request.raw_path, body))
        raw = answer_to(request.method.encode(), request.raw_path.encode())
        status = int(raw.split()[1])
        text = None if status in (204, 304) else f"to {request.raw_path}"
        return web.Response(status=status, text=text, headers={"X-Echo": request.raw_path})


NGINX = """
daemon off; master_process off; worker_processes 1; pid %(folder)s/pid; error_log %(folder)s/error.log;
events { worker_connections 512; }
http {
  access_log off; client_max_body_size 100m; client_body_temp_path %(folder)s/body; keepalive_requests 100000;
  proxy_temp_path %(folder)s/proxy; fastcgi_temp_path %(folder)s/f; uwsgi_temp_path %(folder)s/u;
  scgi_temp_path %(folder)s/s;
  log_format parsed escape=json '{"method":"$request_method","target":"$request_uri","status":"$status"}';
  server {
    listen 127.0.0.1:%(port)d; access_log %(folder)s/parsed.log parsed; error_page 418 = @echo;
    location / {
      add_header X-Echo $request_uri always;
      if ($arg_answer ~ "(\\d+)$") { set $told $1; }
      if ($told = 204) { return 204; }
      if ($told = 304) { return 304; }
      if ($told = 401) { return 401 "to $request_uri"; }
      if ($told = 413) { return 413 "to $request_uri"; }
      if ($told = 500) { return 500 "to $request_uri"; }
      return 200 "to $request_uri";
    }
  }
}
"""


class Nginx:
    """A real nginx, which answers all by the head and reads on: every answer of it is an early one."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._log = folder / "parsed.log"

    def parsed(self) -> list[Parsed]:
        found = [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []
        assert not [each for each in found if not each["method"]], "nginx could not parse a request"
        return [Parsed(each["method"], each["target"], None) for each in found]


@contextlib.asynccontextmanager
async def own(_folder: Path) -> AsyncIterator[Parser]:
    async with RawUpstream(lambda *_: asyncio.sleep(0)) as upstream:
        yield Own(upstream)


@contextlib.asynccontextmanager
async def aiohttp_server(_folder: Path) -> AsyncIterator[Parser]:
    parser = Aiohttp()
    runner = web.ServerRunner(web.Server(parser.serve, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    parser.port = runner.addresses[0][1]
    yield parser
    await runner.cleanup()


@contextlib.asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[Parser]:
    reservation = PortReservation()  # nginx takes the port with SO_REUSEADDR, as the reservation has it
    port = reservation.port
    (folder / "nginx.conf").write_text(NGINX % {"folder": folder, "port": port})
    process = spawn([shutil.which("nginx") or "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        await wait_until(lambda: listens(port), what="nginx")
        yield Nginx(folder, port)
    finally:
        process.terminate()
        process.wait(10)
        reservation.close()


def listens(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


PARSERS: dict[str, Callable[[Path], contextlib.AbstractAsyncContextManager[Parser]]] = {
    "own": own,
    "aiohttp": aiohttp_server,
    **({"nginx": nginx} if shutil.which("nginx") else {}),  # one more where it is installed
}


@dataclass
class Rig:
    parser: Parser
    proxy: ProxyProcess
    count: int = 0


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PARSERS)
async def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with PARSERS[request.param](tmp_path_factory.mktemp("upstream")) as parser:
        url = f"http://127.0.0.1:{parser.port}"
        async with ProxyProcess(dashscope_url=url, dashvector_url=url) as proxy:
            yield Rig(parser, proxy)


async def told(client: RawClient, ask: Ask, number: int) -> int | None:
    """The status of the answer to *ask*, which is its own or ours; ``None`` where the connection broke before one."""
    head, body = ask.raw(number)
    sending = asyncio.ensure_future(send(client, head, body, ask.pieces))
    try:
        response = await client.read_response(method=ask.method, timeout=10)
    except (ConnectionError, IncompleteResponseError):
        return None
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    if response.header("X-Dashcache-Error") is not None:
        assert response.status in OURS
        return response.status
    assert response.header("X-Echo") == ask.target(number).encode()
    if response.body:
        assert response.body == b"to " + ask.target(number).encode()
    return response.status


async def send(client: RawClient, head: bytes, body: bytes, pieces: int) -> None:
    await client.send(head)
    step = len(body) // pieces + 1
    for at in range(0, len(body), step):
        await asyncio.sleep(0)
        await client.send(body[at : at + step])


async def shown(rig: Rig, asks: list[Ask]) -> None:
    """Ask for all of *asks* one after another, then for what is plain; compare with what was parsed."""
    meant: dict[str, Parsed] = {}
    before = len(rig.parser.parsed())
    for ask in asks:
        rig.count += 1
        meant[ask.target(rig.count)] = Parsed(ask.method, ask.target(rig.count), ask.body(rig.count))
        async with await RawClient.connect(rig.proxy.http_port) as client:
            await told(client, ask, rig.count)
        plain = Ask("GET", "/plain", None, "length", (), "200", 1)
        rig.count += 1
        meant[plain.target(rig.count)] = Parsed("GET", plain.target(rig.count), b"")
        async with await RawClient.connect(rig.proxy.http_port) as client:
            assert await told(client, plain, rig.count) == 200
    found = rig.parser.parsed()[before:]
    for parsed in found:
        wanted = meant.pop(parsed.target)  # nothing else, and nothing twice
        assert parsed.method == wanted.method
        assert parsed.body in (None, wanted.body)


QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LONG = settings(QUICK, max_examples=400)


@given(asks=st.lists(ASKS, min_size=1, max_size=4))
@QUICK
async def test_s20_what_is_parsed_is_what_was_meant(rig: Rig, asks: list[Ask]) -> None:
    await shown(rig, asks)


@pytest.mark.slow
@given(asks=st.lists(ASKS, min_size=1, max_size=6))
@LONG
async def test_s20_what_is_parsed_is_what_was_meant_over_many_requests(rig: Rig, asks: list[Ask]) -> None:
    await shown(rig, asks)
