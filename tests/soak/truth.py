"""DashScope's part of the load: requests whose right answers are known, byte for byte but for ids."""

import random
import re
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import orjson

from tests.vendor_sim import answer, compatible_answer
from tests.vendor_sim.answers import compact
from tests.vendor_sim.app import COMPATIBLE_EMBEDDING, NATIVE_EMBEDDING
from tests.vendor_sim.errors import ERRORS

MODEL, DIMENSION = "text-embedding-v4", 64
KNOWN, BATCH = 400, 8
RERANKS, STREAMS = 30, 10
KEY = "Bearer sk-soak"
ID = b"request-id-goes-here"
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
RERANK = "/api/v1/services/rerank/text-rerank/text-rerank"
GENERATION = "/api/v1/services/aigc/text-generation/generation"
PASSED = ("/api/v1/models", "/compatible-mode/v1/models", "/api/v1/public-keys/latest", "/soak/no/such/path?x=%20")


def without_ids(body: bytes) -> bytes:
    """*body* with one and the same request id instead of its own."""
    return _UUID.sub(ID, body)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; *truth* is what the vendor answers, ids left out."""

    kind: str
    method: str
    target: str
    body: bytes | None
    status: int
    truth: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def is_right(self, status: int, body: bytes) -> bool:
        """Whether that is the vendor's answer."""
        return status == self.status and without_ids(body) == self.truth


VENDORS_ERRORS = {
    spec.body(ID.decode(), is_compatible=is_compatible) for spec in ERRORS.values() for is_compatible in (False, True)
}
"""Every refusal that the vendor has, ids left out."""


class Questions:
    """Draws requests. Texts are of equal length and equal cost, so that shares of usage have no remainders."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._new = 0
        self._passed: list[Ask] = []

    async def learn(self, session: aiohttp.ClientSession, url: str) -> None:
        """Ask the vendor itself for what is not cached."""
        for request in _passed():
            async with session.request(
                request.method, url + request.target, data=request.body, headers=headers_of(request)
            ) as response:
                truth = without_ids(await response.read())
                self._passed.append(replace(request, status=response.status, truth=truth))

    def passed(self, kind: str) -> Ask:
        """One of that kind which is not cached (yet)."""
        return self._chance.choice([request for request in self._passed if request.kind == kind])

    def native(self) -> Ask:
        """A native batch."""
        texts = self._texts()
        body = {"model": MODEL, "input": {"texts": texts}, "parameters": {"dimension": DIMENSION}}
        truth = answer(MODEL, texts, request_id=ID.decode(), dimension=DIMENSION)
        return Ask("embedding", "POST", NATIVE_EMBEDDING, orjson.dumps(body), 200, truth)

    def compatible(self) -> Ask:
        """A compatible batch, as numbers or base64."""
        texts, is_base64 = self._texts(), self._chance.random() < 0.5
        encoding = {"encoding_format": "base64"} if is_base64 else {}
        body = {"model": MODEL, "input": texts, "dimensions": DIMENSION, **encoding}
        truth = compatible_answer(MODEL, texts, request_id=ID.decode(), dimensions=DIMENSION, is_base64=is_base64)
        return Ask("compatible embedding", "POST", COMPATIBLE_EMBEDDING, orjson.dumps(body), 200, truth)

    def _texts(self) -> list[str]:
        """Mostly known ones, popular ones more often; a batch may have a text twice."""
        return [self._text() for _ in range(self._chance.randint(1, BATCH))]

    def _text(self) -> str:
        if self._chance.random() < 0.05:
            self._new += 1
            return f"new {self._new:07} 新的"
        return f"old {int(KNOWN * self._chance.random() ** 2):07} 已知"


def headers_of(request: Ask) -> dict[str, str]:
    """Its header lines."""
    return {"Authorization": KEY, "Content-Type": "application/json", **request.headers}


def _passed() -> list[Ask]:
    reranks = [
        _ask("rerank", RERANK, {"model": "qwen3-rerank", "input": {"query": f"query {number}", "documents": documents}})
        for number in range(RERANKS)
        if (documents := [f"document {number} {at}" for at in range(5)])
    ]
    streams = [
        _ask(
            "stream",
            GENERATION,
            {"model": "qwen-plus", "input": {"prompt": f"prompt {number}"}},
            {"X-DashScope-SSE": "enable"},
        )
        for number in range(STREAMS)
    ]
    return [*reranks, *streams, *(Ask("pass", "GET", target, None, 200, b"") for target in PASSED)]


def _ask(kind: str, target: str, body: Any, headers: dict[str, str] | None = None) -> Ask:
    return Ask(kind, "POST", target, compact(body), 200, b"", headers or {})
