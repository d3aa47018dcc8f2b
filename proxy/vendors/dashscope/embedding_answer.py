"""
DashScope text embedding answers, both dialects: judged, split into rows, and joined from rows.

Everything is kept as the vendor wrote it. A row's *skeleton* is the text of its object with marks in place of the
vector and the position; the *envelope* is the text of the answer with marks in place of the rows, the usage and the
request id. Marks are control bytes, which no JSON text contains outside its blanks.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import orjson

from proxy.core.entry import Row
from proxy.core.plan import ErrorKind, NotStorable, Refusal
from proxy.vendors.apportion import shares
from proxy.vendors.json_members import members

VECTOR, INDEX, ROWS, USAGE, REQUEST_ID = b"\x00", b"\x01", b"\x02", b"\x03", b"\x04"

_MAX_COUNT = 1 << 53  # so that no sum of shares outgrows what JSON writers can write
_BAD_REQUEST = 400
_LASTING = {
    "InvalidParameter": ErrorKind.INVALID_PARAMETER,
    "invalid_parameter_error": ErrorKind.INVALID_PARAMETER,
    "BadRequest.EmptyInput": ErrorKind.EMPTY_INPUT,
    "BadRequest.IllegalInput": ErrorKind.ILLEGAL_INPUT,
    "BadRequest.TooLarge": ErrorKind.TOO_LARGE,
}
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")

_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode

_ParsedRow = tuple[dict[str, bytes], dict[str, Any]]
"""A row's members as they stand in its text, and what they say."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the request asked of each row: its vectors by member name, and the dimension if it named one."""

    kinds: frozenset[str]
    dimension: int | None


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """Where one dialect keeps its rows, positions, errors and ids."""

    path: tuple[str, ...]
    """Member names that lead to the list of rows: one or two."""
    index: str
    request_id: str
    error: str
    """The member that makes a status 200 an error when it is not empty."""


NATIVE_ANSWER = AnswerForm(("output", "embeddings"), "text_index", "request_id", "code")
COMPATIBLE_ANSWER = AnswerForm(("data",), "index", "id", "error")


def split(form: AnswerForm, body: bytes, asked: Asked, weights: Sequence[int]) -> tuple[Row, ...]:
    """
    The rows of *body* by position, one per weight; *weights* share out the usage.

    Raises:
        NotStorable: the answer is an error, incomplete, of another dimension or form, or holds what is not a number.
    """
    try:
        document = orjson.loads(body)  # strict: refuses what could hide a mark or a second reading
        envelope = members(body)
        around = members(envelope[form.path[0]]) if len(form.path) > 1 else envelope
        texts = [members(bytes(row)) for row in _elements(around[form.path[-1]])]
        rows = list(zip(texts, _parsed(document, form.path), strict=True))
        holds_more = _lists_beside(document, form.path)
    except (orjson.JSONDecodeError, msgspec.DecodeError, KeyError, RecursionError, NotStorable) as error:
        raise NotStorable(_shape_or_error(form, body)) from error
    if document.get(form.error):
        raise NotStorable(Refusal.VENDOR_ERROR)
    if holds_more:
        # It could speak of the rows one by one, and would later stand beside others.
        raise NotStorable(Refusal.SHAPE)
    ordered = _by_position(rows, form.index, len(weights))
    _check_vectors(ordered, asked)
    origin = _origin(document.get(form.request_id))
    surroundings = _envelope(envelope, around, form)
    usage = _usage(document.get("usage"), weights)
    return tuple(
        Row(
            envelope=surroundings,
            skeleton=_object(text, {"embedding": VECTOR, form.index: INDEX}),
            vector=text.get("embedding", b""),
            usage=share,
            origin=origin,
        )
        for (text, _), share in zip(ordered, usage, strict=True)
    )


def join(rows: Sequence[Row], request_id: str) -> bytes:
    """The answer made of *rows* in their order: positions counted anew, usage the sum of the rows' shares."""
    usage = rows[0].usage if len(rows) == 1 else _totals(rows)
    before, after = _around(rows[0].envelope, usage)
    quoted_id = orjson.dumps(request_id)
    pieces = [quoted_id.join(before)]
    for position, row in enumerate(rows):
        first, *others = _row(row.skeleton, position)
        pieces.append(first)
        for other in others:
            pieces += (row.vector, other)
    pieces.append(quoted_id.join(after))
    return b"".join(pieces)


def _totals(rows: Sequence[Row]) -> tuple[tuple[str, int], ...]:
    totals: dict[str, int] = {}
    for row in rows:
        for name, share in row.usage:
            totals[name] = totals.get(name, 0) + share
    return tuple(totals.items())


# Rows of a model differ in their vectors, rarely in the text around them: so it is cut once for many.
@lru_cache(1_024)
def _around(envelope: bytes, usage: tuple[tuple[str, int], ...]) -> tuple[list[bytes], list[bytes]]:
    """The text before and after the rows, each cut where the request's id goes."""
    before, _, after = envelope.replace(USAGE, orjson.dumps(dict(usage))).partition(ROWS)
    return (before + b"[").split(REQUEST_ID), (b"]" + after).split(REQUEST_ID)


@lru_cache(1_024)
def _row(skeleton: bytes, position: int) -> list[bytes]:
    """The text of a row at *position*, with its comma, cut where its vector goes."""
    return ((b"," if position else b"") + skeleton.replace(INDEX, b"%d" % position)).split(VECTOR)


def lasting_error(form: AnswerForm, status: int, body: bytes) -> ErrorKind | None:
    """
    What kind of error *body* is, if the vendor would say the same of the same content to the same key at any time.

    Never credentials, permissions, models, billing, quotas, rates or inspection, whose rules change: only listed codes.
    """
    if status != _BAD_REQUEST:
        return None
    try:
        document = orjson.loads(body)
        code = document.get("code") if form is NATIVE_ANSWER else document["error"].get("code")
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return None
    return _LASTING.get(code) if isinstance(code, str) else None


def _shape_or_error(form: AnswerForm, body: bytes) -> Refusal:
    """An answer without rows is most often the vendor's error with status 200; say which."""
    try:
        return Refusal.VENDOR_ERROR if orjson.loads(body).get(form.error) else Refusal.SHAPE
    except (orjson.JSONDecodeError, AttributeError):
        return Refusal.SHAPE


def _lists_beside(document: object, path: tuple[str, ...]) -> bool:
    """Whether *document* holds a list anywhere but at *path*."""
    if isinstance(document, dict):
        return any(
            _lists_beside(member, path[1:] if path[:1] == (name,) else ())
            for name, member in document.items()
            if path != (name,)
        )
    return isinstance(document, list)


def _parsed(document: Any, path: tuple[str, ...]) -> list[dict[str, Any]]:  # noqa: ANN401  JSON
    """The list at *path*, of objects: its text was read before."""
    for name in path:
        document = document[name]
    return document  # type: ignore[no-any-return]


def _by_position(rows: Sequence[_ParsedRow], index: str, expected: int) -> list[_ParsedRow]:
    """*rows* in the order of their index member: the order of arrival says nothing."""
    positions = {}
    for row in rows:
        text = row[0].get(index, b"")
        if not text.isdigit():
            raise NotStorable(Refusal.INCOMPLETE)
        positions[int(text)] = row
    if len(rows) != expected or sorted(positions) != list(range(expected)):
        raise NotStorable(Refusal.INCOMPLETE)
    return [positions[position] for position in range(expected)]


def _check_vectors(rows: Sequence[_ParsedRow], asked: Asked) -> None:
    """Each row has the kinds asked for and no other; dense ones share a dimension, the one asked for if any was."""
    dimensions = {asked.dimension} if asked.dimension else set()
    for _, row in rows:
        if row.keys() & {"embedding", "sparse_embedding"} != asked.kinds:
            raise NotStorable(Refusal.SHAPE)
        if "sparse_embedding" in asked.kinds:
            _check_sparse(row["sparse_embedding"])
        if "embedding" in asked.kinds:
            dimensions.add(_dimension(row["embedding"]))
    if len(dimensions) > 1:
        raise NotStorable(Refusal.WRONG_DIMENSION)


def _dimension(vector: object) -> int:
    """How many numbers *vector* has (a list, or base64 of little-endian float32); refuses what is not finite."""
    if isinstance(vector, str):
        try:
            packed = base64.b64decode(vector, validate=True)
        except (binascii.Error, ValueError) as error:
            raise NotStorable(Refusal.SHAPE) from error
        if not packed or len(packed) % 4:
            raise NotStorable(Refusal.SHAPE)
        numbers = np.frombuffer(packed, "<f4")
        if not np.isfinite(numbers).all():
            raise NotStorable(Refusal.NOT_FINITE)
        return len(numbers)
    if isinstance(vector, list) and vector and set(map(type, vector)) <= {float, int}:
        return len(vector)  # finite, or the parser would have refused it
    raise NotStorable(Refusal.NOT_FINITE if isinstance(vector, list) else Refusal.SHAPE)


def _check_sparse(vector: object) -> None:
    if not isinstance(vector, list):
        raise NotStorable(Refusal.SHAPE)
    for part in vector:
        if not isinstance(part, dict) or type(part.get("index")) is not int:
            raise NotStorable(Refusal.SHAPE)
        if type(part.get("value")) not in (float, int):
            raise NotStorable(Refusal.NOT_FINITE)


def _usage(usage: object, weights: Sequence[int]) -> list[tuple[tuple[str, int], ...]]:
    """
    Each row's share of every counter.

    The vendor counts per request only, so a share is by length of text: not what the text cost, but it adds up to what
    the vendor said whenever the same texts are asked for together again.
    """
    if not isinstance(usage, dict) or any(
        type(count) is not int or not 0 <= count <= _MAX_COUNT for count in usage.values()
    ):
        raise NotStorable(Refusal.SHAPE)
    by_name = {name: shares(count, weights) for name, count in usage.items()}
    return [tuple((name, counts[row]) for name, counts in by_name.items()) for row in range(len(weights))]


def _origin(request_id: object) -> str:
    """The vendor's id if it is one that may stand in a header line and a log; otherwise nothing."""
    return request_id if isinstance(request_id, str) and _ID.fullmatch(request_id) else ""


def _envelope(envelope: Mapping[str, bytes], around: Mapping[str, bytes], form: AnswerForm) -> bytes:
    """The text of the answer with its marks; *around* has the members of the object that holds the rows."""
    marks = {"usage": USAGE, form.request_id: REQUEST_ID}
    outer, *inner = form.path
    if inner:
        nested = _object(around, {inner[0]: ROWS})
        return _object({**envelope, outer: nested}, marks)
    return _object(envelope, {**marks, outer: ROWS})


def _object(values: Mapping[str, bytes], marks: Mapping[str, bytes]) -> bytes:
    """A JSON object of raw values, those named in *marks* replaced by their mark."""
    return b"{" + b",".join(orjson.dumps(name) + b":" + marks.get(name, raw) for name, raw in values.items()) + b"}"
