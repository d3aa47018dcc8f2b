"""
DashVector over HTTP and JSON: which requests are reads, which are writes, what identifies a read, what an answer is.

Two reads are POSTs and one write is a DELETE with a body, so routes decide, not methods. An answer stays as the vendor
wrote it, blanks included: the SDK cares whether a number is ``1`` or ``1.0``. A row's envelope is the answer with a
mark where the request id was; the mark is a control byte, which no JSON text contains.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import orjson

from proxy.core import jsontext, judge
from proxy.core.entry import Row
from proxy.core.jsontext import Number, Tree
from proxy.core.plan import NotStorable, Pass, PassReason, Refusal, Scope
from proxy.core.request import GRPC, HeaderLines, Request
from proxy.vendors import dashvector, headers
from proxy.vendors.dashvector import ANYWHERE, CATALOG, ENDPOINT, QUERY, STATS, WRITE, VectorRead, VectorWrite

Members = dict[str, Tree]
REQUEST_ID = b"\x04"

Document = Mapping[str, object]
Check = Callable[[Document], Refusal | None]
"""Why an answer with code 0 is not kept all the same; ``None`` when it is complete and right."""

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode

_MEMBER = re.compile(rb'[ \t\r\n]*[{,][ \t\r\n]*("(?:[^"\\]|\\.)*")[ \t\r\n]*:[ \t\r\n]*', re.DOTALL)
_END = re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*")

# --- answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """An operation's answers; implements ``dashvector.AnswerForm``."""

    check: Check

    def refusal(self, status: int, lines: HeaderLines) -> Refusal | None:
        """See ``core.judge``."""
        return judge.refusal(status, lines)

    def split(self, body: bytes, *, is_widened: bool) -> Row:
        """*body* as a row, if it is a success, complete and settled. Raises NotStorable."""
        try:
            document = orjson.loads(body)  # strict: refuses what could hide a mark or a second reading
        except orjson.JSONDecodeError as error:
            raise NotStorable(Refusal.SHAPE) from error
        if type(document) is not dict or type(document.get("code")) is not int:
            raise NotStorable(Refusal.SHAPE)
        # The status is 200 whatever happened: the code is the truth.
        verdict = Refusal.VENDOR_ERROR if document["code"] != 0 else self.check(document)
        if verdict is None and is_widened and not _is_ranked(document["output"]):
            verdict = Refusal.INCOMPLETE
        request_id = document.get("request_id")
        if verdict is not None or not isinstance(request_id, str):
            raise NotStorable(verdict or Refusal.SHAPE)
        start, end = _spans(body)["request_id"]
        return Row(body[:start] + REQUEST_ID + body[end:], b"", b"", (), dashvector.origin(request_id))

    def join(self, row: Row, request_id: str, topk: int | None) -> bytes:
        """The answer in *row* with our id, cut to *topk* documents if that is given."""
        body = row.envelope.replace(REQUEST_ID, orjson.dumps(request_id))
        return body if topk is None else _cut(body, topk)


def _cut(body: bytes, topk: int) -> bytes:
    """*body* with no more than the first *topk* elements of its output."""
    start, end = _spans(body)["output"]
    elements = _elements(body[start:end])
    if len(elements) <= topk:
        return body
    at = start + 1
    for element in map(bytes, elements[:topk]):
        at = body.index(element, at) + len(element)  # nothing but blanks and commas lies between
    return body[:at] + b"]" + body[end:]


def _spans(body: bytes) -> dict[str, tuple[int, int]]:
    """
    Where the value of each member of the object *body* (valid JSON) begins and ends.

    Raises:
        NotStorable: a member stands twice, so that two parsers could read two answers.
    """
    try:
        members = _members(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise NotStorable(Refusal.SHAPE) from error
    spans: dict[str, tuple[int, int]] = {}
    at = 0
    for _ in members:
        found = _MEMBER.match(body, at)
        name = orjson.loads(found[1]) if found else ""
        value = bytes(members.get(name, b""))
        if found is None or name in spans or not value or not body.startswith(value, found.end()):
            raise NotStorable(Refusal.SHAPE)
        at = found.end() + len(value)
        spans[name] = (found.end(), at)
    if _END.fullmatch(body, at) is None:
        raise NotStorable(Refusal.SHAPE)
    return spans


def _is_ranked(output: object) -> bool:
    """Whether the documents of *output* all have scores, in order."""
    found = output if isinstance(output, list) else [None]
    scores = [document.get("score") for document in found if isinstance(document, dict)]
    numbers = [score for score in scores if isinstance(score, (int, float))]
    return len(numbers) == len(found) and dashvector.is_ranked(numbers)


# --- what each operation must have answered ---------------------------------------------------------------------------


def version(answer: Document) -> Refusal | None:
    """The service's version."""
    return None if isinstance(answer.get("version"), str) else Refusal.SHAPE


def names(answer: Document) -> Refusal | None:
    """A list of collections or partitions."""
    output = answer.get("output")
    is_right = isinstance(output, list) and all(isinstance(name, str) for name in output)
    return None if is_right else Refusal.SHAPE


def serving_collection(answer: Document) -> Refusal | None:
    """A collection's description, once it and its partitions serve: until then, whoever polls must see it change."""
    output = answer.get("output")
    partitions = output.get("partitions", {}) if isinstance(output, dict) else None
    if not isinstance(output, dict) or not isinstance(partitions, dict):
        return Refusal.SHAPE
    is_settled = all(status == "SERVING" for status in (output.get("status"), *partitions.values()))
    return None if is_settled else Refusal.INCOMPLETE


def serving_partition(answer: Document) -> Refusal | None:
    """A partition's status, once it serves."""
    if not isinstance(answer.get("output"), str):
        return Refusal.SHAPE
    return None if answer["output"] == "SERVING" else Refusal.INCOMPLETE


def stats(answer: Document) -> Refusal | None:
    """Counts of a collection or partition; not while its index is being built, which no write will announce."""
    output = answer.get("output")
    if not isinstance(output, dict) or type(output.get("total_doc_count")) not in (int, str):
        return Refusal.SHAPE
    return None if output.get("index_completeness", 1) == 1 else Refusal.INCOMPLETE


def documents(answer: Document) -> Refusal | None:
    """The documents that a query found."""
    return _documents(answer.get("output"))


def groups(answer: Document) -> Refusal | None:
    """The documents that a grouped query found."""
    output = answer.get("output")
    if not isinstance(output, list):
        return Refusal.SHAPE
    parts = [group.get("docs") if isinstance(group, dict) else None for group in output]
    return next((verdict for part in parts if (verdict := _documents(part))), None)


def fetched(answer: Document) -> Refusal | None:
    """Documents by their ids; those that do not exist are missing."""
    output = answer.get("output")
    return _documents(list(output.values())) if isinstance(output, dict) else Refusal.SHAPE


def _documents(found: object) -> Refusal | None:
    if not isinstance(found, list) or not all(isinstance(document, dict) for document in found):
        return Refusal.SHAPE
    if any(document.get("code", 0) != 0 for document in found):
        return Refusal.VENDOR_ERROR
    return None if all(isinstance(document.get("id"), str) for document in found) else Refusal.SHAPE


# --- requests ---------------------------------------------------------------------------------------------------------

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
    ("GET", "/service_version"): ReadRoute(STATS, JsonAnswer(version)),
    ("GET", _ROOT): ReadRoute(STATS, JsonAnswer(names), of_catalog=True),
    ("GET", _ONE): ReadRoute(STATS, JsonAnswer(serving_collection)),
    ("GET", _ONE + "/stats"): ReadRoute(STATS, JsonAnswer(stats)),
    ("GET", _ONE + "/partitions"): ReadRoute(STATS, JsonAnswer(names)),
    ("GET", _PARTITION): ReadRoute(STATS, JsonAnswer(serving_partition)),
    ("GET", _PARTITION + "/stats"): ReadRoute(STATS, JsonAnswer(stats)),
    ("GET", _ONE + "/docs"): ReadRoute(QUERY, JsonAnswer(fetched)),
    ("POST", _ONE + "/query"): ReadRoute(QUERY, JsonAnswer(documents)),
    ("POST", _ONE + "/query_group_by"): ReadRoute(QUERY, JsonAnswer(groups)),
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
        return WRITE if route is None else route.operation

    def write_of(self, method: str, path: str, headers: HeaderLines) -> VectorWrite | None:
        """The write that a request is as far as its head tells, which is always enough; ``None`` for reads."""
        scopes = _written(method, path, headers)
        return VectorWrite(scopes, dashvector.credential(headers), code_of) if scopes else None

    def precheck(self, request: Request) -> PassReason | None:
        """A reason to pass a read that the headers alone give."""
        if not dashvector.has_credential(request):
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


def code_of(body: bytes) -> int | None:
    """See ``dashvector.CodeOf``."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    code = document.get("code") if isinstance(document, dict) else None
    return code if type(code) is int else None


def _written(method: str, path: str, lines: HeaderLines) -> tuple[Scope, ...]:
    """What a request makes stale; nothing if it is a read."""
    place, name = _places(path)
    if any(line.lower() in _REDIRECTING for line, _ in lines):
        return ANYWHERE
    if (method, place) in _READS:
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
    if param != {"num_candidates": topk}:
        return None
    return {name: {**search, "param": {"num_candidates": Number(limit)}}}
