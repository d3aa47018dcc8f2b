"""
DashVector over gRPC: which methods are reads, which are writes, what identifies a read, what an answer is.

A call arrives as a request with the method ``GRPC``, its target the method's full name, its header lines the metadata,
its body the message. Most messages do not say which collection they are about: that stands in the metadata, so two
calls on two collections can have equal bytes.

A row's envelope is the answer without its request id, after the place where that was (4 bytes, little endian): a
message may hold any byte, so no mark is safe in it.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from proxy.core.entry import Row
from proxy.core.plan import NotStorable, Pass, PassReason, Refusal, Scope
from proxy.core.request import GRPC, HeaderLines, Request
from proxy.vendors.dashvector import common as dashvector
from proxy.vendors.dashvector._pb import wire
from proxy.vendors.dashvector._pb.wire import BYTES, FIXED32, VARINT, Field, Malformed, MapShape, Shape
from proxy.vendors.dashvector.common import ANYWHERE, CATALOG, ENDPOINT, QUERY, STATS, WRITE, VectorRead, VectorWrite

SERVICE = "/proxima.dashvector.proto.DashVectorService/"

Check = Callable[[Sequence[Field]], Refusal | None]
"""Why an answer with these outputs is not kept; ``None`` when it is complete and right. May raise Malformed."""

_REQUEST_ID, _CODE, _OUTPUT = 1, 2, 4  # in every answer
_SERVING = 1
_NO_MAPS = Shape()
# A field takes as long as so many bytes that are hashed, a byte of an answer as so many of text (see decision 14).
_FIELD_WEIGHT, _ANSWER_WEIGHT = 1_024, 16
_FEW_BYTES, _MANY_FIELDS = 1_024, 256
_COMPLETE = struct.pack("<f", 1.0)


# --- answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MessageAnswer:
    """A method's answers; implements ``dashvector.AnswerForm``."""

    check: Check

    def refusal(self, status: int, lines: HeaderLines) -> Refusal | None:  # noqa: ARG002  trailing metadata
        """Only an OK call is kept; the transport shows it as 200."""
        return None if status == 200 else Refusal.STATUS

    def weight(self, body: bytes) -> int:
        """See ``dashvector.AnswerForm``: documents are read field by field, and counting those takes as long."""
        return _ANSWER_WEIGHT * len(body)

    def split(self, body: bytes, *, is_widened: bool) -> Row:
        """*body* as a row, if it is a success, complete and settled. Raises NotStorable."""
        try:
            found = wire.fields(body)
            request_id, code = wire.one(found, _REQUEST_ID, BYTES), wire.one(found, _CODE, VARINT)
            outputs = [each for each in found if each.number == _OUTPUT]
            failure = code.varint if code is not None else 0
            verdict = dashvector.error_of(failure) if failure else self.check(outputs)
            if verdict is None and is_widened and not dashvector.is_ranked([_score(each.data) for each in outputs]):
                verdict = Refusal.INCOMPLETE
        except Malformed as error:
            raise NotStorable(Refusal.SHAPE) from error
        if request_id is None or verdict is not None:
            raise NotStorable(verdict or Refusal.SHAPE)
        envelope = struct.pack("<I", request_id.start) + body[: request_id.start] + body[request_id.end :]
        return Row(envelope, b"", b"", (), dashvector.origin(request_id.data.decode("utf-8", "replace")))

    def join(self, row: Row, request_id: str, topk: int | None) -> bytes:
        """The answer in *row* with our id, cut to *topk* documents if that is given."""
        (place,) = struct.unpack_from("<I", row.envelope)
        around = row.envelope[4:]
        body = around[:place] + wire.bytes_field(_REQUEST_ID, request_id.encode()) + around[place:]
        return body if topk is None else _cut(body, topk)


def _cut(body: bytes, topk: int) -> bytes:
    """*body* with no more than the first *topk* of its outputs."""
    found = wire.fields(body)
    beyond = frozenset([each.start for each in found if each.number == _OUTPUT][topk:])
    return b"".join(body[each.start : each.end] for each in found if each.start not in beyond)


def _score(document: bytes) -> float:
    score = wire.one(wire.fields(document), 4, FIXED32)
    return 0.0 if score is None else float(struct.unpack("<f", score.data)[0])


# What each method must have answered.


def _texts(outputs: Sequence[Field]) -> Refusal | None:
    """A list of names; an empty one has no output at all."""
    return None if all(each.kind == BYTES for each in outputs) else Refusal.SHAPE


def _version(outputs: Sequence[Field]) -> Refusal | None:
    version = wire.one(outputs, _OUTPUT, BYTES)
    return None if version is not None and version.data else Refusal.SHAPE


def _serving_collection(outputs: Sequence[Field]) -> Refusal | None:
    """A description, once the collection and its partitions serve: until then, whoever polls must see it change."""
    output = wire.one(outputs, _OUTPUT, BYTES)
    if output is None:
        return Refusal.SHAPE
    info = wire.fields(output.data)
    states = [wire.one(info, 6, VARINT)]
    states += [wire.one(wire.fields(each.data), 2, VARINT) for each in info if each.number == 7]
    is_settled = all(state is not None and state.varint == _SERVING for state in states)
    return None if is_settled else Refusal.INCOMPLETE


def _serving_partition(outputs: Sequence[Field]) -> Refusal | None:
    status = wire.one(outputs, _OUTPUT, VARINT)  # absent is zero: not yet serving
    return None if status is not None and status.varint == _SERVING else Refusal.INCOMPLETE


def _collection_stats(outputs: Sequence[Field]) -> Refusal | None:
    """Counts, once the index is complete: until then they change without a write."""
    output = wire.one(outputs, _OUTPUT, BYTES)
    if output is None:
        return Refusal.SHAPE
    completeness = wire.one(wire.fields(output.data), 2, FIXED32)
    return None if completeness is not None and completeness.data == _COMPLETE else Refusal.INCOMPLETE


def _partition_stats(outputs: Sequence[Field]) -> Refusal | None:
    output = wire.one(outputs, _OUTPUT, BYTES)
    if output is None:
        return Refusal.SHAPE
    wire.fields(output.data)
    return None


def _documents(outputs: Sequence[Field]) -> Refusal | None:
    """Documents, each with an id; none at all is an answer too."""
    for each in outputs:
        found = wire.one(wire.fields(each.data), 1, BYTES) if each.kind == BYTES else None
        if found is None or not found.data:
            return Refusal.SHAPE
    return None


def _groups(outputs: Sequence[Field]) -> Refusal | None:
    if any(each.kind != BYTES for each in outputs):
        return Refusal.SHAPE
    parts = ([each for each in wire.fields(output.data) if each.number == 2] for output in outputs)
    return next((verdict for part in parts if (verdict := _documents(part))), None)


def _fetched(outputs: Sequence[Field]) -> Refusal | None:
    """Documents by their ids; those that do not exist are missing."""
    if any(each.kind != BYTES for each in outputs):
        return Refusal.SHAPE
    values = [wire.one(wire.fields(output.data), 2, BYTES) for output in outputs]
    return Refusal.SHAPE if None in values else _documents([value for value in values if value is not None])


# --- requests ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Method:
    """A read: its operation, how it answers, and what must be known of its message."""

    operation: str
    answer: MessageAnswer
    shape: Shape = _NO_MAPS
    partition: int = 0
    """The field that names the partition, if there is one: absent, empty and ``default`` are the same."""


_WEIGHTS = MapShape(VARINT)  # index to weight
_SPARSE_SEARCH = Shape(messages={1: Shape(maps={1: _WEIGHTS})})
_QUERY = Shape(
    maps={7: _WEIGHTS, 9: MapShape(BYTES), 11: MapShape(BYTES, _SPARSE_SEARCH)},
    messages={10: Shape(maps={2: MapShape(BYTES)})},
)
_READS: Mapping[str, Method] = {
    "get_version": Method(STATS, MessageAnswer(_version)),
    "list_collections": Method(STATS, MessageAnswer(_texts)),
    "describe_collection": Method(STATS, MessageAnswer(_serving_collection)),
    "stats_collection": Method(STATS, MessageAnswer(_collection_stats)),
    "list_partitions": Method(STATS, MessageAnswer(_texts)),
    "describe_partition": Method(STATS, MessageAnswer(_serving_partition)),
    "stats_partition": Method(STATS, MessageAnswer(_partition_stats)),
    "query_doc": Method(QUERY, MessageAnswer(_documents), _QUERY, partition=5),
    "query_doc_group_by": Method(QUERY, MessageAnswer(_groups), Shape(maps={9: _WEIGHTS}), partition=7),
    "fetch_doc": Method(QUERY, MessageAnswer(_fetched), partition=2),
}
_WRITES = frozenset({"create_partition", "delete_partition", "insert_doc", "update_doc", "upsert_doc", "delete_doc"})
_OF_CATALOG = frozenset({"create_collection", "delete_collection"})


class DashVectorGrpc:
    """Plans every gRPC call."""

    def __init__(self, ignored_headers: frozenset[bytes] = frozenset(), overfetch_topk: int = 0) -> None:
        self._ignored = ignored_headers
        self._overfetch_topk = overfetch_topk

    def wants(self, method: str, path: str) -> bool:  # noqa: ARG002
        """Everything over gRPC: a method that nobody knows may be a write."""
        return method == GRPC

    def operation_of(self, method: str, path: str) -> str:  # noqa: ARG002
        """The operation's name in modes, metrics and logs."""
        read = _READS.get(_method(path))
        return WRITE if read is None else read.operation

    def write_of(self, method: str, path: str, headers: HeaderLines) -> VectorWrite | None:  # noqa: ARG002
        """The write that a call is as far as its name and metadata tell; ``None`` for reads."""
        scopes = _written(_method(path), headers)
        if not scopes:
            return None
        return VectorWrite(scopes, dashvector.credential(headers), code_of, dashvector.has_credential(headers))

    def precheck(self, request: Request) -> PassReason | None:
        """A reason to pass a read that the metadata alone give."""
        return None if dashvector.has_credential(request.headers) else PassReason.NO_CREDENTIAL

    def weight(self, body: bytes) -> int:
        """See ``core.plan.Adapter``: most queries have ten fields, one of them long."""
        if len(body) <= _FEW_BYTES:
            return len(body)
        try:
            return len(body) + _FIELD_WEIGHT * wire.count(body, _QUERY, at_most=_MANY_FIELDS)
        except Malformed:  # whoever plans it finds that out as soon
            return len(body)

    def plan(self, request: Request) -> VectorRead | Pass:
        """What to do with *request*, a read whose message is there."""
        name = _method(request.target)
        operation = _READS[name].operation
        reason = self.precheck(request)
        if reason is not None:
            return Pass(reason, operation)
        try:
            if wire.count(request.body or b"", _READS[name].shape, at_most=wire.MOST_FIELDS) == wire.MOST_FIELDS:
                return Pass(PassReason.AMBIGUOUS, operation)
            scopes = _scopes(name, request)
            return Pass(PassReason.UNKNOWN_SHAPE, operation) if scopes is None else self._read(name, request, scopes)
        except Malformed:
            return Pass(PassReason.AMBIGUOUS, operation)

    def _read(self, name: str, request: Request, scopes: tuple[Scope, ...]) -> VectorRead:
        method, message = _READS[name], request.body or b""
        identity = dashvector.identity(request, b"grpc", self._ignored)
        item = wire.canonical(_folded(message, method.partition), method.shape)
        plain = VectorRead(method.operation, (*identity, b""), item, scopes, message, method.answer)
        wider = _widened(message, self._overfetch_topk) if name == "query_doc" else None
        if wider is None:
            return plain
        asked, topk = wider
        return VectorRead(
            operation=method.operation,
            identity=(*identity, b"widened"),
            item=wire.canonical(_folded(asked, method.partition), method.shape),
            scopes=scopes,
            ask=asked,
            answer=method.answer,
            topk=topk,
            plain=plain,
        )


def code_of(message: bytes) -> int | None:
    """See ``dashvector.CodeOf``; success has no code on the wire, as it is zero."""
    try:
        code = wire.one(wire.fields(message), _CODE, VARINT)
    except Malformed:
        return None
    return 0 if code is None else code.varint


def _written(name: str, lines: HeaderLines) -> tuple[Scope, ...]:
    """What a call makes stale; nothing if it is a read."""
    collections = _collections(lines)
    if name in _READS:
        return ()
    if name in _OF_CATALOG:  # the collection's name is in the message
        return (ENDPOINT, CATALOG)
    if name in _WRITES and len(collections) == 1 and dashvector.is_name(collections[0]):
        return (dashvector.collection(collections[0]),)
    return ANYWHERE


def _method(target: str) -> str:
    """The method's name; empty when it is another service's, a package of another name included."""
    return target.removeprefix(SERVICE) if target.startswith(SERVICE) else ""


def _collections(lines: HeaderLines) -> list[str]:
    return [value.decode("latin-1") for name, value in lines if name.lower() == b"collection-name"]


def _scopes(name: str, request: Request) -> tuple[Scope, ...] | None:
    """What the read hangs on; ``None`` when it does not say, or says twice, which collection it is about."""
    if name == "get_version":
        return (ENDPOINT,)
    if name == "list_collections":
        return (ENDPOINT, CATALOG)
    collections = _collections(request.headers)
    if name == "describe_collection":
        named = wire.one(wire.fields(request.body or b""), 1, BYTES)
        collections = [*collections, named.data.decode("latin-1") if named else ""]
        collections = collections[:1] if len(set(collections)) == 1 else []
    if len(collections) != 1 or not dashvector.is_name(collections[0]):
        return None
    return (ENDPOINT, dashvector.collection(collections[0]))


def _folded(message: bytes, partition: int) -> bytes:
    """*message* without a partition that means the same as none."""
    named = [each for each in wire.fields(message) if each.number == partition]
    if len(named) != 1 or named[0].kind != BYTES or named[0].data not in (b"", b"default"):
        return message
    return message[: named[0].start] + message[named[0].end :]


# --- more than was asked for ------------------------------------------------------------------------------------------

_VECTOR, _TOPK, _OUTPUT_FIELDS, _VECTORS = 1, 2, 6, 9
_PLAIN = {_VECTOR: BYTES, _TOPK: VARINT, 3: BYTES, 4: VARINT, 5: BYTES, _OUTPUT_FIELDS: BYTES, _VECTORS: BYTES}


def _widened(message: bytes, limit: int) -> tuple[bytes, int] | None:
    """A plain search by one vector, asking for *limit* documents, and how many the client wants; else ``None``."""
    found = wire.fields(message)
    singles = [each.number for each in found if each.number != _OUTPUT_FIELDS]
    if any(_PLAIN.get(each.number) != each.kind for each in found) or len(set(singles)) != len(singles):
        return None
    given = {each.number: each for each in found}
    if _TOPK not in given or not 1 <= given[_TOPK].varint <= limit or (_VECTOR in given) == (_VECTORS in given):
        return None
    topk = given[_TOPK].varint
    changed = {_TOPK: wire.varint_field(_TOPK, limit)}
    if _VECTORS in given:
        vectors = _widened_vectors(given[_VECTORS].data, topk, limit)
        if vectors is None:
            return None
        changed[_VECTORS] = wire.bytes_field(_VECTORS, vectors)
    elif not given[_VECTOR].data:
        return None
    return b"".join(changed.get(each.number, message[each.start : each.end]) for each in found), topk


def _widened_vectors(entry: bytes, topk: int, limit: int) -> bytes | None:
    """
    The map entry of the one vector, if it has no parameters, or as many candidates as documents, which SDKs fill in.

    A map with a second entry never comes here: several vectors are not a plain search.
    """
    search = wire.one(wire.fields(entry), 2, BYTES)
    parts = wire.fields(search.data) if search else []
    vector, param = wire.one(parts, 1, BYTES), wire.one(parts, 2, BYTES)
    if search is None or vector is None or not vector.data or len(parts) != 1 + (param is not None):
        return None
    if param is None or not param.data:
        return entry
    if [(each.number, each.kind, each.varint) for each in wire.fields(param.data)] != [(1, VARINT, topk)]:
        return None
    wider = wire.bytes_field(2, wire.varint_field(1, limit))
    asked = search.data[: param.start] + wider + search.data[param.end :]
    return entry[: search.start] + wire.bytes_field(2, asked) + entry[search.end :]
