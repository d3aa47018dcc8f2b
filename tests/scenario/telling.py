"""
An upstream whose vectors tell what it was asked, and what they must tell. Used by the tests of who is given what.

Each text's vector is a hash of the text and of everything else that came: target, header lines, body. What the
vendor's adapter documents as without effect is left out of it, by a list of the tests' own: a name that slips into the
product's list shows here as a wrong answer.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from tests.support import answers
from tests.support.raw_client import RawClient, RawResponse
from tests.support.raw_upstream import Answer
from tests.support.recorded import RecordedRequest

NATIVE = "/api/v1/services/embeddings/text-embedding/text-embedding"
COMPATIBLE = "/compatible-mode/v1/embeddings"
JSON = (b"Content-Type", b"application/json")

Lines = tuple[tuple[bytes, bytes], ...]

NO_EFFECT = frozenset(
    b"accept-encoding b3 baggage cache-control cdn-loop content-length content-type date dnt forwarded host "
    b"pragma priority sentry-trace traceparent tracestate uber-trace-id user-agent via x-accel-buffering "
    b"x-amzn-trace-id x-cloud-trace-context x-correlation-id x-dashscope-client x-forwarded-for x-forwarded-host "
    b"x-forwarded-port x-forwarded-proto x-forwarded-server x-real-ip x-request-id".split()
)
NO_EFFECT_PREFIXES = (b"eagleeye-", b"x-b3-", b"x-datadog-", b"x-dashscope-sdk-", b"x-stainless-")
JSON_WANTED = (b"application/json", b"*/*", b"application/json, text/plain, */*")
_HOP_BY_HOP = frozenset(
    b"connection expect keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)


def bearer(key: str, *others: tuple[bytes, bytes]) -> Lines:
    """The lines of a request with this credential."""
    return ((b"Authorization", b"Bearer " + key.encode()), JSON, *others)


def native(*texts: str, **parameters: Any) -> bytes:
    """A native body."""
    return json.dumps({"model": "text-embedding-v4", "input": {"texts": texts}, "parameters": parameters}).encode()


def told(target: str, lines: Lines, body: bytes, *, by: str = "") -> list[list[float]] | None:
    """The vectors that the upstream called *by* would answer to this; ``None`` where it would answer an error."""
    members = _members(_tree(body))
    given = next((member for member in reversed(members) if member[0] == "input"), ("", None))
    texts = given[1]
    if not target.startswith(COMPATIBLE):
        inner = _members(texts)
        texts = inner[0][1] if [name for name, _ in inner] == ["texts"] else None
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    rest = [member for member in members if member is not given and not _is_idle(member, target)]
    around = (by, target, _relevant(lines), rest)
    return [_numbers((around, text), _dimension(members)) for text in texts]


def telling(is_welcome: Callable[[RecordedRequest], bool] = lambda _: True, *, name: str = "") -> Answer:
    """The answers of the upstream called *name*; 401 to whoever is not welcome."""

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        if not is_welcome(request):
            error = {"code": "InvalidApiKey", "message": "Invalid API-key provided.", "request_id": "vendor-401"}
            await answers.respond_json(json.dumps(error).encode(), 401)(request, writer)
            return
        target = request.target.decode()
        vectors = told(target, request.headers, request.body, by=name)
        if vectors is None:
            error = {"code": "InvalidParameter", "message": "no", "request_id": "vendor-400"}
            await answers.respond_json(json.dumps(error).encode(), 400)(request, writer)
            return
        await answers.respond_json(_document(target, vectors, f"vendor-{request.number}"))(request, writer)

    return answer


def heard(response: RawResponse) -> list[list[float]] | None:
    """The vectors in an answer, in the order of their positions; ``None`` in an error."""
    if response.status != 200:
        return None
    document = json.loads(response.body)
    rows = document["output"]["embeddings"] if "output" in document else document["data"]
    by_position = {row["text_index"] if "text_index" in row else row["index"]: row["embedding"] for row in rows}
    assert sorted(by_position) == list(range(len(rows)))
    return [by_position[position] for position in range(len(rows))]


def state(response: RawResponse) -> str:
    """``hit``, ``partial``, ``miss`` or ``bypass``, from Cache-Status; ``none`` without one."""
    said = (response.header("Cache-Status") or b"").decode()
    found = re.search(r"dashcache; (?:fwd=)?(\w+)", said)
    return found[1] if found else "none"


async def post(port: int, target: str, lines: Lines, body: bytes) -> RawResponse:
    """One POST on a connection of its own."""
    async with await RawClient.connect(port) as client:
        return await client.request("POST", target, lines, body)


def _document(target: str, vectors: list[list[float]], request_id: str) -> bytes:
    usage = {"total_tokens": 7 * len(vectors)}
    if target.startswith(COMPATIBLE):
        rows = [{"embedding": vector, "index": at, "object": "embedding"} for at, vector in enumerate(vectors)]
        return json.dumps({"data": rows, "model": "m", "object": "list", "usage": usage, "id": request_id}).encode()
    rows = [{"embedding": vector, "text_index": at} for at, vector in enumerate(vectors)]
    return json.dumps({"output": {"embeddings": rows}, "usage": usage, "request_id": request_id}).encode()


def _tree(body: bytes) -> Any:
    """The document, numbers as spelled, objects as sorted pairs with doubled members kept; None when it is no JSON."""

    def number(spelled: str) -> tuple[str, str]:
        return ("number", spelled)

    try:
        return json.loads(
            body.decode(),
            object_pairs_hook=lambda pairs: ("object", tuple(sorted(pairs, key=repr))),
            parse_int=number,
            parse_float=number,
            parse_constant=number,
        )
    except (ValueError, RecursionError):
        return None


def _members(tree: Any) -> tuple[tuple[str, Any], ...]:
    return tree[1] if isinstance(tree, tuple) and tree[0] == "object" else ()


def _is_idle(member: tuple[str, Any], target: str) -> bool:
    return member == ("parameters", ("object", ())) or (target.startswith(COMPATIBLE) and member[0] == "user")


def _relevant(lines: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, list[bytes]]]:
    named = {
        token.strip().lower() for name, value in lines if name.lower() == b"connection" for token in value.split(b",")
    }
    found: dict[bytes, list[bytes]] = {}
    for name, given in lines:
        low, value = name.lower(), given
        if low in _HOP_BY_HOP or low in named or low in NO_EFFECT or low.startswith(NO_EFFECT_PREFIXES):
            continue
        if low == b"cookie" and b'"' not in value:
            pairs = (pair.strip() for pair in value.split(b";"))
            value = b"; ".join(pair for pair in pairs if pair and not pair.startswith(b"acw_tc="))
            if not value:
                continue
        found.setdefault(low, []).append(value)
    if all(value in JSON_WANTED for value in found.get(b"accept", ())):
        found.pop(b"accept", None)
    return sorted(found.items())


def _dimension(members: tuple[tuple[str, Any], ...]) -> int:
    """What was asked for as a whole number; else 32."""
    fields = dict(members)
    asked = dict(_members(fields.get("parameters"))).get("dimension") or fields.get("dimensions")
    return int(asked[1]) if isinstance(asked, tuple) and asked[1].isdigit() else 32


def _numbers(value: Any, dimension: int) -> list[float]:
    digest = hashlib.sha256(repr(value).encode()).digest()
    return [byte / 256 for byte in digest * (dimension // len(digest) + 1)][:dimension]
