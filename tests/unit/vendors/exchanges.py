"""Requests and answers for the tests of vendors: the samples, and small ones made to measure."""

import json
from dataclasses import dataclass
from pathlib import Path

from proxy.core.key import Secret, common_digest, item_key
from proxy.core.plan import Pass
from proxy.core.request import HeaderLines, Request
from proxy.vendors.dashscope.batch_limits import BatchLimits
from proxy.vendors.dashscope.embedding_request import COMPATIBLE, NATIVE, EmbeddingAdapter, EmbeddingRead

SAMPLES = Path(__file__).parents[2] / "samples" / "dashscope"
INDEX = json.loads((SAMPLES / "index.json").read_text("utf-8"))

CREDENTIAL = (b"Authorization", b"Bearer sk-one")
HEADERS: HeaderLines = (CREDENTIAL, (b"Content-Type", b"application/json"))
SECRET = Secret.derive(b"secret of the tests")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One recorded exchange: what was sent and what came back."""

    name: str
    method: str
    target: str
    headers: HeaderLines
    request: bytes
    response: bytes
    status: int


def exchange(name: str) -> Exchange:
    """The sample called *name*."""
    entry = INDEX["exchanges"][name]
    method, target = entry["request"].split(" ")[:2]
    headers = INDEX["request_headers"][entry["request_headers_base"]] | entry.get("request_headers_override", {})
    body = entry.get("request_body")
    return Exchange(
        name,
        method,
        target,
        tuple((line.encode(), value.encode()) for line, value in headers.items() if value is not None),
        (SAMPLES / body).read_bytes() if body else b"",
        (SAMPLES / entry["response_body"]).read_bytes(),
        entry["status"],
    )


EMBEDDINGS = tuple(
    name
    for name, entry in INDEX["exchanges"].items()
    if entry["request"] in (f"POST {NATIVE.path}", f"POST {COMPATIBLE.path}")
    and entry["status"] == 200
    and name != "batch_text_embedding_submit"
)
"""Names of all good exchanges of text embeddings."""


def native(body: bytes, headers: HeaderLines = HEADERS, target: str = NATIVE.path) -> Request:
    """A request to the vendor's own API."""
    return Request("POST", target, headers, "default", body)


def compatible(body: bytes, headers: HeaderLines = HEADERS, target: str = COMPATIBLE.path) -> Request:
    """A request to the API in OpenAI's form."""
    return Request("POST", target, headers, "default", body)


def planned(request: Request, **options) -> EmbeddingRead | Pass:
    """The plan for *request*, by the adapter whose route it is; *options* go to the adapter or are its limits'."""
    dialect = COMPATIBLE if request.path == COMPATIBLE.path else NATIVE
    ignored_headers = options.pop("ignored_headers", frozenset())
    adapter = EmbeddingAdapter(dialect, BatchLimits(**options), ignored_headers)
    objection = adapter.precheck(request)
    return (
        Pass(objection, adapter.operation_of(request.method, request.path))
        if objection is not None
        else adapter.plan(request)
    )


def read(request: Request, **options) -> EmbeddingRead:
    """The plan for *request*, which must be one to read."""
    plan = planned(request, **options)
    assert isinstance(plan, EmbeddingRead), plan
    return plan


def keys(request: Request, **options) -> tuple[bytes, ...]:
    """The keys of all items of *request*, as the flow makes them."""
    plan = read(request, **options)
    common = common_digest(SECRET, (b"https://upstream", plan.operation.encode(), *plan.identity))
    return tuple(item_key(SECRET, common, item) for item in plan.items)


def native_answer(vectors: list[str], *, request_id: str = "vendor-id", tokens: int = 7) -> bytes:
    """A good answer of the native API with these *vectors* (JSON texts)."""
    rows = ",".join(f'{{"embedding":{vector},"text_index":{at}}}' for at, vector in enumerate(vectors))
    return (
        f'{{"output":{{"embeddings":[{rows}]}},"usage":{{"total_tokens":{tokens}}},"request_id":"{request_id}"}}'
    ).encode()
