"""DashVector's HTTP bodies: requests from JSON, answers into compact JSON with the vendor's order of keys."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import orjson

from tests.vendor_sim.dashvector_exchange import Outcome
from tests.vendor_sim.dashvector_model import (
    SINGLE,
    CollectionInfo,
    CollectionStats,
    DocResult,
    Field,
    Group,
    Hit,
    Result,
    Sparse,
    VectorSpec,
)

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def encoded(operation: str, outcome: Outcome, *, counts_are_text: bool) -> bytes:
    """The body of an answer."""
    body: dict[str, Any] = {"request_id": outcome.request_id, "code": outcome.code, "message": outcome.message}
    result = outcome.result
    if result is None:
        return orjson.dumps(body)
    if operation == "get_version":
        body["version"] = result.output
    elif result.output is not None:
        body["output"] = _output(operation, result.output, counts_are_text=counts_are_text)
    if usage := _usage(result):
        body["usage"] = usage
    return orjson.dumps(body, option=_OPTIONS)


def _usage(result: Result) -> dict[str, int]:
    usage = {"read_units": result.read_units, "write_units": result.write_units}
    return {name: units for name, units in usage.items() if units is not None}


def _output(operation: str, output: Any, *, counts_are_text: bool) -> Any:
    count = str if counts_are_text else int
    if isinstance(output, CollectionInfo):
        return info_json(output)
    if isinstance(output, CollectionStats):
        return {
            "total_doc_count": count(output.total),
            "index_completeness": 1,
            "partitions": {name: {"total_doc_count": count(docs)} for name, docs in output.partitions.items()},
        }
    if operation == "stats_partition":
        return {"total_doc_count": count(output)}
    if isinstance(output, Mapping):
        return {doc_id: _hit(hit) for doc_id, hit in output.items()}
    if isinstance(output, list):
        return [_item(item) for item in output]
    return output


def _item(item: Any) -> Any:
    if isinstance(item, Hit):
        return _hit(item)
    if isinstance(item, Group):
        return {"docs": [_hit(hit) for hit in item.hits], "group_id": item.group_id}
    if isinstance(item, DocResult):
        return {"doc_op": item.op, "id": item.id, "code": item.code, "message": item.message}
    return item


def info_json(info: CollectionInfo) -> dict[str, Any]:
    """What describe puts out. A collection with named vectors has no dimension of its own: protobuf's defaults."""
    spec = info.spec
    single = spec.vectors.get(SINGLE, VectorSpec(0, metric="euclidean"))
    return {
        "name": spec.name,
        "dimension": single.dimension,
        "dtype": single.dtype,
        "metric": single.metric,
        "status": info.status,
        "fields_schema": dict(spec.fields),
        "partitions": dict(info.partitions),
        "vectors_schema": {name: _vector_spec(one) for name, one in spec.vectors.items()},
        "sparse_vectors_schema": {name: _vector_spec(one) for name, one in spec.sparse_vectors.items()},
        "indexes": {name: {"index_type": kind} for name, kind in spec.indexes.items()},
    }


def _vector_spec(spec: VectorSpec) -> dict[str, Any]:
    return {
        "dimension": spec.dimension,
        "dtype": spec.dtype,
        "metric": spec.metric,
        "quantize_type": spec.quantize_type,
    }


def _hit(hit: Hit) -> dict[str, Any]:
    """A document. Vectors are float32 written as float64, which keeps the point of 1.0; the SDK insists on it."""
    doc: dict[str, Any] = {"id": hit.doc.id}
    is_single = SINGLE in hit.doc.vectors
    if hit.has_vectors and is_single:
        doc["vector"] = hit.doc.vectors[SINGLE].tolist()
    doc["fields"] = {name: _field(field) for name, field in hit.fields.items()}
    doc["score"] = _score(hit.score)
    if "" in hit.doc.sparse:
        doc["sparse_vector"] = _sparse(hit.doc.sparse[""])
    if hit.has_vectors and not is_single:
        doc["vectors"] = {name: vector.tolist() for name, vector in hit.doc.vectors.items()}
        doc["sparse_vectors"] = {name: _sparse(weights) for name, weights in hit.doc.sparse.items() if name}
    return doc


def _field(field: Field) -> Any:
    return field.value


def _score(score: np.float32) -> Any:
    # Shortest float32 text; whole numbers have no point.
    return int(score) if np.isfinite(score) and score == int(score) else np.float32(score)


def _sparse(weights: Sparse) -> dict[str, Any]:
    return {str(index): np.float32(weight) for index, weight in weights.items()}
