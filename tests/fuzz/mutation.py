"""Changes to inputs that keep their form: one thing in a JSON document or in a protobuf message becomes another."""

import json
import random
from typing import Any

from proxy.vendors.dashvector._pb import wire
from tests.fuzz.oracles import Spelled, loaded

_NUMBERS = (
    *("0", "1", "-0", "1.0", "1e0", "-0.0", "3", "10", "11", "50", "51", "0.1e1", "1E2"),
    *("1e400", "5e-324", "18446744073709551616", "9007199254740993", "9" * 5_000),
)
_MEMBERS = (
    *("model", "input", "texts", "parameters", "dimension", "dimensions", "output_type", "encoding_format", "stream"),
    *("user", "text_type", "url", "instruct", "output", "embeddings", "embedding", "sparse_embedding", "text_index"),
    *("index", "object", "data", "usage", "total_tokens", "request_id", "id", "code", "error", "message", "vector"),
    *("vectors", "topk", "filter", "include_vector", "partition", "output_fields", "param", "num_candidates", "rerank"),
    *("score", "fields", "status", "partitions", "index_completeness", "total_doc_count", "docs", "group_id", "radius"),
)
_TEXTS = ("", "a", "b", "default", "dense", "sparse", "dense&sparse", "base64", "float", "SERVING", "é", "e\u0301")
_ODD_TEXTS = ("\ud800", "\U0001f600", '"', "\\", "\0", "\x1e", "\x04", "\u2028", "3", "null", "[", "x" * 300)
_LEAVES: tuple[Any, ...] = (None, True, False, *map(Spelled, _NUMBERS), *_TEXTS, *_ODD_TEXTS)


def json_changed(body: bytes, chance: random.Random) -> bytes:
    """*body* with a few things changed, in another spelling; as it is if it is no JSON."""
    try:
        document = loaded(body)
        for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
            document = _changed(document, chance)
        return _written(document, chance).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return body


def _changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.85:
        name = chance.choice(list(value))
        kind = chance.random()
        if kind < 0.7:
            return {**value, name: _changed(value[name], chance)}
        if kind < 0.8:
            return {other: member for other, member in value.items() if other != name}
        return {**value, chance.choice((*_MEMBERS, *_ODD_TEXTS)): chance.choice((value[name], _leaf(chance)))}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        kind = chance.random()
        if kind < 0.5:
            return [*value[:at], _changed(value[at], chance), *value[at + 1 :]]
        if kind < 0.7:
            return value[:at] + value[at + 1 :]
        return [*value[:at], value[at], *value[at:]][:60]
    return chance.choice((_leaf(chance), [value], {chance.choice(_MEMBERS): value}, [], {}))


def _leaf(chance: random.Random) -> Any:
    return chance.choice(_LEAVES) if chance.random() < 0.95 else _deep(chance.choice((20, 63, 64, 65, 1_100)))


def _deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def _written(value: Any, chance: random.Random) -> str:
    """*value* as JSON, now and then with blanks, escapes or a member that stands twice."""
    if isinstance(value, Spelled):
        return str(value)
    if isinstance(value, dict):
        members = list(value.items())
        if members and chance.random() < 0.02:
            members.append(chance.choice(members))
        inside = ",".join(f"{_written(name, chance)}:{_written(member, chance)}" for name, member in members)
        return "{" + _blank(chance) + inside + "}" + _blank(chance)
    if isinstance(value, list):
        return "[" + ",".join(_written(member, chance) for member in value) + _blank(chance) + "]"
    return json.dumps(value, ensure_ascii=chance.random() < 0.5)


def _blank(chance: random.Random) -> str:
    return chance.choice((" ", "\n", "\t\r")) if chance.random() < 0.03 else ""


def message_changed(message: bytes, chance: random.Random, levels: int = 3) -> bytes:
    """*message* with one field changed, here or within; as it is if it is none."""
    try:
        found = wire.fields(message)
    except wire.Malformed:
        return message
    pieces = [message[each.start : each.end] for each in found]
    if not found or chance.random() < 0.15:
        return b"".join([*pieces, _field(chance)])
    at = chance.randrange(len(found))
    kind = chance.randrange(8)
    if kind == 0:
        del pieces[at]
    elif kind == 1:
        pieces.insert(chance.randrange(len(pieces) + 1), pieces[at])
    elif kind == 2:
        chance.shuffle(pieces)
    elif found[at].kind == wire.BYTES and levels and kind < 7:
        pieces[at] = wire.bytes_field(found[at].number, message_changed(found[at].data, chance, levels - 1))
    elif found[at].kind == wire.BYTES:
        pieces[at] = wire.bytes_field(found[at].number, chance.choice((b"", b"default", b"a", b"\xff", b"\x04")))
    else:
        pieces[at] = wire.varint_field(found[at].number, chance.choice((0, 1, 3, 50, 51, (1 << 32) + 3, (1 << 64) - 1)))
    return b"".join(pieces)


def _field(chance: random.Random) -> bytes:
    number = chance.choice((*range(1, 14), 1 << 20))
    kind = chance.randrange(4)
    if kind == 0:
        return wire.varint_field(number, chance.choice((0, 1, 3, 10, 50)))
    if kind == 1:
        return wire.varint_field(number, 0)[:-1] + b"\x83\x00"  # a number in more bytes than it needs
    if kind == 2:
        entry = wire.bytes_field(1, chance.choice((b"", b"a", b"b"))) + wire.bytes_field(2, b"\x0a\x01a")
        return wire.bytes_field(number, chance.choice((entry, entry[:3], b"\x08\x01\x15\x00\x00\x80\x3f")))
    return bytes([number << 3 & 0x78 | wire.FIXED32]) + chance.randbytes(4)
