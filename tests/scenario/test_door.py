"""What is refused at the door: with a word in the vendor's shape, then the connection's end, and nothing upstream."""

import asyncio
import contextlib
import json

import pytest

from tests.scenario.wire_rig import WireRig, by_name
from tests.support import answers, wire
from tests.support.gate import Gate
from tests.support.raw_client import RawClient, RawResponse, request_bytes
from tests.support.raw_upstream import RawUpstream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOST = b"Host: a\r\n"
LENGTH = b"Content-Length: 5\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"


def post(fields: bytes, body: bytes = b"hello", version: bytes = b"HTTP/1.1") -> bytes:
    return b"POST /x " + version + b"\r\n" + HOST + fields + b"\r\n" + body


def get(target: bytes, fields: bytes = HOST, version: bytes = b"HTTP/1.1", method: bytes = b"GET") -> bytes:
    return method + b" " + target + b" " + version + b"\r\n" + fields + b"\r\n"


SMUGGLING = {
    "length and chunks": post(LENGTH + CHUNKED, CHUNKS),
    "chunks and length": post(CHUNKED + LENGTH, CHUNKS),
    "two lengths": post(LENGTH + b"Content-Length: 3\r\n"),
    "two equal lengths": post(LENGTH + LENGTH),
    "list of lengths": post(b"Content-Length: 5, 5\r\n"),
    "signed length": post(b"Content-Length: +5\r\n"),
    "hexadecimal length": post(b"Content-Length: 0x5\r\n"),
    "negative length": post(b"Content-Length: -5\r\n"),
    "empty length": post(b"Content-Length: \r\n"),
    "underscores in a length": post(b"Content-Length: 0_5\r\n"),
    "endless length": post(b"Content-Length: 99999999999999999999999\r\n"),
    "blank before the colon": post(b"Transfer-Encoding : chunked\r\n", CHUNKS),
    "blank before the colon of a length": post(b"Content-Length : 5\r\n"),
    "unknown coding": post(b"Transfer-Encoding: xchunked\r\n", CHUNKS),
    "coding after chunks": post(b"Transfer-Encoding: chunked, identity\r\n", CHUNKS),
    "two codings": post(b"Transfer-Encoding: gzip\r\n" + CHUNKED, CHUNKS),
    "chunks twice": post(CHUNKED + CHUNKED, CHUNKS),
    "chunks twice in a line": post(b"Transfer-Encoding: chunked, chunked\r\n", CHUNKS),
    "quoted coding": post(b'Transfer-Encoding: "chunked"\r\n', CHUNKS),
    "vertical tab in a coding": post(b"Transfer-Encoding: \x0bchunked\r\n", CHUNKS),
    "empty coding and a length": post(b"Transfer-Encoding:\r\n" + LENGTH),
    "length and an empty coding": post(LENGTH + b"Transfer-Encoding: \r\n"),
    "empty coding": post(b"Transfer-Encoding:\r\n"),
    "empty list of codings": post(LENGTH + b"Transfer-Encoding: , ,\r\n"),
    "two empty codings": post(LENGTH + b"Transfer-Encoding:\r\nTransfer-Encoding:\r\n"),
    "folded line": post(b"X: a\r\n b\r\n" + LENGTH),
    "folded coding": post(b"Transfer-Encoding:\r\n chunked\r\n", CHUNKS),
    "bare CR": post(b"X: a\rb\r\n" + LENGTH),
    "bare LF": post(b"X: a\nTransfer-Encoding: chunked\r\n" + LENGTH),
    "lines that end in LF": b"POST /x HTTP/1.1\nHost: a\nContent-Length: 5\n\nhello",
    "NUL in a value": post(b"X: a\0b\r\n" + LENGTH),
    "control in a value": post(b"X: a\x01b\r\n" + LENGTH),
    "NUL in a name": post(b"X\0Y: a\r\n" + LENGTH),
    "bad chunk size": post(CHUNKED, b"z\r\nhello\r\n0\r\n\r\n"),
    "signed chunk size": post(CHUNKED, b"+5\r\nhello\r\n0\r\n\r\n"),
    "prefixed chunk size": post(CHUNKED, b"0x5\r\nhello\r\n0\r\n\r\n"),
    "endless chunk size": post(CHUNKED, b"fffffffffffffffff5\r\nhello\r\n0\r\n\r\n"),
    "chunk longer than it says": post(CHUNKED, b"4\r\nhello\r\n0\r\n\r\n"),
    "LF in a chunk extension": post(CHUNKED, b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "CR in a chunk extension": post(CHUNKED, b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "chunk lines that end in LF": post(CHUNKED, b"5\nhello\n0\n\n"),
    "length in a trailer": post(CHUNKED, b"5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n"),
    "coding in a trailer": post(CHUNKED, b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "two hosts": get(b"/x", HOST + b"Host: b\r\n"),
    "no host": get(b"/x", b"X: y\r\n"),
    "blank before the first line's colon": get(b"/x", b" Host: a\r\n"),
    "blank in the target": get(b"/a b"),
    "raw UTF-8 in the target": get("/ü".encode()),
    "method in lower case": get(b"/x", method=b"get"),
    "method nobody knows": get(b"/x", method=b"FROBNICATE"),
    "star without OPTIONS": get(b"*"),
    "host without path": get(b"evil.test"),
}

REFUSED = {
    "line too long": (get(b"/x", HOST + b"X: " + b"y" * 66_000 + b"\r\n"), 431, "HeaderTooLarge"),
    "target too long": (get(b"/" + b"y" * 66_000), 431, "HeaderTooLarge"),
    "lines without end": (get(b"/x", HOST + b"X: y\r\n" * 300), 431, "HeaderTooLarge"),
    "empty host": (get(b"/x", b"Host: \r\n"), 400, "BadRequest"),
    "path in host": (get(b"/x", b"Host: a/b\r\n"), 400, "BadRequest"),
    "user info in host": (get(b"/x", b"Host: a@b\r\n"), 400, "BadRequest"),
    "list of hosts": (get(b"/x", b"Host: a, b\r\n"), 400, "BadRequest"),
    "backslash in host": (get(b"/x", b"Host: a\\b\r\n"), 400, "BadRequest"),
    "letters in a port": (get(b"/x", b"Host: a:b\r\n"), 400, "BadRequest"),
    "fragment": (get(b"/x#y"), 400, "BadRequest"),
    "fragment in the query": (get(b"/x?a#y"), 400, "BadRequest"),
    "absolute form of another": (get(b"http://evil.test/x"), 400, "BadRequest"),
    "absolute form with user info": (get(b"http://localhost@evil.test/x"), 400, "BadRequest"),
    "absolute form of another scheme": (get(b"ftp://localhost/x"), 400, "BadRequest"),
    "absolute form of another port": (get(b"http://localhost:1/x"), 400, "BadRequest"),
    "coding in HTTP/1.0 that stays": (
        post(CHUNKED + b"Connection: keep-alive\r\n", CHUNKS, b"HTTP/1.0"),
        400,
        "BadRequest",
    ),
    "coding in HTTP/1.0": (post(CHUNKED, CHUNKS, b"HTTP/1.0"), 400, "BadRequest"),
    "coding that stays on": (post(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS), 501, "NotImplemented"),
    "CONNECT": (get(b"evil.test:443", method=b"CONNECT"), 405, "MethodNotAllowed"),
    "CONNECT to nowhere": (b"CONNECT \r\n" + HOST + b"\r\n", 400, "BadRequest"),
    "unknown expectation": (post(b"Expect: a-miracle\r\n" + LENGTH), 417, "BadRequest"),
    "two expectations": (post(b"Expect: 100-continue, a-miracle\r\n" + LENGTH), 417, "BadRequest"),
    "value that is not UTF-8": (get(b"/x", HOST + b"X: \xff\r\n"), 400, "BadRequest"),
    **{name: (data, 400, "BadRequest") for name, data in SMUGGLING.items()},
}


async def assert_refused(rig: WireRig, client: RawClient, status: int, code: str) -> RawResponse:
    """One answer of ours, the end of the connection, and not a byte upstream."""
    response = await client.read_response()
    assert response.status == status
    assert response.header("Connection") == b"close"
    assert response.header("X-Dashcache-Error") == code.encode()
    assert response.header("Content-Type") == b"application/json"
    document = json.loads(response.body)
    assert document["code"] == code
    assert document["message"]
    assert document["request_id"] == (response.header("X-Request-Id") or b"").decode()
    assert not response.interim
    assert await client.read_until_closed() == b""
    assert rig.upstream_bytes() == b""
    return response


@pytest.mark.parametrize("behind", [pytest.param(b"", id="nothing"), pytest.param(HIDDEN, id="hidden")])
@pytest.mark.parametrize(("data", "status", "code"), [pytest.param(*case, id=name) for name, case in REFUSED.items()])
async def test_s4_a_refused_request_and_what_hides_behind_it(
    rig: WireRig, data: bytes, status: int, code: str, behind: bytes
) -> None:
    async with await rig.client() as client:
        await client.send(data + behind)
        await assert_refused(rig, client, status, code)


@pytest.mark.parametrize("data", [get(b"/x", version=b"HTTP/2.0"), b"GET /x\r\n\r\n"])
async def test_s4_another_version(rig: WireRig, data: bytes) -> None:
    async with await rig.client() as client:
        await client.send(data)
        await assert_refused(rig, client, 505, "VersionNotSupported")


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\x06\4\0\0\0\0\0\0\3\0\0\0\x64"


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([PREFACE], id="whole"),
        pytest.param([PREFACE + SETTINGS], id="with frames"),
        pytest.param([PREFACE[:18]], id="without its end"),
        pytest.param([PREFACE[:21]], id="cut"),
        pytest.param([PREFACE[:3], PREFACE[3:17], PREFACE[17:18]], id="in pieces"),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 2])
async def test_s4_http_2_without_asking(rig: WireRig, pieces: list[bytes], before: int) -> None:
    """Told at once, however much of the preface there is; also on a connection that has spoken HTTP/1.1."""
    async with await rig.client() as client:
        for half in (b"GET /x HTTP/1.1\r\n", b"Host: a\r\n\r\n") * before:
            await client.send(half)
            await asyncio.sleep(0.01)  # in segments of their own
        for _ in range(before):
            assert (await client.read_response()).status == 200
        rig.upstream.connections.clear()
        for piece in pieces:
            await client.send(piece)
            await asyncio.sleep(0.01)
        async with asyncio.timeout(2):
            await assert_refused(rig, client, 505, "VersionNotSupported")


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in SMUGGLING.items()])
async def test_s4_smuggling_byte_by_byte(rig: WireRig, data: bytes) -> None:
    """In other segments the parser may have begun to serve the request before it sees the fault."""
    rig.upstream.answer = answers.respond(b"fine")
    async with await rig.client() as client:
        with contextlib.suppress(ConnectionError):  # refused before all was sent
            for at in range(len(data)):
                await client.send(data[at : at + 1])
                await asyncio.sleep(0)
            await client.send(HIDDEN)
        with contextlib.suppress(ConnectionError):  # so early that the answer was lost to what was still being sent
            assert (await client.read_response(method="POST")).status in (400, 505)
        assert await client.read_until_closed() == b""
    # Part of a streamed body may have gone up before its fault came; a whole request may not.
    assert not rig.upstream.requests
    assert b"hidden" not in rig.upstream_bytes()


@pytest.mark.parametrize("chunks", [b"zz\r\n", b"5\r\nhelloX\r\n", b"0\r\nContent-Length: 3\r\n\r\n"])
@pytest.mark.parametrize("target", [b"/x", b"/api/v1/services/embeddings/text-embedding/text-embedding"])
async def test_s4_a_body_whose_chunks_go_wrong_half_way(rig: WireRig, chunks: bytes, target: bytes) -> None:
    async with await rig.client() as client:
        fields = HOST + CHUNKED + b"Authorization: Bearer k\r\nContent-Type: application/json\r\n"
        await client.send(get(target, fields, method=b"POST") + wire.chunk(b"part"))
        if target == b"/x":
            await wait_until(lambda: b"part" in rig.upstream_bytes(), what="the first piece upstream")
        else:
            await asyncio.sleep(0.05)
        await client.send(chunks + HIDDEN)
        response = await client.read_response(method="POST")
        assert response.status == 400
        assert response.header("X-Dashcache-Error") == b"BadRequest"
        assert response.header("Connection") == b"close"
        assert await client.read_until_closed() == b""
    if rig.upstream.connections:
        await rig.upstream.wait_closed()
    assert not rig.upstream.requests
    assert b"0\r\n\r\n" not in rig.upstream_bytes()


async def test_s4_a_refused_request_ends_only_its_own_connection(rig: WireRig) -> None:
    rig.upstream.answer = answers.respond(b"fine")
    async with await rig.client() as good, await rig.client() as bad:
        assert (await good.request("GET", "/x")).body == b"fine"
        await bad.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # TLS
        assert (await bad.read_response()).status == 400
        assert (await good.request("GET", "/x")).body == b"fine"


@pytest.mark.parametrize("refused", [SMUGGLING["two lengths"], b"CONNECT \r\n\r\n"])
async def test_s4_a_request_before_a_refused_one_is_answered(rig: WireRig, refused: bytes) -> None:
    gate = Gate()
    rig.upstream.answer = answers.after(gate, answers.respond(b"fine"))
    async with await rig.client() as client:
        await client.send(get(b"/first"))
        await gate.wait_arrived()
        await client.send(refused + HIDDEN)
        gate.open()
        assert (await client.read_response()).body == b"fine"
        assert (await client.read_response()).status == 400
        assert await client.read_until_closed() == b""
    assert rig.only_request().target == b"/first"


# --- not an open proxy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    ["//{evil}/x", "///{evil}/x", "/@{evil}/x", "/\\{evil}/x", "/..//{evil}/x", "/%2f{evil}", "/x?u=http://{evil}/"],
)
async def test_s5_no_target_leads_anywhere_else(rig: WireRig, form: str) -> None:
    async with RawUpstream(answers.respond(b"evil")) as evil:
        authority = f"127.0.0.1:{evil.port}"
        target = form.format(evil=authority).encode()
        rig.upstream.answer = answers.respond(b"fine")
        fields = [(b"Host", authority.encode()), (b"X-Forwarded-Host", authority.encode())]
        async with await rig.client() as client:
            assert (await client.request("GET", target, fields)).body == b"fine"
        assert not evil.connections
    request = rig.only_request()
    assert request.target == target
    assert request.header("Host") == rig.upstream.url.removeprefix("http://").encode()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_s5_no_answer_leads_anywhere_else(rig: WireRig, status: int) -> None:
    async with RawUpstream(answers.respond(b"evil")) as evil:
        location = evil.url.encode() + b"/x"
        rig.upstream.answer = answers.respond(b"moved", status, [(b"Location", location)])
        async with await rig.client() as client:
            response = await client.request("GET", "/x", [(b"X-DashScope-ApiKey", b"k")])
        assert not evil.connections
    assert (response.status, response.header("Location")) == (status, location)


@pytest.mark.parametrize("authority", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST", "127.0.0.1"])
async def test_s5_absolute_form_that_names_the_proxy_is_served(rig: WireRig, authority: str) -> None:
    target = f"http://{authority.format(port=rig.proxy.http_port)}/a//b?c"
    async with await rig.client() as client:
        assert (await client.request("GET", target)).status == 200
    assert rig.only_request().target == b"/a//b?c"


# --- Upgrade, OPTIONS *, Expect, HTTP/1.0, pipelining -----------------------------------------------------------------


@pytest.mark.parametrize("protocol", [b"h2c", b"tcp", b"websocket", b"TLS/1.0, HTTP/1.1"])
@pytest.mark.parametrize("body", [None, b"hello"])
async def test_an_upgrade_that_is_not_for_us_is_served_as_plain(
    rig: WireRig, protocol: bytes, body: bytes | None
) -> None:
    rig.upstream.answer = answers.echo()
    fields = [(b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", protocol), (b"HTTP2-Settings", b"AAMAAABk")]
    async with await rig.client() as client:
        assert (await client.request("POST", "/x", fields, body)).status == 200
        assert (await client.request("GET", "/next")).status == 200
    first, second = rig.upstream.requests
    assert not {b"upgrade", b"connection", b"http2-settings"} & set(by_name(first.headers))
    assert first.body == (body or b"")
    assert second.target == b"/next"


async def test_options_about_the_server_is_answered_here(rig: WireRig) -> None:
    async with await rig.client() as client:
        assert (await client.request("OPTIONS", "*")).status == 204
        assert rig.upstream_bytes() == b""
        assert (await client.request("OPTIONS", "/x")).status == 200
    assert rig.only_request().target == b"/x"


@pytest.mark.parametrize("target", ["/x", "/api/v1/services/embeddings/text-embedding/text-embedding"])
async def test_the_body_is_asked_for_when_it_is_read(rig: WireRig, target: str) -> None:
    fields = [(b"Expect", b"100-continue"), (b"Authorization", b"Bearer k"), (b"Content-Type", b"application/json")]
    async with await rig.client() as client:
        whole = request_bytes("POST", target, fields, b"hello")
        await client.send(whole.removesuffix(b"hello"))
        async with asyncio.timeout(5):
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"hello")
        response = await client.read_response(method="POST")
    assert (response.status, response.interim) == (200, ())
    request = rig.only_request()
    assert request.header("Expect") is None
    assert request.body == b"hello"


async def test_the_body_of_a_refused_request_is_not_asked_for(rig: WireRig) -> None:
    async with await rig.client() as client:
        await client.send(get(b"/x", HOST + LENGTH + b"Expect: 100-continue\r\nX: \xff\r\n", method=b"POST"))
        response = await client.read_response(method="POST")
        assert (response.status, response.interim, response.header("Connection")) == (400, (), b"close")
    assert rig.upstream_bytes() == b""


async def test_a_client_of_http_1_0_gets_no_interim_answer(rig: WireRig) -> None:
    async with await rig.client() as client:
        await client.send(post(LENGTH + b"Expect: 100-continue\r\n", version=b"HTTP/1.0"))
        response = await client.read_response(method="POST")
    assert (response.status, response.interim) == (200, ())
    assert rig.only_request().header("Expect") is None


async def test_http_1_0(rig: WireRig) -> None:
    rig.upstream.answer = answers.chunked(b"one", b"two")
    async with await rig.client() as client:
        await client.send(b"GET /x HTTP/1.0\r\n\r\n")
        response = await client.read_response()
        assert response.body == b"onetwo"
        assert response.header("Transfer-Encoding") is None
        assert response.header("Connection") == b"close"
    assert rig.only_request().head.start_line == b"GET /x HTTP/1.1"


async def test_http_1_0_keeps_the_connection_when_asked(rig: WireRig) -> None:
    rig.upstream.answer = answers.respond(b"fine")
    async with await rig.client() as client:
        for _ in range(2):
            await client.send(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            response = await client.read_response()
            assert (response.body, response.header("Connection")) == (b"fine", b"keep-alive")
        await client.send(b"GET /x HTTP/1.0\r\n\r\n")
        assert (await client.read_response()).header("Connection") == b"close"
        assert await client.read_until_closed() == b""


async def test_close_asked_for_by_the_client(rig: WireRig) -> None:
    async with await rig.client() as client:
        response = await client.request("GET", "/x", [(b"Connection", b"close")])
        assert response.header("Connection") == b"close"
        assert await client.read_until_closed() == b""
    assert rig.only_request().header("Connection") is None


async def test_pipelined_requests_are_answered_in_their_order(rig: WireRig) -> None:
    gate = Gate()
    rig.upstream.answer = answers.in_turn(answers.after(gate, answers.echo()), answers.echo())
    async with await rig.client() as client:
        asked = [request_bytes("POST", f"/{number}", body=b"%d" % number * number) for number in range(8)]
        await client.send(b"".join(asked))
        await gate.wait_arrived()
        gate.open()
        for number in range(8):
            response = await client.read_response(method="POST")
            assert response.body.startswith(b"POST /%d HTTP/1.1\r\n" % number)
            assert response.body.endswith(b"\r\n\r\n" + b"%d" % number * number)
    assert [request.target for request in rig.upstream.requests] == [b"/%d" % number for number in range(8)]


# --- hop-by-hop -------------------------------------------------------------------------------------------------------

HOP_BY_HOP = [
    (b"Keep-Alive", b"timeout=5"),
    (b"Proxy-Authenticate", b"Basic"),
    (b"Proxy-Authorization", b"Basic x"),
    (b"Proxy-Connection", b"keep-alive"),
    (b"TE", b"trailers"),
    (b"Trailer", b"X-Sum"),
    (b"Upgrade", b"x/1"),
    (b"X-Named", b"1"),
    (b"x-also-named", b"2"),
]
CONNECTION = [(b"Connection", b"keep-alive, x-NAMED"), (b"connection", b" ,X-Also-Named,, x-absent")]
STAYS = [(b"X-Stays", b"3"), (b"Warning", b'199 - "x"')]


async def test_s6_what_belongs_to_one_connection_stays_there_in_both_directions(rig: WireRig) -> None:
    lines = [*CONNECTION, *HOP_BY_HOP, *STAYS]
    rig.upstream.answer = answers.respond(b"fine", headers=lines)
    async with await rig.client() as client:
        response = await client.request("GET", "/x", lines)
    assert response.body == b"fine"
    assert by_name(response.headers, b"date", b"content-length") == by_name(STAYS)
    assert by_name(rig.only_request().headers, b"host") == by_name(STAYS)


@pytest.mark.parametrize("named", [b"content-length", b"transfer-encoding", b"host", b"content-type"])
async def test_s6_naming_what_frames_a_message_changes_nothing_but_its_form(rig: WireRig, named: bytes) -> None:
    rig.upstream.answer = answers.respond(b"fine", headers=[(b"Connection", named)])
    async with await rig.client() as client:
        for _ in range(2):
            response = await client.request("POST", "/x", [(b"Connection", named)], b"hello")
            assert (response.status, response.body) == (200, b"fine")
    assert [request.body for request in rig.upstream.requests] == [b"hello", b"hello"]


EMBEDDINGS = "/api/v1/services/embeddings/text-embedding/text-embedding"
ANSWER = (
    b'{"output":{"embeddings":[{"text_index":0,"embedding":[0.5,0.25]}]},"usage":{"total_tokens":3},"request_id":"u"}'
)


IDENTITY = [b"Authorization", b"X-DashScope-ApiKey", b"X-DashScope-WorkSpace", b"DashVector-Auth-Token"]


@pytest.mark.parametrize("field", IDENTITY)
@pytest.mark.parametrize("named", [b"%b", b"close, %b", b"x-a ,\t%b,"])
@pytest.mark.parametrize("target", [EMBEDDINGS, "/x", "/v1/collections/c/query"])
async def test_s6_who_is_asking_cannot_be_named_away(rig: WireRig, field: bytes, named: bytes, target: str) -> None:
    """Or the answer would be another's: the default workspace's, nobody's."""
    rig.upstream.answer = answers.respond_json(ANSWER)
    question = b'{"model":"text-embedding-v4","input":{"texts":["%b"]},"parameters":{"dimension":2}}' % field
    lines = [(b"Authorization", b"k"), (b"DashVector-Auth-Token", b"k"), (field, b"mine")]
    async with await rig.client() as client:
        for _ in range(2):
            await client.post(target, question, lines)
    await rig.renew()
    for spelled in (field, field.lower(), field.upper()):
        async with await rig.client() as client:
            connection = [(b"Connection", b"keep-alive"), (b"cOnnection", named % spelled)]
            await client.send(request_bytes("POST", target, [*connection, *lines], question))
            response = await client.read_response(method="POST")
            assert (response.status, response.header("X-Dashcache-Error")) == (400, b"BadRequest")
            assert not await client.read_until_closed()
    assert not rig.upstream_bytes()


async def test_s6_who_is_asking_cannot_be_named_away_in_a_handshake(rig: WireRig) -> None:
    lines = [(b"Connection", b"Upgrade, authorization"), (b"Upgrade", b"websocket"), (b"Authorization", b"mine")]
    async with await rig.client() as client:
        await client.send(request_bytes("GET", "/ws", lines))
        await assert_refused(rig, client, 400, "BadRequest")
