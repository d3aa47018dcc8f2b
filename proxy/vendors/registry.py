"""Which adapter, if any, a route belongs to: an explicit tuple, no discovery."""

from collections.abc import Mapping

from proxy.core.plan import Adapter
from proxy.vendors.embedding_request import COMPATIBLE, NATIVE, EmbeddingAdapter


def dashscope_adapters(ignored_headers: frozenset[bytes], batch_caps: Mapping[str, int]) -> tuple[Adapter, ...]:
    """The operations of DashScope that the cache answers."""
    return (
        EmbeddingAdapter(NATIVE, ignored_headers, batch_caps),
        EmbeddingAdapter(COMPATIBLE, ignored_headers, batch_caps),
    )


def adapter_for(adapters: tuple[Adapter, ...], method: str, path: str) -> Adapter | None:
    """The first adapter that wants the route; ``None`` for everything that only passes through."""
    return next((adapter for adapter in adapters if adapter.wants(method, path)), None)
