"""
Inserting, updating, upserting and deleting documents.

A malformed document fails the whole call; whether an id exists is judged document by document. Failing documents do
not stop the others, and the call's own code stays 0.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from tests.vendor_sim.dashvector_docs import check_doc_id, stored_doc
from tests.vendor_sim.dashvector_errors import CODES, code_name, refusal
from tests.vendor_sim.dashvector_filter import compiled
from tests.vendor_sim.dashvector_model import (
    CollectionSpec,
    DeleteRequest,
    Doc,
    DocResult,
    Field,
    RawDoc,
    Result,
    WriteRequest,
)
from tests.vendor_sim.dashvector_store import DashVectorStore

MAX_DOCS: Final = 1024
MAX_IDS: Final = 1024


@dataclass(slots=True)
class _Batch:
    """The documents as they will be, on top of those that are."""

    current: dict[str, Doc]
    changes: dict[str, Doc | None] = field(default_factory=dict)
    results: list[DocResult] = field(default_factory=list)

    def get(self, doc_id: str) -> Doc | None:
        return self.changes[doc_id] if doc_id in self.changes else self.current.get(doc_id)

    def done(self, op: str, doc_id: str, doc: Doc | None) -> None:
        self.changes[doc_id] = doc
        self.results.append(DocResult(op, doc_id))

    def failed(self, op: str, doc_id: str, code: int) -> None:
        self.results.append(DocResult(op, doc_id, code, code_name(code)))


_Step = Callable[[_Batch, Doc], None]


def insert(store: DashVectorStore, collection: str, request: WriteRequest, doc_fault: int | None = None) -> Result:
    """Add documents; an id that exists fails. A document without an id gets one."""

    def step(batch: _Batch, doc: Doc) -> None:
        if batch.get(doc.id):
            batch.failed("insert", doc.id, CODES["DuplicateKey"])
        else:
            batch.done("insert", doc.id, doc)

    return _written(store, collection, request, "insert", step, doc_fault)


def upsert(store: DashVectorStore, collection: str, request: WriteRequest, doc_fault: int | None = None) -> Result:
    """Add or replace documents."""

    def step(batch: _Batch, doc: Doc) -> None:
        batch.done("upsert", doc.id, doc)

    return _written(store, collection, request, "upsert", step, doc_fault)


def update(store: DashVectorStore, collection: str, request: WriteRequest, doc_fault: int | None = None) -> Result:
    """
    Change documents; an unknown id fails.

    Vectors that are not sent stay. Once a field is sent, the fields that are not become null (by memory of the
    vendor's page, unconfirmed); that is also where the nulls in answers come from.
    """

    def step(batch: _Batch, doc: Doc) -> None:
        old = batch.get(doc.id)
        if old is None:
            batch.failed("update", doc.id, CODES["InexistentKey"])
            return
        kept = {name: Field("", None) for name in old.fields} if doc.fields else old.fields
        vectors, sparse = {**old.vectors, **doc.vectors}, {**old.sparse, **doc.sparse}
        batch.done("update", doc.id, Doc(doc.id, vectors, sparse, {**kept, **doc.fields}))

    return _written(store, collection, request, "update", step, doc_fault)


def delete(store: DashVectorStore, collection: str, request: DeleteRequest, doc_fault: int | None = None) -> Result:
    """Delete by id, by condition, or all; an unknown id is no failure. Deleting all tells neither ids nor units."""
    batch = _Batch(store.readable(collection, request.partition).current)
    ids = _ids_to_delete(batch, request)
    for number, doc_id in enumerate(ids):
        if number == 0 and doc_fault is not None:
            batch.failed("delete", doc_id, doc_fault)
        else:
            batch.done("delete", doc_id, None)
    store.write(collection, request.partition, batch.changes)
    return Result([]) if request.delete_all else Result(batch.results, write_units=len(batch.changes))


def _ids_to_delete(batch: _Batch, request: DeleteRequest) -> list[str]:
    if request.delete_all:
        if request.ids:
            raise refusal("InvalidWriteRequest", "ids and delete_all")
        return list(batch.current)
    if len(request.ids) > MAX_IDS:
        raise refusal("ExceedIdsLimit")
    if request.ids:
        for doc_id in request.ids:
            check_doc_id(doc_id)
        return list(dict.fromkeys(request.ids))
    if not request.filter.strip():
        raise refusal("EmptyPrimaryKey")
    condition = compiled(request.filter)
    return [doc.id for doc in batch.current.values() if condition(doc.fields)]


def _written(
    store: DashVectorStore, collection: str, request: WriteRequest, op: str, step: _Step, doc_fault: int | None
) -> Result:
    if not request.docs:
        raise refusal("EmptyDocList")
    if len(request.docs) > MAX_DOCS:
        raise refusal("InvalidBatchSize")
    spec = store.serving(collection).spec
    batch = _Batch(store.readable(collection, request.partition).current)
    docs = [stored_doc(spec, _checked(spec, raw, op)) for raw in request.docs]
    for number, doc in enumerate(docs):
        if number == 0 and doc_fault is not None:
            batch.failed(op, doc.id, doc_fault)
        else:
            step(batch, doc)
    if batch.changes:
        store.write(collection, request.partition, batch.changes)
    return Result(batch.results, write_units=sum(not result.code for result in batch.results))


def _checked(spec: CollectionSpec, raw: RawDoc, op: str) -> RawDoc:
    if not raw.id and op != "update":
        raw = replace(raw, id=str(uuid.uuid4().int)[:19])
    check_doc_id(raw.id)
    if op == "update":
        if not (raw.vectors or raw.sparse or raw.fields):
            raise refusal("EmptyDocFields")
    elif not raw.vectors and not (raw.sparse and spec.sparse_vectors):
        raise refusal("InvalidRecord", "no vector")
    return raw
