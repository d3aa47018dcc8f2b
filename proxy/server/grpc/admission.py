"""
What is let in over gRPC: metadata that can be passed on, made into lines; ``server.http.admission`` does so for HTTP.

A client says the same in call after call, so what its metadata mean is remembered.
"""

from cachetools import LRUCache

from proxy.core import loops
from proxy.core.errors import ClientError, ErrorCode, LoopError
from proxy.core.request import Head, HeaderLines, held_bytes
from proxy.transport.grpc import Metadata, can_carry, lines_of

_MAX_KNOWN = 1_024
_MAX_HEAD_BYTES = 4 * 1024


class GrpcIntake:
    """One per port, which is *upstream*'s alone; *own_id* is this proxy's in ``CDN-Loop``."""

    def __init__(self, upstream: str, own_id: bytes = b"") -> None:
        self.upstream = upstream
        self._own_id = own_id
        self._known: LRUCache[tuple[str, Metadata], tuple[Head, HeaderLines]] = LRUCache(_MAX_KNOWN)

    def head(self, method: str, metadata: Metadata) -> tuple[Head, HeaderLines]:
        """
        What a call's head means, and its lines.

        Raises:
            ClientError: it cannot be passed on as it is.
        """
        try:
            return self._known[method, metadata]
        except KeyError:
            lines = lines_of(metadata)
        if not all(can_carry(name, value) for name, value in lines):
            raise ClientError(ErrorCode.BAD_REQUEST, "a metadata name or value holds what gRPC does not allow")
        if loops.has_passed(lines, self._own_id):
            raise LoopError(self.upstream)
        known = Head(method, self.upstream, ()), lines
        if len(method) + held_bytes(lines) <= _MAX_HEAD_BYTES:
            self._known[method, metadata] = known
        return known


def address_of(peer: str) -> str:
    """The IP address in what the library calls a *peer*: ``ipv4:127.0.0.1:50051``, ``ipv6:%5B::1%5D:50051``."""
    return peer.partition(":")[2].rpartition(":")[0]
