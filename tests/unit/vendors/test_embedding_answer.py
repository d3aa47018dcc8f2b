"""Answers of text embeddings: put right where they can be, refused where they cannot, joined from rows."""

import base64
import json
import struct

import numpy as np
import orjson
import pytest

from proxy.core.plan import NotStorable, Refusal
from proxy.vendors.dashscope.embedding_answer import COMPATIBLE_ANSWER, NATIVE_ANSWER, Asked, join, split
from tests.unit.vendors.exchanges import native_answer

DENSE = Asked(frozenset({"embedding"}), None)
SPARSE = Asked(frozenset({"sparse_embedding"}), None)
BOTH = Asked(frozenset({"embedding", "sparse_embedding"}), None)

ROW = {"embedding": [0.5, -1.0], "text_index": 0}
SPARSE_VALUE = [{"index": 7149, "value": 0.829, "token": "风"}]


def answer(*rows, **members) -> bytes:
    """An answer of the native API with *rows*; *members* stand beside them, ``...`` takes one away."""
    document = {"output": {"embeddings": list(rows)}, "usage": {"total_tokens": 9}, "request_id": "id", **members}
    return json.dumps({name: value for name, value in document.items() if value is not ...}).encode()


def rows_of(body: bytes, count: int, asked: Asked = DENSE):
    return split(NATIVE_ANSWER, body, asked, [1] * count)


def refusal_of(body: bytes, count: int = 1, asked: Asked = DENSE) -> Refusal:
    with pytest.raises(NotStorable) as caught:
        rows_of(body, count, asked)
    return caught.value.refusal


def base64_of(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


# --- put right --------------------------------------------------------------------------------------------------------


def test_rows_that_come_shuffled_are_put_in_the_order_of_their_index():
    rows = [{"embedding": [float(at)], "text_index": at} for at in range(10)]
    shuffled = [rows[at] for at in (3, 9, 0, 1, 8, 2, 7, 4, 6, 5)]
    assert [row.vector for row in rows_of(answer(*shuffled), 10)] == [b"[%d.0]" % at for at in range(10)]


def test_positions_are_counted_anew_when_rows_are_joined():
    rows = rows_of(native_answer(["[0.0]", "[1.0]", "[2.0]"]), 3)
    joined = json.loads(join([rows[2], rows[0], rows[2]], "new"))
    assert joined["output"]["embeddings"] == [
        {"embedding": [2.0], "text_index": 0},
        {"embedding": [0.0], "text_index": 1},
        {"embedding": [2.0], "text_index": 2},
    ]
    assert joined["request_id"] == "new"


def test_a_position_with_more_digits_than_its_row_was_stored_with_is_written():
    row = rows_of(native_answer(["[1.5]"]), 1)[0]
    joined = json.loads(join([row] * 25, "x"))
    assert [each["text_index"] for each in joined["output"]["embeddings"]] == list(range(25))


def test_number_spelling_and_unknown_members_of_an_answer_are_kept():
    body = (
        b'{"new":{"a":1.0},"output":{"x":1e-7,"embeddings":[{"extra":[1, 2],"embedding":[-0.00002131348367563013,1.10],'
        b'"text_index":0,"last":"\\u00e9"}],"y":-0.0},"usage":{"total_tokens":9},"request_id":"id","end":null}'
    )
    assert join(rows_of(body, 1), "id") == body


def test_control_characters_written_as_escapes_are_no_marks():
    body = (
        b'{"output":{"embeddings":[{"embedding":[1.5],"text_index":0,"t":"\\u0000\\u0001"}]},"m":"\\u0002\\u0003\\u0004",'
        b'"usage":{"total_tokens":1},"request_id":"id"}'
    )
    row = rows_of(body, 1)[0]
    assert join([row], "id") == body


def test_the_vendors_blanks_do_not_matter():
    pretty = json.dumps(json.loads(native_answer(["[1.5]", "[2.5]"])), indent=1).encode()
    assert json.loads(join(rows_of(pretty, 2), "vendor-id")) == json.loads(pretty)


def test_usage_is_summed_over_the_rows_shares():
    rows = split(NATIVE_ANSWER, native_answer(["[1.0]", "[2.0]", "[3.0]"], tokens=100), DENSE, [5, 3, 1])
    assert sum(dict(row.usage)["total_tokens"] for row in rows) == 100
    assert json.loads(join(rows, "x"))["usage"] == {"total_tokens": 100}
    assert json.loads(join(rows[:1], "x"))["usage"] == {"total_tokens": dict(rows[0].usage)["total_tokens"]}


def test_usage_of_two_requests_adds_up():
    one = rows_of(native_answer(["[1.0]"], tokens=3), 1)
    other = rows_of(native_answer(["[2.0]"], tokens=4), 1)
    assert json.loads(join([*one, *other], "x"))["usage"] == {"total_tokens": 7}


@pytest.mark.parametrize("name", ['we"ird', "a\\b", "id\r\nSet-Cookie: x", "x" * 65, 7, None, {"a": 1}, ""])
def test_an_origin_that_may_not_stand_in_a_header_is_forgotten(name):
    row = rows_of(answer(ROW, request_id=name), 1)[0]
    assert row.origin == ""
    assert json.loads(join([row], "ours"))["request_id"] == "ours"


def test_an_answer_without_a_request_id_gets_none():
    assert "request_id" not in json.loads(join(rows_of(answer(ROW, request_id=...), 1), "ours"))


def test_a_base64_vector_is_kept_as_it_is():
    text = base64_of(0.5, -1.25, 3e-30)
    body = answer({"embedding": text, "text_index": 0})
    assert rows_of(body, 1, Asked(DENSE.kinds, 3))[0].vector == b'"%b"' % text.encode()


def test_whole_numbers_are_numbers():
    assert rows_of(answer({"embedding": [1, -2, 0], "text_index": 0}), 1)[0].vector == b"[1, -2, 0]"


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "indexes",
    [
        [0],
        [0, 0],
        [1, 1],
        [1, 2],
        [0, 2],
        [-1, 0],
        [0, 1, 2],
        [0, 1, 1],
        [0, 0, 1],
        [0, None],
        [0, "1"],
        [0, 1.0],
        [0, True],
        [0, 10**30],
        [0, [1]],
        [0, {}],
        [],
    ],
)
def test_rows_that_are_not_one_per_text_are_refused(indexes):
    body = answer(*({"embedding": [float(number)], "text_index": at} for number, at in enumerate(indexes)))
    assert refusal_of(body, 2) is Refusal.INCOMPLETE


def test_a_row_without_an_index_is_refused():
    assert refusal_of(answer(ROW, {"embedding": [1.0, 1.0]}), 2) is Refusal.INCOMPLETE
    assert refusal_of(answer(ROW, {"embedding": [1.0, 1.0], "index": 1}), 2) is Refusal.INCOMPLETE


def test_one_row_more_or_less_than_texts_is_refused():
    body = native_answer(["[1.0]"] * 3)
    assert refusal_of(body, 2) is Refusal.INCOMPLETE
    assert refusal_of(body, 4) is Refusal.INCOMPLETE


@pytest.mark.parametrize("dimension", [1, 3, 1024])
@pytest.mark.parametrize("vector", [[0.5, 0.5], base64_of(0.5, 0.5)])
def test_another_dimension_than_asked_for_is_refused(dimension, vector):
    body = answer({"embedding": vector, "text_index": 0})
    assert refusal_of(body, 1, Asked(DENSE.kinds, dimension)) is Refusal.WRONG_DIMENSION
    assert rows_of(body, 1, Asked(DENSE.kinds, 2))


@pytest.mark.parametrize("other", [[1.0], [1.0, 2.0, 3.0], base64_of(1.0)])
def test_rows_of_different_dimension_are_refused(other):
    body = answer(ROW, {"embedding": other, "text_index": 1})
    assert refusal_of(body, 2) is Refusal.WRONG_DIMENSION


@pytest.mark.parametrize(
    ("vector", "refusal"),
    [
        ([], Refusal.NOT_FINITE),
        ([None, 1.0], Refusal.NOT_FINITE),
        ([True, 1.0], Refusal.NOT_FINITE),
        (["1.0", 1.0], Refusal.NOT_FINITE),
        ([[1.0], [2.0]], Refusal.NOT_FINITE),
        ([{}, 1.0], Refusal.NOT_FINITE),
        (None, Refusal.SHAPE),
        (1.0, Refusal.SHAPE),
        ({"0": 1.0}, Refusal.SHAPE),
        ("", Refusal.SHAPE),
        ("not base64!", Refusal.SHAPE),
        ("é", Refusal.SHAPE),
        ("AAAA", Refusal.SHAPE),
        ("AAAAAA", Refusal.SHAPE),
        (base64_of(float("nan")), Refusal.NOT_FINITE),
        (base64_of(1.0, float("inf")), Refusal.NOT_FINITE),
    ],
)
def test_vectors_of_something_else_than_finite_numbers_are_refused(vector, refusal):
    assert refusal_of(answer({"embedding": vector, "text_index": 0})) is refusal


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e999", b"nan", b"01", b"0x1"])
def test_what_is_no_json_number_or_none_that_float64_holds_is_refused(number):
    body = native_answer(["[1.0,@]"]).replace(b"@", number)
    assert refusal_of(body) is Refusal.SHAPE


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        (ROW, SPARSE),
        (ROW, BOTH),
        ({"text_index": 0}, DENSE),
        ({"text_index": 0}, SPARSE),
        ({"sparse_embedding": SPARSE_VALUE, "text_index": 0}, DENSE),
        ({"sparse_embedding": SPARSE_VALUE, "text_index": 0}, BOTH),
        ({**ROW, "sparse_embedding": SPARSE_VALUE}, DENSE),
        ({**ROW, "sparse_embedding": SPARSE_VALUE}, SPARSE),
    ],
)
def test_a_row_has_the_kinds_of_vectors_that_were_asked_for_and_no_other(row, asked):
    assert refusal_of(answer(row), 1, asked) is Refusal.SHAPE


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        (None, Refusal.SHAPE),
        ({}, Refusal.SHAPE),
        ("x", Refusal.SHAPE),
        ([1], Refusal.SHAPE),
        ([{}], Refusal.SHAPE),
        ([{"index": "1", "value": 1.0}], Refusal.SHAPE),
        ([{"index": True, "value": 1.0}], Refusal.SHAPE),
        ([{"index": 1}], Refusal.NOT_FINITE),
        ([{"index": 1, "value": None}], Refusal.NOT_FINITE),
        ([{"index": 1, "value": "0.5"}], Refusal.NOT_FINITE),
        ([{"index": 1, "value": False}], Refusal.NOT_FINITE),
    ],
)
def test_sparse_vectors_of_another_form_are_refused(value, refusal):
    assert refusal_of(answer({"sparse_embedding": value, "text_index": 0}), 1, SPARSE) is refusal


def test_sparse_and_dense_together_are_kept():
    row = rows_of(answer({**ROW, "sparse_embedding": SPARSE_VALUE}), 1, BOTH)[0]
    assert json.loads(join([row], "x"))["output"]["embeddings"] == [{**ROW, "sparse_embedding": SPARSE_VALUE}]


@pytest.mark.parametrize("form", [NATIVE_ANSWER, COMPATIBLE_ANSWER])
def test_an_error_with_status_200_is_a_vendor_error(form):
    error = {"code": "Throttling", "error": {"code": "x"}}[form.error]
    good = {
        NATIVE_ANSWER: {"output": {"embeddings": [ROW]}, "usage": {"total_tokens": 1}},
        COMPATIBLE_ANSWER: {"data": [{"embedding": [1.0], "index": 0}], "usage": {"total_tokens": 1}},
    }[form]
    for document in ({form.error: error}, {**good, form.error: error}, {form.error: error, "message": "no"}):
        with pytest.raises(NotStorable) as caught:
            split(form, json.dumps(document).encode(), DENSE, [1])
        assert caught.value.refusal is Refusal.VENDOR_ERROR
    for nothing in ("", None):
        assert split(form, json.dumps({**good, form.error: nothing}).encode(), DENSE, [1])


@pytest.mark.parametrize("place", ["beside", "inside", "deeper"])
def test_a_list_beside_the_rows_is_refused(place):
    """It could speak of the rows one by one, and would later stand beside other rows."""
    answer = json.loads(native_answer(["[1.0]"]))
    where = {"beside": answer, "inside": answer["output"], "deeper": answer["output"].setdefault("more", {})}[place]
    where["notes"] = ["about the first row"]
    with pytest.raises(NotStorable) as caught:
        split(NATIVE_ANSWER, json.dumps(answer).encode(), DENSE, [1])
    assert caught.value.refusal is Refusal.SHAPE


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"x"',
        b"1",
        b"{",
        b"not json",
        b"<html></html>",
        b"data: {}\n\n",
        b"\xef\xbb\xbf" + native_answer(["[1.0]"]),
        native_answer(["[1.0]"]).decode().encode("utf-16"),
        native_answer(["[1.0]"]) + b"x",
        native_answer(["[1.0]"])[:-1],
        native_answer(["[1.0]"]).replace(b"vendor-id", b"\xff"),
        native_answer(["[1.0]"]).replace(b"vendor-id", b"\\ud800"),
        native_answer(["[1.0]"]).replace(b"vendor-id", b"\x01"),
        b'{"output":{"task_status":"PENDING","task_id":"7f"},"request_id":"id"}',
        b'{"output":{"task_id":"7f","task_status":"SUCCEEDED","url":"x"},"usage":{"total_tokens":1}}',
        answer(output=None),
        answer(output=[]),
        answer(output={"embeddings": None}),
        answer(output={"embeddings": {}}),
        answer(output={"embeddings": [None]}),
        answer(output={"embeddings": [[]]}),
        answer(output={"embedding": [1.0]}),
    ],
)
def test_answers_of_another_form_are_refused(body):
    assert refusal_of(body) is Refusal.SHAPE


@pytest.mark.parametrize(
    "body",
    [
        b'{"output":{"embeddings":[{"embedding":[1],"embedding":[2],"text_index":0}]},"usage":{},"request_id":"a"}',
        b'{"output":{"embeddings":[{"embedding":[1],"text_index":0,"text_index":0}]},"usage":{},"request_id":"a"}',
        b'{"output":{"embeddings":[],"embeddings":[{"embedding":[1],"text_index":0}]},"usage":{},"request_id":"a"}',
        b'{"output":{"embeddings":[{"embedding":[1],"text_index":0}]},"usage":{},"usage":{},"request_id":"a"}',
        b'{"output":{"embeddings":[{"embedding":[1],"text_index":0}]},"usage":{},"m":1,"\\u006d":2,"request_id":"a"}',
    ],
)
def test_an_answer_that_says_something_twice_is_refused(body):
    """What is joined from rows would show one of the two, and a reader may take the other."""
    assert refusal_of(body) is Refusal.SHAPE


@pytest.mark.parametrize("levels", [900, 990, 999, 1_000, 1_010, 1_023, 1_024, 5_000, 200_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("place", [b'{"x":@,', b'{"output":{"x":@,"embeddings":[]},', b'{"code":@,'])
def test_a_deep_answer_is_kept_or_refused_but_never_an_error(levels, opening, place):
    deep = opening * levels + b"1" + {b"[": b"]", b'{"a":': b"}"}[opening] * levels
    body = native_answer(["[1.0]"]).replace(b"{", place.replace(b"@", deep), 1)
    try:
        rows_of(body, 1)
    except NotStorable:
        return


@pytest.mark.parametrize(
    "usage",
    [..., None, 5, [], "x", {"total_tokens": "5"}, {"total_tokens": 1.5}, {"total_tokens": -1}, {"total_tokens": None},
     {"total_tokens": True}, {"total_tokens": 1, "details": {"a": 1}}, {"total_tokens": 2**64 - 1}, {"t": 10**30}],
)  # fmt: skip
def test_usage_that_cannot_be_shared_out_is_refused(usage):
    assert refusal_of(answer(ROW, usage=usage)) is Refusal.SHAPE


def test_the_largest_counters_still_add_up():
    rows = rows_of(answer(ROW, usage={"total_tokens": 2**53, "b": 0}), 1)
    assert orjson.loads(join(rows * 25, "x"))["usage"] == {"total_tokens": 25 * 2**53, "b": 0}


def test_a_full_batch_of_the_largest_vectors_is_kept():
    text = orjson.dumps(np.random.default_rng(1).random(2_560), option=orjson.OPT_SERIALIZE_NUMPY).decode()
    rows = rows_of(native_answer([text] * 25), 25, Asked(DENSE.kinds, 2_560))
    assert all(row.vector == text.encode() for row in rows)
