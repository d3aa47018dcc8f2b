"""
Upstream gRPC: one channel per upstream, messages as bytes, no retries.

Nothing here knows a message's form. The library's own help is switched off: retries, proxies from the environment,
service configurations from DNS, compression. Import this module before ``grpc``: it keeps the library's log quiet,
whose lines quote what clients sent.

A call that takes more than one message is not ours to carry: an upstream that answers with a second message is waited
for until the deadline, as every unary client does.
"""

import asyncio
import functools
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

# Read once, when the library is loaded. A worker never forks, and the fork handlers complain when anything else does.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import grpc.aio

from proxy.core import loops
from proxy.core.answer import Body
from proxy.core.errors import ClientError, ErrorCode, UpstreamError
from proxy.core.grpc_status import GrpcStatus
from proxy.core.request import HeaderLines, Request
from proxy.core.share import NOBODY, SHARE
from proxy.core.trouble import Trouble
from proxy.transport.slots import Slots

logging.getLogger("grpc").propagate = False  # faults of ours are told to the observer; the rest quotes calls

MAX_MESSAGE_BYTES = 128 * 1024 * 1024
"""What the vendor's SDKs allow each way; the library's own limit is 4 MiB."""
MAX_METADATA_BYTES = 64 * 1024

Metadata = tuple[tuple[str, str | bytes], ...]
Options = tuple[tuple[str, int], ...]
"""The library's channel arguments."""

# Each connection's own. Accept-Encoding stands for HTTP's codings, which no message has.
_CONNECTION = frozenset(
    {b"accept-encoding", b"connection", b"content-length", b"content-type", b"host", b"te", b"user-agent"}
)
_PRINTABLE = re.compile(rb"[ -~]*")
_NAME = re.compile(rb"[0-9a-z_.-]+")
# Each hop's own measurements, and not the call's: they name spans, times and costs of the connection they came on.
_TRANSPORT_BINARY = frozenset({b"grpc-trace-bin", b"grpc-tags-bin", b"grpc-server-stats-bin"})


class GrpcReply:
    """A finished call. Implements ``core.ports.UpstreamReply``: header lines are its trailing metadata."""

    def __init__(self, message: bytes, headers: HeaderLines, status: GrpcStatus) -> None:
        self.status = 200 if status.code == 0 else 502
        self.reason = ""
        self.headers = headers
        self.length: int | None = len(message)
        self.grpc_status: GrpcStatus | None = status
        self._message = message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The message, in one piece."""
        yield self._message

    def at_hand(self) -> tuple[bytes, bool]:
        """Nothing ahead of the message."""
        return b"", False

    async def read(self, limit: int, has_room: Callable[[int], bool]) -> tuple[bytes, bool]:  # noqa: ARG002
        """The whole message: it is here already, and there is no way to have less of it."""
        has_room(len(self._message))
        return self._message, True

    def close(self) -> None:
        """Nothing is held."""


class GrpcTransport:
    """
    Calls one upstream at *target* (``host:port``), over TLS if *secure*, trusting *roots* (PEM) or the library's own.

    Must be made inside the running loop that uses it. A call takes one of the *slots* while it lasts.
    *read_timeout_s* holds for calls whose client gave no deadline.
    """

    def __init__(
        self,
        target: str,
        *,
        secure: bool,
        roots: bytes | None = None,
        slots: Slots,
        connect_timeout_s: float,
        read_timeout_s: float,
        ping_interval_s: float = 60.0,
        own_id: bytes = b"",
    ) -> None:
        self.origin = f"{'grpcs' if secure else 'grpc'}://{target}"
        self._read_timeout_s = read_timeout_s
        self._added: HeaderLines = ((loops.LINE, own_id),) if own_id else ()
        self._slots = slots
        # 443 is the library's own default, and without it ``:authority`` is what the vendor's SDK sends.
        address = target.removesuffix(":443")
        options = _options(connect_timeout_s, ping_interval_s)
        self._channel: Any = (
            grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots), options=options)
            if secure
            else grpc.aio.insecure_channel(address, options=options)
        )

    async def send(self, request: Request, body: Body | None = None) -> GrpcReply:
        """
        Call the method *request.target* once. Whoever cancels this cancels the call at the upstream.

        Raises:
            UpstreamError: no answer of the upstream's; ``retryable`` when it certainly never saw the call.
        """
        timeout_s = self._read_timeout_s if request.timeout_s is None else request.timeout_s
        ends_s = asyncio.get_running_loop().time() + timeout_s
        slot = await self._slots.take(timeout_s, share=SHARE.get(NOBODY), is_again=request.is_again)
        try:
            message = request.body
            if message is None:
                message = b"" if body is None else b"".join([piece async for piece in body.pieces()])
            return await self._call(request, message, ends_s - asyncio.get_running_loop().time())
        finally:
            slot.give_back()

    async def _call(self, request: Request, message: bytes, timeout_s: float) -> GrpcReply:
        method = self._channel.unary_unary(request.target)
        try:
            # No key covers the protocol's own names, so that of a request nothing under them goes up.
            metadata = metadata_of(
                (*(line for line in request.headers if not line[0].startswith(b"grpc-")), *self._added)
            )
            call = method(message, metadata=metadata, timeout=max(timeout_s, 0), wait_for_ready=False)
            answer: bytes | None = await call
        except grpc.aio.AioRpcError as error:
            return _ended(error, had_time=call.time_remaining() > 0)
        except grpc.aio.UsageError as error:
            raise UpstreamError(
                ErrorCode.UPSTREAM_UNREACHABLE, "the way to the upstream is closed", is_unseen=True
            ) from error
        except grpc.aio.InternalError as error:
            raise ClientError(ErrorCode.BAD_REQUEST, "the call cannot be written as it is") from error
        if answer is None:
            text = "the upstream's call ended well, but without a message"
            raise UpstreamError(ErrorCode.UPSTREAM_PROTOCOL, text, trouble=Trouble.PROTOCOL)
        status = GrpcStatus(initial=lines_of(await call.initial_metadata()))
        return GrpcReply(answer, lines_of(await call.trailing_metadata()), status)

    async def close(self) -> None:
        """End all calls and the connection."""
        await self._channel.close()


def lines_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> HeaderLines:
    """Metadata as header lines; values of names that end in ``-bin`` are any bytes."""
    return tuple(
        (name.encode("utf-8"), value if isinstance(value, bytes) else value.encode("utf-8"))
        for name, value in metadata or ()
    )


def metadata_of(lines: HeaderLines) -> Metadata:
    """Header lines as metadata, less what is each connection's own and what gRPC cannot carry."""
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in lines:
        key = _key(name)
        if key.endswith("-bin"):
            metadata.append((key, value))
        elif key and value.isascii() and (text := value.decode("ascii")).isprintable():
            metadata.append((key, text))
    return tuple(metadata)


@functools.lru_cache(maxsize=512)
def _key(name: bytes) -> str:
    """The key of metadata for lines of that *name*; empty if there is none."""
    low = name.lower()
    if low in _CONNECTION or _is_of_transport(low) or _NAME.fullmatch(low) is None:
        return ""
    return low.decode("ascii")


def _is_of_transport(low: bytes) -> bool:
    """
    Whether a name is the protocol's own, so that each connection says it anew.

    Those in ``-bin`` are not, but for three: ``grpc-status-details-bin`` and its like are the application's words.
    """
    if low.endswith(b"-bin"):
        return low in _TRANSPORT_BINARY
    return low.startswith((b"grpc-", b":"))


def can_carry(name: bytes, value: bytes) -> bool:
    """Whether gRPC can carry the line: a name it allows, and printable ASCII, or any bytes for one in ``-bin``."""
    return _NAME.fullmatch(name) is not None and (name.endswith(b"-bin") or _PRINTABLE.fullmatch(value) is not None)


def _options(connect_timeout_s: float, ping_interval_s: float) -> Options:
    return (
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.keepalive_time_ms", int(ping_interval_s * 1000)),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
        # The library's "backoff" is also how long a connection may take. Left alone, an upstream that comes back is
        # found after up to two minutes.
        ("grpc.min_reconnect_backoff_ms", int(connect_timeout_s * 1000)),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
    )


def _ended(error: Any, *, had_time: bool) -> GrpcReply:  # noqa: ANN401  grpc.aio.AioRpcError, which has no types
    """
    A call that ended badly: the upstream's own end of it as a reply, and what never reached it as an exception.

    The library gives both the same form. Told apart by its texts (grpcio 1.85), and only where the end has no metadata:
    an end that is taken for the upstream's by mistake still has the right code.
    """
    code = error.code()
    details = error.details() or ""
    initial, trailing = lines_of(error.initial_metadata()), lines_of(error.trailing_metadata())
    if not initial and not trailing:
        _raise_if_ours(code, details, had_time=had_time)
    return GrpcReply(b"", trailing, GrpcStatus(code.value[0], details, initial))


def _raise_if_ours(code: Any, details: str, *, had_time: bool) -> None:  # noqa: ANN401
    """Messages name no address, as the library's do."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not had_time:
        text = "the upstream did not answer in time"
        raise UpstreamError(ErrorCode.UPSTREAM_TIMEOUT, text, 504, trouble=Trouble.TIMEOUT)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "CLIENT: " in details:
        raise UpstreamError(ErrorCode.UPSTREAM_PROTOCOL, "the upstream's answer, or the call, is too large")
    if code is not grpc.StatusCode.UNAVAILABLE:
        return
    if details.startswith(("failed to connect to", "errors resolving", "DNS resolution failed")):
        text, trouble = "the upstream cannot be reached", _unconnected(details)
        raise UpstreamError(ErrorCode.UPSTREAM_UNREACHABLE, text, retryable=True, is_unseen=True, trouble=trouble)
    if details.startswith("Stream removed (") or details in ("Socket closed", "Connection reset by peer"):
        # RFC 9113 §8.7: code 7, REFUSED_STREAM, says that nothing was done. Nothing else does.
        is_refused = "RST_STREAM with error code 7)" in details
        text = "the upstream closed the connection"
        raise UpstreamError(
            ErrorCode.UPSTREAM_UNREACHABLE, text, retryable=is_refused, is_unseen=is_refused, trouble=Trouble.CLOSED
        )


_UNCONNECTED = (
    ("errors resolving", Trouble.UNKNOWN_HOST),
    ("DNS resolution failed", Trouble.UNKNOWN_HOST),
    ("Connection refused", Trouble.REFUSED),
    ("handshake failed", Trouble.TLS),
    ("Handshake read failed", Trouble.TLS),
    ("timed out", Trouble.CONNECT_TIMEOUT),
    ("Failed parsing HTTP/2", Trouble.PROTOCOL),
    ("Connection reset", Trouble.CLOSED),
)
"""What stands in the library's words about a connection that did not come about (grpcio 1.85); the first that fits."""


def _unconnected(details: str) -> Trouble:
    return next((trouble for words, trouble in _UNCONNECTED if words in details), Trouble.UNREACHABLE)
