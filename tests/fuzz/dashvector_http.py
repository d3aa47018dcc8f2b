"""
Plans of DashVector's HTTP operations: any method, target, body and answer.

The vendor ranks documents by all that a search says but how many it wants, so a search that was made wider and cut
again must give what the narrow one would have. Input: flags, method and target as a line, body, 0xFF, answer.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxy.core.plan import NotStorable, Pass
from proxy.core.request import Request
from proxy.vendors.dashvector.common import VectorRead
from proxy.vendors.dashvector.over_http import DashVectorHttp
from tests.fuzz.mutation import json_changed
from tests.fuzz.oracles import OURS, Meanings, Spelled, keys_of, loaded, stored, told

SAMPLES = Path(__file__).parents[1] / "samples" / "dashvector"
LIMIT = 50
HEADERS = ((b"dashvector-auth-token", b"sk-one"), (b"Content-Type", b"application/json"))
_NAME = "[a-zA-Z0-9_-]{3,32}"
# Spelled out a second time, on purpose: what is not here may change something.
_READS = re.compile(
    rf"GET (/service_version|/v1/collections(/{_NAME}(/stats|/docs|/partitions(/{_NAME}(/stats)?)?)?)?)"
    rf"|POST /v1/collections/{_NAME}/(query|query_group_by)"
)
_MEANINGS = Meanings()
_ADAPTERS = {False: DashVectorHttp(), True: DashVectorHttp(overfetch_topk=LIMIT)}


def seeds() -> Iterator[bytes]:
    """Every sampled exchange, with and without a wider search."""
    index = json.loads((SAMPLES / "index.json").read_text("utf-8"))["exchanges"]
    for entry in index.values():
        if entry["request"].startswith(("GET", "POST", "PUT", "DELETE")):
            body = (SAMPLES / entry["request_body"]).read_bytes() if entry["request_body"] else b""
            answer = (SAMPLES / entry["response_body"]).read_bytes()
            line = " ".join(entry["request"].split(" ")[:2]).encode()
            for flags in b"\x00\x01":
                yield bytes([flags]) + line + b"\n" + body + b"\xff" + answer


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Another body, or another answer."""
    line, end, rest = data.partition(b"\n")
    body, mark, answer = rest.partition(b"\xff")
    if chance.random() < 0.5:
        return line + end + json_changed(body, chance) + mark + answer
    return line + end + body + mark + json_changed(answer, chance)


def one_input(data: bytes) -> None:
    """Raise AssertionError if what is planned for *data*, or made of its answer, is wrong."""
    line, _, rest = data[1:].partition(b"\n")
    body, _, answer = rest.partition(b"\xff")
    method, _, target = line.decode("utf-8", "surrogateescape").partition(" ")
    if data and method and target.startswith("/") and "\r" not in target:
        check(method, target, body, answer, is_wide=bool(data[0] & 1))


def check(method: str, target: str, body: bytes, answer: bytes, *, is_wide: bool) -> bool:
    """Plan a request and, if it is one to read, its answers; whether it was."""
    adapter = _ADAPTERS[is_wide]
    request = Request(method, target, HEADERS, "vectors", body)
    assert adapter.operation_of(method, request.path)
    write = adapter.write_of(method, request.path, HEADERS)
    if write is not None:
        assert write.scopes
        write.verdict(200, None, answer)
        return False
    if method in ("HEAD", "OPTIONS", "TRACE"):
        return False  # safe, whatever they ask for (RFC 9110 §9.2.1): they change nothing, and are passed
    assert _READS.fullmatch(f"{method} {request.path}"), "a read that is none"
    plan = adapter.plan(request)
    if isinstance(plan, Pass):
        return False
    plain = plan.plain or plan
    assert plain.plain is None
    assert plain.narrowed((0,)) == body
    _MEANINGS.check(*keys_of(plain), (method, target, _meaning(body)))
    check_answer(plain, answer)
    if plan.plain is not None:
        _check_wide(plan, body)
    return True


def check_answer(plan: VectorRead, answer: bytes) -> bool:
    """Whether *answer* is kept, in which case it comes back as it was but for its id."""
    try:
        (row,) = plan.split(answer, (0,))
    except NotStorable:
        return False
    document: Any = loaded(answer)
    assert int(document["code"]) == 0
    spelled = json.dumps(document["request_id"]).encode()
    assert told(loaded(plan.join((stored(row),), OURS))) == told(document | {"request_id": OURS})
    if answer.count(spelled) == answer.count(b"request_id") == 1:
        assert plan.join((row,), OURS) == answer.replace(spelled, json.dumps(OURS).encode())
    return True


def _meaning(body: bytes) -> str:
    """What a vendor could tell apart in *body*, less what it documents to mean nothing."""
    return told(_folded(loaded(body))) if body else ""


def _folded(document: Any) -> dict[str, Any]:
    folded = dict(document)
    if folded.get("partition", "") in (None, "", "default"):
        folded.pop("partition", None)
    if folded.get("output_fields", []) in (None, []):
        folded.pop("output_fields", None)
    return folded


def _check_wide(plan: VectorRead, body: bytes) -> None:
    asked, given = loaded(plan.narrowed((0,))), loaded(body)
    assert not _is_refused(given), "the vendor refuses it, but not what is asked in its place"
    chance = random.Random(len(body))
    whole, narrow = _answer(asked, chance), _answer(given, None)
    _MEANINGS.check(*keys_of(plan), _ranked_by(given))
    (row,) = plan.split(whole, (0,))
    expected: Any = loaded(narrow)
    assert told(loaded(plan.join((stored(row),), OURS))) == told(expected | {"request_id": OURS}), given


def _is_refused(document: Any) -> bool:
    """Whether a number stands as a text where the vendor wants a number."""
    vectors = document.get("vectors") or {}
    params = [search.get("param") or {} for search in vectors.values()]
    return any(type(each) is str for each in (document.get("topk"), *(param.get("num_candidates") for param in params)))


def _ranked_by(document: Any) -> str:
    """What decides which documents are found, and in which order."""
    folded = _folded(document)
    topk = folded.pop("topk", None)
    if isinstance(folded.get("vectors"), dict) and len(folded["vectors"]) == 1:
        ((name, search),) = folded["vectors"].items()
        candidates = (search.get("param") or {}).get("num_candidates")
        # As many candidates as documents are what SDKs fill in, with the number of either.
        if isinstance(candidates, Spelled) and candidates == (topk or "10"):
            folded["vectors"] = {name: {**search, "param": {"num_candidates": "as many"}}}
    return told(folded)


def _answer(document: Any, chance: random.Random | None) -> bytes:
    """The vendor's answer, in odd spelling if there is a *chance*."""
    digest = hashlib.sha256(_ranked_by(document).encode()).digest()
    topk = int(document.get("topk") or "10")
    documents: list[dict[str, Any]] = [
        {"id": f"{digest[at % 32]}-{at}", "fields": {"n": [at, "],["], "o": {}}, "score": at // 2 + digest[0] / 7}
        for at in range(min(topk, digest[1]))
    ]
    separators = (",", ":") if chance is None else (chance.choice([",", " ,", ", \n"]), chance.choice([":", " :\t"]))
    answer = {"code": 0, "request_id": "one", "message": '"output":[{', "output": documents, "usage": {"units": 1}}
    return json.dumps(answer, separators=separators).encode()
