"""
The wire format of protocol buffers: a message as the fields it is written of, and a form that is equal for equals.

Source: https://protobuf.dev/programming-guides/encoding/. Two serializations of one message may differ in the order of
map entries, and in nothing else that one library does; ``canonical`` undoes exactly that. Fields that nobody here knows
stay in it as they came.
"""

import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.core.key import prefixed

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WIDTHS = {FIXED64: 8, FIXED32: 4}
_MAX_NUMBER = (1 << 29) - 1

MOST_FIELDS = 12_800
"""Of a message with all that is read in it: a query with a sparse vector of 4,000 indices. They take 30 ms."""


class Malformed(ValueError):  # noqa: N818  a verdict, not a fault
    """The bytes are not a message, or one that two parsers could read differently."""


class Field(NamedTuple):
    """One field on the wire, from *start* (its tag) to *end*; *data* without tag and length, *number* is its own."""

    number: int
    kind: int
    varint: int
    data: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class MapShape:
    """A map field: the wire type of its keys, and what is known of its values."""

    key: int
    value: "Shape | None" = None


@dataclass(frozen=True, slots=True)
class Shape:
    """What must be known of a message to compare it: its map fields, and its messages that hold maps."""

    maps: Mapping[int, MapShape] = field(default_factory=dict)
    messages: Mapping[int, "Shape"] = field(default_factory=dict)


def fields(message: bytes) -> list[Field]:
    """
    The fields of *message* in the order of the wire.

    Raises:
        Malformed: truncated, groups (which proto3 has not), numbers that no field can have, or ``MOST_FIELDS``.
    """
    found = list(itertools.islice(_each(message), MOST_FIELDS))
    if len(found) == MOST_FIELDS:
        raise Malformed("too many fields")
    return found


def count(message: bytes, shape: Shape, *, at_most: int) -> int:
    """
    How many fields ``canonical`` reads, counted no further than *at_most*: 2 microseconds each.

    Raises:
        Malformed: see ``fields``.
    """
    found = 0
    for each in _each(message):
        found += 1
        if found >= at_most:
            break
        if each.kind == BYTES and each.number in shape.messages:
            found += count(each.data, shape.messages[each.number], at_most=at_most - found)
        elif each.kind == BYTES and each.number in shape.maps:
            value = shape.maps[each.number].value
            found += count(each.data, Shape(messages={2: value} if value else {}), at_most=at_most - found)
    return min(found, at_most)


def _each(message: bytes) -> Iterator[Field]:
    at, end = 0, len(message)
    while at < end:
        start = at
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if not 1 <= number <= _MAX_NUMBER:
            raise Malformed("field number")
        varint, begin = 0, at
        if kind == VARINT:
            varint, at = _varint(message, at)
        elif kind == BYTES:
            length, begin = _varint(message, at)
            at = begin + length
        elif kind in _WIDTHS:
            at += _WIDTHS[kind]
        else:
            raise Malformed("wire type")
        if at > end:
            raise Malformed("truncated")
        yield Field(number, kind, varint, message[begin:at], start, at)


def canonical(message: bytes, shape: Shape) -> bytes:
    """
    Equal bytes for serializations of *message* that differ in the order of map entries only.

    Everything else keeps its place, unknown fields too: of two members of a oneof, for example, the later one counts.

    Raises:
        Malformed: see ``fields``; or a key stands twice in a map, or an entry holds more than key and value.
    """
    pieces: list[bytes] = []
    maps: dict[int, dict[bytes, bytes]] = {}
    for each in fields(message):
        if each.kind == BYTES and each.number in shape.maps:
            key, value = _entry(each.data, shape.maps[each.number])
            if key in maps.setdefault(each.number, {}):
                raise Malformed("a map key stands twice")
            maps[each.number][key] = value
        elif each.kind == BYTES and each.number in shape.messages:
            inner = canonical(each.data, shape.messages[each.number])
            pieces.append(prefixed((b"message", b"%d" % each.number, inner)))
        else:
            pieces.append(prefixed((b"field", message[each.start : each.end])))
    for number in sorted(maps):
        entries = (part for entry in sorted(maps[number].items()) for part in entry)
        pieces.append(prefixed((b"map", b"%d" % number, *entries)))
    return prefixed(pieces)


def one(found: Iterable[Field], number: int, kind: int) -> Field | None:
    """The only field *number*, of *kind*; ``None`` if it is missing. Raises Malformed on a second or another kind."""
    those = [each for each in found if each.number == number]
    if len(those) > 1 or any(each.kind != kind for each in those):
        raise Malformed("more than one, or not of its kind")
    return those[0] if those else None


def bytes_field(number: int, data: bytes) -> bytes:
    """A field that holds *data*: text, bytes or a message."""
    return _written(number << 3 | BYTES) + _written(len(data)) + data


def varint_field(number: int, value: int) -> bytes:
    """A field that holds a whole number, not negative."""
    return _written(number << 3 | VARINT) + _written(value)


def _entry(entry: bytes, shape: MapShape) -> tuple[bytes, bytes]:
    """A map entry's key, as the value it has, and its value; an absent key is the key's default."""
    found = fields(entry)
    key, values = one(found, 1, shape.key), [each for each in found if each.number == 2]
    if len(values) > 1 or len(found) != len(values) + (key is not None):
        raise Malformed("not a map entry")
    if shape.key == VARINT:
        name = struct.pack("<I", (key.varint if key else 0) & 0xFFFF_FFFF)  # all maps here that have one: uint32
    else:
        name = key.data if key else b""
    if not values:
        return name, b""
    value = values[0]
    if shape.value is not None and value.kind == BYTES:
        return name, prefixed((b"message", canonical(value.data, shape.value)))
    return name, prefixed((b"field", entry[value.start : value.end]))


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at *at*, and where it ends; at most ten bytes, more than 64 bits are cut off as all parsers do."""
    if at < len(message) and (byte := message[at]) < 0x80:  # most are one byte, and need no loop
        return byte, at + 1
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + shift + 1
    raise Malformed("varint")


def _written(value: int) -> bytes:
    """*value* as a varint."""
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
