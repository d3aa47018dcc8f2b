"""
Every operation of the vendor as one value, and how it is written in each protocol; answers in one form for both.

Raw HTTP and raw gRPC messages: what comes back is looked at, not what a client library makes of it.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from yarl import URL

from tests.consistency.vendor import FIELDS
from tests.vendor_sim.dashvector_package import pb
from tests.vendor_sim.dashvector_proto import SERVICE, message_types

Protocol = Literal["http", "grpc"]
PROTOCOLS: tuple[Protocol, ...] = ("http", "grpc")
READS = (
    "query_doc",
    "query_doc_group_by",
    "fetch_doc",
    "stats_collection",
    "describe_collection",
    "list_partitions",
    "list_collections",
    "get_version",
)
"""Those that need no partition."""
DOCUMENTS = frozenset({"query_doc", "query_doc_group_by", "fetch_doc"})
_NAMED = frozenset({"create_collection", "delete_collection", "describe_collection"})
_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Call:
    """One operation; a write makes documents of *version*."""

    operation: str
    collection: str = ""
    partition: str = ""
    version: int = 0
    docs: tuple[str, ...] = ("a",)
    dimension: int = 2

    @property
    def vector(self) -> list[float]:
        """What is written, and what is searched for."""
        return [1.0] + [0.0] * (self.dimension - 1)


@dataclass(frozen=True, slots=True)
class Answer:
    """*status* is 200 for a gRPC call that went well, else the gRPC code; *output* is without ids that differ."""

    protocol: Protocol
    status: int
    code: int | None
    cache: str
    output: Any
    versions: dict[str, int]
    marks: dict[str, str] = field(default_factory=dict)
    """All header lines or trailing metadata."""

    @property
    def is_hit(self) -> bool:
        """Whether it came from the cache."""
        return self.cache.startswith("dashcache; hit")

    @property
    def is_success(self) -> bool:
        """Whether the vendor says that all is well."""
        return self.status == 200 and self.code == 0

    @property
    def version(self) -> int:
        """The version of document ``a``."""
        return self.versions["a"]


# --- HTTP -------------------------------------------------------------------------------------------------------------


def http_form(call: Call) -> tuple[str, str, dict[str, Any] | None]:
    """Method, target and body."""
    root = "/v1/collections"
    one = f"{root}/{call.collection}"
    partition = f"{one}/partitions/{call.partition}"
    documents = {"docs": [_http_doc(call, doc) for doc in call.docs], "partition": call.partition or None}
    near = {"vector": call.vector, **({"partition": call.partition} if call.partition else {})}
    wanted = f"ids={','.join(call.docs)}" + (f"&partition={call.partition}" if call.partition else "")
    forms: dict[str, tuple[str, str, dict[str, Any] | None]] = {
        "get_version": ("GET", "/service_version", None),
        "list_collections": ("GET", root, None),
        "create_collection": (
            "POST",
            root,
            {"name": call.collection, "dimension": call.dimension, "fields_schema": FIELDS},
        ),
        "describe_collection": ("GET", one, None),
        "delete_collection": ("DELETE", one, None),
        "stats_collection": ("GET", f"{one}/stats", None),
        "list_partitions": ("GET", f"{one}/partitions", None),
        "create_partition": ("POST", f"{one}/partitions", {"name": call.partition}),
        "describe_partition": ("GET", partition, None),
        "stats_partition": ("GET", f"{partition}/stats", None),
        "delete_partition": ("DELETE", partition, None),
        "insert_doc": ("POST", f"{one}/docs", documents),
        "update_doc": ("PUT", f"{one}/docs", documents),
        "upsert_doc": ("POST", f"{one}/docs/upsert", documents),
        "delete_doc": ("DELETE", f"{one}/docs", {"ids": list(call.docs), "partition": call.partition or None}),
        "fetch_doc": ("GET", f"{one}/docs?{wanted}", None),
        "query_doc": ("POST", f"{one}/query", {**near, "topk": 10}),
        "query_doc_group_by": ("POST", f"{one}/query_group_by", {**near, "group_by_field": "kind", "group_count": 10}),
    }
    return forms[call.operation]


def _http_doc(call: Call, doc: str) -> dict[str, Any]:
    return {"id": doc, "vector": call.vector, "fields": {"version": call.version, "kind": doc}}


def _http_answer(operation: str, status: int, headers: dict[str, str], body: bytes) -> Answer:
    cache = headers.get("cache-status", "")
    try:
        document = json.loads(body)
    except ValueError:
        return Answer("http", status, None, cache, body, {}, headers)
    if not isinstance(document, dict):
        return Answer("http", status, None, cache, document, {}, headers)
    output = document.get("output", document.get("version"))
    versions = _http_versions(operation, output)
    return Answer("http", status, document.get("code"), cache, output, versions, headers)


def _http_versions(operation: str, output: Any) -> dict[str, int]:
    if operation == "query_doc_group_by":
        found = [doc for group in output or () for doc in group["docs"]]
    elif operation in DOCUMENTS:
        found = list(output.values() if isinstance(output, dict) else output or ())
    else:
        return {}
    return {doc["id"]: doc["fields"]["version"] for doc in found}


# --- gRPC -------------------------------------------------------------------------------------------------------------


def grpc_form(call: Call) -> tuple[str, bytes, tuple[tuple[str, str], ...]]:
    """The method's full name, the message, and the metadata."""
    request, _ = message_types(call.operation)
    metadata = (("collection-name", call.collection),) if call.collection and call.operation not in _NAMED else ()
    return f"/{SERVICE}/{call.operation}", request(**_members(call)).SerializeToString(), metadata


def _members(call: Call) -> dict[str, Any]:
    operation = call.operation
    if operation == "create_collection":
        kinds = {name: pb.FieldType.Value(kind) for name, kind in FIELDS.items()}
        return {"name": call.collection, "dimension": call.dimension, "metric": 2, "fields_schema": kinds}
    if operation in _NAMED:
        return {"name": call.collection}
    if operation.endswith("_partition"):
        return {"name": call.partition}
    vector = pb.Vector(float_vector=pb.Vector.FloatVector(values=call.vector))
    if operation in ("insert_doc", "update_doc", "upsert_doc"):
        docs = [pb.Doc(id=doc, vector=vector, fields=_fields(call, doc)) for doc in call.docs]
        return {"docs": docs, "partition": call.partition}
    if operation in ("delete_doc", "fetch_doc"):
        return {"ids": list(call.docs), "partition": call.partition}
    if operation == "query_doc":
        return {"vector": vector, "topk": 10, "partition": call.partition}
    if operation == "query_doc_group_by":
        return {"vector": vector, "group_by_field": "kind", "group_count": 10, "partition": call.partition}
    return {}


def _fields(call: Call, doc: str) -> dict[str, Any]:
    return {"version": pb.FieldValue(int_value=call.version), "kind": pb.FieldValue(string_value=doc)}


def grpc_answer(operation: str, status: int, marks: dict[str, str], body: bytes) -> Answer:
    """The answer of a call; *status* is 200 when it went well, else the gRPC code."""
    cache = marks.get("cache-status", "")
    if status != 200:
        return Answer("grpc", status, None, cache, None, {}, marks)
    try:
        message = message_types(operation)[1].FromString(body)
    except (KeyError, DecodeError):  # an unknown operation; no message
        return Answer("grpc", status, None, cache, body, {}, marks)
    return Answer("grpc", status, message.code, cache, *_outputs(operation, message), marks)


def _outputs(operation: str, message: Any) -> tuple[Any, dict[str, int]]:
    if operation == "query_doc_group_by":
        found = [doc for group in message.output for doc in group.docs]
    elif operation == "fetch_doc":
        found = [message.output[name] for name in sorted(message.output)]
    elif operation == "query_doc":
        found = list(message.output)
    else:
        message.request_id = ""
        return str(message), {}
    versions = {doc.id: doc.fields["version"].int_value for doc in found}
    return [(doc.id, versions[doc.id], doc.score) for doc in found], versions


# --- clients ----------------------------------------------------------------------------------------------------------


class Clients:
    """One HTTP session and one gRPC channel for each address; made in the loop that uses them."""

    def __init__(self) -> None:
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=_LIMIT_S)
        )
        self._channels: dict[str, Any] = {}

    def channel(self, address: str) -> Any:
        """The channel to *address*."""
        if address not in self._channels:
            # Channels of one process share connections otherwise, even with what has ended.
            options = (("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100))
            self._channels[address] = grpc.aio.insecure_channel(address, options=options)
        return self._channels[address]

    async def close(self) -> None:
        """End all connections."""
        await self.session.close()
        for channel in self._channels.values():
            await channel.close()


@dataclass(frozen=True, slots=True)
class Door:
    """One way in: where, by which protocol, as whom."""

    clients: Clients
    protocol: Protocol
    http_url: str
    grpc_address: str
    token: str

    def by(self, token: str) -> "Door":
        """The same door for somebody else."""
        return dataclasses.replace(self, token=token)

    async def ask(self, call: Call, *, timeout_s: float | None = _LIMIT_S, agent: str = "") -> Answer:
        """Make the call; *agent* goes along where it tells answers apart for nobody but the vendor."""
        marks = {"x-user-agent": agent} if agent else {}
        if self.protocol == "http":
            method, target, body = http_form(call)
            return await self.http(method, target, body, marks, operation=call.operation)
        method, message, metadata = grpc_form(call)
        metadata = (*metadata, *marks.items())
        return await self.grpc(method, message, metadata, operation=call.operation, timeout_s=timeout_s)

    async def http(
        self,
        method: str,
        target: str,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        *,
        operation: str = "",
    ) -> Answer:
        """One HTTP request as given."""
        lines = {
            "dashvector-auth-token": self.token,
            **({"content-type": "application/json"} if body is not None else {}),
            **(headers or {}),
        }
        data = None if body is None else json.dumps(body).encode()
        url = URL(self.http_url + target, encoded=True)
        async with self.clients.session.request(method, url, data=data, headers=lines) as answer:
            told = {name.lower(): value for name, value in answer.headers.items()}
            return _http_answer(operation, answer.status, told, await answer.read())

    async def grpc(
        self,
        method: str,
        message: bytes,
        metadata: tuple[tuple[str, str], ...] = (),
        *,
        operation: str = "",
        timeout_s: float | None = _LIMIT_S,
    ) -> Answer:
        """One gRPC call as given."""
        call = self.clients.channel(self.grpc_address).unary_unary(method)(
            message, metadata=(("dashvector-auth-token", self.token), *metadata), timeout=timeout_s, wait_for_ready=True
        )
        try:
            body = await call
        except grpc.aio.AioRpcError as error:
            marks = {name: str(value) for name, value in error.trailing_metadata() or ()}
            return grpc_answer(operation, error.code().value[0], marks, b"")
        marks = {name: str(value) for name, value in await call.trailing_metadata()}
        return grpc_answer(operation, 200, marks, body)
