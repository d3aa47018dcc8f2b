"""
DashVector over HTTP: which requests are reads, which are writes, and what identifies a read.

Two reads are POSTs and one write is a DELETE with a body, so routes decide, not methods.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.core import jsontext
from proxy.core.jsontext import Number, Tree
from proxy.core.plan import Pass, PassReason, Scope
from proxy.core.request import GRPC, HeaderLines, Request
from proxy.vendors import headers
from proxy.vendors.dashvector import common as dashvector
from proxy.vendors.dashvector import json_form
from proxy.vendors.dashvector.common import (
    ANYWHERE,
    CATALOG,
    ENDPOINT,
    QUERY,
    SAFE_METHODS,
    STATS,
    WRITE,
    VectorRead,
    VectorWrite,
)
from proxy.vendors.dashvector.json_form import JsonAnswer, code_of

Members = dict[str, Tree]

_OTHER = "other"

_ROOT = "/v1/collections"
_ONE = _ROOT + "/{c}"
_PARTITION = _ONE + "/partitions/{p}"

# Headers that some servers take for another method or path than the request line's.
_REDIRECTING = frozenset(
    {b"x-http-method", b"x-http-method-override", b"x-method-override", b"x-original-url", b"x-rewrite-url"}
)


@dataclass(frozen=True, slots=True)
class ReadRoute:
    """A read: its operation, how it answers, and whether it tells of the list of collections."""

    operation: str
    answer: JsonAnswer
    of_catalog: bool = False


_READS: Mapping[tuple[str, str], ReadRoute] = {
    ("GET", "/service_version"): ReadRoute(STATS, JsonAnswer(json_form.version)),
    ("GET", _ROOT): ReadRoute(STATS, JsonAnswer(json_form.names), of_catalog=True),
    ("GET", _ONE): ReadRoute(STATS, JsonAnswer(json_form.serving_collection)),
    ("GET", _ONE + "/stats"): ReadRoute(STATS, JsonAnswer(json_form.stats)),
    ("GET", _ONE + "/partitions"): ReadRoute(STATS, JsonAnswer(json_form.names)),
    ("GET", _PARTITION): ReadRoute(STATS, JsonAnswer(json_form.serving_partition)),
    ("GET", _PARTITION + "/stats"): ReadRoute(STATS, JsonAnswer(json_form.stats)),
    ("GET", _ONE + "/docs"): ReadRoute(QUERY, JsonAnswer(json_form.fetched)),
    ("POST", _ONE + "/query"): ReadRoute(QUERY, JsonAnswer(json_form.documents)),
    ("POST", _ONE + "/query_group_by"): ReadRoute(QUERY, JsonAnswer(json_form.groups)),
}
_WRITES = frozenset(
    {
        ("POST", _ROOT),
        ("DELETE", _ONE),
        ("POST", _ONE + "/docs"),
        ("PUT", _ONE + "/docs"),
        ("POST", _ONE + "/docs/upsert"),
        ("DELETE", _ONE + "/docs"),
        ("POST", _ONE + "/partitions"),
        ("DELETE", _PARTITION),
    }
)
_OF_CATALOG = frozenset({("POST", _ROOT), ("DELETE", _ONE)})


class DashVectorHttp:
    """Plans every HTTP request to a DashVector endpoint: to such an upstream, no other adapter is asked."""

    def __init__(self, ignored_headers: frozenset[bytes] = frozenset(), overfetch_topk: int = 0) -> None:
        self._ignored = ignored_headers
        self._overfetch_topk = overfetch_topk

    def wants(self, method: str, path: str) -> bool:  # noqa: ARG002
        """Everything over HTTP: a path that nobody knows may be a write under another spelling."""
        return method != GRPC

    def operation_of(self, method: str, path: str) -> str:
        """The operation's name in modes, metrics and logs."""
        route = _READS.get((method, _places(path)[0]))
        if route is not None:
            return route.operation
        return _OTHER if method in SAFE_METHODS else WRITE

    def write_of(self, method: str, path: str, headers: HeaderLines) -> VectorWrite | None:
        """The write that a request is as far as its head tells, which is always enough; ``None`` for reads."""
        scopes = _written(method, path, headers)
        if not scopes:
            return None
        return VectorWrite(scopes, dashvector.credential(headers), code_of, dashvector.has_credential(headers))

    def precheck(self, request: Request) -> PassReason | None:
        """A reason to pass what is no write that the headers alone give."""
        if request.method in SAFE_METHODS:
            return PassReason.NOT_CACHED
        if not dashvector.has_credential(request.headers):
            return PassReason.NO_CREDENTIAL
        if headers.accepts_event_stream(request):
            return PassReason.EVENT_STREAM
        if headers.is_coded(request):
            return PassReason.CONTENT_CODING
        # A GET needs no type; the SDK sends one all the same.
        is_typed = request.method == "POST" or request.value(b"content-type") is not None
        if is_typed and not headers.is_json(request):
            return PassReason.CONTENT_TYPE
        if headers.refuses_identity(request):
            return PassReason.IDENTITY_REFUSED
        return None

    def weight(self, body: bytes) -> int:
        """See ``core.plan.Adapter``."""
        return jsontext.weight(body)

    def plan(self, request: Request) -> VectorRead | Pass:
        """What to do with *request*, a read whose body is there."""
        place, name = _places(request.path)
        route = _READS[request.method, place]
        reason = self.precheck(request)
        if reason is not None:
            return Pass(reason, route.operation)
        scopes = (ENDPOINT, *([CATALOG] if route.of_catalog else []), *([dashvector.collection(name)] if name else []))
        try:
            return self._read(request, route, scopes)
        except jsontext.Ambiguous:
            return Pass(PassReason.AMBIGUOUS, route.operation)

    def _read(self, request: Request, route: ReadRoute, scopes: tuple[Scope, ...]) -> VectorRead | Pass:
        identity = dashvector.identity(request, b"http", self._ignored)
        body = request.body or b""
        if request.method == "GET":
            if body:
                return Pass(PassReason.UNKNOWN_SHAPE, route.operation)
            target = request.target.encode("utf-8", "surrogateescape")
            return VectorRead(route.operation, (*identity, b""), target, scopes, body, route.answer)
        tree = jsontext.parse(body)
        if not isinstance(tree, dict):
            return Pass(PassReason.UNKNOWN_SHAPE, route.operation)
        item = jsontext.canonical(_folded(tree))
        plain = VectorRead(route.operation, (*identity, b""), item, scopes, body, route.answer)
        wider = _widened(tree, self._overfetch_topk) if request.path.endswith("/query") else None
        if wider is None:
            return plain
        asked, topk = wider
        return VectorRead(
            operation=route.operation,
            identity=(*identity, b"widened"),
            item=jsontext.canonical(_folded(asked)),
            scopes=scopes,
            ask=jsontext.compact(asked),
            answer=route.answer,
            topk=topk,
            plain=plain,
        )


def _written(method: str, path: str, lines: HeaderLines) -> tuple[Scope, ...]:
    """What a request makes stale; nothing if it is a read."""
    place, name = _places(path)
    if any(line.lower() in _REDIRECTING for line, _ in lines):
        return ANYWHERE
    if (method, place) in _READS or method in SAFE_METHODS:
        return ()
    if (method, place) not in _WRITES:
        return ANYWHERE
    # The name of a new collection is in the body; entries of an earlier one with that name must go all the same.
    scope = dashvector.collection(name) if name else ENDPOINT
    return (scope, CATALOG) if (method, place) in _OF_CATALOG else (scope,)


def _places(path: str) -> tuple[str, str]:
    """*path* with places where its names are, and the collection's name; empty for any spelling in doubt."""
    parts, name = path.split("/"), ""
    if len(parts) > 3:
        name = parts[3]
        if not dashvector.is_name(name):
            return "", ""
        parts[3] = "{c}"
    if len(parts) > 5 and parts[4] == "partitions":
        if not dashvector.is_name(parts[5]):
            return "", ""
        parts[5] = "{p}"
    return "/".join(parts), name


def _folded(tree: Members) -> Members:
    """*tree* without what the vendor documents to mean the same as nothing."""
    folded = dict(tree)
    if tree.get("partition") in (None, "", "default"):
        folded.pop("partition", None)
    if tree.get("output_fields") in (None, []):
        folded.pop("output_fields", None)
    return folded


# --- more than was asked for ------------------------------------------------------------------------------------------

_DEFAULT_TOPK = Number("10")
_PLAIN = frozenset({"vector", "vectors", "topk", "filter", "include_vector", "partition", "output_fields"})


def _widened(tree: Members, limit: int) -> tuple[Members, int] | None:
    """
    A plain search by one vector, asking for *limit* documents, and how many the client wants; ``None`` for any other.

    Grouping, reranking, other orders, several vectors, a radius, or anything unknown: then the first few of many need
    not be what fewer would have been.
    """
    given = {name: value for name, value in tree.items() if value not in (None, [], {})}
    topk = given.get("topk", _DEFAULT_TOPK)
    if not isinstance(topk, Number) or not topk.isdigit() or len(topk) > 4 or not 1 <= int(topk) <= limit:
        return None
    if not given.keys() <= _PLAIN or ("vector" in given) == ("vectors" in given):
        return None
    asked: Members = {**tree, "topk": Number(limit)}
    if "vectors" in given:
        vectors = _widened_vectors(given["vectors"], topk, limit)
        if vectors is None:
            return None
        asked["vectors"] = vectors
    elif not isinstance(given["vector"], list):
        return None
    return asked, int(topk)


def _widened_vectors(vectors: Tree, topk: Number, limit: int) -> Members | None:
    """*vectors* if it is one vector without parameters, or with as many candidates as documents, as SDKs fill in."""
    if not isinstance(vectors, dict) or len(vectors) != 1:
        return None
    ((name, search),) = vectors.items()
    if not isinstance(search, dict) or not search.keys() <= {"vector", "param"}:
        return None
    param = search.get("param")
    if not search.get("vector") or not isinstance(search["vector"], list):
        return None
    if param in (None, {}):
        return {name: search}
    if not isinstance(param, dict) or param != {"num_candidates": topk}:
        return None
    # A text is equal to the number that it spells, but the vendor refuses it.
    if not isinstance(param["num_candidates"], Number):
        return None
    return {name: {**search, "param": {"num_candidates": Number(limit)}}}
