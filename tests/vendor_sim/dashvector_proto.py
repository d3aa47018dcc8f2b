"""DashVector's gRPC messages: from bytes to what operations understand, and back. The SDK's own classes are used."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from tests.vendor_sim.dashvector_exchange import Ask
from tests.vendor_sim.dashvector_model import (
    DEFAULT_TOPK,
    CollectionSpec,
    DeleteRequest,
    FetchRequest,
    Field,
    GroupRequest,
    QueryRequest,
    RawDoc,
    VectorAsk,
    VectorSpec,
    WriteRequest,
)
from tests.vendor_sim.dashvector_package import pb

# The value's member in FieldValue by kind.
MEMBERS: Final[Mapping[str, str]] = {
    "BOOL": "bool_value",
    "STRING": "string_value",
    "INT": "int_value",
    "FLOAT": "float_value",
    "LONG": "long_value",
    "ARRAY_STRING": "string_array",
    "ARRAY_INT": "int_array",
    "ARRAY_FLOAT": "float_array",
    "ARRAY_LONG": "long_array",
}
_KINDS: Final = {member: kind for kind, member in MEMBERS.items()}
_METHODS: Final = pb.DESCRIPTOR.services_by_name["DashVectorService"].methods_by_name
SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["DashVectorService"].full_name


def message_types(operation: str) -> tuple[Any, Any]:
    """The classes of an operation's request and response."""
    method = _METHODS[operation]
    return getattr(pb, method.input_type.name), getattr(pb, method.output_type.name)


def decoded(operation: str, collection: str, message: Any) -> Ask:
    """What is asked; *collection* comes from the metadata, where the message does not name it."""
    if operation == "create_collection":
        return Ask(message.name, request=_collection(message))
    if operation in ("delete_collection", "describe_collection"):
        return Ask(message.name)
    if operation in _PARTITION_OPERATIONS:
        return Ask(collection, message.name)
    decode = _REQUESTS.get(operation)
    return Ask(collection, request=decode(message) if decode else None)


def _collection(message: Any) -> CollectionSpec:
    vectors = {name: _vector_spec(param) for name, param in message.vectors_schema.items()}
    if not vectors and message.dimension:
        quantize_type = message.extra_params.get("quantize_type", "")
        vectors[""] = VectorSpec(message.dimension, *_names(message), quantize_type)
    return CollectionSpec(
        name=message.name,
        vectors=vectors,
        sparse_vectors={name: _vector_spec(param) for name, param in message.sparse_vectors_schema.items()},
        fields={name: _enum_name(pb.FieldType, kind) for name, kind in message.fields_schema.items()},
        indexes={
            name: _enum_name(pb.CollectionInfo.IndexType, index.index_type) for name, index in message.indexes.items()
        },
        extra_params=dict(message.extra_params),
    )


def _vector_spec(param: Any) -> VectorSpec:
    return VectorSpec(param.dimension, *_names(param), param.quantize_type)


def _names(param: Any) -> tuple[str, str]:
    return (
        _enum_name(pb.CollectionInfo.DataType, param.dtype),
        _enum_name(pb.CollectionInfo.Metric, param.metric),
    )


def _enum_name(enum: Any, number: int) -> str:
    """The value's name; an unknown number becomes a text that no check lets pass."""
    return str(enum.Name(number)) if number in enum.values() else str(number)


def _write(message: Any) -> WriteRequest:
    return WriteRequest([_doc(doc) for doc in message.docs], message.partition)


def _doc(doc: Any) -> RawDoc:
    vectors = {name: _numbers(vector) for name, vector in doc.vectors.items()}
    sparse = {name: dict(vector.sparse_vector) for name, vector in doc.sparse_vectors.items()}
    if doc.HasField("vector"):
        vectors[""] = _numbers(doc.vector)
    if doc.sparse_vector:
        sparse[""] = dict(doc.sparse_vector)
    return RawDoc(doc.id, vectors, sparse, {name: _field(value) for name, value in doc.fields.items()})


def _numbers(vector: Any) -> list[int] | list[float]:
    if vector.WhichOneof("value_oneof") == "byte_vector":
        numbers: list[int] = np.frombuffer(vector.byte_vector, dtype=np.int8).tolist()
        return numbers
    return list(vector.float_vector.values)


def _field(value: Any) -> Field:
    member = value.WhichOneof("value_oneof")
    if member is None:
        return Field("", None)
    content = getattr(value, member)
    return Field(_KINDS[member], list(content.values) if member.endswith("_array") else content)


def _delete(message: Any) -> DeleteRequest:
    return DeleteRequest(list(message.ids), message.delete_all, message.filter, message.partition)


def _fetch(message: Any) -> FetchRequest:
    return FetchRequest(list(message.ids), message.partition, list(message.output_fields))


def _query(message: Any) -> QueryRequest:
    vectors = {name: _ask(_numbers(one.vector), one.param) for name, one in message.vectors.items()}
    sparse = {name: _ask(dict(one.sparse_vector.sparse_vector), one.param) for name, one in _sparse_asks(message)}
    if message.HasField("vector"):
        vectors[""] = VectorAsk(_numbers(message.vector))
    if message.sparse_vector:
        sparse[""] = VectorAsk(dict(message.sparse_vector))
    return QueryRequest(
        vectors=vectors,
        sparse=sparse,
        id=message.id,
        # Absent and 0 are the same here.
        topk=message.topk or DEFAULT_TOPK,
        filter=message.filter,
        include_vector=message.include_vector,
        partition=message.partition,
        output_fields=list(message.output_fields),
        ranker=message.rerank.ranker_name,
        ranker_params=dict(message.rerank.ranker_params),
        order_by=[(one.field, one.desc) for one in message.order_by_fields],
    )


def _sparse_asks(message: Any) -> list[tuple[str, Any]]:
    return list(message.sparse_vectors.items())


def _ask(value: Any, param: Any) -> VectorAsk:
    return VectorAsk(value, param.num_candidates, param.radius, param.is_linear, param.ef)


def _group(message: Any) -> GroupRequest:
    query = QueryRequest(
        vectors={"": VectorAsk(_numbers(message.vector))} if message.HasField("vector") else {},
        sparse={"": VectorAsk(dict(message.sparse_vector))} if message.sparse_vector else {},
        id=message.id,
        filter=message.filter,
        include_vector=message.include_vector,
        partition=message.partition,
        output_fields=list(message.output_fields),
    )
    count, topk = message.group_count or 10, message.group_topk or 10
    return GroupRequest(query, message.group_by_field, count, topk, message.vector_field)


_PARTITION_OPERATIONS: Final = frozenset(
    {"create_partition", "delete_partition", "describe_partition", "stats_partition"}
)
_REQUESTS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "insert_doc": _write,
    "update_doc": _write,
    "upsert_doc": _write,
    "delete_doc": _delete,
    "fetch_doc": _fetch,
    "query_doc": _query,
    "query_doc_group_by": _group,
}
