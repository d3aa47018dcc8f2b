"""What is not ours to cache goes across byte for byte, in both directions; found out with whatever HTTP can spell."""

import asyncio
import itertools
import os
import string

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.scenario.wire_rig import FRAMING, WireRig, by_name
from tests.support import answers, wire
from tests.support.raw_client import RawClient
from tests.support.recorded import RecordedRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")


def _words(text: str) -> list[str]:
    return text.split()


Lines = list[tuple[bytes, bytes]]

fast = settings(
    max_examples=2_000 if os.environ.get("DASHCACHE_TEST_SLOW") else 200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)

TOKEN = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"
# Every visible ASCII character that the request line can carry; a fragment is refused at the door.
IN_TARGET = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "#?")
ESCAPES = st.sampled_from(["%2f", "%2F", "%7e", "%41", "%00", "%zz", "%", "%C3%bc", "%25", "%0d%0a", "%3F", "%23"])
DOTTED = st.sampled_from(["", ".", "..", "...", "%2e%2E", ";v=1", "a;b=c", "@evil", "evil.test:80", "\\", "'\"<>{}"])
# Methods of HTTP, WebDAV and others that the parser knows; what it does not know is refused (see test_s4_smuggling).
METHODS = st.sampled_from(
    ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "REPORT", "M-SEARCH", "PURGE", "QUERY"]
)
# Bodiless requests of these methods gain Content-Length: 0 (docs/architecture.md, "Where it is not byte-exact").
WITHOUT_LENGTH = {b"GET", b"HEAD", b"OPTIONS", b"TRACE"}
KNOWN_NAMES = st.sampled_from(
    _words(
        "accept accept-encoding authorization cache-control content-encoding content-type cookie date forwarded from "
        "idempotency-key if-none-match origin pragma range referer server set-cookie user-agent vary via warning "
        "x-forwarded-for x-dashscope-apikey x-dashscope-sse x-dashscope-workspace x-http-method-override etag "
        "x-original-url x-request-id www-authenticate location retry-after sec-websocket-key cookie2 age"
    )
)
# Fields that the connection owns, or that frame the message; each has a test of its own.
NOT_FREE = frozenset(
    _words(
        "connection content-length expect host keep-alive proxy-authenticate proxy-authorization proxy-connection te "
        "trailer transfer-encoding upgrade sec-websocket-key1"
    )
)


@st.composite
def spelled(draw: st.DrawFn, names: st.SearchStrategy[str]) -> bytes:
    """A name in any mixture of cases."""
    name = draw(names)
    return "".join(draw(st.sampled_from([c.lower(), c.upper()])) for c in name).encode()


def is_free(name: str) -> bool:
    return name.lower() not in NOT_FREE and not name.lower().startswith("proxy-")


NAMES = spelled(KNOWN_NAMES | st.text(TOKEN, min_size=1, max_size=20).filter(is_free))
VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F))


def trimmed(text: bytes) -> bytes:
    return text.strip(b" \t")


ASCII_VALUES = st.text(VISIBLE + " \t", max_size=40).map(str.encode).map(trimmed)
UTF8_VALUES = (
    st.text(st.characters(min_codepoint=0x80, exclude_categories=["Cs"]) | st.sampled_from(" \tab\x85\xa0\u2028"))
    .map(str.encode)
    .map(trimmed)
)
ANY_BYTES = st.binary(max_size=30).map(lambda data: trimmed(bytes(b for b in data if b >= 0x20 and b != 0x7F)))
BLANKS = st.text(" \t", max_size=2).map(str.encode)

TARGETS = st.builds(
    lambda segments, query: ("/" + "/".join(segments) + ("" if query is None else "?" + query)).encode(),
    st.lists(st.lists(st.text(IN_TARGET, max_size=6) | ESCAPES | DOTTED, max_size=3).map("".join), max_size=5),
    # A bare final ? is dropped, so a query has something in it.
    st.none() | st.lists(st.text(IN_TARGET + "?", max_size=8) | ESCAPES, min_size=1).map("".join).filter(bool),
)
BODIES = st.binary(max_size=300) | st.sampled_from([b"{}", b"\r\n\r\n", b"0\r\n\r\n", bytes(range(256)) * 300])


def lines_of(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[Lines]:
    """Header lines, some names more than once."""
    one = st.tuples(NAMES, values)
    several = st.tuples(NAMES, st.lists(values, min_size=2, max_size=3)).map(lambda p: [(p[0], v) for v in p[1]])
    return st.lists(one.map(lambda line: [line]) | several, max_size=8).map(
        lambda groups: list(itertools.chain(*groups))
    )


@st.composite
def singletons_once(draw: st.DrawFn, values: st.SearchStrategy[bytes]) -> Lines:
    """Lines that the parser takes: the fields that may stand only once stand once."""
    once = {b"content-type", b"user-agent", b"etag", b"content-location", b"max-forwards", b"server", b"content-range"}
    seen: set[bytes] = set()
    kept = []
    for name, value in draw(lines_of(values)):
        low = name.lower()
        if low in once and low in seen:
            continue
        seen.add(low)
        kept.append((name, value))
    return kept


def in_chunks(pieces: list[bytes]) -> bytes:
    return b"".join(wire.chunk(piece) for piece in pieces) + b"0\r\n\r\n"


def on_the_wire(start_line: bytes, lines: Lines, blanks: list[bytes], framing: Lines) -> bytes:
    """A head with odd spacing around its values, but for those that the parser takes in one form only."""
    spaced = [
        b"%b:%b%b%b\r\n" % (name, blanks[2 * i % len(blanks)], value, blanks[(2 * i + 1) % len(blanks)])
        for i, (name, value) in enumerate(lines)
    ]
    return start_line + b"\r\n" + b"".join(spaced) + wire.head_bytes(b"", framing)[2:]


@fast
@given(
    method=METHODS,
    target=TARGETS,
    lines=singletons_once(ASCII_VALUES | UTF8_VALUES),
    body=st.none() | BODIES | st.lists(BODIES, max_size=4),
    blanks=st.lists(BLANKS, min_size=1, max_size=6),
)
@example("GET", b"//evil.test/..//./%2e%2E/?", [], None, [b" "])
@example("GET", b"/a?b?c=/../&&x=%zz", [(b"aCCEPT-encoding", b""), (b"X", b"\xc2\x85"), (b"x", b"2")], None, [b"\t "])
@example("DELETE", b"/x", [(b"Content-Type", b"text/x")], b"", [b""])
async def test_a_request_reaches_the_upstream_as_it_was_sent(
    module_rig: WireRig, method: str, target: bytes, lines: Lines, body: bytes | list[bytes] | None, blanks: list[bytes]
) -> None:
    upstream = module_rig.upstream
    module_rig.forget()
    upstream.answer = answers.respond(b"fine")
    framing, payload, content = [], b"", b""
    if isinstance(body, list):
        framing, payload, content = [(b"tRansfer-encoding", b"chunked")], in_chunks(body), b"".join(body)
    elif body is not None:
        framing, payload, content = [(b"content-LENGTH", b"%d" % len(body))], body, body
    head = on_the_wire(
        b"%b %b HTTP/1.1" % (method.encode(), target), [(b"Host", b"proxy.test"), *lines], blanks, framing
    )
    async with await module_rig.client() as client:
        await client.send(head + payload)
        response = await client.read_response(method=method, timeout=2.0)

    assert (response.status, response.body) == (200, b"fine")
    request = module_rig.only_request()
    assert request.method == method.encode()
    assert request.target == (target[:-1] if target.endswith(b"?") and target.count(b"?") == 1 else target)
    assert request.header("Host") == upstream.url.removeprefix("http://").encode()
    assert by_name(request.headers, b"host", *FRAMING) == by_name(in_first_spelling(lines))
    assert request.body == content
    if isinstance(body, list):
        assert request.header("Transfer-Encoding") == b"chunked"
        assert request.header("Content-Length") is None
    elif body is not None:
        assert by_name(request.headers)[b"content-length"] == framing
    elif method.encode() not in WITHOUT_LENGTH:
        assert request.header("Content-Length") == b"0"
    else:
        assert not set(by_name(request.headers)) & set(FRAMING)


def in_first_spelling(lines: Lines) -> Lines:
    """Lines of one name in several cases go up in the case of the first."""
    spellings: dict[bytes, bytes] = {}
    return [(spellings.setdefault(name.lower(), name), value) for name, value in lines]


def has_c1(value: bytes) -> bool:
    """Whether it holds control characters beyond ASCII, which no answer may (see test_s8_response_splitting)."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return any("\x80" <= letter <= "\x9f" for letter in text)


REASONS = st.text(VISIBLE + " ", max_size=20).map(str.strip).map(str.encode) | ANY_BYTES.filter(
    lambda value: not has_c1(value)
)


@fast
@given(
    status=st.sampled_from([200, 201, 204, 206, 301, 302, 304, 307, 400, 401, 407, 429, 500, 503, 599])
    | st.integers(200, 599),
    reason=REASONS,
    lines=lines_of((ASCII_VALUES | UTF8_VALUES | ANY_BYTES).filter(lambda value: not has_c1(value))),
    body=st.sampled_from(["length", "chunked", "until close"]),
    pieces=st.lists(BODIES, max_size=4),
    blanks=st.lists(BLANKS, min_size=1, max_size=6),
    method=st.sampled_from(["GET", "GET", "POST", "HEAD"]),
)
@example(200, b"", [(b"SET-cookie", b"a=1"), (b"Set-Cookie", b"b=2")], "length", [b"x"], [b""], "GET")
@example(299, b"\xff\xfe", [(b"X-Odd", b"\xff\xa0"), (b"date", b"never")], "until close", [b"x" * 70_000], [b""], "GET")
async def test_an_answer_reaches_the_client_as_it_was_sent(
    module_rig: WireRig,
    status: int,
    reason: bytes,
    lines: Lines,
    body: str,
    pieces: list[bytes],
    blanks: list[bytes],
    method: str,
) -> None:
    module_rig.forget()
    content = b"".join(pieces)
    framing: Lines = []
    if body == "length" and status != 204:
        framing = [(b"content-LENGTH", b"%d" % len(content))]
    elif body == "chunked" and status not in (204, 304):
        framing = [(b"transfer-ENCODING", b"chunked")]
    head = on_the_wire(b"HTTP/1.1 %d %b" % (status, reason), lines, blanks, framing)
    has_body = method != "HEAD" and status not in (204, 304)
    payload = b"" if not has_body else in_chunks(pieces) if body == "chunked" else content

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(head + payload)
        if body == "until close":
            writer.close()

    module_rig.upstream.answer = answer
    async with await module_rig.client() as client:
        response = await client.request(method, "/x", timeout=2.0)
        assert_same_answer(response.head, status, reason, lines)
        assert response.body == (content if has_body else b"")
        received = by_name(response.headers)
        if framing and body == "length":
            assert received[b"content-length"] == framing
        elif has_body:
            assert response.header("Transfer-Encoding") == b"chunked"
        else:
            assert not set(received) & set(FRAMING)
        await assert_still_usable(module_rig, client)


def assert_same_answer(head: wire.Head, status: int, reason: bytes, lines: Lines) -> None:
    """Every line of the upstream's and no other, but for a Date where there was none."""
    assert head.start_line == b"HTTP/1.1 %d %b" % (status, reason)
    received = by_name(head.headers, *FRAMING)
    sent = by_name(lines)
    if b"date" not in sent:
        assert len(received.pop(b"date")) == 1
    assert received == sent


async def assert_still_usable(rig: WireRig, client: RawClient) -> None:
    """The answer has left nothing behind on the client's connection."""
    rig.upstream.answer = answers.respond(b"next")
    assert (await client.request("GET", "/next")).body == b"next"


async def test_heads_as_large_as_the_limits_allow_go_both_ways(module_rig: WireRig) -> None:
    module_rig.forget()
    lines = [(b"X-Long", b"y" * 60_000), *[(b"X-%d" % number, b"z" * 50) for number in range(200)]]
    module_rig.upstream.answer = answers.respond(b"fine", headers=lines)
    target = "/" + "t" * 60_000
    async with await module_rig.client() as client:
        response = await client.request("GET", target, lines)
    assert by_name(response.headers, b"date", *FRAMING) == by_name(lines)
    request = module_rig.only_request()
    assert request.target == target.encode()
    assert by_name(request.headers, b"host") == by_name(lines)


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"]
)
async def test_interim_answers_stay_with_the_proxy(module_rig: WireRig, interim: bytes) -> None:
    final = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"
    module_rig.upstream.answer = answers.raw(interim, interim, final)
    async with await module_rig.client() as client:
        for _ in range(2):
            response = await client.request("GET", "/x")
            assert (response.interim, response.body) == ((), b"fine")


async def test_trailers_stay_with_the_proxy(module_rig: WireRig) -> None:
    module_rig.forget()
    module_rig.upstream.answer = answers.chunked(b"fine", trailers=[(b"X-Sum", b"1")])
    async with await module_rig.client() as client:
        for _ in range(2):
            head = [(b"Host", b"a"), (b"Transfer-Encoding", b"chunked")]
            await client.send(
                wire.head_bytes(b"POST /x HTTP/1.1", head) + wire.chunk(b"hello") + b"0\r\nX-Sum: 2\r\n\r\n"
            )
            response = await client.read_response(method="POST")
            assert (response.body, response.trailers) == (b"fine", ())
    assert [(request.body, request.trailers) for request in module_rig.upstream.requests] == [(b"hello", ())] * 2


async def test_names_that_differ_in_case_only_keep_all_their_lines(module_rig: WireRig) -> None:
    """In the case of the first: field names have no case, but losing a value would change the question."""
    module_rig.forget()
    lines = [(b"X-A", b"1"), (b"x-a", b"2"), (b"X-a", b"1")]
    module_rig.upstream.answer = answers.respond(b"fine", headers=lines)
    async with await module_rig.client() as client:
        response = await client.request("GET", "/x", lines)
    assert by_name(module_rig.only_request().headers, b"host") == {b"x-a": [(b"X-A", value) for _, value in lines]}
    assert by_name(response.headers)[b"x-a"] == lines


@pytest.mark.parametrize("size", [0, 5, 48 * 1024 - 1, 48 * 1024, 64 * 1024])
@pytest.mark.parametrize("lines", [1, 8])
async def test_an_upload_goes_up_whole_however_long_its_head_and_itself_are(
    module_rig: WireRig, size: int, lines: int
) -> None:
    """What is short goes up in one piece, what is not in several; the two together decide."""
    module_rig.forget()
    module_rig.upstream.answer = answers.respond(b"fine")
    content = os.urandom(size)
    async with await module_rig.client() as client:
        response = await client.request("POST", "/x", [(b"X-%d" % at, b"x" * 7000) for at in range(lines)], content)
    assert response.status == 200
    request = module_rig.only_request()
    assert request.body == content
    assert [request.header(f"X-{at}") for at in range(lines)] == [b"x" * 7000] * lines
