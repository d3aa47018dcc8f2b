"""
The kinds of routes that there are, each with a question, its good answer, and a way to ask. Used by the tests of rows.

A word makes a question: every word is another one, so that tests do not meet what others have left in the cache.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from tests.scenario.telling import COMPATIBLE, NATIVE, Lines, bearer, state
from tests.support import answers
from tests.support.raw_client import RawClient, RawResponse
from tests.support.raw_upstream import RawUpstream

GENERATION = "/api/v1/services/aigc/text-generation/generation"
QUERY = "/v1/collections/quickstart/query"
JSON = (b"Content-Type", b"application/json")


@dataclass(frozen=True)
class Route:
    """``lines`` are what every request has; ``good`` is the body of a complete and right answer to a word."""

    name: str
    target: str
    lines: Lines
    body: Callable[[str], bytes]
    good: Callable[[str], bytes]
    is_kept: bool = True

    async def ask(self, client: RawClient, word: str, *others: tuple[bytes, bytes]) -> RawResponse:
        """The question about *word*, with *others* among its lines."""
        return await client.request("POST", self.target, [*self.lines, *others], self.body(word))

    def is_good(self, response: RawResponse, word: str) -> bool:
        """Whether *response* says what the good answer to *word* says, whichever request it was made for."""
        if response.status != 200:
            return False
        document = json.loads(response.body)
        right = json.loads(self.good(word))
        return {**document, "request_id": 0, "id": 0} == {**right, "request_id": 0, "id": 0}

    async def assert_not_kept(self, client: RawClient, word: str) -> None:
        """The upstream's answers being good by now, *word* is asked for once more, answered well, and kept."""
        response = await self.ask(client, word)
        assert self.is_good(response, word)
        assert state(response) == ("miss" if self.is_kept else "none")
        if self.is_kept:
            await self.wait_kept(client, word)

    async def fill(self, client: RawClient, upstream: RawUpstream, word: str) -> None:
        """Have the good answer to *word* kept."""
        upstream.answer = answers.respond_json(self.good(word))
        await self.assert_not_kept(client, word)

    async def wait_kept(self, client: RawClient, word: str) -> RawResponse:
        """Ask until the answer comes from the cache: what Redis alone keeps is told to it behind the answer's back."""
        for _ in range(200):
            response = await self.ask(client, word)
            assert self.is_good(response, word)
            if state(response) == "hit":
                return response
        raise AssertionError(f"{self.name} {word!r} was not kept")


def numbers(word: str) -> list[float]:
    """A vector that only *word* has."""
    return [byte / 256 for byte in hashlib.sha256(word.encode()).digest()[:4]]


def _native(word: str) -> bytes:
    document = {"model": "text-embedding-v4", "input": {"texts": [word]}, "parameters": {"dimension": 4}}
    return json.dumps(document).encode()


def _native_good(word: str) -> bytes:
    rows = [{"embedding": numbers(word), "text_index": 0}]
    document = {"output": {"embeddings": rows}, "usage": {"total_tokens": 3}, "request_id": "vendor-1"}
    return json.dumps(document).encode()


def _compatible(word: str) -> bytes:
    document = {"model": "text-embedding-v4", "input": [word], "dimensions": 4, "encoding_format": "float"}
    return json.dumps(document).encode()


def _compatible_good(word: str) -> bytes:
    rows = [{"embedding": numbers(word), "index": 0, "object": "embedding"}]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return json.dumps({"data": rows, "model": "m", "object": "list", "usage": usage, "id": "vendor-1"}).encode()


def _query(word: str) -> bytes:
    return json.dumps({"topk": 1, "vector": numbers(word), "include_vector": False}).encode()


def _query_good(word: str) -> bytes:
    output = [{"id": word, "fields": {"name": word}, "score": 0.5}]
    return json.dumps({"request_id": "vendor-1", "code": 0, "message": "Success", "output": output}).encode()


EMBEDDING = Route("embedding", NATIVE, bearer("sk-1"), _native, _native_good)
OPENAI = Route("compatible", COMPATIBLE, bearer("sk-1"), _compatible, _compatible_good)
VECTORS = Route("query", QUERY, ((b"dashvector-auth-token", b"sk-dv-1"), JSON), _query, _query_good)
PASSED = Route("passed", GENERATION, bearer("sk-1"), _native, _native_good, is_kept=False)

KEPT = (EMBEDDING, OPENAI, VECTORS)
ALL = (PASSED, *KEPT)
