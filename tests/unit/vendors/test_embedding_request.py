"""Requests for text embeddings: which are ours, who shares what, and how fewer texts are asked for (S2)."""

import dataclasses
import itertools
import json
import random

import pytest

from proxy.core import jsontext
from proxy.core.plan import Pass, PassReason
from proxy.core.request import Request, end_to_end
from proxy.vendors.dashscope.batch_limits import MOST_TEXTS, MOST_TIMES, BatchLimits
from proxy.vendors.dashscope.embedding_request import COMPATIBLE, NATIVE, EmbeddingAdapter
from proxy.vendors.models import BATCH_CAPS, LARGEST_CAP
from proxy.vendors.registry import Adapters
from tests.unit.vendors.exchanges import CREDENTIAL, HEADERS, compatible, keys, native, planned, read

TEXTS = ["衣服 é", 'hello\n"quoted" \\ /', "😀", ""]
BODY = json.dumps(
    {
        "model": "text-embedding-v4",
        "parameters": {"text_type": "query", "dimension": 512, "instruct": "find"},
        "input": {"texts": TEXTS},
    },
    ensure_ascii=False,
).encode()


def changed(**fields) -> bytes:
    """BODY with other top-level *fields*; ``...`` takes one away."""
    document = {**json.loads(BODY), **fields}
    return json.dumps({name: value for name, value in document.items() if value is not ...}).encode()


def with_parameters(**parameters) -> bytes:
    """BODY with other *parameters*; ``...`` takes one away."""
    document = {**json.loads(BODY)["parameters"], **parameters}
    return changed(parameters={name: value for name, value in document.items() if value is not ...})


# --- routes -----------------------------------------------------------------------------------------------------------


def test_only_the_two_documented_spellings_are_routes():
    adapters = Adapters({"texts": "dashscope"})
    native, compatible = (adapters("texts", "POST", dialect.path) for dialect in (NATIVE, COMPATIBLE))
    assert native is not None
    assert compatible is not None
    assert native is not compatible
    others = [path + end for path in (NATIVE.path, COMPATIBLE.path) for end in ("/", "//", "%20", ";x")]
    others += ["/" + NATIVE.path, NATIVE.path.replace("text", "Text", 1), NATIVE.path.replace("-", "%2d"), "*", ""]
    others += ["/compatible-api/v1/embeddings", "/api/v1/services/rerank/text-rerank/text-rerank"]
    assert [path for path in others if adapters("texts", "POST", path)] == []
    assert [method for method in ("GET", "PUT", "post", "HEAD") if adapters("texts", method, NATIVE.path)] == []


# --- who shares what --------------------------------------------------------------------------------------------------

SDK_1 = (
    '{"model": "text-embedding-v4", "parameters": {"text_type": "query", "dimension": 512}, '
    '"input": {"texts": ["衣服", "b"]}}'
).encode()
SAME_QUESTION = {
    "sdk-2": '{"model":"text-embedding-v4","input":{"texts":["衣服","b"]},'
    '"parameters":{"text_type":"query","dimension":512}}',
    "java": '{"model":"text-embedding-v4","input":{"texts":["衣服","b"]},'
    '"parameters":{"dimension":512,"text_type":"query"}}',
    "pretty": json.dumps(json.loads(SDK_1), indent=4, ensure_ascii=False),
    "escaped": json.dumps(json.loads(SDK_1), ensure_ascii=True),
    "names-escaped": SDK_1.decode().replace('"texts"', '"\\u0074exts"').replace('"b"', '"\\u0062"'),
    "crlf-and-tabs": SDK_1.decode().replace(" ", "\r\n\t"),
}


@pytest.mark.parametrize("spelling", SAME_QUESTION)
def test_one_question_has_one_identity_however_it_is_spelled(spelling):
    ours, theirs = read(native(SDK_1)), read(native(SAME_QUESTION[spelling].encode()))
    assert theirs.items == ours.items
    assert theirs.identity == ours.identity


def test_empty_parameters_are_as_good_as_none():
    bodies = [
        b'{"model": "m", "parameters": {}, "input": {"texts": ["a"]}}',
        b'{"model":"m","input":{"texts":["a"]}}',
        b'{"model":"m","input":{"texts":"a"},"parameters":{}}',
    ]
    assert len({keys(native(body)) for body in bodies}) == 1


def test_a_text_has_one_key_in_every_batch():
    """Batch cuts differ between frameworks; the keys do not."""
    whole = keys(native(changed(input={"texts": ["a", "b", "c", "a"]})))
    alone = [keys(native(changed(input={"texts": text})))[0] for text in ("a", "b", "c", "a")]
    assert list(whole) == alone
    assert len(set(whole)) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("é", "e\u0301"),
        ("a", "A"),
        ("a", "a "),
        ("", " "),
        ("1", "1.0"),
        ("\u212b", "\u00c5"),
        ("a\u200b", "a"),
        ("ﬁ", "fi"),
    ],
)
def test_texts_are_never_folded_trimmed_or_normalised(one, other):
    assert keys(native(changed(input={"texts": [one]}))) != keys(native(changed(input={"texts": [other]})))


CHANGED_BODIES = {
    "model": changed(model="text-embedding-v3"),
    "model-case": changed(model="Text-embedding-v4"),
    "text_type": with_parameters(text_type="document"),
    "no-text_type": with_parameters(text_type=...),
    "dimension": with_parameters(dimension=1024),
    "no-dimension": with_parameters(dimension=...),
    "dimension-as-text": with_parameters(dimension="512"),
    "dimension-as-float": BODY.replace(b"512", b"512.0"),
    "dimension-as-exponent": BODY.replace(b"512", b"5.12e2"),
    "dimension-null": with_parameters(dimension=None),
    "instruct": with_parameters(instruct="find "),
    "no-instruct": with_parameters(instruct=...),
    "instruct-empty": with_parameters(instruct=""),
    "instruct-null": with_parameters(instruct=None),
    "output_type-default": with_parameters(output_type="dense"),
    "output_type-sparse": with_parameters(output_type="sparse"),
    "output_type-both": with_parameters(output_type="dense&sparse"),
    "unknown-parameter": with_parameters(new_one=1),
    "unknown-parameter-false": with_parameters(new_one=False),
    "unknown-parameter-null": with_parameters(new_one=None),
    "unknown-parameter-nested": with_parameters(new_one={"a": {"b": "c"}}),
    "unknown-field": changed(new_one="x"),
    "unknown-field-null": changed(new_one=None),
    "stream-null": changed(stream=None),
    "stream-false": changed(stream=False),
    "user": changed(user="x"),
    "no-parameters": changed(parameters=...),
    "parameters-null": changed(parameters=None),
    "parameter-moved-up": changed(parameters={"text_type": "query", "instruct": "find"}, dimension=512),
    "resources": changed(resources={}),
}


def test_whatever_may_change_the_answer_changes_every_key():
    bodies = {"original": BODY, **CHANGED_BODIES}
    by_name = {name: set(keys(native(body))) for name, body in bodies.items()}
    for one, other in itertools.combinations(by_name, 2):
        assert not by_name[one] & by_name[other], (one, other)


CHANGED_HEADERS = {
    "other-key": ((b"Authorization", b"Bearer sk-two"),),
    "key-in-other-case": ((b"Authorization", b"bearer sk-one"),),
    "key-with-blank": ((b"Authorization", b"Bearer  sk-one"),),
    "api-key-header": ((b"X-DashScope-ApiKey", b"sk-one"),),
    "api-key-header-with-scheme": ((b"X-DashScope-ApiKey", b"Bearer sk-one"),),
    "both": (CREDENTIAL, (b"X-DashScope-ApiKey", b"sk-one")),
    "two-lines": (CREDENTIAL, CREDENTIAL),
    "workspace": (CREDENTIAL, (b"X-DashScope-WorkSpace", b"ws-1")),
    "workspace-other": (CREDENTIAL, (b"X-DashScope-WorkSpace", b"ws-2")),
    "workspace-empty": (CREDENTIAL, (b"X-DashScope-WorkSpace", b"")),
    "inspection": (CREDENTIAL, (b"X-DashScope-DataInspection", b"enable")),
    "inspection-off": (CREDENTIAL, (b"X-DashScope-DataInspection", b"disable")),
    "unknown-dashscope": (CREDENTIAL, (b"X-DashScope-Tomorrow", b"1")),
    "unknown": (CREDENTIAL, (b"X-Tenant", b"1")),
    "unknown-other": (CREDENTIAL, (b"X-Tenant", b"2")),
    "unknown-twice": (CREDENTIAL, (b"X-Tenant", b"1"), (b"X-Tenant", b"2")),
    "unknown-twice-turned": (CREDENTIAL, (b"X-Tenant", b"2"), (b"X-Tenant", b"1")),
    "unknown-joined": (CREDENTIAL, (b"X-Tenant", b"1,2")),
    "unknown-empty": (CREDENTIAL, (b"X-Tenant", b"")),
    "language": (CREDENTIAL, (b"Accept-Language", b"zh")),
    "accept-other": (CREDENTIAL, (b"Accept", b"application/x-protobuf")),
    "method-override": (CREDENTIAL, (b"X-HTTP-Method-Override", b"DELETE")),
    "original-url": (CREDENTIAL, (b"X-Original-URL", b"/other")),
    "cookie": (CREDENTIAL, (b"Cookie", b"session=1")),
    "cookie-other": (CREDENTIAL, (b"Cookie", b"session=2")),
    "cookie-like-affinity": (CREDENTIAL, (b"Cookie", b"xacw_tc=2")),
    "async-off": (CREDENTIAL, (b"X-DashScope-Async", b"disable")),
}


def test_every_credential_and_every_unknown_header_has_keys_of_its_own():
    kind = HEADERS[1]
    by_name = {"original": set(keys(native(BODY)))}
    by_name |= {name: set(keys(native(BODY, (*lines, kind)))) for name, lines in CHANGED_HEADERS.items()}
    for one, other in itertools.combinations(by_name, 2):
        assert not by_name[one] & by_name[other], (one, other)


def test_the_query_string_changes_every_key():
    targets = [NATIVE.path + end for end in ("", "?", "?a=1", "?a=1&", "?A=1", "?a=%31", "?a=1#x")]
    sets = [set(keys(native(BODY, target=target))) for target in targets]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_dialects_and_encoding_formats_never_share():
    body = {"model": "text-embedding-v4", "input": TEXTS}
    formats = [{}, *({"encoding_format": value} for value in ("float", "base64", "FLOAT", None, ""))]
    sets = [set(keys(compatible(json.dumps({**body, **each}).encode()))) for each in formats]
    sets.append(set(keys(native(changed(parameters=...)))))
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_the_compatible_user_field_has_no_effect():
    body = {"model": "m", "input": "a", "dimensions": 64}
    assert keys(compatible(json.dumps({**body, "user": "u"}).encode())) == keys(compatible(json.dumps(body).encode()))
    assert keys(compatible(json.dumps({**body, "dimensions": 128}).encode())) != keys(
        compatible(json.dumps(body).encode())
    )


@pytest.mark.parametrize("user", ["0", "null", "true", "{}", '["u"]'])
def test_a_user_that_is_no_text_is_another_request(user):
    """The vendor may refuse it, which an answer from the cache would hide."""
    plain, odd = b'{"model":"m","input":"a"}', b'{"model":"m","input":"a","user":%b}' % user.encode()
    plan = planned(compatible(odd))
    assert isinstance(plan, Pass) or keys(compatible(odd)) != keys(compatible(plain))


NO_EFFECT = [
    (b"x-dashscope-sdk-session-id", b"2f907b2e25f64ae495f107ce028dd908"),
    (b"x-dashscope-sdk-client", b"python-sdk/1.27.8/embeddings"),
    (b"x-stainless-retry-count", b"1"),
    (b"X-Stainless-Read-Timeout", b"600"),
    (b"User-Agent", b"dashscope/1.27.8; python/3.11.7"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"Accept", b"application/json; charset=utf-8"),
    (b"Accept", b"*/*"),
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"tracestate", b"a=b"),
    (b"Cookie", b"acw_tc=0a0c"),
    (b"cookie", b" acw_tc=1 ; acw_tc=2;"),
    (b"X-Forwarded-For", b"10.0.0.1"),
    (b"X-Request-Id", b"7"),
    (b"Host", b"localhost:8080"),
    (b"Content-Length", b"99"),
    (b"Cache-Control", b"max-age=5"),
    (b"X-DashScope-Client", b"anything"),
]


@pytest.mark.parametrize("line", NO_EFFECT, ids=lambda line: line[0].decode() if isinstance(line, tuple) else None)
def test_what_differs_between_equal_requests_is_not_in_the_key(line):
    name, value = line
    for spelled in (name, name.upper(), name.lower()):
        assert keys(native(BODY, (*HEADERS, (spelled, value)))) == keys(native(BODY))


def test_affinity_is_taken_out_of_a_cookie_and_the_rest_stays():
    with_affinity = keys(native(BODY, (*HEADERS, (b"Cookie", b"a=1; acw_tc=x; b=2"))))
    assert with_affinity == keys(native(BODY, (*HEADERS, (b"Cookie", b"a=1; b=2"))))
    assert with_affinity != keys(native(BODY, (*HEADERS, (b"Cookie", b"a=1"))))


def test_content_types_in_utf8_share():
    values = [b"application/json", b"Application/JSON; charset=utf-8", b'application/json;charset="UTF8"']
    assert len({keys(native(BODY, (CREDENTIAL, (b"content-type", value)))) for value in values}) == 1


def test_an_operator_can_take_a_header_out_of_the_key():
    line = (b"X-Tenant", b"1")
    assert keys(native(BODY, (*HEADERS, line)), ignored_headers=frozenset({b"x-tenant"})) == keys(native(BODY))


def test_header_order_does_not_matter_between_names():
    lines = ((b"X-A", b"1"), (b"X-B", b"2"))
    assert keys(native(BODY, (*HEADERS, *lines))) == keys(native(BODY, (*lines[::-1], *HEADERS)))


def test_a_credential_that_is_not_forwarded_gives_nothing_from_the_cache():
    """CVE-2022-31813's kind: Connection names the credential, so the upstream never sees it."""
    lines = end_to_end((*HEADERS, (b"Connection", b"close, Authorization")))
    assert planned(native(BODY, lines)) == Pass(PassReason.NO_CREDENTIAL, "embedding")


@pytest.mark.parametrize("count", [3_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_s10_fields_do_not_collide(count):
    """Random documents of look-alike values: equal identity only for equal documents."""
    chance = random.Random(10)
    values = ["1", "1.0", "1e0", '"1"', "true", '"true"', "null", '"null"', '""', "{}", '{"":""}', '{"a":""}', '" "']
    names = ["a", "b", "aa", "", " ", "null", '\\"', "a\\\\"]
    seen: dict[tuple[bytes, ...], str] = {}
    for _ in range(count):
        chosen = sorted(chance.sample(names, chance.randrange(4)))
        inner = ",".join(f'"{name}":{chance.choice(values)}' for name in chosen)
        outer = f',"x":{chance.choice(values)}' if chance.random() < 0.3 else ""
        text = f'{{"model":"m","parameters":{{"k":0{"," if inner else ""}{inner}}}{outer},"input":{{"texts":["t"]}}}}'
        assert seen.setdefault(read(native(text.encode())).identity, text) == text
    assert len(seen) > count / 4


# --- asking for fewer -------------------------------------------------------------------------------------------------

ODD_BODIES = [
    b'{"z_first":1.50,"model":"text-embedding-v4","parameters":{"dimension":5.12E2,"b":{"x":-0,"a":1e-7},"seed":12345678901234567890123},"input":{"texts":["a","b","c"]},"last":null}',
    b'{ "input" : {"texts": ["a", "\\u0062", "\\ud83d\\ude00\\n"] }, "model":"m" , "parameters" : {"x":"\\u0000"} }',
]


@pytest.mark.parametrize("body", ODD_BODIES)
@pytest.mark.parametrize("positions", [[0], [2], [0, 2], [1, 2], [2, 0], [2, 1, 0], [0, 0]])
def test_a_narrowed_body_is_the_same_document_with_fewer_texts(body, positions):
    plan = read(native(body))
    narrowed = plan.narrowed(positions)
    before, after = jsontext.parse(body), jsontext.parse(narrowed)
    assert list(after) == list(before), "order of members"
    assert after["input"]["texts"] == [before["input"]["texts"][position] for position in positions]
    for name in set(before) - {"input"}:
        assert jsontext.compact(after[name]) == jsontext.compact(before[name]), "fields, number spelling included"
    again = read(native(narrowed))
    assert again.identity == plan.identity
    assert again.items == tuple(plan.items[position] for position in positions)


def test_a_narrowed_compatible_body_keeps_user_and_format():
    body = b'{"model":"m","input":["a","b"],"user":"u","dimensions":64,"encoding_format":"base64"}'
    assert read(compatible(body)).narrowed([1]) == body.replace(b'["a","b"]', b'["b"]')


@pytest.mark.parametrize("body", [*ODD_BODIES, b'{"model":"m","input":{"texts":"lone"}}'])
def test_the_clients_own_bytes_go_out_when_all_texts_are_asked_for(body):
    plan = read(native(body))
    assert plan.narrowed(range(len(plan.items))) == body


# --- passed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (HEADERS[1:], PassReason.NO_CREDENTIAL),
        (((b"Authorization", b" "), HEADERS[1]), PassReason.NO_CREDENTIAL),
        (((b"X-DashScope-WorkSpace", b"ws"), HEADERS[1]), PassReason.NO_CREDENTIAL),
        ((*HEADERS, (b"X-DashScope-Async", b"enable")), PassReason.ASYNC_TASK),
        ((*HEADERS, (b"x-dashscope-async", b"TRUE")), PassReason.ASYNC_TASK),
        ((*HEADERS, (b"X-DashScope-Async", b"disable"), (b"X-DashScope-Async", b"enable")), PassReason.ASYNC_TASK),
        ((*HEADERS, (b"X-DashScope-SSE", b"enable")), PassReason.EVENT_STREAM),
        ((*HEADERS, (b"Accept", b"Text/Event-Stream")), PassReason.EVENT_STREAM),
        ((*HEADERS, (b"Accept", b"application/json, text/event-stream;q=0.1")), PassReason.EVENT_STREAM),
        ((*HEADERS, (b"X-DashScope-EncryptionKey", b"")), PassReason.ENCRYPTED),
        ((*HEADERS, (b"X-DashScope-OssResourceResolve", b"enable")), PassReason.TEMPORARY_REFERENCE),
        ((*HEADERS, (b"Content-Encoding", b"gzip")), PassReason.CONTENT_CODING),
        ((*HEADERS, (b"Content-Encoding", b"identity, gzip")), PassReason.CONTENT_CODING),
        ((CREDENTIAL,), PassReason.CONTENT_TYPE),
        ((CREDENTIAL, (b"Content-Type", b"")), PassReason.CONTENT_TYPE),
        ((CREDENTIAL, (b"Content-Type", b"text/json")), PassReason.CONTENT_TYPE),
        ((CREDENTIAL, (b"Content-Type", b"application/json; charset=gbk")), PassReason.CONTENT_TYPE),
        ((CREDENTIAL, (b"Content-Type", b"application/json; x=y")), PassReason.CONTENT_TYPE),
        ((CREDENTIAL, (b"Content-Type", b"application/jsonl")), PassReason.CONTENT_TYPE),
        ((*HEADERS, HEADERS[1]), PassReason.CONTENT_TYPE),
        ((*HEADERS, (b"Accept-Encoding", b"gzip, identity;q=0")), PassReason.IDENTITY_REFUSED),
        ((*HEADERS, (b"Accept-Encoding", b"gzip, *; q=0.00")), PassReason.IDENTITY_REFUSED),
    ],
)
def test_headers_that_make_a_request_pass(lines, reason):
    assert planned(native(BODY, lines)) == Pass(reason, "embedding")


@pytest.mark.parametrize(
    "line",
    [
        (b"X-DashScope-Async", b"disable"),
        (b"X-DashScope-SSE", b"false"),
        (b"Content-Encoding", b"identity"),
        (b"Content-Encoding", b""),
        (b"Accept-Encoding", b"identity;q=0.5"),
        (b"Accept-Encoding", b"*;q=0, identity"),
        (b"Accept-Encoding", b"*;q=0.001"),
    ],
)
def test_headers_that_do_not(line):
    assert not isinstance(planned(native(BODY, (*HEADERS, line))), Pass)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", PassReason.AMBIGUOUS),
        (b"not json", PassReason.AMBIGUOUS),
        (BODY[:-1], PassReason.AMBIGUOUS),
        (b"\xef\xbb\xbf" + BODY, PassReason.AMBIGUOUS),
        (BODY.decode().encode("utf-16"), PassReason.AMBIGUOUS),
        (BODY.replace(b"512", b"NaN"), PassReason.AMBIGUOUS),
        (BODY.replace(b'"text_type"', b'"dimension"'), PassReason.AMBIGUOUS),
        (b'{"model":"m","input":{"texts":["a\\ud800"]}}', PassReason.AMBIGUOUS),
        (b'{"model":"\\udfff","input":{"texts":["a"]}}', PassReason.AMBIGUOUS),
        (b'{"model":"m","x":"\\ud800","input":{"texts":["a"]}}', PassReason.AMBIGUOUS),
        (
            b'{"model":"m","x":' + b'{"a":' * 400 + b"1" + b"}" * 400 + b',"input":{"texts":["a"]}}',
            PassReason.AMBIGUOUS,
        ),
        (b'{"model":"m","x":' + b"[" * 990 + b"]" * 990 + b',"input":{"texts":["a"]}}', PassReason.AMBIGUOUS),
        (b'{"model":"m","x":' + b"[" * 100_000, PassReason.AMBIGUOUS),
        (b"[]", PassReason.UNKNOWN_SHAPE),
        (b'"text"', PassReason.UNKNOWN_SHAPE),
        (b"1", PassReason.UNKNOWN_SHAPE),
        (changed(model=...), PassReason.UNKNOWN_SHAPE),
        (changed(model=4), PassReason.UNKNOWN_SHAPE),
        (changed(model=None), PassReason.UNKNOWN_SHAPE),
        (changed(input=...), PassReason.UNKNOWN_SHAPE),
        (changed(input={"texts": []}), PassReason.UNKNOWN_SHAPE),
        (changed(input={"texts": None}), PassReason.UNKNOWN_SHAPE),
        (changed(input={"texts": ["a", 1]}), PassReason.UNKNOWN_SHAPE),
        (changed(input={"texts": ["a", None]}), PassReason.UNKNOWN_SHAPE),
        (changed(input={"texts": [["a"]]}), PassReason.UNKNOWN_SHAPE),
        (changed(input={"texts": {"0": "a"}}), PassReason.UNKNOWN_SHAPE),
        (changed(input={"texts": ["a"], "url": "https://x"}), PassReason.UNKNOWN_SHAPE),
        (changed(input={"url": "https://x"}), PassReason.UNKNOWN_SHAPE),
        (changed(input="a"), PassReason.UNKNOWN_SHAPE),
        (changed(input=["a"]), PassReason.UNKNOWN_SHAPE),
        (with_parameters(output_type="dense&sparse&x"), PassReason.UNKNOWN_SHAPE),
        (with_parameters(output_type=1), PassReason.UNKNOWN_SHAPE),
        (with_parameters(output_type=["dense"]), PassReason.UNKNOWN_SHAPE),
        (with_parameters(weights=[1, 2]), PassReason.UNKNOWN_SHAPE),
        (changed(x={"y": {"z": []}}), PassReason.UNKNOWN_SHAPE),
        (changed(stream=True), PassReason.EVENT_STREAM),
        (changed(stream="false"), PassReason.EVENT_STREAM),
        (changed(stream=0), PassReason.EVENT_STREAM),
    ],
)
def test_bodies_that_make_a_request_pass(body, reason):
    assert planned(native(body)) == Pass(reason, "embedding")


@pytest.mark.parametrize("given", [[1, 2, 3], [[1, 2]], {"texts": ["a"]}, None, [], 5, True, [True]])
def test_compatible_inputs_that_are_no_texts_are_passed(given):
    body = json.dumps({"model": "m", "input": given}).encode()
    assert planned(compatible(body)) == Pass(PassReason.UNKNOWN_SHAPE, "embedding")


def test_batches_over_the_cap_are_passed():
    for model, cap in [*BATCH_CAPS.items(), ("unheard-of", LARGEST_CAP)]:
        assert len(read(native(changed(model=model, input={"texts": ["a"] * cap}))).items) == cap
        assert is_over(planned(native(changed(model=model, input={"texts": ["a"] * (cap + 1)}))))


@pytest.mark.parametrize("model", [*BATCH_CAPS, "unheard-of"])
def test_what_can_be_asked_for_in_pieces_is_planned_up_to_so_many_of_them(model):
    cap = BATCH_CAPS.get(model, 0)
    most = cap * 3 or LARGEST_CAP
    plan = read(native(changed(model=model, input={"texts": ["a"] * most})), max_pieces=3)
    assert plan.batchable is (plan if cap else None)
    assert plan.cap == cap
    assert is_over(planned(native(changed(model=model, input={"texts": ["a"] * (most + 1)})), max_pieces=3))


def test_an_operator_can_set_the_cap_of_a_model():
    body = changed(input={"texts": ["a"] * 12})
    assert len(read(native(body), caps={"text-embedding-v4": 12}).items) == 12


@pytest.mark.parametrize("model", [*BATCH_CAPS, "unheard-of"])
@pytest.mark.parametrize("as_asked", [native, compatible])
def test_c26_a_limit_that_was_learned_is_planned_up_to_and_asked_for_whole(model, as_asked):
    cap, told = BATCH_CAPS.get(model, 0), []
    limits, most = BatchLimits(on_change=lambda *change: told.append(change)), (cap or LARGEST_CAP) + 2
    adapter = EmbeddingAdapter(NATIVE if as_asked is native else COMPATIBLE, limits)

    def plan(texts):
        given = ["a"] * texts
        return adapter.plan(as_asked(changed(model=model, input={"texts": given} if as_asked is native else given)))

    over = plan(most)
    assert is_over(over)
    over.read.trial.taken(most)
    for texts in (most - 1, most):
        assert plan(texts) == dataclasses.replace(over.read, **texts_of(plan(texts)))
        assert plan(texts).batchable is None
        assert plan(texts).cap == cap
    assert is_over(plan(most + 1))
    over.read.trial.taken(most - 1)
    assert plan(most).trial is not None  # what is smaller takes nothing back
    plan(most).trial.refused(cap or LARGEST_CAP)
    assert not isinstance(plan(most), Pass)  # nor does the refusal of what was never too large
    plan(most).trial.refused(most - 1)
    assert is_over(plan(most))
    assert is_over(plan(most - 1))
    plan(most).read.trial.taken(most)
    assert not isinstance(plan(most), Pass)
    plan(most).trial.refused(most)
    assert told == [("default", model, most - 2, most), ("default", model, most, most - 2)]


def test_c26_only_so_much_can_be_learned():
    def over(texts, model="text-embedding-v4", **options):
        return planned(native(changed(model=model, input={"texts": ["a"] * texts})), **options)

    assert over(10 * MOST_TIMES).read is not None
    assert over(10 * MOST_TIMES + 1) == Pass(PassReason.OVER_CAP, "embedding")
    assert over(LARGEST_CAP * MOST_TIMES + 1, "unheard-of") == Pass(PassReason.OVER_CAP, "embedding")
    large = {"caps": {"text-embedding-v4": MOST_TEXTS - 1}}
    assert over(MOST_TEXTS, **large).read is not None
    assert over(MOST_TEXTS + 1, **large) == Pass(PassReason.OVER_CAP, "embedding")


def test_c26_names_that_clients_make_up_take_no_room_without_end():
    limits = BatchLimits()
    for number in range(300):
        limits.raised("default", f"made-up-{number}", 30)
    assert [bool(limits.known("default", f"made-up-{number}")) for number in (0, 255, 256, 299)] == [1, 1, 0, 0]


def test_c26_each_upstream_has_limits_of_its_own():
    limits = BatchLimits()
    limits.raised("one", "text-embedding-v4", 20)
    assert (limits.known("one", "text-embedding-v4"), limits.known("two", "text-embedding-v4")) == (20, 0)


def is_over(plan):
    """Whether *plan* passes a batch as too large, and listens to what the vendor says of it."""
    return isinstance(plan, Pass) and plan.reason is PassReason.OVER_CAP and plan.read is not None


def texts_of(plan):
    """What makes a difference between two plans for the same texts, more of them or fewer."""
    return {name: getattr(plan, name) for name in ("tree", "body", "texts", "items")}


def test_every_pass_reason_is_somebodys():
    """The reasons that no adapter gives are those of the flow."""
    flows = {"not-cached", "body-too-large", "bypass", "no-store", "shadow"}
    adapters = {"no-credential", "async-task", "event-stream", "encrypted", "temporary-reference", "content-coding"}
    adapters |= {"content-type", "ambiguous", "unknown-shape", "over-cap", "identity-refused"}
    assert {reason.value for reason in PassReason} == flows | adapters


def test_a_request_without_a_body_is_ambiguous():
    request = Request("POST", NATIVE.path, HEADERS, "default", None)
    assert EmbeddingAdapter(NATIVE, BatchLimits()).plan(request) == Pass(PassReason.AMBIGUOUS, "embedding")
