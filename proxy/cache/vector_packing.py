"""
Vectors as bytes: the smallest form that gives back the vendor's text, digit for digit.

The vendor writes a vector as JSON numbers, 20 bytes each; the numbers themselves are mostly float32. ``pack`` tries the
forms from the smallest and keeps the first whose text equals the original, after at most a few numbers are put back by
hand (``respelled``: vendors write small numbers in plain decimal where we write an exponent). The check is made before
anything is stored, so no number ever changes on its way through the cache.
"""

import base64
import binascii
import enum
import struct
import zlib
from typing import Any

import numpy as np
import orjson

_MAX_RESPELLED = 32  # beyond it the text is kept whole: the form was not the vendor's


class Form(enum.IntEnum):
    """How a vector is kept. Values are part of the stored format."""

    NONE = 0
    WIDE = 1
    """float32, written as the float64 it widens to: DashScope's v3 and v4."""
    SHORT = 2
    """float32, written with the digits that tell float32 apart."""
    DOUBLE = 3
    """float64: DashScope's v1 and v2."""
    BASE64 = 4
    """A base64 string of little-endian float32."""
    TEXT = 5
    """The vendor's text, compressed."""


class Unreadable(ValueError):  # noqa: N818  a verdict, not a fault
    """Packed bytes that are not a vector of their form."""


def pack(text: bytes) -> tuple[Form, bytes, tuple[tuple[int, bytes], ...]]:
    """*text* (a JSON array or string, or nothing) as form, packed bytes, and what to respell, by where it starts."""
    if not text:
        return Form.NONE, b"", ()
    if text.startswith(b'"'):
        packed = _from_base64(text)
        return (Form.BASE64, _fold(packed, 4), ()) if packed is not None else (Form.TEXT, zlib.compress(text), ())
    double = _doubles(text)
    for form, numbers in _candidates(double) if double is not None else ():
        respelled = _differences(_written(form, numbers), text)
        if respelled is not None:
            return form, _fold(numbers.tobytes(), numbers.itemsize), respelled
    return Form.TEXT, zlib.compress(text), ()


def unpack(form: Form, packed: bytes, respelled: tuple[tuple[int, bytes], ...], max_bytes: int) -> bytes:
    """
    The text that ``pack`` was given; *max_bytes* bounds what compressed text may grow to.

    Raises:
        Unreadable: *packed* is not of its *form*.
    """
    if form is Form.NONE:
        return b""
    if form is Form.TEXT:
        return _inflate(packed, max_bytes, zlib.MAX_WBITS)
    if form is Form.BASE64:
        return b'"' + base64.b64encode(_unfold(packed, 4)) + b'"'
    width = 8 if form is Form.DOUBLE else 4
    text = _written(form, np.frombuffer(_unfold(packed, width), f"<f{width}"))
    return _respell(text, respelled) if respelled else text


def _doubles(text: bytes) -> "np.ndarray[Any, Any] | None":
    """The numbers of *text*; ``None`` unless it is a plain list of numbers that float64 can hold."""
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError:  # 1e400 is JSON, but no number here
        return None
    if not values or text[:1] + text[-1:] != b"[]" or not set(map(type, values)) <= {float, int}:
        return None
    return np.array(values, np.float64)


def _candidates(double: "np.ndarray[Any, Any]") -> list[tuple[Form, "np.ndarray[Any, Any]"]]:
    """The forms worth trying, smallest first."""
    with np.errstate(over="ignore"):
        single = double.astype("<f4")
    if not np.isfinite(single).all():  # too large for float32
        return [(Form.DOUBLE, double)]
    forms = [(Form.SHORT, single), (Form.DOUBLE, double)]
    return [(Form.WIDE, single), *forms] if np.array_equal(single, double) else forms


def _written(form: Form, numbers: "np.ndarray[Any, Any]") -> bytes:
    shown = numbers.astype(np.float64) if form is Form.WIDE else numbers
    return orjson.dumps(shown, option=orjson.OPT_SERIALIZE_NUMPY)


def _differences(written: bytes, text: bytes) -> tuple[tuple[int, bytes], ...] | None:
    """Where *text* spells a number otherwise than *written*; ``None`` when they are two different things."""
    if written == text:
        return ()
    differing: list[tuple[int, bytes]] = []
    at, there = 0, 0  # up to where both were compared: the commas before two numbers that are the same
    while (same := _common(written, at, text, there)) is not None:
        start = written.rfind(b",", at, at + same) + 1 or at + 1
        there += start - at
        at, end = _end(written, start), _end(text, there)
        our, spelled = written[start:at], text[there:end]
        # Another spelling of the same number is put back; another number means that this form is not exact.
        if len(differing) == _MAX_RESPELLED or float(our) != float(spelled):
            return None
        differing.append((start, spelled))
        there = end
    return tuple(differing)


def _common(one: bytes, start: int, other: bytes, there: int) -> int | None:
    """How many bytes *one* and *other* have in common from there on; ``None``: all the rest."""
    size = min(len(one) - start, len(other) - there)
    # Not the operator: the fuzzer's instrumentation (atheris 3.0) keeps each array that it sees compared.
    same = np.equal(np.frombuffer(one, np.uint8, size, start), np.frombuffer(other, np.uint8, size, there))
    first = int(same.argmin()) if size else 0
    if size and not same[first]:
        return first
    return None if len(one) - start == len(other) - there else size


def _end(text: bytes, start: int) -> int:
    """Where the number ends that starts there."""
    end = text.find(b",", start)
    return len(text) - 1 if end < 0 else end


def _respell(text: bytes, respelled: tuple[tuple[int, bytes], ...]) -> bytes:
    """*text* with the numbers that start at these bytes of it, in ascending order, spelled so."""
    pieces, copied = [], 0
    for start, spelled in respelled:
        if not copied < start < len(text) or text[start - 1] not in b"[,":
            raise Unreadable("no number starts there")
        end = _end(text, start)
        try:
            is_same = float(text[start:end]) == float(spelled)
        except ValueError:
            is_same = False
        if not is_same:  # it was packed where numbers were written otherwise
            raise Unreadable("another number stands there")
        pieces += [text[copied:start], spelled]
        copied = end
    return b"".join((*pieces, text[copied:]))


def _from_base64(text: bytes) -> bytes | None:
    try:
        packed = base64.b64decode(text[1:-1], validate=True)
    except binascii.Error:
        return None
    return packed if base64.b64encode(packed) == text[1:-1] and packed and len(packed) % 4 == 0 else None


def _fold(numbers: bytes, width: int) -> bytes:
    """
    *numbers* by byte planes, the top one (sign and exponent) Huffman-coded.

    Mantissas are noise and do not compress; signs and exponents are three bits in eight. 4,096 bytes become about
    3,450, which an allocator with size classes keeps in 3,584 instead of 5,120.
    """
    planes = np.frombuffer(numbers, np.uint8).reshape(-1, width).T
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 8, zlib.Z_HUFFMAN_ONLY)
    top = squeezer.compress(planes[-1].tobytes()) + squeezer.flush()
    return struct.pack("<I", len(top)) + top + planes[:-1].tobytes()


def _unfold(packed: bytes, width: int) -> bytearray:
    if len(packed) < 4:
        raise Unreadable("too short")
    (length,) = struct.unpack_from("<I", packed)
    rest = packed[4 + length :]
    count, left_over = divmod(len(rest), width - 1)
    if left_over or not count:
        raise Unreadable("planes of unequal length")
    top = _inflate(packed[4 : 4 + length], count, -zlib.MAX_WBITS)
    if len(top) != count:
        raise Unreadable("planes of unequal length")
    numbers = bytearray(width * count)  # half the time of what numpy takes to transpose
    for plane in range(width - 1):
        numbers[plane::width] = rest[plane * count : (plane + 1) * count]
    numbers[width - 1 :: width] = top
    return numbers


def _inflate(squeezed: bytes, max_bytes: int, window: int) -> bytes:
    """Bounded decompression: what grows beyond *max_bytes* is refused before it is there."""
    expander = zlib.decompressobj(window)
    try:
        text = expander.decompress(squeezed, max_bytes + 1)
    except zlib.error as error:
        raise Unreadable("not compressed data") from error
    if len(text) > max_bytes or not expander.eof:
        raise Unreadable("too large or cut short")
    return text
