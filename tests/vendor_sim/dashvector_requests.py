"""DashVector's HTTP requests: what paths, queries and JSON bodies ask, in the form that operations understand."""

from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import orjson

from tests.vendor_sim.dashvector_errors import refusal
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

T = TypeVar("T")
Body = Mapping[str, Any]
_WRITES: Final = frozenset({"insert_doc", "update_doc", "upsert_doc"})


def decoded(operation: str, collection: str, partition: str, query: str, body: bytes) -> Ask:
    """What is asked; *query* is the raw query string. Refuses what cannot be read."""
    if operation == "create_collection":
        spec = _collection(_object(body))
        return Ask(spec.name, request=spec)
    if operation == "create_partition":
        return Ask(collection, _value(_object(body), "name", str, "", "InvalidPartitionName"))
    if operation in _WRITES:
        return Ask(collection, request=_write(_object(body)))
    if operation == "delete_doc":
        return Ask(collection, request=_delete(_object(body)))
    if operation == "fetch_doc":
        return Ask(collection, request=_fetch(query))
    if operation == "query_doc":
        return Ask(collection, request=_query(_object(body)))
    if operation == "query_doc_group_by":
        return Ask(collection, request=_group(_object(body)))
    return Ask(collection, partition)


def _object(body: bytes) -> Body:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise refusal("InvalidJson") from None
    if not isinstance(value, dict):
        raise refusal("InvalidJson")
    return value


def _value(body: Body, name: str, kind: type[T], default: T, error: str) -> T:
    """The member *name*; null and absent mean *default*, another type is refused as *error*."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise refusal(error, name)
    return value


def _collection(body: Body) -> CollectionSpec:
    extra: Body = _value(body, "extra_params", dict, {}, "InvalidExtraParam")
    vectors = _vector_specs(body, "vectors_schema")
    sparse = _vector_specs(body, "sparse_vectors_schema", metric="dotproduct")
    dimension = _value(body, "dimension", int, 0, "InvalidDimension")
    if not vectors and (dimension or not sparse) and "dimension" in body:
        quantize_type = extra.get("quantize_type", "")
        vectors = {"": _vector_spec({**body, "quantize_type": quantize_type})}
    indexes: Body = _value(body, "indexes", dict, {}, "InvalidIndexType")
    return CollectionSpec(
        name=_value(body, "name", str, "", "InvalidCollectionName"),
        vectors=vectors,
        sparse_vectors=sparse,
        fields=_value(body, "fields_schema", dict, {}, "InvalidField"),
        indexes={
            name: str(index.get("index_type")) if isinstance(index, dict) else "" for name, index in indexes.items()
        },
        extra_params=extra,
    )


def _vector_specs(body: Body, name: str, metric: str = "cosine") -> dict[str, VectorSpec]:
    specs: Body = _value(body, name, dict, {}, "InvalidField")
    if not all(isinstance(spec, dict) for spec in specs.values()):
        raise refusal("InvalidField", name)
    return {vector: _vector_spec(spec, metric) for vector, spec in specs.items()}


def _vector_spec(body: Body, metric: str = "cosine") -> VectorSpec:
    return VectorSpec(
        _value(body, "dimension", int, 0, "InvalidDimension"),
        _value(body, "dtype", str, "FLOAT", "InvalidDataType"),
        _value(body, "metric", str, metric, "InvalidFeature"),
        _value(body, "quantize_type", str, "", "InvalidExtraParam"),
    )


def _write(body: Body) -> WriteRequest:
    docs: list[Any] = _value(body, "docs", list, [], "InvalidWriteRequest")
    return WriteRequest([_doc(doc) for doc in docs], _partition(body))


def _doc(body: Any) -> RawDoc:
    if not isinstance(body, dict):
        raise refusal("InvalidRecord")
    vectors = dict(_value(body, "vectors", dict, {}, "InvalidVectorFormat"))
    sparse = dict(_value(body, "sparse_vectors", dict, {}, "InvalidSparseValues"))
    if body.get("vector") is not None:
        vectors[""] = body["vector"]
    if body.get("sparse_vector") is not None:
        sparse[""] = body["sparse_vector"]
    fields: Body = _value(body, "fields", dict, {}, "InvalidField")
    return RawDoc(
        _value(body, "id", str, "", "InvalidPrimaryKey"),
        vectors,
        sparse,
        {name: Field("", value) for name, value in fields.items()},
    )


def _partition(body: Body) -> str:
    return _value(body, "partition", str, "", "InvalidPartitionName")


def _texts(body: Body, name: str, error: str) -> list[str]:
    texts: list[Any] = _value(body, name, list, [], error)
    if not all(isinstance(text, str) for text in texts):
        raise refusal(error, name)
    return texts


def _delete(body: Body) -> DeleteRequest:
    return DeleteRequest(
        _texts(body, "ids", "InvalidPrimaryKey"),
        _value(body, "delete_all", bool, False, "InvalidWriteRequest"),
        _value(body, "filter", str, "", "InvalidFilter"),
        _partition(body),
    )


def _fetch(query: str) -> FetchRequest:
    # A plus is part of an id, not a blank: so no ordinary parser.
    pairs = (part.partition("=") for part in query.split("&"))
    parameters = {unquote(name): unquote(value) for name, _, value in pairs}
    ids = [one for one in parameters.get("ids", "").split(",") if one]
    return FetchRequest(ids, parameters.get("partition", ""))


def _query(body: Body) -> QueryRequest:
    ranker: Body = _value(body, "rerank", dict, {}, "InvalidQuery")
    return QueryRequest(
        vectors=_asks(body, "vector", "vectors"),
        sparse=_asks(body, "sparse_vector", "sparse_vectors", inner="sparse_vector"),
        id=_value(body, "id", str, "", "InvalidPrimaryKey"),
        topk=_value(body, "topk", int, DEFAULT_TOPK, "InvalidTopk"),
        filter=_value(body, "filter", str, "", "InvalidFilter"),
        include_vector=_value(body, "include_vector", bool, False, "InvalidQuery"),
        partition=_partition(body),
        output_fields=_texts(body, "output_fields", "InvalidQuery"),
        ranker=_value(ranker, "ranker_name", str, "", "InvalidQuery"),
        ranker_params=_value(ranker, "ranker_params", dict, {}, "InvalidQuery"),
        order_by=[_order(one) for one in _value(body, "order_by_fields", list, [], "InvalidQuery")],
    )


def _order(body: Any) -> tuple[str, bool]:
    if not isinstance(body, dict) or not isinstance(body.get("field"), str):
        raise refusal("InvalidQuery", "order_by_fields")
    return body["field"], _value(body, "desc", bool, False, "InvalidQuery")


def _asks(body: Body, one: str, several: str, inner: str = "vector") -> dict[str, VectorAsk]:
    named: Body = _value(body, several, dict, {}, "InvalidQuery")
    asks = {name: _ask(value, inner) for name, value in named.items()}
    if body.get(one) is not None:
        asks[""] = VectorAsk(body[one])
    return asks


def _ask(value: Any, inner: str) -> VectorAsk:
    if not isinstance(value, dict) or inner not in value:
        return VectorAsk(value)
    param: Body = _value(value, "param", dict, {}, "InvalidQuery")
    known = {name: param[name] for name in ("num_candidates", "radius", "is_linear", "ef") if name in param}
    return VectorAsk(value[inner], **known)


def _group(body: Body) -> GroupRequest:
    return GroupRequest(
        _query(body),
        _value(body, "group_by_field", str, "", "InvalidGroupBy"),
        _value(body, "group_count", int, 10, "InvalidGroupBy"),
        _value(body, "group_topk", int, 10, "InvalidGroupBy"),
        _value(body, "vector_field", str, "", "InvalidGroupBy"),
    )
