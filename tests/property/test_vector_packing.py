"""Vectors survive packing and sealing digit for digit, however they are spelled."""

import base64
import math
import struct
from decimal import Decimal

import numpy as np
import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.cache.codec import Codec, Rejected
from proxy.cache.vector_packing import Form, Unreadable, pack, unpack
from proxy.core.entry import Entry, Row
from proxy.core.key import Secret

LIMIT = 1 << 22
CODEC = Codec(Secret.derive(b"secret"), LIMIT)

FLOAT64 = st.floats(allow_nan=False, allow_infinity=False)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
FLOAT16 = st.floats(width=16, allow_nan=False, allow_infinity=False)
SMALL = st.floats(-1, 1, width=32)


def plain(number: float) -> str:
    """In plain decimal, however small: ``-0.00002131348367563013``."""
    return format(Decimal(repr(number)), "f")


def short(number: float) -> str:
    """With the digits that tell float32 apart."""
    return orjson.dumps(np.array([number], "<f4"), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode()


SPELLED = st.one_of(
    FLOAT64.map(repr),
    FLOAT64.map(plain),
    FLOAT32.map(repr),
    FLOAT32.map(plain),
    FLOAT32.map(short),
    FLOAT16.map(repr),
    SMALL.map(repr),
    SMALL.map(lambda number: f"{number:.20f}"),
    SMALL.map(lambda number: f"{number:.25E}"),
    st.integers().map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(["-0.0", "-0", "0", "0.0", "1e400", "-1e400", "1e-400", "5e-324", "1E5", "1.0e+5", "1" * 400]),
    st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)
BLANKS = st.sampled_from(["", "", "", " ", "\n", "\t", "\r\n "])


def array(numbers: list[str], blank: str = "") -> bytes:
    return ("[" + f"{blank},{blank}".join(numbers) + "]").encode()


def identical(text: bytes) -> Form:
    form, packed, respelled = pack(text)
    assert unpack(form, packed, respelled, LIMIT) == text
    return form


@given(st.lists(SPELLED, min_size=1, max_size=60), BLANKS)
@example(["1e400"], "")
@example(["1e39", "0.5"], "")
@example(["0.1"] * 3_000, "")
@example(["-0.0"], " ")
def test_packing_any_array_of_numbers_is_the_identity(numbers, blank):
    identical(array(numbers, blank))


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 64, 1024, 1536, 3_000]), st.sampled_from(["<f2", "<f4", "<f8"]))
def test_packing_vectors_of_models_is_the_identity(seed, dimension, kind):
    vector = np.random.default_rng(seed).standard_normal(dimension)
    numbers = (vector / np.linalg.norm(vector)).astype(kind).astype("<f8")
    text = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)
    form = identical(text)
    assert form is Form.WIDE or kind == "<f8"
    identical(array([plain(number) for number in numbers.tolist()]))
    identical(orjson.dumps(numbers.astype("<f4"), option=orjson.OPT_SERIALIZE_NUMPY))


@given(st.binary(max_size=400))
def test_packing_base64_is_the_identity(content):
    identical(b'"' + base64.b64encode(content) + b'"')
    identical(b'"' + base64.urlsafe_b64encode(content) + b'"')
    identical(b'"' + base64.b64encode(content).rstrip(b"=") + b'"')


@given(st.lists(FLOAT32, min_size=1, max_size=100))
def test_base64_of_floats_takes_about_their_bytes(numbers):
    content = struct.pack(f"<{len(numbers)}f", *numbers)
    form, packed, _ = pack(b'"' + base64.b64encode(content) + b'"')
    assert form is Form.BASE64
    assert len(packed) <= len(content) + 4 + len(numbers) // 2 + 80


@given(st.text(max_size=50).map(lambda text: orjson.dumps(text.encode("utf-8", "replace").decode())))
def test_packing_any_string_is_the_identity(text):
    identical(text)


@given(
    st.sampled_from(Form), st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 99), st.just(b"1")), max_size=2)
)
def test_unpacking_anything_gives_bytes_or_unreadable(form, packed, respelled):
    try:
        assert isinstance(unpack(form, packed, tuple(respelled), 1_000), bytes)
    except Unreadable:
        return


COUNTS = st.dictionaries(
    st.sampled_from(["total_tokens", "prompt_tokens", "é", '"']), st.integers(0, 2**53), max_size=3
)
ENTRIES = st.builds(
    Entry,
    st.builds(
        Row,
        envelope=st.sampled_from([b'{"output":{"embeddings":\x02},"usage":\x03,"request_id":\x04}', b"{}", b"\x02"]),
        skeleton=st.text(max_size=30).map(lambda text: b'{"embedding":\x00,"t":%b}' % orjson.dumps(ascii(text))),
        vector=st.one_of(st.just(b""), st.lists(SPELLED, min_size=1, max_size=20).map(array)),
        usage=COUNTS.map(lambda counts: tuple(counts.items())),
        origin=st.from_regex(r"[A-Za-z0-9_.:-]{0,64}", fullmatch=True),
    ),
    stored_unix_ms=st.integers(0, 2**63),
    ttl_ms=st.integers(1, 2**62),
)


@given(ENTRIES, st.binary(min_size=32, max_size=32))
def test_sealing_is_the_identity(entry, key):
    assert CODEC.open(key, CODEC.seal(key, entry)) == entry


@given(ENTRIES, st.data())
def test_s9_any_damage_is_rejected(entry, data):
    sealed = CODEC.seal(b"k" * 32, entry)
    start = data.draw(st.integers(0, len(sealed)))
    end = data.draw(st.integers(start, len(sealed)))
    damaged = sealed[:start] + data.draw(st.binary(max_size=8)) + sealed[end:]
    if damaged == sealed:
        return
    try:
        CODEC.open(b"k" * 32, damaged)
    except Rejected:
        return
    raise AssertionError("opened")


@given(st.lists(FLOAT64, min_size=1, max_size=40))
def test_what_comes_back_are_the_same_numbers_sign_of_zero_included(numbers):
    form, packed, respelled = pack(array([repr(number) for number in numbers]))
    back = orjson.loads(unpack(form, packed, respelled, LIMIT))
    assert [(float(number), math.copysign(1, number)) for number in back] == [
        (number, math.copysign(1, number)) for number in numbers
    ]
