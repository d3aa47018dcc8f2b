"""The eighteen operations by name, each a function of the store and what is asked."""

from collections.abc import Mapping
from typing import Final

from tests.vendor_sim import dashvector_query, dashvector_writes
from tests.vendor_sim.dashvector_docs import check_doc_id
from tests.vendor_sim.dashvector_errors import refusal
from tests.vendor_sim.dashvector_exchange import Ask, Execute
from tests.vendor_sim.dashvector_model import CollectionStats, FetchRequest, Hit, Result
from tests.vendor_sim.dashvector_partition import in_order
from tests.vendor_sim.dashvector_store import DashVectorStore


def _get_version(store: DashVectorStore, _: Ask, __: int | None) -> Result:
    return Result(store.settings.service_version)


def _list_collections(store: DashVectorStore, _: Ask, __: int | None) -> Result:
    return Result(store.names())


def _create_collection(store: DashVectorStore, ask: Ask, _: int | None) -> Result:
    store.create(ask.request)
    return Result()


def _describe_collection(store: DashVectorStore, ask: Ask, _: int | None) -> Result:
    return Result(store.info(ask.collection))


def _delete_collection(store: DashVectorStore, ask: Ask, _: int | None) -> Result:
    store.delete(ask.collection)
    return Result()


def _stats_collection(store: DashVectorStore, ask: Ask, _: int | None) -> Result:
    return Result(CollectionStats(store.doc_counts(ask.collection)))


def _list_partitions(store: DashVectorStore, ask: Ask, _: int | None) -> Result:
    return Result(store.partition_names(ask.collection))


def _create_partition(store: DashVectorStore, ask: Ask, _: int | None) -> Result:
    store.create_partition(ask.collection, ask.partition)
    return Result()


def _describe_partition(store: DashVectorStore, ask: Ask, _: int | None) -> Result:
    return Result(store.status(store.partition(ask.collection, ask.partition)))


def _stats_partition(store: DashVectorStore, ask: Ask, _: int | None) -> Result:
    return Result(store.doc_count(ask.collection, ask.partition))


def _delete_partition(store: DashVectorStore, ask: Ask, _: int | None) -> Result:
    store.delete_partition(ask.collection, ask.partition)
    return Result()


def _insert_doc(store: DashVectorStore, ask: Ask, doc_fault: int | None) -> Result:
    return dashvector_writes.insert(store, ask.collection, ask.request, doc_fault)


def _update_doc(store: DashVectorStore, ask: Ask, doc_fault: int | None) -> Result:
    return dashvector_writes.update(store, ask.collection, ask.request, doc_fault)


def _upsert_doc(store: DashVectorStore, ask: Ask, doc_fault: int | None) -> Result:
    return dashvector_writes.upsert(store, ask.collection, ask.request, doc_fault)


def _delete_doc(store: DashVectorStore, ask: Ask, doc_fault: int | None) -> Result:
    return dashvector_writes.delete(store, ask.collection, ask.request, doc_fault)


def _fetch_doc(store: DashVectorStore, ask: Ask, _: int | None) -> Result:
    request: FetchRequest = ask.request
    if not request.ids:
        raise refusal("EmptyPrimaryKey")
    if len(request.ids) > dashvector_writes.MAX_IDS:
        raise refusal("ExceedIdsLimit")
    for doc_id in request.ids:
        check_doc_id(doc_id)
    docs = in_order(store.readable(ask.collection, request.partition).visible, request.ids)
    shown = dashvector_query.shown_fields
    # Vectors always come along: the SDK never asks for them and the samples have them.
    hits = {doc.id: Hit(doc, shown(doc, request.output_fields), has_vectors=True) for doc in docs}
    return Result(hits, read_units=len(hits))


def _query_doc(store: DashVectorStore, ask: Ask, _: int | None) -> Result:
    return dashvector_query.query(store, ask.collection, ask.request)


def _query_doc_group_by(store: DashVectorStore, ask: Ask, _: int | None) -> Result:
    return dashvector_query.query_group_by(store, ask.collection, ask.request)


OPERATIONS: Final[Mapping[str, Execute]] = {
    "create_collection": _create_collection,
    "delete_collection": _delete_collection,
    "describe_collection": _describe_collection,
    "list_collections": _list_collections,
    "stats_collection": _stats_collection,
    "create_partition": _create_partition,
    "delete_partition": _delete_partition,
    "describe_partition": _describe_partition,
    "stats_partition": _stats_partition,
    "list_partitions": _list_partitions,
    "insert_doc": _insert_doc,
    "update_doc": _update_doc,
    "upsert_doc": _upsert_doc,
    "delete_doc": _delete_doc,
    "query_doc": _query_doc,
    "query_doc_group_by": _query_doc_group_by,
    "fetch_doc": _fetch_doc,
    "get_version": _get_version,
}
