"""
DashVector's gRPC side: a server of generic handlers that see the bytes as they came.

Bytes in, bytes out, because records keep what was on the wire and because faults send what is no message.
"""

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError

from tests.vendor_sim.dashvector_errors import grpc_status_name, refusal
from tests.vendor_sim.dashvector_exchange import Ask, DashVectorState, Exchange, Outcome, new_request_id
from tests.vendor_sim.dashvector_operations import OPERATIONS
from tests.vendor_sim.dashvector_proto import SERVICE, decoded, message_types
from tests.vendor_sim.dashvector_proto_answers import encoded
from tests.vendor_sim.dashvector_recorder import DashVectorRecord

COLLECTION_HEADER: Final = "collection-name"
_MAX_MESSAGE_BYTES: Final = 128 * 1024 * 1024
_NAMED_IN_MESSAGE: Final = frozenset({"create_collection", "delete_collection", "describe_collection"})
_OPTIONS: Final = (
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # The SDK pings every 60 s, calls or not; a server's own default of 300 s would end its connections.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Two simulators on one port would share its connections.
    ("grpc.so_reuseport", 0),
)
_STOP_S: Final = 0.2

Serve = Callable[[bytes, Any], Awaitable[bytes]]


class DashVectorGrpcServer:
    """One server on one port, in the running loop."""

    def __init__(self, state: DashVectorState) -> None:
        self._handlers = _Handlers(state)
        self._server: Any = None

    async def start(self, port: int, host: str, credentials: Any = None) -> int:
        """Listen and return the port; with *credentials* TLS, else plain text."""
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers((self._handlers,))
        address = f"{host}:{port}"
        if credentials is None:
            bound: int = self._server.add_insecure_port(address)
        else:
            bound = self._server.add_secure_port(address, credentials)
        await self._server.start()
        return bound

    async def stop(self) -> None:
        """End all connections; may be called twice."""
        if self._server is not None:
            await self._server.stop(_STOP_S)
            self._server = None


def tls_credentials(certificate: Path, key: Path) -> Any:
    """Credentials for `DashVectorGrpcServer.start` from PEM files."""
    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a method; for an unknown one there is none, which gRPC answers with UNIMPLEMENTED."""

    def __init__(self, state: DashVectorState) -> None:
        self._state = state
        self._exchange = Exchange(state)

    def service(self, handler_call_details: Any) -> Any:
        method: str = handler_call_details.method
        metadata = _pairs(handler_call_details.invocation_metadata)
        service, _, operation = method.removeprefix("/").partition("/")
        if service != SERVICE or operation not in OPERATIONS:
            record = DashVectorRecord("grpc", "unknown", "unary", method, metadata, new_request_id())
            record.status = "UNIMPLEMENTED"
            self._state.recorder.arrived(record, keep=self._state.settings.records)
            return None
        return grpc.unary_unary_rpc_method_handler(self._serve(operation, method, metadata))

    def _serve(self, operation: str, method: str, metadata: tuple[tuple[bytes, bytes], ...]) -> Serve:
        async def serve(body: bytes, context: Any) -> bytes:
            record = DashVectorRecord(
                "grpc", operation, "unary", method, metadata, new_request_id(), peer=context.peer(), body=body
            )
            message = _parsed(operation, body)
            named = message.name if message is not None and operation in _NAMED_IN_MESSAGE else None
            record.collection = (record.header(COLLECTION_HEADER) or "") if named is None else named

            def decode() -> Ask:
                if message is None:
                    raise refusal("PbToSqlInfoError")
                return decoded(operation, record.collection, message)

            outcome = await self._exchange.run(
                record, decode, OPERATIONS[operation], is_version=operation == "get_version"
            )
            return await self._reply(record, outcome, context)

        return serve

    async def _reply(self, record: DashVectorRecord, outcome: Outcome, context: Any) -> bytes:
        status = outcome.grpc_status
        if outcome.wrong == "disconnect":
            # A handler cannot cut a connection that others share; this is what the client's library would report.
            record.status = "UNAVAILABLE"
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if status is None and outcome.code and self._state.settings.grpc_refusals == "status":
            status = grpc_status_name(outcome.code)
        if status is not None and status != "OK":
            await self._fail(record, outcome, status, context)
        record.status = "OK"
        record.is_finished = True
        return _spoiled(encoded(record.operation, outcome), outcome)

    async def _fail(self, record: DashVectorRecord, outcome: Outcome, status: str, context: Any) -> None:
        metadata: tuple[tuple[str, str], ...] = ()
        if outcome.has_trailers:
            metadata = (("request-id", outcome.request_id),)
            if outcome.has_extra_code:
                metadata = (*metadata, ("extra-code", str(outcome.code)))
        places = self._state.settings.grpc_failure_metadata
        if metadata and "initial" in places:
            await context.send_initial_metadata(metadata)
        record.status = status
        record.is_finished = True
        trailers = metadata if "trailing" in places else ()
        await context.abort(grpc.StatusCode[status], outcome.message, trailers)


def _parsed(operation: str, body: bytes) -> Any:
    """The message in *body*; None when it is none."""
    message = message_types(operation)[0]()
    try:
        message.ParseFromString(body)
    except DecodeError:
        return None
    return message


def _spoiled(body: bytes, outcome: Outcome) -> bytes:
    if outcome.wrong == "truncated_body":
        return body[: len(body) // 2]
    if outcome.wrong == "not_json":
        return b"<html><body>502 Bad Gateway</body></html>"
    return b"" if outcome.wrong == "empty_body" else body


def _pairs(metadata: Iterable[tuple[str, str | bytes]] | None) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(
        (key.encode("latin-1"), value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape"))
        for key, value in metadata or ()
    )
