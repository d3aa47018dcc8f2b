"""
S4, the upstream's side: answers that are not sound HTTP are a 502, are not kept, and end their connection.

Each stands in front of a body that would be good, on every kind of route: what is refused is the head, or the framing.
"""

import asyncio
from dataclasses import replace

import pytest

from tests.scenario.routes import ALL, PASSED, VECTORS
from tests.scenario.telling import state
from tests.scenario.wire_rig import WireRig
from tests.support import answers, wire
from tests.support.recorded import RecordedRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def start(line: bytes) -> bytes:
    """An answer with this first line, %L being what its length is."""
    return line + b"\r\nContent-Type: application/json\r\nContent-Length: %L\r\n\r\n%B"


def lined(line: bytes) -> bytes:
    """With this among its lines."""
    return OK + b"Content-Length: %L\r\n" + line + b"\r\n\r\n%B"


def framed(lines: bytes, body: bytes = b"%B") -> bytes:
    """With this for its framing."""
    return OK + lines + b"\r\n" + body


WHOLE = b"%X\r\n%B\r\n0\r\n\r\n"

# %B is a body, %L its length, %X the same in hexadecimal.
MALFORMED = {
    "no status line": b"hello\r\n\r\n%B",
    "nothing but lines": b"\r\n\r\n",
    "an empty line first": b"\r\n" + start(b"HTTP/1.1 200 OK"),
    "status of four digits": start(b"HTTP/1.1 2000 OK"),
    "status of two digits": start(b"HTTP/1.1 20 OK"),
    "status of letters": start(b"HTTP/1.1 20x OK"),
    "status below 100": start(b"HTTP/1.1 099 OK"),
    "status with a sign": start(b"HTTP/1.1 +200 OK"),
    "two blanks before the status": start(b"HTTP/1.1  200 OK"),
    "tabs in the first line": start(b"HTTP/1.1\t200\tOK"),
    "another protocol": start(b"ICY 200 OK"),
    "a protocol in lower case": start(b"http/1.1 200 OK"),
    "another version": start(b"HTTP/2.0 200 OK"),
    "a later version": start(b"HTTP/1.2 200 OK"),
    "a version of two digits": start(b"HTTP/1.10 200 OK"),
    "an ancient version": start(b"HTTP/0.9 200 OK"),
    "frames of HTTP/2": b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64",
    "a request": b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %L\r\n\r\n%B",
    "an unasked switch": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "a body in an interim answer": b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\nhello" + lined(b"X: y"),
    "length and chunks": framed(b"Content-Length: %L\r\n" + CHUNKED, WHOLE),
    "chunks and length": framed(CHUNKED + b"Content-Length: %L\r\n", WHOLE),
    "two lengths": framed(b"Content-Length: %L\r\nContent-Length: 3\r\n"),
    "two equal lengths": framed(b"Content-Length: %L\r\nContent-Length: %L\r\n"),
    "list of lengths": framed(b"Content-Length: %L, %L\r\n"),
    "signed length": framed(b"Content-Length: +%L\r\n"),
    "negative length": framed(b"Content-Length: -%L\r\n"),
    "hexadecimal length": framed(b"Content-Length: 0x%X\r\n"),
    "length with a fraction": framed(b"Content-Length: %L.0\r\n"),
    "length in two words": framed(b"Content-Length: 1 %L\r\n"),
    "underscores in a length": framed(b"Content-Length: 0_%L\r\n"),
    "empty length": framed(b"Content-Length: \r\n"),
    "endless length": framed(b"Content-Length: 99999999999999999999999\r\n"),
    "a length too short by one": framed(b"Content-Length: %S\r\n"),
    "folded length": framed(b"Content-Length:\r\n %L\r\n"),
    "unknown coding": framed(b"Transfer-Encoding: xchunked\r\n", WHOLE),
    "empty coding": framed(b"Transfer-Encoding: \r\nContent-Length: %L\r\n"),
    "no coding": framed(b"Transfer-Encoding: identity\r\nContent-Length: %L\r\n"),
    "coding that stays on": framed(b"Transfer-Encoding: gzip, chunked\r\n", WHOLE),
    "coding after chunks": framed(b"Transfer-Encoding: chunked, gzip\r\n", WHOLE),
    "chunks twice": framed(CHUNKED + CHUNKED, WHOLE),
    "chunks twice in a line": framed(b"Transfer-Encoding: chunked, chunked\r\n", WHOLE),
    "quoted coding": framed(b'Transfer-Encoding: "chunked"\r\n', WHOLE),
    "coding with a parameter": framed(b"Transfer-Encoding: chunked;a=b\r\n", WHOLE),
    "vertical tab in a coding": framed(b"Transfer-Encoding: \x0bchunked\r\n", WHOLE),
    "coding in HTTP/1.0": framed(CHUNKED, WHOLE).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "bad chunk size": framed(CHUNKED, b"z\r\n%B\r\n0\r\n\r\n"),
    "signed chunk size": framed(CHUNKED, b"+" + WHOLE),
    "prefixed chunk size": framed(CHUNKED, b"0x" + WHOLE),
    "blank before a chunk size": framed(CHUNKED, b" " + WHOLE),
    "no chunk size": framed(CHUNKED, b"\r\n%B\r\n0\r\n\r\n"),
    "endless chunk size": framed(CHUNKED, b"fffffffffffffffff5\r\n%B\r\n0\r\n\r\n"),
    "chunk longer than it says": framed(CHUNKED, b"4\r\n%B\r\n0\r\n\r\n"),
    "chunk without an end": framed(CHUNKED, b"%X\r\n%B0\r\n\r\n"),
    "chunk lines that end in LF": framed(CHUNKED, b"%X\n%B\n0\n\n"),
    "LF in a chunk extension": framed(CHUNKED, b"%X;a\nb\r\n%B\r\n0\r\n\r\n"),
    "CR in a chunk extension": framed(CHUNKED, b"%X;a\rb\r\n%B\r\n0\r\n\r\n"),
    "length in a trailer": framed(CHUNKED, b"%X\r\n%B\r\n0\r\nContent-Length: 9\r\n\r\n"),
    "no colon in a trailer": framed(CHUNKED, b"%X\r\n%B\r\n0\r\nXyz\r\n\r\n"),
    "blank before the colon": framed(b"Content-Length : %L\r\n"),
    "blank in a name": lined(b"X Y: z"),
    "brackets in a name": lined(b"X(Y): z"),
    "NUL in a name": lined(b"X\0Y: z"),
    "a name beyond ASCII": lined("Xü: z".encode()),
    "no colon": lined(b"Xyz"),
    "no name": lined(b": z"),
    "folded line": lined(b"X: a\r\n b"),
    "folded first line": b"HTTP/1.1 200 OK\r\n X: y\r\nContent-Length: %L\r\n\r\n%B",
    "lines that end in LF": lined(b"X: y").replace(b"\r\n", b"\n"),
    "an empty line of LF": OK + b"Content-Length: %L\r\n\n%B",
    "a line without end": OK + b"X: " + b"y" * 70_000,
    "lines without end": lined(b"X: y\r\n" * 300),
}


def spelled(template: bytes, body: bytes) -> bytes:
    size = len(body)
    for mark, value in ((b"%L", b"%d" % size), (b"%S", b"%d" % (size - 1)), (b"%X", b"%x" % size), (b"%B", body)):
        template = template.replace(mark, value)
    return template


@pytest.mark.parametrize("name", MALFORMED)
async def test_s4_a_malformed_answer_is_a_502_and_ends_its_connection(rig: WireRig, name: str) -> None:
    async with await rig.client() as client:
        for route in ALL:
            await rig.renew()
            rig.upstream.answer = answers.raw(spelled(MALFORMED[name], route.good(name)))
            response = await route.ask(client, name)
            assert (route.name, response.status) == (route.name, 502)
            assert response.header("X-Dashcache-Error") == b"UpstreamProtocolError"
            await rig.upstream.wait_closed()
            assert len(rig.upstream.requests) == 1
            rig.upstream.answer = answers.respond_json(route.good(name))
            await route.assert_not_kept(client, name)
            assert len(rig.upstream.connections) == 2


async def test_s4_a_malformed_answer_byte_by_byte(rig: WireRig) -> None:
    """Cut by the network wherever that hurts most, a sound answer stays sound and a malformed one malformed."""
    sound = framed(CHUNKED, WHOLE)
    names = [name for name, data in MALFORMED.items() if len(data) < 1000 and data.endswith(b"%B")]
    names.remove("a length too short by one")  # what follows is then something that nobody asked for
    async with await rig.client() as client:
        for name in [None, *names]:
            data = spelled(sound if name is None else MALFORMED[name], PASSED.good("x"))

            async def answer(_: RecordedRequest, writer: asyncio.StreamWriter, data: bytes = data) -> None:
                for at in range(len(data)):
                    writer.write(data[at : at + 1])
                    await wire.flush(writer)

            rig.upstream.answer = answer
            response = await PASSED.ask(client, "x")
            assert (name, response.status) == (name, 200 if name is None else 502)


async def test_s4_malformed_answers_are_counted(rig: WireRig, record_property) -> None:
    assert len(MALFORMED) >= 40
    record_property("figure", f"{len(MALFORMED)} malformed answers on {len(ALL)} routes: all 502, no connection kept")


async def test_s4_chunks_that_go_wrong_half_way_break_the_answer_off(rig: WireRig) -> None:
    gate = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\n" + CHUNKED
    rig.upstream.answer = answers.raw(head + b"\r\n5\r\nhello\r\n", gate, b"zz\r\nHTTP/1.1 200 OK\r\n\r\n")
    async with await rig.client() as client:
        await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(5):
            await client.reader.readuntil(b"hello\r\n")
        gate.set()
        assert await client.read_until_closed() == b""
    await rig.upstream.wait_closed()


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned", b"junk\r\n\r\n", b"x"])
@pytest.mark.parametrize("together", [True, False])
async def test_s4_bytes_nobody_asked_for_are_not_the_next_answer(rig: WireRig, extra: bytes, together: bool) -> None:
    """An answer that is left on a kept connection must never be given to whoever uses it next."""
    written = asyncio.Event()

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst" + (extra if together else b""))
        await wire.flush(writer)
        if not together:
            await asyncio.sleep(0.02)  # the proxy has put the connection back
            writer.write(extra)
            await wire.flush(writer)
        written.set()

    rig.upstream.answer = answer
    async with await rig.client() as client:
        await client.request("GET", "/x")
        await written.wait()
        rig.upstream.answer = answers.respond(b"second")
        response = await client.request("GET", "/y")
    assert (response.status, response.body) == (200, b"second")


@pytest.mark.parametrize("status", [204, 304])
async def test_s4_a_body_where_none_can_be_is_not_the_next_answer(rig: WireRig, status: int) -> None:
    line = b"HTTP/1.1 %d Odd\r\nContent-Length: 5\r\n" % status
    rig.upstream.answer = answers.raw(line + b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
    async with await rig.client() as client:
        first = await client.request("GET", "/x")
        assert first.status in (status, 502)
        rig.upstream.answer = answers.respond(b"second")
        assert (await client.request("GET", "/y")).body == b"second"


async def test_s4_a_write_with_a_malformed_answer_counts_as_done(rig: WireRig) -> None:
    """It was executed, for all that anybody knows: what hangs on it is asked for anew, and it is not sent again."""
    written = replace(VECTORS, target="/v1/collections/written/query")  # others would not be kept for a while
    async with await rig.client() as client:
        await written.fill(client, rig.upstream, "before")
        rig.forget()
        rig.upstream.answer = answers.raw(spelled(MALFORMED["two lengths"], b"{}"))
        target = "/v1/collections/written/docs"
        response = await client.request("POST", target, list(VECTORS.lines), b'{"docs":[]}')
        assert (response.status, len(rig.upstream.requests)) == (502, 1)
        rig.upstream.answer = answers.respond_json(VECTORS.good("before"))
        assert state(await written.ask(client, "before")) == "miss"
