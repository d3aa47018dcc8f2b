"""The checks of a new collection: names, vectors, fields, indexes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from tests.vendor_sim.dashvector_errors import refusal
from tests.vendor_sim.dashvector_model import SINGLE, CollectionSpec, VectorSpec

FIELD_TYPES: Final = frozenset(
    {"BOOL", "STRING", "INT", "FLOAT", "LONG", "ARRAY_STRING", "ARRAY_INT", "ARRAY_FLOAT", "ARRAY_LONG"}
)
METRICS: Final = frozenset({"cosine", "dotproduct", "euclidean"})
DTYPES: Final = frozenset({"FLOAT", "INT"})
INDEX_TYPES: Final = frozenset({"INVERT", "NONE"})
DIMENSIONS: Final = range(2, 20_001)
_MAX_VECTORS: Final = 4
_MAX_FIELDS: Final = 1024
_MAX_FIELD_NAME: Final = 32
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{3,32}")
# Fields may have shorter names than collections: "age" fits both, "id" only this.
_FIELD_NAME: Final = re.compile(rf"[a-zA-Z0-9_-]{{1,{_MAX_FIELD_NAME}}}")


def check_collection_name(name: str) -> None:
    """Refuse an empty or malformed name."""
    if not name:
        raise refusal("EmptyCollectionName")
    if not _NAME.fullmatch(name):
        raise refusal("InvalidCollectionName")


def check_partition_name(name: str) -> None:
    """Refuse an empty or malformed name."""
    if not name:
        raise refusal("EmptyPartitionName")
    if not _NAME.fullmatch(name):
        raise refusal("InvalidPartitionName")


def check_field_names(names: Iterable[str]) -> None:
    """Refuse malformed and reserved names."""
    for name in names:
        if not _FIELD_NAME.fullmatch(name) or name == SINGLE:
            raise refusal("InvalidFieldName", name)


def checked_spec(spec: CollectionSpec) -> CollectionSpec:
    """*spec* with the unnamed vector under its stored name; refuses what cannot be created."""
    check_collection_name(spec.name)
    vectors = {name or SINGLE: vector for name, vector in spec.vectors.items()}
    count = len(vectors) + len(spec.sparse_vectors)
    if count == 0:
        raise refusal("EmptyColumns")
    if count > _MAX_VECTORS:
        raise refusal("InvalidField", f"more than {_MAX_VECTORS} vectors")
    for vector in vectors.values():
        _check_vector(vector)
    for vector in spec.sparse_vectors.values():
        if vector.metric != "dotproduct":
            raise refusal("InvalidSparseValues", "sparse vectors need dotproduct")
    check_field_names([*(name for name in vectors if name != SINGLE), *spec.sparse_vectors, *spec.fields])
    _check_fields(spec, vectors)
    return replace(spec, vectors=vectors)


def _check_vector(vector: VectorSpec) -> None:
    if vector.dtype not in DTYPES:
        raise refusal("InvalidDataType", vector.dtype)
    if vector.metric not in METRICS:
        raise refusal("InvalidFeature", vector.metric)
    if vector.dimension not in DIMENSIONS:
        raise refusal("InvalidDimension")
    if vector.metric == "cosine" and vector.dtype != "FLOAT":
        raise refusal("MismatchedDataType", "cosine needs FLOAT")


def _check_fields(spec: CollectionSpec, vectors: Mapping[str, VectorSpec]) -> None:
    if len(spec.fields) > _MAX_FIELDS:
        raise refusal("InvalidField", f"more than {_MAX_FIELDS} fields")
    for name, kind in spec.fields.items():
        if name in vectors or name in spec.sparse_vectors:
            raise refusal("DuplicateField", name)
        if kind not in FIELD_TYPES:
            raise refusal("InvalidField", f"{name} of type {kind}")
    for name, index_type in spec.indexes.items():
        if not name:
            raise refusal("EmptyIndexField")
        if name not in spec.fields:
            raise refusal("MismatchedIndexColumn", name)
        if index_type not in INDEX_TYPES:
            raise refusal("InvalidIndexType", index_type)
    if any(not name or not isinstance(value, str) for name, value in spec.extra_params.items()):
        raise refusal("InvalidExtraParam")
