"""
Stored values: vectors digit for digit, entries as they were, and nothing but ours is opened.

Input: what to do (1 byte), bytes: a vector's text; contents under a right tag; a value under a wrong one; an entry; the
parts of an entry.
"""

import random
from collections.abc import Iterator

import orjson

from proxy.cache.codec import _HEADER, FORMAT_VERSION, Codec, Rejected, _squeeze
from proxy.cache.vector_packing import pack, unpack
from proxy.core.entry import Entry, Row
from proxy.core.key import authentication_tag
from tests.fuzz.embedding_request import SAMPLES
from tests.fuzz.oracles import CODEC, SECRET

KEY = b"k" * 32
LIMIT = 1 << 16
SMALL = Codec(SECRET, LIMIT)


def seeds() -> Iterator[bytes]:
    """Vectors of the samples, and entries made of them."""
    texts = [b"", b"[]", b'""', b"[-0.0,1e-7,0.00001]", b"[1,2]", b'"AACAPw=="', b"[1E5,1e400]", b"[3.4028236e38]"]
    for path in sorted(SAMPLES.glob("*embedding*.response.json")):
        body = path.read_bytes()
        for part in body.split(b'"embedding":')[1:]:
            end = part.find(b"]") + 1 if part.startswith(b"[") else part.find(b'"', 1) + 1
            texts.append(part[:end])
    for text in texts:
        yield b"\x00" + text
        row = Row(b'{"data":\x02,"usage":\x03}', b'{"embedding":\x00,"index":\x01}', text, (("total_tokens", 3),), "id")
        for generation in (b"", b"g" * 32):
            sealed = CODEC.seal(KEY, Entry(row, 1_700_000_000_000, 3_600_000, generation))
            if sealed is not None:
                yield b"\x01" + sealed[16:]
                yield b"\x02" + sealed
        yield b"\x03" + text + b"\xff{}\xff" + text
        form, packed, _ = pack(text)
        for respelled in (b"", b'[[1,"1e0"]]', b'[[0,"1"]]', b'[[-70,"1"]]', b'[[70,"1"]]', b"[[]]", b"{}"):
            yield bytes([4, form]) + b'{"n":1}\x1eid\x1e' + respelled + b"\xff" + packed


def one_input(data: bytes) -> None:
    """Raise AssertionError if something comes back as another."""
    if data:
        (check_vector, check_contents, check_foreign, check_row, check_parts)[data[0] % 5](data[1:])


def check_vector(text: bytes) -> bool:
    """Pack *text* if it is a JSON value as vectors are; whether it was."""
    try:
        value = orjson.loads(text) if text else []
    except orjson.JSONDecodeError:
        return False
    # A row's vector is cut out of its answer without the blanks around it.
    if not isinstance(value, list | str) or text != text.strip():
        return False
    form, packed, respelled = pack(text)
    assert unpack(form, packed, respelled, max(len(text), 1)) == text
    row = Row(b"{}", b"", text, (), "")
    sealed = CODEC.seal(KEY, Entry(row, 0, 1))
    assert sealed is not None
    assert CODEC.open(KEY, sealed).row == row
    return True


def check_contents(contents: bytes) -> bool:
    """Open *contents* under the right tag, as a writer of ours with a fault would leave them; whether they opened."""
    try:
        entry = SMALL.open(KEY, authentication_tag(SECRET, KEY, contents) + contents)
    except Rejected:
        return False
    assert len(entry.row.vector) <= 64 * LIMIT
    return True


def check_foreign(value: bytes) -> bool:
    """A value with one bit or piece changed, or under another key, never opens; whether it opens as it is."""
    try:
        CODEC.open(KEY, value)
    except Rejected:
        return False
    chance = random.Random(value[:8])
    at = chance.randrange(len(value))
    flipped = value[:at] + bytes([value[at] ^ 1 << chance.randrange(8)]) + value[at + 1 :]
    for key, other in ((b"l" * 32, value), (KEY, flipped), (KEY, value[:at]), (KEY, value + b"\0")):
        try:
            CODEC.open(key, other)
        except Rejected:
            continue
        raise AssertionError("a foreign value opened")
    return True


def check_row(data: bytes) -> bool:
    """Seal and open a row of any envelope (a protobuf message has any byte), skeleton and vector."""
    envelope, _, rest = data.partition(b"\xff")
    skeleton, _, text = rest.partition(b"\xff")
    if not check_vector(text) or b"\x1e" in skeleton:
        return False
    entry = Entry(Row(envelope, skeleton, text, (("n", len(data)),), "id"), len(data), 1, envelope[:255])
    sealed = CODEC.seal(KEY, entry)
    assert sealed is None or CODEC.open(KEY, sealed) == entry
    return sealed is not None


def check_parts(data: bytes) -> bool:
    """Open what is packed and compressed as it should be, of parts that say anything; whether it opened."""
    plain, _, packed = data[1:].partition(b"\xff")
    squeezed = _squeeze(b"{}\x1e{}\x1e" + plain)
    header = _HEADER.pack(FORMAT_VERSION, data[0] if data else 0, 0, 1, 0, len(squeezed))
    return check_contents(header + squeezed + packed)
