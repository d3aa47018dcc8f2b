"""What is asked for and answered in all comparisons: texts, and embeddings of 1,024 numbers, 22 KB each."""

import functools
import json
import random
import struct

TARGET = "/api/v1/services/embeddings/text-embedding/text-embedding"
OPENAI_TARGET = "/compatible-mode/v1/embeddings"
TEXTS = 200
"""Different requests that are repeated."""
DIMENSION = 1_024


def text(number: int) -> str:
    """What is embedded, by its *number*."""
    return f"text number {number} of the quick brown fox"


def body(texts: list[str]) -> bytes:
    """A request for these *texts*."""
    document = {"model": "text-embedding-v4", "input": {"texts": texts}, "parameters": {"dimension": DIMENSION}}
    return json.dumps(document).encode()


@functools.lru_cache(1_000)
def vector(of: str) -> bytes:
    """The JSON text of its numbers as the vendor spells them: float32 widened, no blanks."""
    chance = random.Random(of)
    numbers = struct.unpack(f"<{DIMENSION}f", struct.pack(f"<{DIMENSION}f", *_uniform(chance)))
    return json.dumps(numbers, separators=(",", ":")).encode()


def openai_body(texts: list[str]) -> bytes:
    """The same request in the compatible dialect."""
    return json.dumps({"model": "text-embedding-v4", "input": texts, "dimensions": DIMENSION}).encode()


def openai_answer(request: bytes) -> bytes:
    """The vendor's answer to such a body."""
    texts = json.loads(request)["input"]
    rows = b",".join(
        b'{"embedding":%b,"index":%d,"object":"embedding"}' % (vector(each), at) for at, each in enumerate(texts)
    )
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (7 * len(texts), 7 * len(texts))
    return b'{"data":[%b],"model":"text-embedding-v4","object":"list","usage":%b,"id":"vendor-1"}' % (rows, usage)


def _uniform(chance: random.Random) -> list[float]:
    return [chance.uniform(-0.1, 0.1) for _ in range(DIMENSION)]


def answer(request: bytes) -> bytes:
    """The vendor's answer to the body *request*."""
    texts = json.loads(request)["input"]["texts"]
    rows = b",".join(b'{"embedding":%b,"text_index":%d}' % (vector(each), at) for at, each in enumerate(texts))
    usage = b'{"total_tokens":%d}' % (7 * len(texts))
    return b'{"output":{"embeddings":[%b]},"usage":%b,"request_id":"vendor-1"}' % (rows, usage)
