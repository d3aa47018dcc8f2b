"""Packing of vectors: the smallest form that gives back the text (the property itself is in tests/property)."""

import base64
import zlib

import numpy as np
import orjson
import pytest

from proxy.cache.vector_packing import Form, Unreadable, pack, unpack

LIMIT = 1 << 20


def text_of(numbers: np.ndarray) -> bytes:
    return orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)


def unit_vector(dimension: int, seed: int = 1) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(dimension)
    return vector / np.linalg.norm(vector)


def round_trip(text: bytes) -> tuple[Form, int]:
    """The form that *text* was kept in and its size, after having been read back."""
    form, packed, respelled = pack(text)
    assert unpack(form, packed, respelled, LIMIT) == text
    return form, len(packed) + sum(len(spelled) + 6 for _, spelled in respelled)


WIDE = text_of(unit_vector(1024).astype("<f4").astype("<f8"))


def test_float32_widened_to_float64_is_kept_in_4_bytes():
    form, size = round_trip(WIDE)
    assert form is Form.WIDE
    assert size < 3_500


def test_float32_in_its_own_digits_is_kept_in_4_bytes():
    form, size = round_trip(text_of(unit_vector(1024).astype("<f4")))
    assert form is Form.SHORT
    assert size < 3_500


def test_float64_is_kept_in_8_bytes():
    form, size = round_trip(text_of(unit_vector(1536)))
    assert form is Form.DOUBLE
    assert size < 8 * 1536


def test_base64_is_kept_in_4_bytes():
    text = b'"' + base64.b64encode(unit_vector(1024).astype("<f4").tobytes()) + b'"'
    form, size = round_trip(text)
    assert form is Form.BASE64
    assert size < 3_500


def test_float16_is_kept_in_4_bytes():
    assert round_trip(text_of(unit_vector(1024).astype("<f2").astype("<f8")))[0] is Form.WIDE


def plain_decimals(vector: np.ndarray, at: list[int]) -> bytes:
    """*vector* as text, the numbers at positions *at* tiny and without an exponent, as the vendor writes them."""
    spelled = text_of(vector)[1:-1].split(b",")
    for position in at:
        spelled[position] = b"-0.0000000%05d" % (21_313 + position)
    return b"[" + b",".join(spelled) + b"]"


@pytest.mark.parametrize(("count", "form"), [(0, Form.DOUBLE), (1, Form.DOUBLE), (32, Form.DOUBLE), (33, Form.TEXT)])
def test_a_few_numbers_in_other_spelling_do_not_change_the_form(count, form):
    """-0.00000000213 is -2.13e-9 to us."""
    vector = unit_vector(1536)
    text = plain_decimals(vector, list(range(0, 3 * count, 3)))
    assert round_trip(text)[0] is form


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"[ ]",
        b"[0]",
        b"[-0]",
        b"[-0.0]",
        b"[1,2,3]",
        b"[1.0, 2.0]",
        b"[ 1.0 ,\r\n\t2.0 ]",
        b" [1.0]",
        b"[1.0]\n",
        b"[1E5,1e+5,1e05,100000.0,1.0e5]",
        b"[0.1]",
        b"[0.10]",
        b"[1e39]",
        b"[-3.4028236e38,3.4028235e38]",
        b"[1e-46,1e-320,5e-324,1e-400]",
        b"[1e400]",
        b"[-1e400,1.0]",
        b"[9007199254740993]",
        b"[18446744073709551615,18446744073709551616,-9223372036854775809]",
        b"[123456789012345678901234567890.5]",
        b"[0.1234567890123456789012345678901234567890]",
        b"[1.7976931348623157e308]",
        b"[1.7976931348623159e308]",
        b"[null]",
        b"[true]",
        b'["1.0"]',
        b"[[1.0]]",
        b"[[1.0],[2.0]]",
        b"{}",
        b'""',
        b'"A"',
        b'"AAAA"',
        b'"AAAAAA=="',
        b'"AAAAAB=="',
        b'"AAAAAA"',
        b'"AAAA AA=="',
        b'"AAAAA\\/=="',
        b'"AAAAA/=="',
        b'"AAAAA_=="',
        '"é"'.encode(),
        b'"\\u0041AAAAA=="',
        b"null",
        b"1.0",
        b"not json",
    ],
)
def test_odd_texts_come_back_as_they_were(text):
    """Most of them are refused before anything is packed; none may raise or change here."""
    round_trip(text)


@pytest.mark.parametrize("form", [form for form in Form if form is not Form.NONE])
@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\x00",
        b"\x00" * 4,
        b"\x00" * 5,
        b"\xff" * 4,
        b"\xff\xff\xff\x7f" + b"x" * 40,
        b"\x04\x00\x00\x00" + b"\xff" * 40,
        b"\x00\x00\x00\x00" + b"x" * 21,
        zlib.compress(b"x" * 100)[:-1],
    ],
)
def test_what_is_not_packed_is_unreadable(form, packed):
    with pytest.raises(Unreadable):
        unpack(form, packed, (), LIMIT)


def test_every_truncation_is_unreadable_or_shorter_but_never_another_error():
    for text in (WIDE[:200].rpartition(b",")[0] + b"]", b'"AAAAAAAAAAA="', plain_decimals(unit_vector(40), range(34))):
        form, packed, respelled = pack(text)
        for length in range(len(packed)):
            try:
                assert unpack(form, packed[:length], respelled, LIMIT) != text
            except Unreadable:
                continue


@pytest.mark.parametrize("start", [-8, -4, -1, 0, 2, 3, 4, 6, 8, 9, 99])
def test_no_number_can_be_respelled_where_none_starts(start):
    form, packed, _ = pack(b"[1.0,1.0]")
    with pytest.raises(Unreadable):
        unpack(form, packed, ((start, b"1"),), LIMIT)


@pytest.mark.parametrize("starts", [(5, 1), (1, 1), (9, 9), (9, 1)])
def test_numbers_are_respelled_in_ascending_order(starts):
    form, packed, _ = pack(b"[1.0,1.0,1.0]")
    with pytest.raises(Unreadable):
        unpack(form, packed, tuple((start, b"1") for start in starts), LIMIT)


@pytest.mark.parametrize("spelled", [b"1", b"2.0000000001", b"nan", b"", b"x", b"2,2", b"2]", b"-2"])
def test_no_other_number_is_put_in_place_of_one(spelled):
    form, packed, _ = pack(b"[1.0,2.0,3.0]")
    with pytest.raises(Unreadable):
        unpack(form, packed, ((5, spelled),), LIMIT)


def test_every_number_can_be_respelled():
    form, packed, _ = pack(b"[1.0,2.0,3.0]")
    assert unpack(form, packed, ((1, b"1"), (5, b"2.00"), (9, b"3e0")), LIMIT) == b"[1,2.00,3e0]"
    form, packed, _ = pack(b"[1.0]")
    assert unpack(form, packed, ((1, b"1"),), LIMIT) == b"[1]"


def test_text_does_not_grow_beyond_its_bound():
    bomb = zlib.compress(b"0" * (64 << 20), 9)
    with pytest.raises(Unreadable):
        unpack(Form.TEXT, bomb, (), 1 << 16)
    assert unpack(Form.TEXT, zlib.compress(b"x" * 100), (), 100) == b"x" * 100
    with pytest.raises(Unreadable):
        unpack(Form.TEXT, zlib.compress(b"x" * 101), (), 100)


def test_nothing_is_kept_as_nothing():
    assert pack(b"") == (Form.NONE, b"", ())


def test_form_values_are_part_of_the_stored_format():
    assert [(form.name, form.value) for form in Form] == [
        ("NONE", 0),
        ("WIDE", 1),
        ("SHORT", 2),
        ("DOUBLE", 3),
        ("BASE64", 4),
        ("TEXT", 5),
    ]
