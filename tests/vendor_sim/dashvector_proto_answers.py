"""DashVector's gRPC answers: results as messages. The counterpart of `dashvector_proto`."""

from collections.abc import Mapping
from typing import Any, Final

from tests.vendor_sim.dashvector_exchange import Outcome
from tests.vendor_sim.dashvector_json import info_json
from tests.vendor_sim.dashvector_model import (
    SINGLE,
    CollectionInfo,
    CollectionStats,
    DocResult,
    Field,
    Group,
    Hit,
    Vector,
)
from tests.vendor_sim.dashvector_package import pb
from tests.vendor_sim.dashvector_proto import MEMBERS, message_types

_SCHEMAS: Final = ("vectors_schema", "sparse_vectors_schema")


def encoded(operation: str, outcome: Outcome) -> bytes:
    """The bytes of an answer's message. Maps go in the order of their keys, so equal answers are equal bytes."""
    _, response_type = message_types(operation)
    message = response_type(request_id=outcome.request_id, code=outcome.code, message=outcome.message)
    result = outcome.result
    if result is not None:
        if operation == "get_version":
            message.version = result.output
        elif result.output is not None:
            _put(operation, message, result.output)
        if result.read_units is not None:
            message.usage.read_units = result.read_units
        if result.write_units is not None:
            message.usage.write_units = result.write_units
    serialized: bytes = message.SerializeToString(deterministic=True)
    return serialized


def _put(operation: str, message: Any, output: Any) -> None:
    if isinstance(output, CollectionInfo):
        _put_info(message.output, output)
    elif isinstance(output, CollectionStats):
        message.output.total_doc_count = output.total
        message.output.index_completeness = 1.0
        for name, count in output.partitions.items():
            message.output.partitions[name].total_doc_count = count
    elif operation == "stats_partition":
        message.output.total_doc_count = output
    elif operation == "describe_partition":
        message.output = pb.Status.Value(output)
    elif isinstance(output, Mapping):
        for doc_id, hit in output.items():
            _put_hit(message.output[doc_id], hit)
    else:
        message.output.extend([_item(item) for item in output])


def _item(item: Any) -> Any:
    if isinstance(item, Hit):
        doc = pb.Doc()
        _put_hit(doc, item)
        return doc
    if isinstance(item, Group):
        return pb.GroupResult(group_id=item.group_id, docs=[_item(hit) for hit in item.hits])
    if isinstance(item, DocResult):
        op = pb.DocOpResult.DocOp.Value(item.op)
        return pb.DocOpResult(doc_op=op, id=item.id, code=item.code, message=item.message)
    return item


def _put_info(message: Any, info: CollectionInfo) -> None:
    values = info_json(info)
    message.name = values["name"]
    message.dimension = values["dimension"]
    message.dtype = pb.CollectionInfo.DataType.Value(values["dtype"])
    message.metric = pb.CollectionInfo.Metric.Value(values["metric"])
    message.status = pb.Status.Value(values["status"])
    for name, kind in values["fields_schema"].items():
        message.fields_schema[name] = pb.FieldType.Value(kind)
    for name, status in values["partitions"].items():
        message.partitions[name] = pb.Status.Value(status)
    for schema in _SCHEMAS:
        for name, spec in values[schema].items():
            param = getattr(message, schema)[name]
            param.dimension = spec["dimension"]
            param.dtype = pb.CollectionInfo.DataType.Value(spec["dtype"])
            param.metric = pb.CollectionInfo.Metric.Value(spec["metric"])
            param.quantize_type = spec["quantize_type"]
    for name, index in values["indexes"].items():
        message.indexes[name].index_type = pb.CollectionInfo.IndexType.Value(index["index_type"])


def _put_hit(doc: Any, hit: Hit) -> None:
    doc.id = hit.doc.id
    doc.score = float(hit.score)
    for name, field in hit.fields.items():
        _put_field(doc.fields[name], field)
    for index, weight in hit.doc.sparse.get("", {}).items():
        doc.sparse_vector[index] = weight
    if not hit.has_vectors:
        return
    for name, vector in hit.doc.vectors.items():
        _put_vector(doc.vector if name == SINGLE else doc.vectors[name], vector)
    for name, weights in hit.doc.sparse.items():
        if name:
            for index, weight in weights.items():
                doc.sparse_vectors[name].sparse_vector[index] = weight


def _put_vector(message: Any, vector: Vector) -> None:
    if vector.dtype.kind == "i":
        message.byte_vector = vector.tobytes()
    else:
        message.float_vector.values.extend(vector.tolist())


def _put_field(message: Any, field: Field) -> None:
    if field.value is None:
        return
    kind = field.kind
    # A large number in an INT field does not fit its member.
    if kind == "INT" and not -(2**31) <= field.value < 2**31:
        kind = "LONG"
    member = MEMBERS[kind]
    if member.endswith("_array"):
        getattr(message, member).values.extend(field.value)
        # An empty array is not a null.
        getattr(message, member).SetInParent()
    else:
        setattr(message, member, field.value)
