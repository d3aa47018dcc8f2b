"""What DashVector keeps and is asked, in one form for both protocols: schemas, documents, requests, results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

# The one vector of a collection that was created without names.
SINGLE: Final = "proxima_vector"
DEFAULT_PARTITION: Final = "default"
DEFAULT_TOPK: Final = 10

Vector = npt.NDArray[Any]
Sparse = Mapping[int, float]


class Field(NamedTuple):
    """A field's value and its kind, a FieldType name; kind "" is null, or on the way in: not said."""

    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class VectorSpec:
    """How one vector of a collection is stored and compared."""

    dimension: int
    dtype: str = "FLOAT"
    metric: str = "cosine"
    quantize_type: str = ""


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """A collection's schema. Before it is checked, an unnamed vector has the name ""."""

    name: str
    vectors: Mapping[str, VectorSpec]
    sparse_vectors: Mapping[str, VectorSpec] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    indexes: Mapping[str, str] = field(default_factory=dict)
    extra_params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_single(self) -> bool:
        """Whether the collection has one unnamed vector."""
        return SINGLE in self.vectors


@dataclass(frozen=True, slots=True)
class RawDoc:
    """A document as it was sent; nothing is checked yet. Vectors without a name are under ""."""

    id: str
    vectors: Mapping[str, Any] = field(default_factory=dict)
    sparse: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Field] = field(default_factory=dict)


# Without equality, which arrays do not have.
@dataclass(frozen=True, slots=True, eq=False)
class Doc:
    """A stored document; never changed, only replaced, so that old states can be kept."""

    id: str
    vectors: Mapping[str, Vector]
    sparse: Mapping[str, Sparse]
    fields: Mapping[str, Field]


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """Documents to insert, update or upsert."""

    docs: Sequence[RawDoc]
    partition: str = ""


@dataclass(frozen=True, slots=True)
class DeleteRequest:
    """Documents to delete: by id, by condition, or all."""

    ids: Sequence[str] = ()
    delete_all: bool = False
    filter: str = ""
    partition: str = ""


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """Documents to read by id."""

    ids: Sequence[str]
    partition: str = ""
    output_fields: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class VectorAsk:
    """One vector to search near to: numbers, or a map of indices to weights. Zero parameters are unset."""

    value: Any
    num_candidates: int = 0
    radius: float = 0.0
    is_linear: bool = False
    ef: int = 0


@dataclass(frozen=True, slots=True)
class QueryRequest:
    """A search, also the common half of a grouped one. A vector without a name is under ""."""

    vectors: Mapping[str, VectorAsk] = field(default_factory=dict)
    sparse: Mapping[str, VectorAsk] = field(default_factory=dict)
    id: str = ""
    topk: int = DEFAULT_TOPK
    filter: str = ""
    include_vector: bool = False
    partition: str = ""
    output_fields: Sequence[str] = ()
    ranker: str = ""
    ranker_params: Mapping[str, Any] = field(default_factory=dict)
    order_by: Sequence[tuple[str, bool]] = ()


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """A grouped search."""

    query: QueryRequest
    group_by_field: str = ""
    group_count: int = 10
    group_topk: int = 10
    vector_field: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """A found document; *fields* are those asked for, *has_vectors* says whether its vectors go out too."""

    doc: Doc
    fields: Mapping[str, Field]
    score: np.float32 = field(default_factory=lambda: np.float32(0.0))
    has_vectors: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """The hits that share a field's value."""

    group_id: str
    hits: Sequence[Hit]


@dataclass(frozen=True, slots=True)
class DocResult:
    """What became of one document of a write."""

    op: str
    id: str
    code: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """What describe says."""

    spec: CollectionSpec
    status: str
    partitions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CollectionStats:
    """What stats says: visible documents by partition."""

    partitions: Mapping[str, int]

    @property
    def total(self) -> int:
        """The documents of all partitions."""
        return sum(self.partitions.values())


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of an operation: its output if it has one, and what it costs."""

    output: Any = None
    read_units: int | None = None
    write_units: int | None = None
