"""
Strict JSON that keeps what matters for identity: number spelling, member order, duplicate members.

``parse`` refuses whatever two parsers could read differently; ``compact`` writes a tree back; ``canonical`` writes it
with sorted members. Numbers stay text from one end to the other, so ``1``, ``1.0`` and ``1e0`` remain three things.
"""

import json
import re
from json.encoder import encode_basestring
from typing import NoReturn


class Ambiguous(ValueError):  # noqa: N818  a verdict, not a fault
    """The text is not JSON, or not JSON that everybody reads alike."""


class Number(str):
    """A JSON number, exactly as it was spelled."""

    __slots__ = ()


Tree = dict[str, "Tree"] | list["Tree"] | str | Number | bool | None
"""A parsed document; ``Number`` is a ``str``, so test for it first."""

_MAX_DEPTH = 64  # far beyond any vendor request; keeps recursion far from Python's own limit
_MOST_VALUES = 32_768
"""
In a body of more than ``_FEW_BYTES``. The longest vector has 20,000 numbers. The parser takes 0.3 ms for a thousand and
lets nobody else run meanwhile: 4 MiB of ones would stop everything for a second.
"""
MOST_MEMBERS = 4_096
"""The most that any known operation has: a vector query with a sparse vector. A thousand take 2 ms."""
_FEW_BYTES = 4_096
"""A body no longer than this takes about a millisecond whatever it holds."""
_MANY_BYTES = 256 * 1024
# A value takes as long as so many bytes of text, and a member as so many more (measured, see decision 14).
_VALUE_WEIGHT, _MEMBER_WEIGHT = 128, 256
_NOT_STRUCTURE = bytes(set(range(256)).difference(b",:[{"))
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # the escape of a surrogate, the only way to write one in UTF-8


def weight(body: bytes) -> int:
    """
    How many bytes of plain text would take about as long as *body* to parse and to write: what ``heavy`` is told.

    Small values take longer than their bytes say. Counted with a search, so texts with many commas weigh too much.
    """
    if not _FEW_BYTES < len(body) < _MANY_BYTES:
        return len(body)
    structure = body.translate(None, _NOT_STRUCTURE)
    return len(body) + _VALUE_WEIGHT * len(structure) + _MEMBER_WEIGHT * structure.count(b":")


def parse(body: bytes, most_members: int = MOST_MEMBERS) -> Tree:
    """
    Parse *body*, UTF-8 without a byte order mark; one of a few kilobytes may have more than *most_members*.

    Raises:
        Ambiguous: duplicate members, NaN or Infinity, lone surrogates, bad UTF-8, too deep, too many values or members,
            or not JSON at all.
    """
    if len(body) > _FEW_BYTES and _has_many_values(body, most_members):
        raise Ambiguous("too many values")
    try:
        text = body.decode("utf-8")
        tree: Tree = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise Ambiguous(str(error)) from error
    _check_depth(tree)
    if ("\\ud" in text or "\\uD" in text) and _SURROGATE.search(text):
        compact(tree)  # a pair is one character; half of one has no UTF-8 form
    return tree


def compact(tree: Tree) -> bytes:
    """*tree* as JSON without blanks, members in their order. Raises Ambiguous on lone surrogates and on depth."""
    return _encode(tree, ordered=False)


def canonical(tree: Tree) -> bytes:
    """*tree* as JSON without blanks and with sorted members: equal bytes exactly for equal documents."""
    return _encode(tree, ordered=True)


def _encode(tree: Tree, *, ordered: bool) -> bytes:
    parts: list[str] = []
    _write(tree, parts, ordered, 0)
    try:
        return "".join(parts).encode("utf-8")
    except UnicodeEncodeError as error:
        raise Ambiguous("lone surrogate") from error


def _write(tree: Tree, parts: list[str], ordered: bool, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise Ambiguous("nested too deeply")
    if isinstance(tree, Number):
        parts.append(tree)
    elif isinstance(tree, str):
        parts.append(encode_basestring(tree))
    elif isinstance(tree, dict):
        members = sorted(tree.items()) if ordered else tree.items()
        for position, (name, value) in enumerate(members):
            parts.append("," if position else "{")
            parts.append(encode_basestring(name) + ":")
            _write(value, parts, ordered, depth + 1)
        parts.append("}" if tree else "{}")
    elif isinstance(tree, list):
        for position, value in enumerate(tree):
            parts.append("," if position else "[")
            _write(value, parts, ordered, depth + 1)
        parts.append("]" if tree else "[]")
    else:
        parts.append({True: "true", False: "false", None: "null"}[tree])


def _has_many_values(body: bytes, most_members: int) -> bool:
    """
    Whether *body* has more than ``_MOST_VALUES`` values and names, or *most_members*: told by commas, colons, brackets.

    Exact as far as *body* is JSON; the parser does not look behind the first fault. A millisecond for 4 MiB, ten when
    texts have many such characters of their own.
    """
    structure = body.translate(None, _NOT_STRUCTURE)
    if len(structure) <= _MOST_VALUES and structure.count(b":") <= most_members:
        return False
    quotes = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if quotes.count(b'"') > 2 * _MOST_VALUES:
        return True
    outside = b"".join(quotes.split(b'"')[::2]).translate(None, _NOT_STRUCTURE)
    return len(outside) > _MOST_VALUES or outside.count(b":") > most_members


def _check_depth(tree: Tree) -> None:
    """Level by level, without recursion, so that whoever walks the tree afterwards may recurse."""
    level: list[Tree] = [tree]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
        ]
        if not level:
            return
    raise Ambiguous("nested too deeply")


def _members(pairs: list[tuple[str, Tree]]) -> dict[str, Tree]:
    members = dict(pairs)
    if len(members) != len(pairs):
        # RFC 8259 §4 leaves the meaning of a repeated name open: one parser takes the first, another the last.
        raise Ambiguous("duplicate member")
    return members


def _constant(name: str) -> NoReturn:
    raise Ambiguous(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=Number, parse_float=Number, parse_constant=_constant, strict=True
)
