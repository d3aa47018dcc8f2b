"""
Requests put together, and one taken apart: every client gets what it would have got alone, to the last digit.

The vendor is a function from text to the spelling of a vector, so another text's vector, or another spelling, shows.
"""

import hashlib
import json
import re

from hypothesis import given
from hypothesis import strategies as st

from proxy.core import jsontext
from tests.unit.vendors.exchanges import compatible, native, read

SPELLINGS = (
    "1",
    "-0.0",
    "1.50",
    "-0.00002131348367563013",
    "1E-7",
    "5e-324",
    "0.030681096017360687",
    "12345678901234567",
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
REQUESTS = st.lists(st.lists(TEXTS, min_size=1, max_size=4), min_size=2, max_size=6)
CAP = 10
_USAGE = re.compile(rb'"usage":\{[^}]*\}')
_TOTAL = re.compile(rb'"total_tokens":(\d+)')


def vector_of(text: str) -> str:
    """The fake vendor's vector, as it spells it."""
    digest = hashlib.sha256(text.encode()).digest()
    return "[" + ",".join(SPELLINGS[byte % len(SPELLINGS)] for byte in digest[:4]) + "]"


def vendor(body: bytes, shuffle=lambda _: None, request_id: str = "ours") -> bytes:
    """The fake vendor's answer in either dialect, its rows in any order."""
    document = json.loads(body)
    is_native = isinstance(document["input"], dict)
    texts = document["input"]["texts"] if is_native else document["input"]
    texts = [texts] if isinstance(texts, str) else texts
    tokens = sum(1 + len(text) // 3 for text in texts)
    kind = '"text_index":%d' if is_native else '"index":%d,"object":"embedding"'
    rows = [f'{{"embedding":{vector_of(text)},{kind % at}}}' for at, text in enumerate(texts)]
    shuffle(rows)
    inside, usage = ",".join(rows), f'"usage":{{"total_tokens":{tokens}}}'
    if is_native:
        return f'{{"output":{{"embeddings":[{inside}]}},{usage},"request_id":"{request_id}"}}'.encode()
    return f'{{"data":[{inside}],"model":"m","object":"list",{usage},"id":"{request_id}"}}'.encode()


def asked(texts, is_native, is_spelled_otherwise):
    """One request of many that are alike in what matters."""
    model = "text-embedding-v4"
    if is_native:
        body = {"model": model, "parameters": {}, "input": {"texts": texts}}
        if is_spelled_otherwise:
            body = {"input": {"texts": texts[0] if len(texts) == 1 else texts}, "model": model}
        return native(json.dumps(body, ensure_ascii=not is_spelled_otherwise).encode())
    body = {"model": model, "input": texts, "user": "alice"}
    if is_spelled_otherwise:
        body = {"user": "bob", "input": texts[0] if len(texts) == 1 else texts, "model": model}
    return compatible(json.dumps(body, ensure_ascii=not is_spelled_otherwise).encode())


def without_usage(answer: bytes) -> bytes:
    """What has to be equal to the last byte."""
    stripped, count = _USAGE.subn(b"", answer)
    assert count == 1
    return stripped


def tokens_of(answer: bytes) -> int:
    return int(_TOTAL.search(answer)[1])


@given(REQUESTS, st.booleans(), st.data(), st.randoms(use_true_random=False))
def test_requests_put_together_are_answered_as_alone(requests, is_native, data, chance):
    plans = [read(asked(texts, is_native, data.draw(st.booleans()))) for texts in requests]
    wanted = {}
    for plan in plans:
        for at, text in enumerate(plan.texts):
            wanted.setdefault(text, (plan, at))
    merged = plans[0].merged(list(wanted.values()))
    body = merged.narrowed(range(len(wanted)))
    answer = vendor(body, chance.shuffle, "theirs")
    rows = dict(zip(wanted, merged.split(answer, range(len(wanted))), strict=True))
    for plan, texts in zip(plans, requests, strict=True):
        told = plan.join([rows[text] for text in texts], "ours")
        assert without_usage(told) == without_usage(vendor(plan.body))
    once = plans[0].merged(list(wanted.values())).join(list(rows.values()), "ours")
    assert tokens_of(once) == tokens_of(answer)
    shares = [dict(rows[text].usage)["total_tokens"] for text in wanted]
    assert sum(shares) == tokens_of(answer)


@given(REQUESTS, st.booleans(), st.data())
def test_what_is_put_together_asks_for_the_same_and_speaks_for_nobody_else(requests, is_native, data):
    ways = [data.draw(st.booleans()) for _ in requests]
    plans = [read(asked(texts, is_native, way)) for texts, way in zip(requests, ways, strict=True)]
    parts = [(plan, at) for plan in plans for at in range(len(plan.texts))]
    merged = plans[0].merged(parts)
    makes = native if is_native else compatible
    again = read(makes(merged.narrowed(range(len(parts)))), caps={"text-embedding-v4": 100})
    assert again.texts == merged.texts == tuple(text for texts in requests for text in texts)
    assert again.items == merged.items
    assert again.identity == merged.identity == plans[0].identity == plans[-1].identity
    user = jsontext.parse(merged.body).get("user")
    assert user == (None if is_native or len(set(ways)) > 1 else "bob" if ways[0] else "alice")


@given(st.lists(TEXTS, min_size=CAP + 1, max_size=35), st.booleans(), st.randoms(use_true_random=False))
def test_a_request_taken_apart_is_answered_as_if_there_were_no_cap(texts, is_native, chance):
    plan = read(asked(texts, is_native, is_spelled_otherwise=False), max_pieces=4)
    rows, total = [], 0
    for start in range(0, len(texts), CAP):
        piece = range(start, min(start + CAP, len(texts)))
        body = plan.narrowed(list(piece))
        answer = vendor(body, chance.shuffle, "theirs")
        total += tokens_of(answer)
        rows += plan.split(answer, piece)
        assert read((native if is_native else compatible)(body)).identity == plan.identity
    told = plan.join(rows, "ours")
    assert told == vendor(plan.body)
    assert tokens_of(told) == total
