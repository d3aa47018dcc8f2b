"""Which adapter, if any, a route belongs to: an explicit tuple, no discovery."""

from collections.abc import Mapping

from proxy.core.plan import Adapter
from proxy.core.request import HeaderLines, Request
from proxy.vendors import headers
from proxy.vendors.dashscope import common as dashscope
from proxy.vendors.dashscope.batch_limits import BatchLimits, Told
from proxy.vendors.dashscope.embedding_request import COMPATIBLE, NATIVE, EmbeddingAdapter
from proxy.vendors.dashvector import common as dashvector
from proxy.vendors.dashvector.over_grpc import DashVectorGrpc
from proxy.vendors.dashvector.over_http import DashVectorHttp

IDENTITY = frozenset((*dashscope.CREDENTIALS, *dashvector.CREDENTIALS))
"""Names (lower case) of the lines that say who is asking, whoever the vendor is."""


def dashscope_adapters(
    ignored_headers: frozenset[bytes], batch_caps: Mapping[str, int], max_pieces: int, on_limit: Told
) -> tuple[Adapter, ...]:
    """The operations of DashScope that the cache answers; each has limits of its own, as the vendor may set them so."""
    return tuple(
        EmbeddingAdapter(dialect, BatchLimits(batch_caps, max_pieces, on_limit), ignored_headers)
        for dialect in (NATIVE, COMPATIBLE)
    )


def dashvector_adapters(ignored_headers: frozenset[bytes], overfetch_topk: int = 0) -> tuple[Adapter, ...]:
    """
    The two protocols of DashVector; to be asked for upstreams that are DashVector's, and for no other.

    Together they want every route: whatever is not known to be a read is a write.
    """
    return (DashVectorHttp(ignored_headers, overfetch_topk), DashVectorGrpc(ignored_headers, overfetch_topk))


class Adapters:
    """
    Finds the adapter for a request; *vendors* maps each upstream's name to its vendor.

    *on_limit* is told of limits that change, see ``batch_limits``.
    """

    def __init__(
        self,
        vendors: Mapping[str, str],
        *,
        ignored_headers: frozenset[bytes] = frozenset(),
        batch_caps: Mapping[str, int] | None = None,
        max_pieces: int = 1,
        overfetch_topk: int = 0,
        on_limit: Told = lambda _upstream, _model, _before, _now: None,
    ) -> None:
        of_vendor = {
            "dashscope": dashscope_adapters(ignored_headers, batch_caps or {}, max_pieces, on_limit),
            "dashvector": dashvector_adapters(ignored_headers, overfetch_topk),
        }
        self._of_upstream = {upstream: of_vendor[vendor] for upstream, vendor in vendors.items()}
        who = {"dashscope": dashscope.CREDENTIALS, "dashvector": dashvector.CREDENTIALS}
        self._credentials = {upstream: who[vendor] for upstream, vendor in vendors.items()}

    def __call__(self, upstream: str, method: str, path: str) -> Adapter | None:
        """The first adapter that wants the route; ``None`` for everything that only passes through."""
        return next((adapter for adapter in self._of_upstream[upstream] if adapter.wants(method, path)), None)

    def credential(self, request: Request) -> bytes:
        """See ``core.ports.Routes``."""
        return headers.credential(request.headers, self._credentials[request.upstream])

    def decisive(self, lines: HeaderLines) -> HeaderLines:
        """See ``core.ports.Routes``."""
        return headers.decisive(lines)
