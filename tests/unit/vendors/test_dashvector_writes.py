"""Whatever is not known to be a read is a write, with a scope that covers it, over both doors (C6)."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.plan import Pass, PassReason, Verdict
from proxy.core.request import Request
from proxy.vendors.dashvector.common import VectorRead, VectorWrite
from proxy.vendors.dashvector.over_grpc import SERVICE, DashVectorGrpc
from proxy.vendors.dashvector.over_http import DashVectorHttp
from proxy.vendors.registry import Adapters

LINES = ((b"dashvector-auth-token", b"sk-one"), (b"Content-Type", b"application/json"))
ONE = "/v1/collections/abc"
ENDPOINT, CATALOG, ABC = ("endpoint",), ("catalog",), ("collection", "abc")

HTTP_WRITES = {
    ("POST", "/v1/collections"): {ENDPOINT, CATALOG},
    ("DELETE", ONE): {ABC, CATALOG},
    ("POST", ONE + "/docs"): {ABC},
    ("PUT", ONE + "/docs"): {ABC},
    ("POST", ONE + "/docs/upsert"): {ABC},
    ("DELETE", ONE + "/docs"): {ABC},
    ("POST", ONE + "/partitions"): {ABC},
    ("DELETE", ONE + "/partitions/one"): {ABC},
}
HTTP_READS = {
    ("GET", "/service_version"),
    ("GET", "/v1/collections"),
    ("GET", ONE),
    ("GET", ONE + "/stats"),
    ("GET", ONE + "/docs"),
    ("GET", ONE + "/partitions"),
    ("GET", ONE + "/partitions/one"),
    ("GET", ONE + "/partitions/one/stats"),
    ("POST", ONE + "/query"),
    ("POST", ONE + "/query_group_by"),
}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "Post", "QUERY")
SAFE = ("HEAD", "OPTIONS", "TRACE")


def scopes(method, target, lines=LINES) -> set:
    """Those of the write, which both the head alone and the whole request must give."""
    adapter, asked = DashVectorHttp(), Request(method, target, lines, "vectors", b"{}")
    early = adapter.write_of(method, asked.path, lines)
    assert isinstance(early, VectorWrite), (method, target)
    assert early.operation == "vector-write"
    assert adapter.wants(method, asked.path)
    return set(early.scopes)


@pytest.mark.parametrize(("method", "path"), HTTP_WRITES)
def test_a_write_covers_its_collection_and_no_other(method, path):
    for target in (path, path + "?partition=one", path + "?"):
        assert scopes(method, target) == HTTP_WRITES[method, path]
    assert DashVectorHttp().operation_of(method, path) == "vector-write"


@pytest.mark.parametrize(("method", "path"), HTTP_WRITES)
def test_a_write_needs_neither_a_credential_nor_a_body_to_be_one(method, path):
    assert set(DashVectorHttp().write_of(method, path, ()).scopes) == HTTP_WRITES[method, path]


SPELLINGS = [
    lambda path: path + "/",
    lambda path: "/" + path,
    lambda path: path.replace("/", "//"),
    lambda path: path[:-1] + f"%{ord(path[-1]):02x}",
    lambda path: path[:-1] + f"%{ord(path[-1]):02X}",
    lambda path: path.replace("c", "%63"),
    lambda path: path.upper(),
    lambda path: path.replace("v1", "V1"),
    lambda path: path.replace("collections", "Collections"),
    lambda path: path + "/x",
    lambda path: path + ";x=1",
    lambda path: path + "%20",
    lambda path: path + "%00",
    lambda path: path + ".json",
    lambda path: path + "/..",
    lambda path: path + "/.",
    lambda path: "/x/.." + path,
    lambda path: "/v2" + path,
    lambda path: path.replace("v1", "v2"),
    lambda path: path.replace("/", "\\"),
    lambda path: path + "\n",
    lambda path: path.replace("abc", "ab") + "/",
    lambda path: path.replace("abc", "a" * 33) + "/",
    lambda path: path.replace("abc", "a.c") + "/",
    lambda path: path.replace("abc", "äbc") + "/",
]


@pytest.mark.parametrize(("method", "path"), sorted({*HTTP_WRITES, *HTTP_READS}))
@pytest.mark.parametrize("spelling", range(len(SPELLINGS)))
def test_any_other_spelling_could_be_anything(method, path, spelling):
    other = SPELLINGS[spelling](path)
    if other != path and (method, other) not in {*HTTP_WRITES, *HTTP_READS}:
        assert ENDPOINT in scopes(method, other)


@pytest.mark.parametrize("path", sorted({path for _, path in {*HTTP_WRITES, *HTTP_READS}}))
@pytest.mark.parametrize("method", METHODS)
def test_any_other_method_could_be_anything(method, path):
    if method in SAFE:
        assert DashVectorHttp().write_of(method, path, LINES) is None
        assert DashVectorHttp().precheck(Request(method, path, LINES, "vectors")) is PassReason.NOT_CACHED
        assert scopes(method, path, (*LINES, (b"X-HTTP-Method-Override", b"DELETE"))) == {ENDPOINT}
    elif (method, path) not in {*HTTP_WRITES, *HTTP_READS}:
        assert scopes(method, path) == {ENDPOINT}


@pytest.mark.parametrize("name", ["ab", "a" * 33, "a.c", "a c", "%61bc", "..", ".", "", "abc ", "abc\n", "äbc", "{c}"])
def test_a_name_in_doubt_names_nothing(name):
    for path in (f"/v1/collections/{name}", f"/v1/collections/{name}/docs", f"/v1/collections/abc/partitions/{name}"):
        assert scopes("DELETE", path) == {ENDPOINT}
    assert scopes("POST", f"/v1/collections/{name}/query") == {ENDPOINT}


@pytest.mark.parametrize("line", [b"X-HTTP-Method-Override", b"x-http-method", b"X-METHOD-OVERRIDE", b"x-original-url"])
def test_a_header_that_could_turn_a_request_into_another_makes_it_a_write(line):
    lines = (*LINES, (line, b"DELETE"))
    for method, path in (*HTTP_READS, *HTTP_WRITES):
        assert scopes(method, path, lines) == {ENDPOINT}


SEGMENTS = st.sampled_from(
    ["", ".", "..", "v1", "V1", "collections", "abc", "docs", "upsert", "query", "query_group_by", "stats", "%71uery"]
) | st.sampled_from(["partitions", "one", "default", "service_version", "{c}", "{p}", "x"])
PATHS = st.lists(SEGMENTS, max_size=8).map(lambda parts: "/" + "/".join(parts)) | st.text(string.printable, max_size=30)


@given(st.sampled_from(METHODS), PATHS)
@example("POST", "/v1/collections/{c}/query")
def test_no_route_is_anything_but_a_known_read_or_a_write_that_covers_it(method, path):
    asked = Request(method, path, LINES, "vectors", b"" if method == "GET" else b"{}")
    adapter = DashVectorHttp()
    write = adapter.write_of(method, asked.path, LINES)
    if method in SAFE:
        assert write is None
        assert adapter.precheck(asked) is PassReason.NOT_CACHED
    elif write is not None:
        assert ENDPOINT in write.scopes or path.startswith("/v1/collections/" + write.scopes[0][1])
        assert adapter.operation_of(method, asked.path) == "vector-write"
    else:
        assert isinstance(adapter.plan(asked), VectorRead)
        assert (method, asked.path.split("/")[-1]) not in {("POST", "docs"), ("POST", "upsert"), ("DELETE", "docs")}


def test_a_read_that_cannot_be_keyed_is_passed_and_voids_nothing():
    plan = DashVectorHttp().plan(Request("POST", ONE + "/query", LINES, "vectors", b"{"))
    assert isinstance(plan, Pass)


# --- gRPC -------------------------------------------------------------------------------------------------------------

METADATA = ((b"dashvector-auth-token", b"sk-one"), (b"collection-name", b"abc"))
GRPC_WRITES = {
    "create_collection": {ENDPOINT, CATALOG},
    "delete_collection": {ENDPOINT, CATALOG},
    "create_partition": {ABC},
    "delete_partition": {ABC},
    "insert_doc": {ABC},
    "update_doc": {ABC},
    "upsert_doc": {ABC},
    "delete_doc": {ABC},
}


def grpc_scopes(target, lines=METADATA) -> set:
    adapter = DashVectorGrpc()
    early = adapter.write_of("GRPC", target, lines)
    assert isinstance(early, VectorWrite), target
    assert adapter.operation_of("GRPC", target) == "vector-write" == early.operation
    return set(early.scopes)


@pytest.mark.parametrize("name", GRPC_WRITES)
def test_a_grpc_write_covers_its_collection(name):
    assert grpc_scopes(SERVICE + name) == GRPC_WRITES[name]


@pytest.mark.parametrize("name", GRPC_WRITES)
@pytest.mark.parametrize(
    "lines",
    [
        (),
        METADATA[:1],
        (*METADATA, (b"collection-name", b"other")),
        (*METADATA, (b"collection-name", b"abc")),
        ((b"collection-name", b"a b"),),
        ((b"collection-name", b""),),
        ((b"collection-name", b"abc "),),
        ((b"collection-name", b"\xff\xfe\xfd"),),
    ],
)
def test_a_grpc_write_without_one_clear_collection_covers_all(name, lines):
    assert ENDPOINT in grpc_scopes(SERVICE + name, lines)


@pytest.mark.parametrize("name", [*GRPC_WRITES, "query_doc", "fetch_doc", "get_version", "drop_everything", ""])
@pytest.mark.parametrize(
    "spelling",
    [
        "/com.damo.proxima.dashvector.proto.DashVectorService/{}",
        "/com.aliyun.dashvector.proto.DashVectorService/{}",
        "/proxima.dashvector.proto.DashVectorService/{}/",
        "/proxima.dashvector.proto.DashVectorService//{}",
        "//proxima.dashvector.proto.DashVectorService/{}",
        "/proxima.dashvector.proto.DashVectorService/{}?x=1",
        "/proxima.dashvector.proto.DashVectorService/%71{}",
        "/proxima.dashvector.proto.dashvectorservice/{}",
        "/proxima.dashvector.proto.DashVectorService/X{}",
        "{}",
    ],
)
def test_a_grpc_method_that_is_not_known_covers_all(name, spelling):
    assert grpc_scopes(spelling.format(name)) == {ENDPOINT}


def test_upper_case_method_names_are_other_methods():
    assert grpc_scopes(SERVICE + "Query_Doc") == {ENDPOINT}
    assert grpc_scopes(SERVICE + "QUERY_DOC") == {ENDPOINT}


def test_every_write_of_the_recorded_calls_is_one():
    text = (Path(__file__).parents[2] / "samples" / "dashvector" / "grpc_exchanges.json").read_text("utf-8")
    for name, call in json.loads(text)["exchanges"].items():
        lines = tuple((key.encode(), value.encode()) for key, value in call["metadata"])
        is_write = DashVectorGrpc().write_of("GRPC", call["method"], lines) is not None
        assert is_write is (name in GRPC_WRITES)


def test_the_two_adapters_want_every_route_between_them():
    adapters = Adapters({"vectors": "dashvector"})
    assert isinstance(adapters("vectors", "GET", "/anything"), DashVectorHttp)
    assert isinstance(adapters("vectors", "BREW", "//v1/collections"), DashVectorHttp)
    assert isinstance(adapters("vectors", "GRPC", "/any.Service/method"), DashVectorGrpc)


# --- how the vendor took it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, b'{"code":0,"request_id":"r"}', Verdict.DONE),
        (200, b'{"code":-2021}', Verdict.FAILED),
        (200, b'{"code":401}', Verdict.REFUSED),
        (200, b'{"code":0.0}', Verdict.UNKNOWN),
        (200, b'{"code":false}', Verdict.UNKNOWN),
        (200, b'{"code":', Verdict.UNKNOWN),
        (200, b"[]", Verdict.UNKNOWN),
        (200, b"", Verdict.UNKNOWN),
        (401, b'{"code":0}', Verdict.REFUSED),
        (403, b"", Verdict.REFUSED),
        (500, b'{"code":0}', Verdict.UNKNOWN),
        (429, b"", Verdict.FAILED),
        (400, b'{"code":0}', Verdict.FAILED),
        (302, b"", Verdict.FAILED),
        (202, b'{"code":0}', Verdict.UNKNOWN),
        (408, b"", Verdict.UNKNOWN),
        (499, b"", Verdict.UNKNOWN),
        (502, b"", Verdict.UNKNOWN),
        (504, b'{"code":0}', Verdict.UNKNOWN),
        (200, b'{"code":408}', Verdict.UNKNOWN),
        (200, b'{"code":-999}', Verdict.UNKNOWN),
        (200, b'{"code":503}', Verdict.UNKNOWN),
    ],
)
def test_only_a_refused_credential_leaves_everything_as_it_was(status, body, verdict):
    write = DashVectorHttp().write_of("POST", "/v1/collections", LINES)
    assert write.verdict(status, None, body) is verdict


@pytest.mark.parametrize(
    ("status", "code", "message", "verdict"),
    [
        (200, 0, b"", Verdict.DONE),
        (200, 0, b"\x0a\x01r", Verdict.DONE),
        (200, 0, b"\x10\x05", Verdict.FAILED),
        (200, 0, b"\x10", Verdict.UNKNOWN),
        (502, 16, b"", Verdict.REFUSED),
        (502, 7, b"", Verdict.REFUSED),
        (502, 4, b"", Verdict.UNKNOWN),
        (502, 14, b"", Verdict.UNKNOWN),
        *((502, code, b"", Verdict.UNKNOWN) for code in (1, 2, 13, 15)),
        *((502, code, b"", Verdict.FAILED) for code in (3, 5, 6, 8, 9, 10, 11, 12)),
    ],
)
def test_a_call_that_ended_badly_may_have_written_unless_the_credential_was_refused(status, code, message, verdict):
    write = DashVectorGrpc().write_of("GRPC", SERVICE + "insert_doc", METADATA)
    assert write.verdict(status, code, message) is verdict


@pytest.mark.parametrize("status", [404, 405, 501])
def test_what_the_vendor_does_not_know_either_has_changed_nothing(status):
    """A health check or a scanner, without any credential, must not be able to empty the cache."""
    adapter = DashVectorHttp()
    assert adapter.write_of("GET", "/favicon.ico", ()).verdict(status, None, b"") is Verdict.NO_ROUTE
    assert adapter.write_of("GET", "/favicon.ico", ()).verdict(200, None, b"") is Verdict.UNKNOWN
    known = adapter.write_of("POST", ONE + "/docs", LINES).verdict(status, None, b"")
    assert known in (Verdict.FAILED, Verdict.UNKNOWN)


def test_a_grpc_method_that_the_vendor_does_not_know_has_changed_nothing():
    adapter = DashVectorGrpc()
    probe = adapter.write_of("GRPC", "/grpc.health.v1.Health/Check", ())
    assert probe.verdict(502, 12, b"") is Verdict.NO_ROUTE
    assert probe.verdict(502, 14, b"") is Verdict.UNKNOWN
    write = adapter.write_of("GRPC", SERVICE + "insert_doc", METADATA)
    assert write.verdict(502, 12, b"") is Verdict.FAILED
