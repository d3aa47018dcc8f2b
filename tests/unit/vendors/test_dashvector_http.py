"""DashVector over HTTP: samples byte for byte, who shares what, and which answers are not kept (S2, S3)."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.plan import NotStorable, Pass, PassReason, Refusal
from proxy.core.request import HeaderLines, Request
from proxy.vendors.dashvector.common import VectorRead
from proxy.vendors.dashvector.over_http import DashVectorHttp
from proxy.vendors.errors import error_body

SAMPLES = Path(__file__).parents[2] / "samples" / "dashvector"
INDEX = json.loads((SAMPLES / "index.json").read_text("utf-8"))
SDK_LINES: HeaderLines = tuple(
    (name.encode(), value.encode()) for name, value in INDEX["request_headers"]["dashvector_http"].items()
)
TOKEN = (b"dashvector-auth-token", b"sk-one")
LINES: HeaderLines = (TOKEN, (b"Content-Type", b"application/json"))
QUERY = "/v1/collections/quickstart/query"
READS = ("service_version", "list_", "describe_", "stats_", "fetch_", "query_")


def request(method="POST", target=QUERY, body=b'{"vector":[0.1]}', lines=LINES) -> Request:
    return Request(method, target, lines, "vectors", b"" if method == "GET" else body)


def read(asked: Request, **options) -> VectorRead:
    plan = DashVectorHttp(**options).plan(asked)
    assert isinstance(plan, VectorRead), plan
    return plan


def identity(asked: Request, **options):
    plan = read(asked, **options)
    return plan.operation, plan.identity, plan.items


def sample(name: str) -> tuple[Request, bytes]:
    entry = INDEX["exchanges"][name]
    method, target = entry["request"].split(" ")[:2]
    body = (SAMPLES / entry["request_body"]).read_bytes() if entry["request_body"] else b""
    return Request(method, target, SDK_LINES, "vectors", body), (SAMPLES / entry["response_body"]).read_bytes()


NAMES = tuple(INDEX["exchanges"])
GOOD_READS = tuple(name for name in NAMES if name.startswith(READS))


def test_the_samples_hold_every_read():
    assert len(GOOD_READS) >= 16


@pytest.mark.parametrize("name", GOOD_READS)
def test_a_sample_is_one_item_and_comes_back_byte_for_byte(name):
    asked, answer = sample(name)
    plan = read(asked)
    assert plan.narrowed([0]) == asked.body
    (row,) = plan.split(answer, [0])
    vendor_id = json.loads(answer)["request_id"]
    assert (row.origin, row.vector, row.usage) == (vendor_id, b"", ())
    assert vendor_id.encode() not in row.envelope
    assert plan.join([row], vendor_id) == answer
    assert json.loads(plan.join([row], "ours")) == {**json.loads(answer), "request_id": "ours"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in GOOD_READS])
def test_a_sample_that_is_not_a_good_read_is_a_write_or_refused(name):
    asked, answer = sample(name)
    if name.startswith("error"):
        plan = DashVectorHttp().plan(asked)
        assert isinstance(plan, VectorRead)
        with pytest.raises(NotStorable) as verdict:
            plan.split(answer, [0])
        assert verdict.value.refusal is Refusal.VENDOR_ERROR
    else:
        assert DashVectorHttp().write_of(asked.method, asked.path, asked.headers) is not None


@pytest.mark.parametrize(
    ("method", "target", "operation", "scopes"),
    [
        ("GET", "/service_version", "vector-stats", ()),
        ("GET", "/v1/collections", "vector-stats", (("catalog",),)),
        ("GET", "/v1/collections/abc", "vector-stats", (("collection", "abc"),)),
        ("GET", "/v1/collections/stats", "vector-stats", (("collection", "stats"),)),
        ("GET", "/v1/collections/abc/stats", "vector-stats", (("collection", "abc"),)),
        ("GET", "/v1/collections/abc/partitions", "vector-stats", (("collection", "abc"),)),
        ("GET", "/v1/collections/abc/partitions/stats", "vector-stats", (("collection", "abc"),)),
        ("GET", "/v1/collections/abc/partitions/one/stats", "vector-stats", (("collection", "abc"),)),
        ("GET", "/v1/collections/abc/docs?ids=1,a%2Bb&partition=default", "vector-query", (("collection", "abc"),)),
        ("POST", "/v1/collections/A_c-9/query", "vector-query", (("collection", "A_c-9"),)),
        ("POST", "/v1/collections/abc/query_group_by", "vector-query", (("collection", "abc"),)),
    ],
)
def test_a_read_hangs_on_the_endpoint_and_on_what_it_tells_of(method, target, operation, scopes):
    asked = request(method, target)
    plan = read(asked)
    assert plan.operation == operation == DashVectorHttp().operation_of(method, asked.path)
    assert plan.scopes == (("endpoint",), *scopes)
    assert DashVectorHttp().write_of(method, asked.path, asked.headers) is None


# --- who shares what --------------------------------------------------------------------------------------------------

BASE = b'{"vector": [0.1, 2], "topk": 3, "filter": "age > 18", "include_vector": false}'
SAME = {
    "members in another order": b'{"filter":"age > 18","include_vector":false,"topk":3,"vector":[0.1,2]}',
    "blanks and escapes": b'{ "vector":[ 0.1 , 2 ],\n"topk":3,"filter":"\\u0061ge > 18","include_vector":false}',
    "null partition": BASE[:-1] + b', "partition": null}',
    "empty partition": BASE[:-1] + b', "partition": ""}',
    "default partition": BASE[:-1] + b', "partition": "default"}',
    "no output fields": BASE[:-1] + b', "output_fields": null}',
    "empty output fields": BASE[:-1] + b', "output_fields": [], "partition": ""}',
}
OTHER = {
    "number spelled otherwise": BASE.replace(b"0.1", b"0.10"),
    "integer as float": BASE.replace(b"2]", b"2.0]"),
    "topk": BASE.replace(b"3", b"4"),
    "order of the vector": BASE.replace(b"0.1, 2", b"2, 0.1"),
    "filter's case": BASE.replace(b"age", b"AGE"),
    "another partition": BASE[:-1] + b', "partition": "Default"}',
    "blank partition": BASE[:-1] + b', "partition": " "}',
    "output fields": BASE[:-1] + b', "output_fields": ["a"]}',
    "output fields of another kind": BASE[:-1] + b', "output_fields": {}}',
    "id null": BASE[:-1] + b', "id": null}',
    "an unknown member": BASE[:-1] + b', "consistency": "strong"}',
    "without topk": b'{"vector": [0.1, 2], "filter": "age > 18", "include_vector": false}',
}


@pytest.mark.parametrize("spelling", SAME)
def test_one_question_has_one_identity_however_it_is_spelled(spelling):
    assert identity(request(body=SAME[spelling])) == identity(request(body=BASE))


def test_whatever_can_change_the_answer_is_in_the_identity():
    identities = [identity(request(body=body)) for body in (BASE, *OTHER.values())]
    assert len({repr(each) for each in identities}) == len(identities)


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ((b"x-user-agent", b"1.0.23;3.11.7;Linux"), (b"User-Agent", b"x"), (b"Accept-Encoding", b"gzip")),
        ((b"Accept", b"*/*"), (b"X-Request-Id", b"7"), (b"traceparent", b"0"), (b"Cookie", b"acw_tc=1")),
    ],
)
def test_headers_without_effect_split_nothing(lines):
    assert identity(request(lines=LINES + lines)) == identity(request())


@pytest.mark.parametrize(
    "lines",
    [
        ((b"dashvector-auth-token", b"sk-two"), LINES[1]),
        ((b"dashvector-auth-token", b"sk-one "), LINES[1]),
        ((b"Authorization", b"sk-one"), LINES[1]),
        (*LINES, (b"Authorization", b"Bearer x")),
        (*LINES, (b"dashvector-auth-token", b"sk-two")),
        (*LINES, (b"X-DashVector-Tenant", b"7")),
        (*LINES, (b"Cookie", b"session=1")),
        (*LINES, (b"grpc-timeout", b"1")),
    ],
)
def test_credentials_and_unknown_headers_split_entries(lines):
    assert identity(request(lines=lines)) != identity(request())


def test_an_operator_may_say_that_a_header_has_no_effect():
    lines = (*LINES, (b"X-Team", b"search"))
    options = {"ignored_headers": frozenset({b"x-team"})}
    assert identity(request(lines=lines), **options) == identity(request(), **options)


def test_paths_and_query_strings_split_entries():
    targets = [QUERY, QUERY + "?", QUERY + "?a=1", "/v1/collections/other/query", QUERY + "_group_by"]
    gets = [
        "/v1/collections/abc/docs?ids=1,2",
        "/v1/collections/abc/docs?ids=2,1",
        "/v1/collections/abc/docs?ids=1%2C2",
    ]
    identities = [identity(request(target=target)) for target in targets]
    identities += [identity(request("GET", target)) for target in gets]
    assert len({repr(each) for each in identities}) == len(identities)


# --- passed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"topk":1,"topk":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"vector":[NaN]}',
        b'\xef\xbb\xbf{"topk":1}',
        b'{"filter":"\\ud800"}',
        b'{"filter":"\xff"}',
        b"[" * 70 + b"]" * 70,
    ],
)
def test_what_two_parsers_could_read_differently_is_passed(body):
    assert DashVectorHttp().plan(request(body=body)) == Pass(PassReason.AMBIGUOUS, "vector-query")


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"1", b"null"])
def test_what_is_no_object_is_passed(body):
    assert DashVectorHttp().plan(request(body=body)) == Pass(PassReason.UNKNOWN_SHAPE, "vector-query")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ((LINES[1],), PassReason.NO_CREDENTIAL),
        (((b"dashvector-auth-token", b" "), LINES[1]), PassReason.NO_CREDENTIAL),
        ((TOKEN,), PassReason.CONTENT_TYPE),
        ((TOKEN, (b"Content-Type", b"text/plain")), PassReason.CONTENT_TYPE),
        ((TOKEN, (b"Content-Type", b"application/json; charset=gbk")), PassReason.CONTENT_TYPE),
        ((*LINES, LINES[1]), PassReason.CONTENT_TYPE),
        ((*LINES, (b"Content-Encoding", b"gzip")), PassReason.CONTENT_CODING),
        ((*LINES, (b"Accept", b"text/event-stream")), PassReason.EVENT_STREAM),
        ((*LINES, (b"Accept-Encoding", b"identity;q=0")), PassReason.IDENTITY_REFUSED),
    ],
)
def test_heads_that_forbid_a_key_pass_a_read(lines, reason):
    asked = request(lines=lines)
    assert DashVectorHttp().precheck(asked) is reason
    assert DashVectorHttp().plan(asked) == Pass(reason, "vector-query")


def test_a_get_needs_no_content_type_and_may_have_no_body():
    target = "/v1/collections/abc/stats"
    assert identity(request("GET", target, lines=(TOKEN,))) == identity(request("GET", target))
    with_body = Request("GET", target, LINES, "vectors", b"{}")
    assert DashVectorHttp().plan(with_body) == Pass(PassReason.UNKNOWN_SHAPE, "vector-stats")


# --- answers ----------------------------------------------------------------------------------------------------------

COLLECTION = "/v1/collections/abc"


def answered(**members) -> bytes:
    document = {"request_id": "vendor", "code": 0, "message": "Success", **members}
    return json.dumps({name: value for name, value in document.items() if value is not ...}).encode()


def described(status="SERVING", **partitions) -> bytes:
    return answered(
        output={"name": "abc", "status": status, "partitions": partitions, "fields_schema": {"code": "INT"}}
    )


REFUSED = [
    ("GET", COLLECTION, described("INITIALIZED"), Refusal.INCOMPLETE),
    ("GET", COLLECTION, described("DROPPING", default="SERVING"), Refusal.INCOMPLETE),
    ("GET", COLLECTION, described("SERVING", default="SERVING", new="INITIALIZED"), Refusal.INCOMPLETE),
    ("GET", COLLECTION, answered(output={"name": "abc"}), Refusal.INCOMPLETE),
    ("GET", COLLECTION, answered(output={"status": "SERVING", "partitions": ["default"]}), Refusal.SHAPE),
    ("GET", COLLECTION, answered(), Refusal.SHAPE),
    ("GET", COLLECTION + "/partitions/one", answered(output="DROPPING"), Refusal.INCOMPLETE),
    ("GET", COLLECTION + "/partitions/one", answered(output=1), Refusal.SHAPE),
    ("GET", COLLECTION + "/partitions", answered(output={}), Refusal.SHAPE),
    ("GET", COLLECTION + "/stats", answered(output={}), Refusal.SHAPE),
    (
        "GET",
        COLLECTION + "/stats",
        answered(output={"total_doc_count": 3, "index_completeness": 0.5}),
        Refusal.INCOMPLETE,
    ),
    ("GET", "/service_version", answered(), Refusal.SHAPE),
    ("GET", COLLECTION + "/docs?ids=1", answered(output=[]), Refusal.SHAPE),
    ("GET", COLLECTION + "/docs?ids=1", answered(output={"1": {"id": "1", "code": -2024}}), Refusal.VENDOR_ERROR),
    ("POST", COLLECTION + "/query", answered(), Refusal.SHAPE),
    ("POST", COLLECTION + "/query", answered(output=None), Refusal.SHAPE),
    ("POST", COLLECTION + "/query", answered(output=[{"id": 1}]), Refusal.SHAPE),
    ("POST", COLLECTION + "/query", answered(output=[{"id": "1"}, {"id": "2", "code": -1}]), Refusal.VENDOR_ERROR),
    ("POST", COLLECTION + "/query", answered(code=-2034, output=[]), Refusal.VENDOR_ERROR),
    ("POST", COLLECTION + "/query", answered(code="0", output=[]), Refusal.SHAPE),
    ("POST", COLLECTION + "/query", answered(code=False, output=[]), Refusal.SHAPE),
    ("POST", COLLECTION + "/query", answered(code=..., output=[]), Refusal.SHAPE),
    ("POST", COLLECTION + "/query", answered(request_id=..., output=[]), Refusal.SHAPE),
    ("POST", COLLECTION + "/query", answered(request_id=None, output=[]), Refusal.SHAPE),
    ("POST", COLLECTION + "/query_group_by", answered(output=[{"group_id": "1"}]), Refusal.SHAPE),
    (
        "POST",
        COLLECTION + "/query_group_by",
        answered(output=[{"docs": [{"id": "1", "code": 1}]}]),
        Refusal.VENDOR_ERROR,
    ),
    ("POST", COLLECTION + "/query", b"", Refusal.SHAPE),
    ("POST", COLLECTION + "/query", b"[]", Refusal.SHAPE),
    ("POST", COLLECTION + "/query", answered(output=[])[:-1], Refusal.SHAPE),
    ("POST", COLLECTION + "/query", answered(output=[]) + b"x", Refusal.SHAPE),
    ("POST", COLLECTION + "/query", b'{"code":0,"request_id":"a","request_id":"b","output":[]}', Refusal.SHAPE),
    ("POST", COLLECTION + "/query", b'{"code":-1,"request_id":"a","code":0,"output":[]}', Refusal.SHAPE),
    ("POST", COLLECTION + "/query", b'{"code":0,"request_id":"a","request_id":"a","output":[]}', Refusal.SHAPE),
    ("POST", COLLECTION + "/query", b'{"code":0,"request_id":"a","output":[{"id":"1","score":NaN}]}', Refusal.SHAPE),
    ("POST", COLLECTION + "/query", b'{"code":0,"request_id":"a\x04","output":[]}', Refusal.SHAPE),
]


@pytest.mark.parametrize(("method", "target", "answer", "refusal"), REFUSED)
def test_an_answer_that_is_not_right_or_not_settled_is_not_kept(method, target, answer, refusal):
    with pytest.raises(NotStorable) as verdict:
        read(request(method, target)).split(answer, [0])
    assert verdict.value.refusal is refusal


@pytest.mark.parametrize(
    ("method", "target", "answer"),
    [
        ("GET", COLLECTION, described("SERVING", default="SERVING")),
        ("GET", COLLECTION + "/stats", answered(output={"total_doc_count": 3, "index_completeness": 1.0})),
        ("GET", COLLECTION + "/docs?ids=9", answered(output={})),
        ("POST", COLLECTION + "/query", answered(output=[{"id": "1", "fields": {"code": -1}, "score": 0}])),
    ],
)
def test_a_settled_answer_is_kept(method, target, answer):
    plan = read(request(method, target))
    assert plan.join(plan.split(answer, [0]), "vendor") == answer


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON), st.sampled_from([None, 1, "\t"]), st.booleans(), st.randoms())
def test_only_the_request_id_changes_whatever_stands_around_it(extra, indent, ascii_only, random):
    members = list({**extra, "request_id": "vendor", "code": 0, "output": [{"id": "1", "x": extra}]}.items())
    random.shuffle(members)
    separators = (" , ", " :\r\n")
    answer = json.dumps(dict(members), indent=indent, ensure_ascii=ascii_only, separators=separators)
    try:
        body = answer.encode()
    except UnicodeEncodeError:
        return
    plan = read(request())
    try:
        (row,) = plan.split(body, [0])
    except NotStorable:
        assert "\\ud" in answer.lower()  # half of a surrogate pair is nothing to keep
        return
    assert plan.join([row], "vendor") == body
    assert json.loads(plan.join([row], 'o"urs\\')) == {**dict(members), "request_id": 'o"urs\\'}


def test_the_head_decides_as_everywhere():
    plan, json_type = read(request()), (b"content-type", b"application/json; charset=utf-8")
    assert plan.refusal(200, (json_type,)) is None
    assert plan.refusal(429, (json_type,)) is Refusal.STATUS
    assert plan.refusal(200, (json_type, (b"cache-control", b"no-store"))) is Refusal.NO_STORE
    assert plan.refusal(200, ()) is Refusal.CONTENT_TYPE


def test_our_errors_have_the_vendors_shape():
    for path in (QUERY, "/v1/collections", "/service_version"):
        error = json.loads(error_body(path, "UpstreamBusy", "too many", "id"))
        assert error == {"request_id": "id", "code": -999, "message": "UpstreamBusy: too many"}
