"""DashVector's HTTP side: paths, headers, gzip, and the answers that faults spoil."""

import zlib
from typing import Final

from aiohttp import web

from tests.vendor_sim.dashvector_exchange import Ask, DashVectorState, Exchange, Outcome, new_request_id
from tests.vendor_sim.dashvector_json import encoded
from tests.vendor_sim.dashvector_model import Result
from tests.vendor_sim.dashvector_operations import OPERATIONS
from tests.vendor_sim.dashvector_recorder import DashVectorRecord
from tests.vendor_sim.dashvector_requests import decoded
from tests.vendor_sim.exchange import read_object
from tests.vendor_sim.gateway import Handler
from tests.vendor_sim.reply import accepts_gzip

_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_COLLECTION: Final = "/v1/collections/{collection}"
_PARTITION: Final = _COLLECTION + "/partitions/{partition}"

ROUTES: Final = (
    ("GET", "/service_version", "get_version"),
    ("GET", "/v1/collections", "list_collections"),
    ("POST", "/v1/collections", "create_collection"),
    ("GET", _COLLECTION, "describe_collection"),
    ("DELETE", _COLLECTION, "delete_collection"),
    ("GET", _COLLECTION + "/stats", "stats_collection"),
    ("POST", _COLLECTION + "/docs", "insert_doc"),
    ("PUT", _COLLECTION + "/docs", "update_doc"),
    ("POST", _COLLECTION + "/docs/upsert", "upsert_doc"),
    ("DELETE", _COLLECTION + "/docs", "delete_doc"),
    ("GET", _COLLECTION + "/docs", "fetch_doc"),
    ("POST", _COLLECTION + "/query", "query_doc"),
    ("POST", _COLLECTION + "/query_group_by", "query_doc_group_by"),
    ("GET", _COLLECTION + "/partitions", "list_partitions"),
    ("POST", _COLLECTION + "/partitions", "create_partition"),
    ("GET", _PARTITION, "describe_partition"),
    ("GET", _PARTITION + "/stats", "stats_partition"),
    ("DELETE", _PARTITION, "delete_partition"),
)


def add_dashvector_routes(app: web.Application, state: DashVectorState) -> None:
    """Put DashVector's paths onto *app*."""
    server = _HttpServer(state)
    for method, path, operation in ROUTES:
        app.router.add_route(method, path, server.handler(operation))


def add_unknown_route(app: web.Application, state: DashVectorState) -> None:
    """Answer every other path with 404, for an application that has no other vendor."""
    app.router.add_route("*", "/{path:.*}", _HttpServer(state).handler("unknown"))


class _HttpServer:
    """Makes handlers; one exchange for all."""

    def __init__(self, state: DashVectorState) -> None:
        self._state = state
        self._exchange = Exchange(state)

    def handler(self, operation: str) -> Handler:
        execute = OPERATIONS.get(operation, _nothing)

        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            record = _record(operation, request, body)
            match = request.match_info

            def decode() -> Ask:
                query = request.raw_path.partition("?")[2]
                return decoded(operation, match.get("collection", ""), match.get("partition", ""), query, body)

            outcome = await self._exchange.run(record, decode, execute, is_version=operation == "get_version")
            if operation == "unknown" and not outcome.code:
                outcome = Outcome(outcome.request_id, 404, "NotFound", http_status=404)
            return await self._reply(request, record, outcome)

        return handle

    async def _reply(self, request: web.Request, record: DashVectorRecord, outcome: Outcome) -> web.StreamResponse:
        record.status = outcome.http_status
        if outcome.wrong == "disconnect":
            _cut_off(request)
            return web.Response(status=500)
        body = encoded(record.operation, outcome, counts_are_text=self._state.settings.counts_are_text)
        if outcome.wrong == "not_json":
            body = b"<html><body>502 Bad Gateway</body></html>"
        elif outcome.wrong == "empty_body":
            body = b""
        response = web.StreamResponse(status=outcome.http_status)
        response.headers["content-type"] = "application/json; charset=utf-8"
        if body and accepts_gzip(request.headers):
            response.headers["content-encoding"] = "gzip"
            packer = zlib.compressobj(self._state.settings.gzip_level, zlib.DEFLATED, _GZIP_WINDOW)
            body = packer.compress(body) + packer.flush()
        response.content_length = len(body)
        await response.prepare(request)
        if outcome.wrong == "truncated_body":
            await response.write(body[: len(body) // 2])
            _cut_off(request)
            return response
        await response.write(body)
        await response.write_eof()
        record.is_finished = True
        return response


def _nothing(*_: object) -> Result:
    return Result()


def _record(operation: str, request: web.Request, body: bytes) -> DashVectorRecord:
    peer = request.transport.get_extra_info("peername") if request.transport else None
    collection = request.match_info.get("collection", "")
    if operation == "create_collection":
        collection = str((read_object(body) or {}).get("name", ""))
    return DashVectorRecord(
        protocol="http",
        operation=operation,
        method=request.method,
        target=request.raw_path,
        metadata=tuple(request.raw_headers),
        request_id=new_request_id(),
        collection=collection,
        peer=f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "",
        body=body,
    )


def _cut_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()
