"""
The subject of a request, in words that may be logged.

Paths, models and collections are a client's text. Of a path only the vendors' own words are shown; a model or a
collection only if it looks like a name, and not like a key.
"""

import functools
import re

from proxy.core.outcome import Outcome

# fmt: off
_WORDS = frozenset((
    "api", "api-ws", "apps", "aigc", "audio", "asr", "tts", "batches", "cancel", "chat", "completion",
    "completions", "compatible-api", "compatible-mode", "embeddings", "text-embedding", "multimodal-embedding",
    "files", "fine-tunes", "generation", "text-generation", "multimodal-generation", "image2image",
    "image-synthesis", "text2image", "inference", "latest", "models", "public-keys", "realtime", "rerank", "reranks",
    "responses", "services", "tasks", "text-rerank", "transcription", "uploads", "v1", "v2", "video-generation",
    "video-synthesis", "collections", "docs", "partitions", "query", "query_group_by", "service_version", "stats",
    "dashvector.proto.DashVectorService",
))
# fmt: on
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_MOST_SEGMENTS = 10
_GRPC = "/dashvector.proto.DashVectorService/"
_NAME = re.compile(r"(?!sk-)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_GRPC_METHOD = re.compile(r"[a-z_]{1,32}")
_ID_DIGITS = 12


def request_fields(outcome: Outcome) -> dict[str, str]:
    """Method, path template, model, collection, and the short keyed id of the first item; each may be empty."""
    planned = outcome.planned
    method, target = outcome.asked if planned is None else planned.asked
    if planned is None:
        model = collection = item = ""
    else:
        _, _, model, scopes = planned.extent
        collection = next((scope[1] for scope in scopes if scope[0] == "collection"), "")
        item = planned.keys[0].hex()[:_ID_DIGITS] if planned.keys else ""
    return {
        "method": method if method in _METHODS or not method else "other",
        "path": path_template(target),
        "model": name(model),
        "collection": name(collection),
        "item": item,
    }


def name(text: str) -> str:
    """*text* if it may be shown, or else what stands for it."""
    return text if not text or _NAME.fullmatch(text) else "(odd)"


@functools.lru_cache(maxsize=1_024)
def path_template(target: str) -> str:
    """The path in *target*, each segment that is not a word of a vendor's as ``*``."""
    path = target.partition("?")[0]
    if path.startswith(_GRPC):
        method = path.removeprefix(_GRPC)
        return path if _GRPC_METHOD.fullmatch(method) else f"{_GRPC}*"
    segments = path.split("/")
    shown = [segment if not segment or segment in _WORDS else "*" for segment in segments[: _MOST_SEGMENTS + 1]]
    return "/".join(shown) + ("/..." if len(segments) > _MOST_SEGMENTS + 1 else "")
