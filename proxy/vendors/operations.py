"""
The table of operations: everything that the rest of the house asks about one.

An operation that is not here has no lifetime, no label and no switch, so nothing of it can be kept. A vendor's adapter
says which requests are which operation.
"""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Kind(StrEnum):
    """The effect of an operation on the vendor's data."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Operation:
    """
    One operation.

    *lifetime* is the name of its setting under ``lifetimes``, *lifetime_s* that setting's default; both are empty for
    writes. *named_by* is what its answers can be purged by, beside upstream and operation.
    """

    name: str
    vendor: str
    kind: Kind
    items: str
    """The things of which one request asks for one or several."""
    named_by: str
    lifetime: str = ""
    lifetime_s: float = 0.0
    is_versioned: bool = False
    """Whether writes make its answers stale; such answers are never kept in memory nor served past their lifetime."""
    is_billed_by_token: bool = False

    @property
    def is_switchable(self) -> bool:
        """Whether a mode can name it. In every mode a write is forwarded, and makes stale what it changes."""
        return self.kind is Kind.READ


_DAY_S = 86_400.0

EMBEDDING = Operation(
    "embedding", "dashscope", Kind.READ, "texts", "model", "embedding_s", 7 * _DAY_S, is_billed_by_token=True
)
VECTOR_QUERY = Operation(
    "vector-query", "dashvector", Kind.READ, "queries", "collection", "vector_query_s", 3_600.0, is_versioned=True
)
"""Queries, grouped queries and fetches: what documents say."""
VECTOR_STATS = Operation(
    "vector-stats", "dashvector", Kind.READ, "questions", "collection", "vector_stats_s", 1_800.0, is_versioned=True
)
"""Statistics, descriptions, lists and the service's version: what is told about collections."""
VECTOR_WRITE = Operation("vector-write", "dashvector", Kind.WRITE, "writes", "collection")
"""Whatever is not known to be one of the others."""

OPERATIONS = MappingProxyType(
    {operation.name: operation for operation in (EMBEDDING, VECTOR_QUERY, VECTOR_STATS, VECTOR_WRITE)}
)
"""All of them, by name, in the order in which they are shown."""


def of_vendor(vendor: str) -> tuple[str, ...]:
    """The names of the operations of *vendor*."""
    return tuple(operation.name for operation in OPERATIONS.values() if operation.vendor == vendor)


def switchable() -> tuple[str, ...]:
    """The names of the operations that a mode can name."""
    return tuple(operation.name for operation in OPERATIONS.values() if operation.is_switchable)


def named_by(what: str) -> tuple[str, ...]:
    """The names of the operations whose answers can be purged by *what*: ``model`` or ``collection``."""
    return tuple(operation.name for operation in OPERATIONS.values() if operation.named_by == what)
