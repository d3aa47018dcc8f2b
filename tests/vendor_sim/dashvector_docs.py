"""From documents and vectors as they were sent to those that are stored: types, sizes, names."""

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from tests.vendor_sim.dashvector_errors import refusal
from tests.vendor_sim.dashvector_model import SINGLE, CollectionSpec, Doc, Field, RawDoc, Sparse, Vector, VectorSpec
from tests.vendor_sim.dashvector_schema import check_field_names

_DOC_ID: Final = re.compile(r"[a-zA-Z0-9_\-!@#$%+=.]{1,64}")
_INT8: Final = range(-128, 128)
_INT32: Final = range(-(2**31), 2**31)
_INT64: Final = range(-(2**63), 2**63)
_UINT32: Final = range(2**32)
_MAX_FIELDS: Final = 1024
_MAX_ARRAY: Final = 32


def check_doc_id(doc_id: str) -> None:
    """Refuse an empty or malformed id."""
    if not doc_id:
        raise refusal("EmptyPrimaryKey")
    if not _DOC_ID.fullmatch(doc_id):
        raise refusal("InvalidPrimaryKey")


def stored_doc(spec: CollectionSpec, raw: RawDoc) -> Doc:
    """*raw* in the collection's types; refuses what does not fit its schema."""
    if len(raw.fields) > _MAX_FIELDS:
        raise refusal("InvalidField", f"more than {_MAX_FIELDS} fields")
    check_field_names(raw.fields)
    return Doc(
        id=raw.id,
        vectors={
            resolved(spec, name): stored_vector(vector_spec(spec, name), value) for name, value in raw.vectors.items()
        },
        sparse={name: stored_sparse(spec, name, value) for name, value in raw.sparse.items()},
        fields={name: _stored_field(spec.fields.get(name, ""), name, field) for name, field in raw.fields.items()},
    )


def resolved(spec: CollectionSpec, name: str) -> str:
    """The stored name of a vector that may have been sent without one; refuses an unknown one."""
    if not name and len(spec.vectors) == 1:
        name = next(iter(spec.vectors))
    if name not in spec.vectors:
        raise refusal("InexistentColumn", name or SINGLE)
    return name


def vector_spec(spec: CollectionSpec, name: str) -> VectorSpec:
    """How that vector is stored."""
    return spec.vectors[resolved(spec, name)]


def stored_vector(spec: VectorSpec, value: Any) -> Vector:
    """*value* as float32 or int8; refuses another length or type."""
    if not isinstance(value, list) or not value:
        raise refusal("InvalidVectorFormat")
    if len(value) != spec.dimension:
        raise refusal("MismatchedDimension")
    kinds = set(map(type, value))
    if not kinds <= {int, float}:
        raise refusal("InvalidVectorFormat")
    if spec.dtype == "INT":
        if kinds != {int}:
            raise refusal("MismatchedDataType")
        if any(number not in _INT8 for number in value):
            raise refusal("InvalidVectorFormat")
        return np.asarray(value, dtype=np.int8)
    with np.errstate(over="ignore"):
        numbers = np.asarray(value, dtype=np.float64).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise refusal("InvalidVectorFormat")
    return numbers


def stored_sparse(spec: CollectionSpec, name: str, value: Any) -> Sparse:
    """*value* as float32 weights by index; refuses it on another metric than dotproduct."""
    if name:
        if name not in spec.sparse_vectors:
            raise refusal("InexistentColumn", name)
    elif not spec.is_single or spec.vectors[SINGLE].metric != "dotproduct":
        raise refusal("InvalidSparseValues", "sparse vectors need dotproduct")
    if not isinstance(value, Mapping):
        raise refusal("InvalidSparseValues")
    return {_sparse_index(index): _sparse_weight(weight) for index, weight in sorted(value.items(), key=_by_index)}


def _by_index(item: tuple[Any, Any]) -> int:
    return _sparse_index(item[0])


def _sparse_index(index: Any) -> int:
    # JSON writes indices as text.
    text = str(index)
    if not text.isascii() or not text.isdigit() or int(text) not in _UINT32:
        raise refusal("InvalidSparseIndices")
    return int(text)


def _sparse_weight(weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise refusal("InvalidSparseValues")
    return float(np.float32(weight))


def _stored_field(declared: str, name: str, field: Field) -> Field:
    if field.value is None:
        return Field("", None)
    kind = declared or field.kind or _inferred(name, field.value)
    if not kind.startswith("ARRAY_"):
        return Field(kind, _stored_value(kind, name, field.value))
    if not isinstance(field.value, list):
        raise refusal("MismatchedDataType", name)
    if len(field.value) > _MAX_ARRAY:
        raise refusal("InvalidField", f"{name} has more than {_MAX_ARRAY} items")
    return Field(kind, [_stored_value(kind.removeprefix("ARRAY_"), name, item) for item in field.value])


def _inferred(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "BOOL"
    if isinstance(value, str):
        return "STRING"
    if isinstance(value, int):
        return "INT" if value in _INT32 else "LONG"
    if isinstance(value, float):
        return "FLOAT"
    # Arrays need a declared field.
    raise refusal("InvalidField", name)


def _stored_value(kind: str, name: str, value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "BOOL" and isinstance(value, bool):
        return value
    if kind == "STRING" and isinstance(value, str):
        return value
    # The SDK sends large numbers for INT fields as LONG; so the kind is only a wish.
    if kind in ("INT", "LONG") and is_number and isinstance(value, int) and value in _INT64:
        return value
    if kind == "FLOAT" and is_number:
        with np.errstate(over="ignore"):
            return float(np.float32(value))
    raise refusal("MismatchedDataType", name)
