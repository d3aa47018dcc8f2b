"""The settings in force, for a terminal: what ``dashcache check`` prints."""

import dataclasses
from collections.abc import Iterator, Mapping

from proxy.core.upstream import Upstream
from proxy.settings.load import Leaf, SettingPath, dotted, leaves, source
from proxy.settings.model import DEFAULT_UPSTREAM, DEFAULT_VECTOR_UPSTREAM, Settings

_DEFAULTS = {DEFAULT_UPSTREAM: "dashscope_url", DEFAULT_VECTOR_UPSTREAM: "dashvector_url"}
"""What makes an upstream that is not one of ``upstreams``."""


def explain(settings: Settings, sources: Mapping[SettingPath, str], own_secret: str) -> str:
    """
    The settings in force for a terminal: grouped, each with its value and where it came from; secrets hidden.

    *own_secret* is shown in the place of a ``key_secret`` that is not set.
    """
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for leaf in (leaf for leaf in leaves() if "*" not in leaf.path):
        value: object = settings
        for part in leaf.path:
            value = getattr(value, part)
        group = leaf.path[0] if len(leaf.path) > 1 else "general"
        shown = own_secret if leaf.path == ("key_secret",) and not value else _shown(leaf, value)
        groups.setdefault(group, []).append((leaf.path[-1], shown, source(sources, leaf.path)))
    for model, rule in sorted(settings.models.items()):
        stated = ((name, value) for name, value in dataclasses.asdict(rule).items() if value is not None)
        rows = ((dotted((model, name)), str(value), source(sources, ("models", model, name))) for name, value in stated)
        groups.setdefault("models", []).extend(rows)
    for upstream in settings.all_upstreams():
        place = _DEFAULTS.get(upstream.name, "upstreams")
        groups.setdefault("upstreams", []).extend(
            (upstream.name, way, source(sources, (place,))) for way in _ways(settings, upstream)
        )
    return "\n\n".join(_block(name, rows) for name, rows in groups.items())


def _ways(settings: Settings, upstream: Upstream) -> Iterator[str]:
    """Where *upstream* is, over each of its protocols, and what leads to it."""
    ports = [listener for listener in settings.listeners() if listener.upstream == upstream.name]
    own = [listener.address for listener in ports if listener.protocol == "http"]
    if upstream.name == DEFAULT_UPSTREAM:
        own = ["whatever no other claims"]
    elif upstream.name == DEFAULT_VECTOR_UPSTREAM:
        own = ["whatever else asks for DashVector"]
    yield f"{upstream.origin} for {', '.join((*upstream.hosts, *own))}"
    by_grpc = [listener.address for listener in ports if listener.protocol != "http"]
    if upstream.grpc is not None and by_grpc:
        yield f"gRPC {upstream.grpc.origin} for {', '.join(by_grpc)}"


def _shown(leaf: Leaf, value: object) -> str:
    if leaf.is_secret:
        return "(set)" if value else "(not set)"
    if value is None or value in ((), {}):
        return "(none)"
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} = {item}" for name, item in sorted(value.items()))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _block(name: str, rows: list[tuple[str, str, str]]) -> str:
    width = max([36, *(len(value) for _, value, _ in rows)])
    return "\n".join([name, *(f"  {setting:<20} {value:<{width}} {origin}" for setting, value, origin in rows)])
