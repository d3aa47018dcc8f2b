"""Queries: what is asked is checked against the schema, candidates are filtered, ranked, merged and cut."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from tests.vendor_sim.dashvector_docs import resolved, stored_sparse, stored_vector
from tests.vendor_sim.dashvector_errors import refusal
from tests.vendor_sim.dashvector_filter import compiled
from tests.vendor_sim.dashvector_model import (
    SINGLE,
    CollectionSpec,
    Doc,
    Field,
    Group,
    GroupRequest,
    Hit,
    QueryRequest,
    Result,
    VectorAsk,
)
from tests.vendor_sim.dashvector_search import (
    RRF_CONSTANT,
    Ranking,
    Scored,
    dense_scores,
    fused_by_rank,
    fused_by_weight,
    ranking,
    sparse_score,
)
from tests.vendor_sim.dashvector_store import DashVectorStore

MAX_TOPK: Final = 1024
_MAX_GROUP_TOPK: Final = 16
_MAX_GROUP_COUNT: Final = 64
# What the samples show: four units per vector, one without.
_UNITS_PER_VECTOR: Final = 4


def query(store: DashVectorStore, collection: str, request: QueryRequest) -> Result:
    """Search one partition."""
    search = _Search(store, collection, request)
    if not 1 <= request.topk <= MAX_TOPK:
        raise refusal("InvalidTopk")
    _check_order(search.spec, request)
    order = _ordering(request.order_by)
    if not search.is_vector_search:
        docs = order(search.candidates)[: request.topk]
        return Result([search.hit(Scored(doc, np.float32(0.0))) for doc in docs], read_units=1)
    hits = search.merged()[: request.topk]
    by_id = {hit.doc.id: hit for hit in hits}
    ordered = [by_id[doc.id] for doc in order([hit.doc for hit in hits])]
    return Result([search.hit(hit) for hit in ordered], read_units=_UNITS_PER_VECTOR * search.vector_count)


def query_group_by(store: DashVectorStore, collection: str, request: GroupRequest) -> Result:
    """Search one partition and group what is found by a declared field; groups in the order of their best hit."""
    asked = request.query
    search = _Search(store, collection, asked, vector_field=request.vector_field)
    kind = search.spec.fields.get(request.group_by_field, "")
    if not kind or kind.startswith("ARRAY_"):
        raise refusal("InvalidGroupBy", "the field must be declared and no array")
    if request.group_topk < 1 or (asked.include_vector and request.group_topk > _MAX_GROUP_TOPK):
        raise refusal("InvalidGroupBy", "group_topk")
    if request.group_count < 1 or (asked.include_vector and request.group_count > _MAX_GROUP_COUNT):
        raise refusal("InvalidGroupBy", "group_count")
    if not search.is_vector_search:
        raise refusal("UnsupportedCondition", "a vector or an id is needed")
    groups: dict[str, list[Hit]] = {}
    for hit in search.merged(every=True):
        value = hit.doc.fields.get(request.group_by_field, Field("", None)).value
        if value is None:
            continue
        name = str(value).lower() if isinstance(value, bool) else str(value)
        if name in groups or len(groups) < request.group_count:
            members = groups.setdefault(name, [])
            if len(members) < request.group_topk:
                members.append(search.hit(hit))
    return Result([Group(name, members) for name, members in groups.items()])


def shown_fields(doc: Doc, output_fields: Sequence[str]) -> Mapping[str, Field]:
    """The fields that were asked for; naming none means all."""
    if not output_fields:
        return doc.fields
    return {name: field for name, field in doc.fields.items() if name in output_fields}


@dataclass(frozen=True, slots=True)
class _Dense:
    ask: VectorAsk
    value: Any


class _Search:
    """One query at work."""

    def __init__(
        self, store: DashVectorStore, collection: str, request: QueryRequest, *, vector_field: str = ""
    ) -> None:
        self.spec = store.serving(collection).spec
        self._request = request
        visible = store.readable(collection, request.partition).visible
        if request.id and (request.vectors or request.sparse):
            raise refusal("ExistVectorAndId")
        if request.id:
            if request.id not in visible:
                raise refusal("InexistentKey")
            request = _near_to(visible[request.id], vector_field)
        elif vector_field:
            request = replace(request, vectors={vector_field: request.vectors[""]} if request.vectors else {})
        self._dense = {resolved(self.spec, name): self._checked(name, ask) for name, ask in request.vectors.items()}
        self._sparse = {name: self._checked_sparse(name, ask) for name, ask in request.sparse.items()}
        self.candidates = _filtered(list(visible.values()), self._request.filter)

    @property
    def is_vector_search(self) -> bool:
        """Whether anything is searched near to."""
        return bool(self._dense or self._sparse)

    @property
    def vector_count(self) -> int:
        """How many vectors are compared; the unnamed sparse vector goes with the dense one."""
        return max(1, len(self._dense) + len(self._sparse.keys() - {""}))

    def merged(self, *, every: bool = False) -> list[Scored]:
        """The hits of all vectors in one order; *every* ignores topk."""
        limit = len(self.candidates) if every else self._request.topk
        # By name, because the order of a protobuf map is chance and would decide between equals.
        rankings = {name: self._dense_ranking(name, one, limit) for name, one in sorted(self._dense.items())}
        for name, one in sorted(self._sparse.items()):
            if name or not self._dense:
                rankings[name] = self._sparse_ranking(name, one, limit)
        if len(rankings) == 1:
            return list(next(iter(rankings.values())).hits)
        return self._fused(rankings)

    def hit(self, scored: Scored) -> Hit:
        """*scored* with what the request wants to see."""
        fields = shown_fields(scored.doc, self._request.output_fields)
        return Hit(scored.doc, fields, scored.score, self._request.include_vector)

    def _checked(self, name: str, ask: VectorAsk) -> _Dense:
        _check_parameters(ask)
        return _Dense(ask, stored_vector(self.spec.vectors[resolved(self.spec, name)], ask.value))

    def _checked_sparse(self, name: str, ask: VectorAsk) -> _Dense:
        _check_parameters(ask)
        # The reserved name means the unnamed vector here as well.
        return _Dense(ask, stored_sparse(self.spec, "" if name == SINGLE else name, ask.value))

    def _dense_ranking(self, name: str, one: _Dense, limit: int) -> Ranking:
        metric = self.spec.vectors[name].metric
        docs = [doc for doc in self.candidates if name in doc.vectors]
        if not docs:
            return Ranking(metric, [])
        scores = dense_scores(metric, one.value, [doc.vectors[name] for doc in docs])
        hits = [Scored(doc, score) for doc, score in zip(docs, scores, strict=True)]
        extra = self._sparse.get("")
        if extra:
            hits = [Scored(doc, score + sparse_score(extra.value, doc.sparse.get("", {}))) for doc, score in hits]
        return ranking(metric, hits, max(limit, one.ask.num_candidates), one.ask.radius)

    def _sparse_ranking(self, name: str, one: _Dense, limit: int) -> Ranking:
        docs = [doc for doc in self.candidates if name in doc.sparse]
        hits = [Scored(doc, sparse_score(one.value, doc.sparse[name])) for doc in docs]
        return ranking("dotproduct", hits, max(limit, one.ask.num_candidates), one.ask.radius)

    def _fused(self, rankings: Mapping[str, Ranking]) -> list[Scored]:
        parameters = self._request.ranker_params
        if self._request.ranker in ("", "rrf"):
            return fused_by_rank(rankings, _rank_constant(parameters.get("rank_constant", RRF_CONSTANT)))
        if self._request.ranker == "weighted":
            return fused_by_weight(rankings, _weights(parameters.get("weights", "{}")))
        raise refusal("InvalidQuery", f"ranker {self._request.ranker}")


def _near_to(doc: Doc, vector_field: str) -> QueryRequest:
    vectors = {name: vector for name, vector in doc.vectors.items() if vector_field in ("", name)}
    sparse = {} if vector_field else doc.sparse
    return QueryRequest(
        vectors={name: VectorAsk(vector.tolist()) for name, vector in vectors.items()},
        sparse={name: VectorAsk(weights) for name, weights in sparse.items()},
    )


def _filtered(docs: list[Doc], text: str) -> list[Doc]:
    if not text.strip():
        return docs
    condition = compiled(text)
    return [doc for doc in docs if condition(doc.fields)]


def _check_parameters(ask: VectorAsk) -> None:
    if not isinstance(ask.num_candidates, int) or not 0 <= ask.num_candidates <= MAX_TOPK:
        raise refusal("InvalidTopk", "num_candidates")
    if isinstance(ask.radius, bool) or not isinstance(ask.radius, int | float) or not math.isfinite(ask.radius):
        raise refusal("InvalidRadius")
    if not isinstance(ask.is_linear, bool):
        raise refusal("InvalidLinear")
    if not isinstance(ask.ef, int) or ask.ef < 0:
        raise refusal("InvalidArgument", "ef")


def _rank_constant(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise refusal("InvalidQuery", "rank_constant") from None


def _weights(text: Any) -> Mapping[str, float]:
    try:
        return {str(name): float(weight) for name, weight in json.loads(text).items()}
    except (AttributeError, TypeError, ValueError):
        raise refusal("InvalidQuery", "weights") from None


def _check_order(spec: CollectionSpec, request: QueryRequest) -> None:
    for name, _ in request.order_by:
        if name not in spec.fields:
            raise refusal("InexistentColumn", name)
        if request.output_fields and name not in request.output_fields:
            raise refusal("OrderbyNotInSelectItems", name)


def _ordering(order_by: Sequence[tuple[str, bool]]) -> Callable[[list[Doc]], list[Doc]]:
    """Sort by the last field first: the sort is stable. Null comes last either way."""

    def ordered(docs: list[Doc]) -> list[Doc]:
        for name, is_descending in reversed(order_by):
            values = [(doc.fields[name].value if name in doc.fields else None, doc) for doc in docs]
            known = sorted((pair for pair in values if pair[0] is not None), key=_first, reverse=is_descending)
            docs = [doc for _, doc in known] + [doc for value, doc in values if value is None]
        return docs

    return ordered


def _first(pair: tuple[Any, Doc]) -> Any:
    return pair[0]
