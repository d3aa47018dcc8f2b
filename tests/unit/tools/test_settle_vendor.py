"""The settle probe's calls: what is asked in which form, every answer that ends it, mistakes in use."""

import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from click.testing import CliRunner, Result

from proxy.cli import main
from proxy.tools import settle_vendor
from proxy.tools.settle_probe import ProbeError, RateLimitedError, Reader
from proxy.tools.settle_vendor import ScratchDocument, Target, _Api, _dimensions, _in_words, checked_target

KEY = "sk-dv-canary-0123456789"
URL = "https://vendor.test"
TARGET = Target(URL, "scratch", KEY)
HOST = ConnectionKey("vendor.test", 443, True, True, None, None, None)


class Scripted(_Api):
    """Gives *outputs* one after the other, the last one for ever, and keeps what was asked."""

    def __init__(self, *outputs: Any) -> None:
        self.collection = "scratch"
        self.asked: list[tuple[str, str, Any]] = []
        self._outputs = list(outputs)

    async def ask(self, kind: type[Any], method: str, path: str = "", body: object = None) -> Any:
        self.asked.append((method, path, body))
        output = self._outputs.pop(0) if len(self._outputs) > 1 else self._outputs[0]
        assert isinstance(output, kind)
        return output


def accepted(status: int, content: bytes) -> dict[str, Any]:
    return _Api(None, TARGET)._accepted(status, content)  # type: ignore[arg-type]


def test_a_success_is_code_0() -> None:
    assert accepted(200, b'{"code": 0, "message": "", "output": []}')["output"] == []


@pytest.mark.parametrize(
    ("status", "content", "text"),
    [
        (401, b'{"code": 401, "message": "Unauthorized"}', "^the key in DASHVECTOR_API_KEY is refused: .*Unauthorized"),
        (403, b"", "^the key in DASHVECTOR_API_KEY is refused: https://vendor.test answers status 403$"),
        (200, b'{"code": 401, "message": "no"}', "^the key in DASHVECTOR_API_KEY is refused"),
        (200, b'{"code": -2021, "message": "gone"}', "^there is no collection scratch: .*code -2021: gone"),
        (200, b'{"code": -2019, "message": "MismatchedDimension"}', "status 200, code -2019: MismatchedDimension$"),
        (503, b"<html>", "answers status 503$"),
        (302, b"", "answers status 302$"),
        (500, b'{"code": 0, "message": ""}', "answers status 500"),
        (200, b"<html>", "is this the right address"),
        (200, b"[]", "is this the right address"),
        (200, b'{"status": "healthy"}', "is this the right address"),
        (200, b"", "is this the right address"),
        (200, b'{"code": -1, "message": "a\\u001b[2Jb"}', r"code -1: a \[2Jb$"),
        (200, b'{"code": -1, "message": "' + b"x" * 5_000 + b'"}', "^.{1,400}$"),
    ],
)
def test_every_other_answer_ends_it_in_words(status: int, content: bytes, text: str) -> None:
    with pytest.raises(ProbeError, match=text) as raised:
        accepted(status, content)
    assert not isinstance(raised.value, RateLimitedError)


@pytest.mark.parametrize(("status", "content"), [(200, b'{"code": -2034, "message": "x"}'), (429, b"")])
def test_a_limited_rate_is_told_apart(status: int, content: bytes) -> None:
    with pytest.raises(RateLimitedError):
        accepted(status, content)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (aiohttp.ClientConnectorDNSError(HOST, OSError(-2, "Name or service not known")), "no host of this name.*Name"),
        (aiohttp.ClientConnectorError(HOST, ConnectionRefusedError(111, "Connection refused")), "refused"),
        (aiohttp.ClientConnectorCertificateError(HOST, ValueError("self-signed")), "no trusted TLS.*self-signed"),
        (aiohttp.ServerTimeoutError(), "no answer in time"),
        (TimeoutError(), "no answer in time"),
        (aiohttp.ServerDisconnectedError(), "ended without an answer"),
        (aiohttp.ClientPayloadError("half"), "not a complete HTTP answer.*half"),
        (ConnectionResetError(), "not a complete HTTP answer.*ConnectionResetError"),
    ],
)
def test_what_went_wrong_on_the_way_is_told(error: BaseException, text: str) -> None:
    assert re.search(text, _in_words(error))


async def test_one_unnamed_vector_is_written_and_searched_in_the_documented_form() -> None:
    api = Scripted([])
    document = ScratchDocument(api, {"proxima_vector": 4})
    await document.upsert(7)
    await document.read(Reader.QUERY, 7)
    await document.delete()
    (_, path, written), (_, _, query), (method, _, deleted) = api.asked
    (doc,) = written["docs"]
    assert path == "/docs/upsert"
    assert doc["id"].startswith("dashcache-probe-")
    assert doc["fields"] == {"dashcache_probe": 7}
    assert len(doc["vector"]) == 4
    assert all(isinstance(number, float) for number in doc["vector"])
    assert "vectors" not in doc
    assert (query["vector"], query["filter"]) == (doc["vector"], "dashcache_probe = 7")
    assert (method, deleted) == ("DELETE", {"ids": [doc["id"]]})
    assert doc["id"] in document.name


async def test_named_vectors_are_each_searched() -> None:
    api = Scripted([])
    document = ScratchDocument(api, {"title": 2, "body": 3})
    await document.upsert(7)
    assert await document.read(Reader.QUERY, 7) == {None}
    (doc,) = api.asked[0][2]["docs"]
    assert {name: len(vector) for name, vector in doc["vectors"].items()} == {"title": 2, "body": 3}
    assert "vector" not in doc
    asked = [query["vectors"] for _, _, query in api.asked[1:]]
    assert asked == [{name: {"vector": doc["vectors"][name]}} for name in ("title", "body")]


async def test_vectors_that_do_not_agree_show_both_states() -> None:
    api = Scripted([], [])
    document = ScratchDocument(api, {"title": 2, "body": 2})
    found = {"id": document._id, "fields": {"dashcache_probe": 7}}
    other = {"id": "somebody-else", "fields": {"dashcache_probe": 9}}
    api._outputs = [[found, other], []]
    assert await document.read(Reader.QUERY, 7) == {7, None}
    api._outputs = [[other, found]]
    assert await document.read(Reader.QUERY, 7) == {7}


async def test_fetch_shows_the_value_of_our_document_alone() -> None:
    api = Scripted({})
    document = ScratchDocument(api, {"proxima_vector": 2})
    assert await document.read(Reader.FETCH, 7) == {None}
    assert api.asked[-1][:2] == ("GET", f"/docs?ids={document._id}")
    for fields, value in (({"dashcache_probe": 6}, 6), ({"dashcache_probe": "7"}, 0), ({}, 0), (None, 0)):
        api._outputs = [{document._id: {"id": document._id, "fields": fields}, "other": {}}]
        assert await document.read(Reader.FETCH, 7) == {value}, "a strange value is neither new nor gone"


async def test_a_document_may_be_refused_within_a_success() -> None:
    refused = [{"doc_op": "upsert", "id": "1", "code": -2016, "message": "InvalidPrimaryKey"}]
    with pytest.raises(ProbeError, match=r"^upsert: the document is refused, code -2016: InvalidPrimaryKey$"):
        await ScratchDocument(Scripted(refused), {"proxima_vector": 2}).upsert(7)
    with pytest.raises(ProbeError, match=r"^delete: the document is refused"):
        await ScratchDocument(Scripted(refused), {"proxima_vector": 2}).delete()
    unknown = [{"doc_op": "delete", "id": "1", "code": -2024, "message": "InexistentKey"}]
    await ScratchDocument(Scripted(unknown), {"proxima_vector": 2}).delete()
    with pytest.raises(ProbeError, match="InexistentKey"):
        await ScratchDocument(Scripted(unknown), {"proxima_vector": 2}).upsert(7)


FLOAT = {"dimension": 8, "dtype": "FLOAT", "metric": "cosine"}


@pytest.mark.parametrize(
    ("schema", "dimensions"),
    [
        ({"dimension": 8, "dtype": "FLOAT", "vectors_schema": {"proxima_vector": FLOAT}}, {"proxima_vector": 8}),
        ({"dimension": 8, "dtype": "FLOAT", "status": "SERVING"}, {"proxima_vector": 8}),
        ({"dimension": 0, "vectors_schema": {"a": FLOAT, "b": {**FLOAT, "dimension": 2}}}, {"a": 8, "b": 2}),
    ],
)
async def test_dimensions_come_from_the_description(schema: dict[str, Any], dimensions: dict[str, int]) -> None:
    assert await _dimensions(Scripted(schema)) == dimensions


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (
            {"vectors_schema": {"a": FLOAT, "b": {**FLOAT, "dtype": "INT"}}},
            "the vector b .* is of type INT; .* FLOAT only",
        ),
        ({"dimension": 8, "dtype": "INT"}, "the vector proxima_vector of the collection scratch is of type INT"),
        ({"vectors_schema": {"a": {"dtype": "FLOAT"}}}, "the vector a of the collection scratch"),
        ({"vectors_schema": {}, "sparse_vectors_schema": {"s": {}}}, "has no dense vector"),
        ({"status": "INITIALIZED", "vectors_schema": {"a": FLOAT}}, "not ready: INITIALIZED"),
    ],
)
async def test_collections_that_cannot_be_written_are_told(schema: dict[str, Any], text: str) -> None:
    with pytest.raises(ProbeError, match=text):
        await _dimensions(Scripted(schema))


def test_the_key_is_shown_nowhere() -> None:
    target = checked_target("https://Vendor.test:443/", "scratch", {"DASHVECTOR_API_KEY": f" {KEY}\n"})
    assert target == TARGET
    assert KEY not in repr(target)
    with pytest.raises(ValueError, match=r"^DASHVECTOR_API_KEY is no API key$"):
        checked_target(URL, "scratch", {"DASHVECTOR_API_KEY": "two\nlines"})


class Vendor(http.server.ThreadingHTTPServer):
    """Answers every request alike, or with *silence* until that is set and then not at all; counts them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = b""
        self.silence: threading.Event | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Vendor

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.silence is not None:
            self.server.silence.wait()
            return
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    with Vendor() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DASHCACHE_DASHVECTOR_URL", raising=False)
    monkeypatch.setenv("DASHCACHE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("DASHVECTOR_API_KEY", KEY)
    # A proxy of the surroundings would be asked for everything, and would see the key.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")


def call(*arguments: str, **environment: str | None) -> Result:
    return CliRunner().invoke(main, ["settle-probe", *arguments], env=environment)


@pytest.mark.parametrize(
    ("arguments", "environment", "text"),
    [
        (["--collection", "scratch"], {}, "name the vendor's with --url or DASHCACHE_DASHVECTOR_URL"),
        (["--url", URL], {}, "Missing option '--collection'"),
        (["--url", URL, "--collection", "a/../b"], {}, "--collection: 3 to 32"),
        (["--url", "vendor.test", "--collection", "scratch"], {}, "allowed: http(s)://host[:port]"),
        (["--url", f"{URL}/v1", "--collection", "scratch"], {}, "leave out /v1"),
        (["--url", URL, "--collection", "scratch"], {"DASHVECTOR_API_KEY": None}, "DASHVECTOR_API_KEY must hold"),
        (["--url", URL, "--collection", "scratch"], {"DASHVECTOR_API_KEY": "ü"}, "DASHVECTOR_API_KEY is no API key"),
        (["--url", URL, "--collection", "scratch"], {"DASHCACHE_VECTOR_SETTLE_S": "-1"}, "DASHCACHE_VECTOR_SETTLE_S: "),
        (["--url", URL, "--collection", "scratch", "--rounds", "0"], {}, "--rounds"),
        (["--url", URL, "--collection", "scratch", "--interval", "10"], {}, "10ms"),
        (["--url", URL, "--collection", "scratch", "--metrics-file", "/no/where.prom"], {}, "there is no folder /no"),
    ],
)
def test_mistakes_in_use(arguments: list[str], environment: dict[str, str | None], text: str) -> None:
    result = call(*arguments, **environment)
    assert result.exit_code == 2, result.output
    assert text in result.output
    assert KEY not in result.output


def test_the_key_follows_no_redirect(vendor: Vendor) -> None:
    vendor.status, vendor.headers = 302, {"Location": f"{vendor.url}/elsewhere"}
    result = call("--url", vendor.url, "--collection", "scratch")
    assert (result.exit_code, vendor.asked) == (1, ["/v1/collections/scratch"])
    assert "answers status 302" in result.output


def test_the_cache_is_not_what_is_measured(vendor: Vendor) -> None:
    vendor.headers = {"Cache-Status": "dashcache; fwd=miss"}
    vendor.body = json.dumps({"code": 0, "output": {"vectors_schema": {"proxima_vector": FLOAT}}}).encode()
    result = call("--collection", "scratch", DASHCACHE_DASHVECTOR_URL=vendor.url)
    assert result.exit_code == 1
    assert result.output == f"{vendor.url} is the cache itself; name the vendor's own address\n"


def test_a_call_takes_no_longer_than_a_round_may(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle_vendor, "_CALL_TIMEOUT_S", 1_000.0)
    vendor.silence = threading.Event()
    try:
        result = call("--url", vendor.url, "--collection", "scratch", "--timeout", "100ms")
    finally:
        vendor.silence.set()
    assert (result.exit_code, result.output) == (1, f"{vendor.url}: no answer in time\n")


def test_an_output_of_another_form_is_told(vendor: Vendor) -> None:
    vendor.body = b'{"code": 0, "output": ["scratch"]}'
    result = call("--url", vendor.url, "--collection", "scratch")
    assert result.exit_code == 1
    assert "answers GET /v1/collections/scratch in an unknown form" in result.output
