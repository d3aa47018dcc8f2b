"""
Nearest neighbours, exactly: scores in float32, rankings, and the two ways to merge rankings.

A score depends on the two vectors alone, not on how many others are compared, so tests can work it out beforehand.
Cosine and euclidean are distances (euclidean squared), smaller is nearer; dotproduct is a product, larger is nearer.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tests.vendor_sim.dashvector_model import Doc, Sparse, Vector

Floats = npt.NDArray[np.float32]
RRF_CONSTANT: Final = 60


class Scored(NamedTuple):
    """A document and its score in one ranking."""

    doc: Doc
    score: np.float32


class Ranking(NamedTuple):
    """The documents for one vector, nearest first."""

    metric: str
    hits: Sequence[Scored]


def dense_scores(metric: str, query: Vector, vectors: Sequence[Vector]) -> Floats:
    """The score of each of *vectors*."""
    matrix = np.stack([vector.astype(np.float32) for vector in vectors])
    asked = query.astype(np.float32)
    if metric == "euclidean":
        return _row_sums(np.square(matrix - asked))
    # Not a matrix product: its rounding of one row would depend on the other rows.
    products = _row_sums(matrix * asked)
    if metric == "dotproduct":
        return products
    lengths = np.sqrt(_row_sums(np.square(matrix))) * np.sqrt(_row_sums(np.square(asked)[np.newaxis, :]))
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    distances: Floats = np.maximum(np.float32(1.0) - cosines, np.float32(0.0))
    return distances


def _row_sums(matrix: Floats) -> Floats:
    sums: Floats = np.add.reduce(matrix, axis=1, dtype=np.float32)
    return sums


def sparse_score(query: Sparse, weights: Sparse) -> np.float32:
    """The product of two sparse vectors, summed in the order of the indices."""
    total = np.float32(0.0)
    for index in sorted(query.keys() & weights.keys()):
        total += np.float32(query[index]) * np.float32(weights[index])
    return total


def ranking(metric: str, hits: Sequence[Scored], limit: int, radius: float = 0.0) -> Ranking:
    """The best *limit* of *hits* within *radius* (0 is none); equals keep their order."""
    bound = np.float32(radius)
    is_product = metric == "dotproduct"
    if radius:
        hits = [hit for hit in hits if (hit.score >= bound if is_product else hit.score <= bound)]
    ordered = sorted(hits, key=lambda hit: -hit.score if is_product else hit.score)
    return Ranking(metric, ordered[:limit])


def fused_by_rank(rankings: Mapping[str, Ranking], constant: int = RRF_CONSTANT) -> list[Scored]:
    """Reciprocal rank fusion: places count, scores do not."""
    return _fused(
        {
            name: [(hit.doc, 1.0 / (constant + place)) for place, hit in enumerate(one.hits, 1)]
            for name, one in rankings.items()
        }
    )


def fused_by_weight(rankings: Mapping[str, Ranking], weights: Mapping[str, float]) -> list[Scored]:
    """The weighted sum of scores brought between 0 and 1, larger is nearer; a vector without a weight counts 1."""
    return _fused(
        {
            name: [(hit.doc, weights.get(name, 1.0) * _normalised(one.metric, float(hit.score))) for hit in one.hits]
            for name, one in rankings.items()
        }
    )


def _normalised(metric: str, score: float) -> float:
    if metric == "cosine":
        return 1.0 - score / 2.0
    angle = math.atan(score) / math.pi
    return 0.5 + angle if metric == "dotproduct" else 1.0 - 2.0 * angle


def _fused(parts: Mapping[str, Sequence[tuple[Doc, float]]]) -> list[Scored]:
    docs: dict[str, Doc] = {}
    totals: dict[str, float] = {}
    for part in parts.values():
        for doc, share in part:
            docs[doc.id] = doc
            totals[doc.id] = totals.get(doc.id, 0.0) + share
    ordered = sorted(totals, key=lambda doc_id: -totals[doc_id])
    return [Scored(docs[doc_id], np.float32(totals[doc_id])) for doc_id in ordered]
