"""Sealed entries: what comes back, and that everything else is rejected (S9)."""

import dataclasses
import itertools
import random
import struct
import tracemalloc
import zlib

import numpy as np
import orjson
import pytest

from proxy.cache import codec as codec_module
from proxy.cache.codec import FORMAT_VERSION, Codec, Opened, Rejected
from proxy.cache.vector_packing import Form
from proxy.core.entry import Entry, Row
from proxy.core.key import Secret, authentication_tag

SECRET = Secret.derive(b"deployment")
KEY = b"k" * 32
CODEC = Codec(SECRET, 1 << 20)
HEADER = struct.Struct("<BBQQBI")

ENVELOPE = b'{"output":{"embeddings":\x02},"usage":\x03,"request_id":\x04}'
SKELETON = b'{"embedding":\x00,"text_index":\x01}'


def entry(vector: bytes = b"[0.5,-0.25,0.00001,1.5]", **changes) -> Entry:
    """A small entry; one number is spelled as we would not spell it."""
    row = {
        "envelope": ENVELOPE,
        "skeleton": SKELETON,
        "vector": vector,
        "usage": (("total_tokens", 3), ("prompt_tokens", 2)),
        "origin": "fde7fe45-b6a1-45ba-8000-000000000001",
    }
    return Entry(Row(**{**row, **changes}), stored_unix_ms=1_700_000_000_123, ttl_ms=604_800_000)


def v4_entry(seed: int = 0, dimension: int = 1024) -> Entry:
    """An entry as the vendor's v4 answers make them: float32 written as float64."""
    vector = np.random.default_rng(seed).standard_normal(dimension)
    text = orjson.dumps(
        (vector / np.linalg.norm(vector)).astype("<f4").astype("<f8"), option=orjson.OPT_SERIALIZE_NUMPY
    )
    return entry(text, usage=(("total_tokens", 12),))


def sealed_with(stored: bytes, key: bytes = KEY, secret: Secret = SECRET) -> bytes:
    """*stored* with a tag that is right, as only a holder of the secret can make."""
    return authentication_tag(secret, key, stored) + stored


def contents(form: int, surroundings: bytes, packed: bytes, *, version: int = FORMAT_VERSION, length=None) -> bytes:
    """Stored bytes of a chosen form."""
    squeezed = codec_module._squeeze(surroundings)
    return HEADER.pack(version, form, 1, 2, 0, len(squeezed) if length is None else length) + squeezed + packed


def rejects(sealed: bytes, key: bytes = KEY, codec: Codec = CODEC) -> bool:
    """Whether opening raises Rejected; any other exception is the test's failure."""
    try:
        codec.open(key, sealed)
    except Rejected:
        return True
    return False


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "each",
    [
        entry(),
        entry(b""),
        entry(b'"AACAPw=="'),
        entry(b"[1.0]", usage=(), origin=""),
        entry(b"[1.0]", usage=(("b", 1), ("a", 2**53)), envelope=b"{}", skeleton=b"{}"),
        entry(skeleton='{"sparse_embedding":[{"index":1,"value":0.1,"token":"风"}]}'.encode()),
        v4_entry(),
    ],
)
def test_an_entry_comes_back_as_it_was(each):
    assert CODEC.open(KEY, CODEC.seal(KEY, each)) == each


def test_a_v4_vector_of_1024_numbers_takes_less_than_3580_bytes():
    """3,584 is a size class of Redis' allocator; the next one is 4,096."""
    sizes = [len(CODEC.seal(KEY, v4_entry(seed))) for seed in range(40)]
    assert max(sizes) < 3_580, sizes


def test_entries_too_large_are_not_sealed():
    small = Codec(SECRET, 200)
    assert small.seal(KEY, entry(b"[" + b",".join([b"0.123456789"] * 100) + b"]")) is None
    assert CODEC.seal(KEY, entry(skeleton=random.Random(1).randbytes(600_000).hex().encode())) is None


@pytest.mark.parametrize("size", [100, 1_000, 10_000])
@pytest.mark.parametrize("vector", [b"[" + b",".join([b"0.0000001"] * 2_000) + b"]", b'"' + b"A" * 9_000 + b'"'])
def test_what_is_sealed_can_be_opened_whatever_the_bound(size, vector):
    codec = Codec(SECRET, size)
    sealed = codec.seal(KEY, entry(vector))
    assert sealed is None or codec.open(KEY, sealed) == entry(vector)


@pytest.mark.parametrize("length", [(1 << 20) - 300, (1 << 20) - 100, 1 << 20, 1 << 21])
def test_surroundings_that_would_not_open_are_not_sealed(length):
    each = entry(skeleton=b"{" + b" " * length + b"}")
    sealed = CODEC.seal(KEY, each)
    assert sealed is None or CODEC.open(KEY, sealed) == each


def test_the_texts_of_an_entry_do_not_stand_in_the_stored_bytes():
    """Names and vectors are compressed, not hidden; what must not be there is the request."""
    sealed = CODEC.seal(KEY, v4_entry())
    assert KEY not in sealed
    assert SECRET.entry[:8] not in sealed


# --- S9: stored values are untrusted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("each", [entry(), entry(b""), entry(b'"AACAPw=="'), v4_entry(dimension=64)])
def test_s9_an_entry_altered_in_any_byte_is_rejected(each):
    sealed = CODEC.seal(KEY, each)
    for position in range(len(sealed)):
        for change in (0x01, 0x80, 0xFF):
            altered = bytearray(sealed)
            altered[position] ^= change
            assert rejects(bytes(altered))


def test_s9_an_entry_truncated_at_any_length_or_lengthened_is_rejected():
    sealed = CODEC.seal(KEY, entry())
    assert all(rejects(sealed[:length]) for length in range(len(sealed)))
    assert all(rejects(sealed[length:]) for length in range(1, len(sealed)))
    assert all(rejects(sealed + end) for end in (b"\x00", b"\n", sealed))


def test_s9_an_entry_moved_to_another_key_is_rejected():
    sealed = CODEC.seal(KEY, entry())
    for key in (b"j" * 32, KEY[:-1], KEY + b"k", b"", KEY + sealed[16:17]):
        assert rejects(sealed, key)


def test_s9_an_entry_made_with_another_secret_is_rejected():
    sealed = Codec(Secret.derive(b"other"), 1 << 20).seal(KEY, entry())
    assert rejects(sealed)
    half_right = Codec(Secret(SECRET.identity, Secret.derive(b"other").entry), 1 << 20)
    assert rejects(half_right.seal(KEY, entry()))


@pytest.mark.parametrize("version", [version for version in range(256) if version != FORMAT_VERSION])
def test_s9_an_entry_of_another_version_is_rejected(version):
    stored = bytearray(CODEC.seal(KEY, entry())[16:])
    stored[0] = version
    assert rejects(sealed_with(bytes(stored)))


def test_s9_a_part_of_one_entry_does_not_open_in_another():
    one, other = CODEC.seal(KEY, entry()), CODEC.seal(KEY, entry(b"[0.5,-0.25,0.00001,2.5]"))
    assert rejects(one[:16] + other[16:])
    assert rejects(one[:34] + other[34:])


@pytest.mark.parametrize("generation", [b"", b"t", bytes(range(72)), b"\x00" * 255])
def test_the_tokens_that_an_entry_was_kept_under_come_back_with_it(generation):
    each = dataclasses.replace(entry(), generation=generation)
    assert CODEC.open(KEY, CODEC.seal(KEY, each)) == each


@pytest.mark.parametrize("envelope", [b"\x1e", b"\x1e\x1e\x1e\x1e\x1e", bytes(range(256)), b"\x04\x00\x00\x00\x08\x1e"])
def test_an_envelope_may_hold_any_byte(envelope):
    each = entry(b"", envelope=envelope, skeleton=b"", usage=())
    assert CODEC.open(KEY, CODEC.seal(KEY, each)) == each


def test_s9_random_bytes_are_rejected():
    chance = random.Random(9)
    for length in itertools.chain(range(200), [3_553, 100_000]):
        assert rejects(chance.randbytes(length))


def test_s9_random_contents_under_a_right_tag_are_rejected():
    """Nobody without the secret can make them; a fault of ours could."""
    chance = random.Random(99)
    for number in range(3_000):
        length = chance.randrange(120)
        stored = HEADER.pack(
            FORMAT_VERSION, chance.randrange(8), 0, 0, chance.randrange(130), chance.randrange(130)
        ) + chance.randbytes(length)
        assert rejects(sealed_with(stored)), number


GOOD = (ENVELOPE, SKELETON, b'{"total_tokens":3}', b"origin", b"")


@pytest.mark.parametrize(
    "parts",
    [
        GOOD[:-1],
        (*GOOD, b""),
        (b"",),
        (*GOOD[:2], b"", *GOOD[3:]),
        (*GOOD[:2], b"[]", *GOOD[3:]),
        (*GOOD[:2], b"null", *GOOD[3:]),
        (*GOOD[:2], b"{", *GOOD[3:]),
        (*GOOD[:3], b"\xff", b""),
        (*GOOD[:4], b"x"),
        (*GOOD[:4], b"{}x"),
        (*GOOD[:4], b"5"),
        (*GOOD[:4], b"[5]"),
        (*GOOD[:4], b"[[0]]"),
        (*GOOD[:4], b"[[0,1,2]]"),
        (*GOOD[:4], b"[[0,1]]"),
        (*GOOD[:4], b'[["0","1"]]'),
        (*GOOD[:4], b'[[0,"\xc3\xa9"]]'),
        (*GOOD[:4], b'[[9,"1.0"]]'),
    ],
)
def test_s9_other_surroundings_under_a_right_tag_are_rejected(parts):
    packed = struct.pack("<I", 3) + _huffman(b"\x3f") + b"\x00\x00\x80"
    good = sealed_with(contents(Form.WIDE, b"\x1e".join(GOOD), packed))
    assert CODEC.open(KEY, good).row.vector == b"[1.0]"
    assert rejects(sealed_with(contents(Form.WIDE, b"\x1e".join(parts), packed)))


def _huffman(top: bytes) -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 8, zlib.Z_HUFFMAN_ONLY)
    squeezed = squeezer.compress(top) + squeezer.flush()
    assert len(squeezed) == 3
    return squeezed


@pytest.mark.parametrize("place", ["surroundings", "text", "plane"])
def test_s9_a_bomb_under_a_right_tag_does_not_go_off(place):
    plain = b"\x1e".join(GOOD)
    if place == "surroundings":
        stored = contents(Form.NONE, b"\x1e".join((b" " * (40 << 20), *GOOD[1:])), b"")
    elif place == "text":
        stored = contents(Form.TEXT, plain, zlib.compress(b"0" * (40 << 20), 9))
    else:
        squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        top = squeezer.compress(bytes(40 << 20)) + squeezer.flush()
        stored = contents(Form.WIDE, plain, struct.pack("<I", len(top)) + top + b"abc")
    sealed = sealed_with(stored)
    assert len(sealed) < 1 << 20
    tracemalloc.start()
    try:
        assert rejects(sealed)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_s9_a_value_of_absurd_length_is_rejected_before_it_is_hashed(monkeypatch):
    def never(*_arguments):
        raise AssertionError("hashed")

    codec = Codec(SECRET, 1_000)
    sealed = codec.seal(KEY, entry())
    monkeypatch.setattr(codec_module, "authentication_tag", never)
    assert rejects(sealed + bytes(10_000), codec=codec)


def test_s9_nothing_is_read_before_the_tag_is_checked(monkeypatch):
    def never(*_arguments):
        raise AssertionError("read")

    sealed = bytearray(CODEC.seal(KEY, entry()))
    sealed[0] ^= 1
    monkeypatch.setattr(codec_module, "_expand", never)
    monkeypatch.setattr(codec_module, "unpack", never)
    assert rejects(bytes(sealed))


# --- opened a moment ago ----------------------------------------------------------------------------------------------


class CountingCodec(Codec):
    """Counts what it opens."""

    opened = 0

    def open(self, key: bytes, sealed: bytes) -> Entry:
        self.opened += 1
        return super().open(key, sealed)


def sealed_under(key: bytes, name: bytes = b"a") -> bytes:
    sealed = CODEC.seal(key, entry(skeleton=name))
    assert sealed is not None
    return sealed


def test_equal_bytes_under_an_equal_key_are_opened_once():
    codec = CountingCodec(SECRET, 1 << 20)
    opened = Opened(codec, 1 << 20)
    first = opened.open(KEY, sealed_under(KEY))
    assert opened.open(bytes(bytearray(KEY)), sealed_under(KEY)) is first
    assert (codec.opened, first) == (1, CODEC.open(KEY, sealed_under(KEY)))


def test_other_bytes_under_the_key_are_opened_anew():
    opened = Opened(CODEC, 1 << 20)
    for name in (b"a", b"b", b"a"):
        assert opened.open(KEY, sealed_under(KEY, name)).row.skeleton == name


def test_s9_what_was_opened_vouches_for_no_other_bytes_and_no_other_key():
    opened = Opened(CODEC, 1 << 20)
    sealed = sealed_under(KEY)
    opened.open(KEY, sealed)
    for at in range(len(sealed)):
        altered = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(Rejected):
            opened.open(KEY, altered)
    for other in (sealed[:-1], sealed + b"\0", b""):
        with pytest.raises(Rejected):
            opened.open(KEY, other)
    with pytest.raises(Rejected):
        opened.open(b"l" * 32, sealed)
    assert opened.open(KEY, sealed) == CODEC.open(KEY, sealed)


def test_what_was_opened_is_bounded_in_bytes_and_the_oldest_go_first():
    codec = CountingCodec(SECRET, 1 << 20)
    keys = [b"%032d" % number for number in range(50)]
    opened = Opened(codec, 20_000)
    for key in keys:
        opened.open(key, sealed_under(key))
        assert 0 < opened.bytes <= 20_000
    opened.open(keys[-1], sealed_under(keys[-1]))
    assert codec.opened == 50
    opened.open(keys[0], sealed_under(keys[0]))
    assert codec.opened == 51
    for _ in range(100):  # what is replaced weighs nothing any more
        opened.open(keys[0], sealed_under(keys[0], b"b"))
        opened.open(keys[0], sealed_under(keys[0]))
    opened.open(keys[-1], sealed_under(keys[-1]))
    assert codec.opened == 51 + 200


def test_what_is_larger_than_all_that_may_be_kept_is_opened_and_not_kept():
    opened = Opened(CODEC, 100)
    assert opened.open(KEY, sealed_under(KEY)) == opened.open(KEY, sealed_under(KEY))
    assert opened.bytes == 0
