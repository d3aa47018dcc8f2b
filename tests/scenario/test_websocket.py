"""WebSocket: bridged byte for byte, closed as it was closed, refused as it was refused."""

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import WSMsgType, web

from tests.scenario.wire_rig import by_name
from tests.support import wire
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
AT_MOST_S = 0.25


class Vendor:
    """A WebSocket server whose handler the test sets; it keeps what it was asked and how each socket ended."""

    def __init__(self) -> None:
        self.handler: Handler = self.echo
        self.requests: list[web.Request] = []
        self.ended: list[tuple[int | None, str, float]] = []
        self.port = 0

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{target:.*}", self._serve)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        return runner

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await self.handler(request)

    async def echo(self, request: web.Request) -> web.StreamResponse:
        socket = await self.accept(request)
        while (message := await self.receive(socket)) is not None:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket

    async def accept(self, request: web.Request, *protocols: str) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=protocols, max_msg_size=0, autoping=False, autoclose=False)
        socket.headers["X-Request-Id"] = "vendor-1"
        await socket.prepare(request)
        return socket

    async def receive(self, socket: web.WebSocketResponse) -> aiohttp.WSMessage | None:
        """The next frame; None at the end, which is noted."""
        message = await socket.receive()
        if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR):
            code = message.data if message.type is WSMsgType.CLOSE else None
            self.ended.append((code, message.extra or "", time.monotonic()))
            await socket.close(code=code or 1000)
            return None
        return message


class Rig:
    """The vendor, and clients that talk to it through the proxy."""

    def __init__(self, vendor: Vendor, proxy: ProxyProcess, session: aiohttp.ClientSession) -> None:
        self.vendor = vendor
        self.proxy = proxy
        self.session = session

    async def connect(self, **options: object) -> aiohttp.ClientWebSocketResponse:
        url = f"{self.proxy.http_url}/api-ws/v1/inference/?a=b"
        return await self.session.ws_connect(url, max_msg_size=0, autoping=False, autoclose=False, **options)  # type: ignore[arg-type]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_rig() -> AsyncIterator[Rig]:
    vendor = Vendor()
    runner = await vendor.start()
    async with (
        ProxyProcess(dashscope_url=f"http://127.0.0.1:{vendor.port}") as proxy,
        aiohttp.ClientSession() as session,
    ):
        yield Rig(vendor, proxy, session)
    await runner.cleanup()


@pytest.fixture
def rig(module_rig: Rig) -> Rig:
    module_rig.vendor.handler = module_rig.vendor.echo
    module_rig.vendor.requests.clear()
    module_rig.vendor.ended.clear()
    return module_rig


async def test_text_and_binary_both_ways_in_order(rig: Rig) -> None:
    socket = await rig.connect()
    sent: list[str | bytes] = ["", "grüße \U0001f600", b"", b"\x00\xff", "x" * 70_000, b"y" * 200_000] * 3
    for frame in sent:
        await (socket.send_str(frame) if isinstance(frame, str) else socket.send_bytes(frame))
    async with asyncio.timeout(10):
        assert [(await socket.receive()).data for _ in sent] == sent
    await socket.close()


async def test_frames_of_five_megabytes(rig: Rig) -> None:
    socket = await rig.connect()
    big = os.urandom(5_000_000)
    async with asyncio.timeout(20):
        await socket.send_bytes(big)
        assert (await socket.receive()).data == big
    await socket.close()


async def test_a_message_goes_on_before_it_is_whole(rig: Rig) -> None:
    arrived = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = await rig.vendor.accept(request)
        assert request.transport is not None
        took = request.transport.get_protocol().data_received  # type: ignore[attr-defined]

        class Watched(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                if b"first words" in data:
                    arrived.set()
                took(data)

        request.transport.set_protocol(Watched())
        await arrived.wait()
        return socket

    rig.vendor.handler = handler
    client = await raw_socket(rig)
    async with asyncio.timeout(5):
        await client.reader.readuntil(b"\r\n\r\n")
        await client.send(b"\x82\xff" + (10**9).to_bytes(8, "big") + bytes(4) + b"first words")
        await arrived.wait()
    await client.close()


async def test_compression_is_between_the_two_ends(rig: Rig) -> None:
    socket = await rig.connect(compress=15)
    assert socket.compress
    async with asyncio.timeout(5):
        await socket.send_str("a" * 10_000)
        assert (await socket.receive()).data == "a" * 10_000
    await socket.close()
    assert "permessage-deflate" in rig.vendor.requests[0].headers["Sec-WebSocket-Extensions"]


async def test_ping_and_pong_keep_their_content(rig: Rig) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        socket = await rig.vendor.accept(request)
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.PING, b"from the client")
        await socket.pong(b"back to the client")
        await socket.ping(b"from the vendor")
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.PONG, b"back to the vendor")
        await socket.send_str("both seen")
        await rig.vendor.receive(socket)
        return socket

    rig.vendor.handler = handler
    socket = await rig.connect()
    async with asyncio.timeout(5):
        await socket.ping(b"from the client")
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.PONG, b"back to the client")
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.PING, b"from the vendor")
        await socket.pong(b"back to the vendor")
        assert (await socket.receive()).data == "both seen"
    await socket.close()


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1000, "bye"), (1011, "fell over"), (4321, "ä" * 50)])
async def test_the_client_closes(rig: Rig, code: int, reason: str) -> None:
    socket = await rig.connect()
    async with asyncio.timeout(5):
        await socket.close(code=code, message=reason.encode())
    await wait_until(lambda: rig.vendor.ended)
    assert rig.vendor.ended[0][:2] == (code, reason)
    assert socket.close_code == code


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1000, "bye"), (1007, "what?"), (4001, "ä" * 50)])
async def test_the_vendor_closes(rig: Rig, code: int, reason: str) -> None:
    answered: list[int | None] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = await rig.vendor.accept(request)
        await socket.send_str("last")
        await socket.close(code=code, message=reason.encode())
        answered.append(socket.close_code)
        return socket

    rig.vendor.handler = handler
    socket = await rig.connect()
    async with asyncio.timeout(5):
        assert (await socket.receive()).data == "last"
        message = await socket.receive()
        assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, code, reason)
        await socket.close(code=code)
    await wait_until(lambda: answered)
    assert answered == [code]


KEY = base64.b64encode(bytes(16))


async def raw_socket(rig: Rig, *, version: bytes = b"13", key: bytes = KEY) -> RawClient:
    """A connection that has asked to switch, for what no library would do."""
    client = await RawClient.connect(rig.proxy.http_port)
    lines = [(b"Host", b"a"), (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    ours = [(b"Sec-WebSocket-Key", key), (b"Sec-WebSocket-Version", version)]
    await client.send(wire.head_bytes(b"GET /x HTTP/1.1", [*lines, *ours]))
    return client


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_vanishes_ends_the_vendors_side(rig: Rig, how: str) -> None:
    client = await raw_socket(rig)
    async with asyncio.timeout(5):
        await client.reader.readuntil(b"\r\n\r\n")
    left_at = time.monotonic()
    if how == "reset":
        client.abort()
    else:
        await client.close()
    await wait_until(lambda: rig.vendor.ended)
    code, _, at = rig.vendor.ended[0]
    assert code in (None, 1001)
    assert at - left_at <= AT_MOST_S


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_vendor_that_vanishes_ends_the_clients_side(rig: Rig, how: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        socket = await rig.vendor.accept(request)
        assert request.transport is not None
        getattr(request.transport, how)()
        return socket

    rig.vendor.handler = handler
    socket = await rig.connect()
    async with asyncio.timeout(2):
        message = await socket.receive()
    assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
    await socket.close()


async def test_the_handshake_arrives_unchanged_but_for_what_is_each_connections_own(rig: Rig) -> None:
    fields = {"Authorization": "bearer sk-1", "X-DashScope-WorkSpace": "ws", "user-agent": "dashscope/1", "X-Odd": "ü"}
    socket = await rig.connect(headers=fields)
    assert socket._response.headers["X-Request-Id"] == "vendor-1"
    await socket.close()
    (request,) = rig.vendor.requests
    assert request.raw_path == "/api-ws/v1/inference/?a=b"
    received = by_name(request.raw_headers, b"upgrade", b"connection", b"accept", b"accept-encoding")
    assert received.pop(b"host") == [(b"Host", b"127.0.0.1:%d" % rig.vendor.port)]
    assert received.pop(b"sec-websocket-version")
    assert received.pop(b"sec-websocket-key")
    sent = [(name.encode(), value.encode()) for name, value in fields.items()]
    assert received == by_name(sent)


@pytest.mark.parametrize(("chosen", "expected"), [(("b",), "b"), (("c", "a"), "a"), ((), None), (("z",), None)])
async def test_the_vendor_chooses_the_subprotocol(rig: Rig, chosen: tuple[str, ...], expected: str | None) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        socket = await rig.vendor.accept(request, *chosen)
        await rig.vendor.receive(socket)
        return socket

    rig.vendor.handler = handler
    socket = await rig.connect(protocols=("a", "b"))
    assert socket.protocol == expected
    await socket.close()
    assert rig.vendor.requests[0].headers["Sec-WebSocket-Protocol"].replace(" ", "") == "a,b"


async def test_a_refusal_is_relayed_as_it_is(rig: Rig) -> None:
    body = b'{"code":"InvalidApiKey","message":"Invalid API-key provided.","request_id":"r"}'

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=401, body=body, headers={"X-Request-Id": "r"}, content_type="application/json")

    rig.vendor.handler = handler
    client = await raw_socket(rig)
    response = await client.read_response()
    assert (response.status, response.body) == (401, body)
    assert response.header("X-Request-Id") == b"r"
    assert response.header("X-Dashcache-Error") is None
    await client.close()


async def test_a_redirected_handshake_is_not_followed(rig: Rig) -> None:
    other = Vendor()
    runner = await other.start()

    async def handler(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"http://127.0.0.1:{other.port}/")

    rig.vendor.handler = handler
    client = await raw_socket(rig)
    assert (await client.read_response()).status == 302
    assert not other.requests
    await client.close()
    await runner.cleanup()


async def test_a_handshake_that_the_vendor_gets_wrong(rig: Rig) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: wrong\r\n\r\n"
        )
        await asyncio.sleep(5)
        return web.Response()

    rig.vendor.handler = handler
    client = await raw_socket(rig)
    response = await client.read_response()
    assert (response.status, response.header("X-Dashcache-Error")) == (502, b"UpstreamProtocolError")
    await client.close()


@pytest.mark.parametrize("handshake", [{"version": b"12"}, {"version": b""}, {"key": b""}, {"key": b"c2hvcnQ="}])
async def test_a_handshake_that_the_client_gets_wrong(rig: Rig, handshake: dict[str, bytes]) -> None:
    client = await raw_socket(rig, **handshake)
    response = await client.read_response()
    assert (response.status, response.header("X-Dashcache-Error")) == (400, b"BadRequest")
    assert not rig.vendor.requests
    await client.close()


@pytest.mark.parametrize("bad", [b"\x83\x80\0\0\0\0", b"\x82\x01x"], ids=["no such opcode", "no mask"])
async def test_a_frame_that_is_not_one_ends_both_sides(rig: Rig, bad: bytes) -> None:
    client = await raw_socket(rig)
    async with asyncio.timeout(5):
        await client.reader.readuntil(b"\r\n\r\n")
    await client.send(bad)
    assert await client.read_until_closed() == b"\x88\x02" + (1002).to_bytes(2, "big")
    await wait_until(lambda: rig.vendor.ended)
    await client.close()


@pytest.mark.parametrize("code", [1004, 1005, 1006, 1015, 5000, 65_535])
async def test_a_close_code_that_no_frame_may_carry_is_not_handed_on(rig: Rig, code: int) -> None:
    client = await raw_socket(rig)
    async with asyncio.timeout(5):
        await client.reader.readuntil(b"\r\n\r\n")
    await client.send(b"\x88\x82\0\0\0\0" + code.to_bytes(2, "big"))
    await wait_until(lambda: rig.vendor.ended)
    assert rig.vendor.ended[0][0] in (1001, 1002)
    await client.close()


async def test_a_vendor_that_is_not_there() -> None:
    with (
        ProxyProcess(dashscope_url="http://127.0.0.1:9") as proxy,
        pytest.raises(aiohttp.WSServerHandshakeError) as error,
    ):
        async with aiohttp.ClientSession() as session:
            await session.ws_connect(proxy.http_url)
    assert error.value.status == 502


async def test_a_proxy_that_goes_away_says_so_to_both_sides() -> None:
    vendor = Vendor()
    runner = await vendor.start()
    async with (
        ProxyProcess(dashscope_url=f"http://127.0.0.1:{vendor.port}") as proxy,
        aiohttp.ClientSession() as session,
    ):
        sockets = [await session.ws_connect(proxy.http_url) for _ in range(5)]
        # None of them answers a close, so none may hold up the others.
        stopping = asyncio.ensure_future(asyncio.to_thread(proxy.stop))
        async with asyncio.timeout(5):
            for socket in sockets:
                message = await socket.receive()
                assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
        await wait_until(lambda: len(vendor.ended) == 5)
        assert {code for code, _, _ in vendor.ended} == {1001}
        assert await stopping == 0
    await runner.cleanup()
