"""Whoever asks for the same vectors shares what is kept, however the asking is spelled, cut or routed."""

import http.client
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.sdk.asking import KEY, MODEL, Ask, Dashscope2, OpenAi, dashscope1, fresh
from tests.sdk.rig import PATIENT, Rig, assert_hit
from tests.support.proxy_process import ProxyProcess
from tests.support.waiting import wait_until_sync

PATH = "/api/v1/services/embeddings/text-embedding/text-embedding"
CUTS = [[10, 10, 5], [6, 6, 6, 6, 1], [1, 4, 10, 10], [5] * 5]
# Every form in which a vector is kept: float32, float64, both kinds of sparse, and base64.
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("dashscope1", {}),
    ("dashscope1", {"model": "text-embedding-v1"}),
    ("dashscope1", {"model": "text-embedding-v2"}),
    ("dashscope1", {"output_type": "sparse"}),
    ("dashscope1", {"output_type": "dense&sparse", "dimension": 64}),
    ("openai", {}),
    ("openai", {"encoding_format": "float"}),
]


def raw(url: str, body: str, headers: dict[str, str]) -> tuple[dict[str, str], bytes]:
    """Just these bytes; the answer's headers (lower-case names) and body."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request("POST", PATH, body.encode(), headers)
        answer = connection.getresponse()
        assert answer.status == 200
        return {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


JAVA_HEADERS = {
    "Authorization": f"Bearer {KEY}",
    "Content-Type": "application/json; charset=utf-8",
    "User-Agent": "dashscope/2.22.3; java/17.0.15; platform/Linux; processor/amd64",
    "Connection": "Keep-Alive",
}


def gson(texts: list[str], parameters: str = "") -> str:
    """What Gson writes: compact, no HTML escaping, no parameters when there are none, two separators escaped."""
    listed = json.dumps(texts, ensure_ascii=False, separators=(",", ":")).replace("\u2028", "\\u2028")
    return f'{{"model":"{MODEL}","input":{{"texts":{listed}}}{parameters}}}'


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        ("", {}),
        (',"parameters":{"text_type":"query"}', {"text_type": "query"}),
        # The order of a hash map.
        (',"parameters":{"dimension":512,"text_type":"query"}', {"text_type": "query", "dimension": 512}),
        (',"parameters":{"text_type":"query","dimension":512}', {"text_type": "query", "dimension": 512}),
    ],
    ids=["no parameters", "one", "two", "two in the other order"],
)
def test_the_java_sdk_shares_entries_with_the_1x_sdk(rig: Rig, parameters: str, options: dict[str, Any]) -> None:
    texts = fresh(8)
    direct = raw(rig.sim.url, gson(texts, parameters), JAVA_HEADERS)[1]
    dashscope1(rig.proxy.http_url, texts, **options)
    before = rig.calls()
    headers, body = raw(rig.proxy.http_url, gson(texts, parameters), JAVA_HEADERS)
    assert rig.calls() == before
    assert headers["cache-status"].startswith("dashcache; hit; ttl=")
    assert headers["x-dashcache-items"] == "8/8"
    assert headers["content-type"] == "application/json"
    assert _less_id(body) == _less_id(direct)  # to the byte


@pytest.mark.parametrize("options", [{}, {"text_type": "query", "dimension": 512}], ids=["plain", "options"])
def test_the_1x_sdk_shares_the_java_sdks_entries(rig: Rig, options: dict[str, Any]) -> None:
    texts = fresh(8)
    parameters = ',"parameters":{"dimension":512,"text_type":"query"}' if options else ""
    raw(rig.proxy.http_url, gson(texts, parameters), JAVA_HEADERS)
    told = rig.through(lambda url: dashscope1(url, texts, **options), calls=0)
    assert_hit(told, 8)
    assert told.said == dashscope1(rig.sim.url, texts, **options).said


def _less_id(body: bytes) -> bytes:
    return re.sub(rb'"request_id":"[^"]+"', b'"request_id":""', body)


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(range(len(CUTS)), 2)))
def test_texts_are_shared_however_a_framework_cuts_its_batches(rig: Rig, first: int, second: int) -> None:
    texts = fresh(25)
    for batch in _cut(texts, CUTS[first]):
        dashscope1(rig.proxy.http_url, batch)
    for batch in _cut(texts, CUTS[second]):
        told = rig.through(lambda url, batch=batch: dashscope1(url, batch), calls=0)
        assert_hit(told, len(batch))
        assert told.value == dashscope1(rig.sim.url, batch).value


@pytest.mark.parametrize("sdk", ["dashscope1", "dashscope2", "openai"])
def test_a_cut_text_list_that_has_grown_asks_for_the_growth(
    rig: Rig, openai_sync: OpenAi, dashscope2: Dashscope2, sdk: str
) -> None:
    embed: Ask = {"dashscope1": dashscope1, "openai": openai_sync, "dashscope2": dashscope2.embed}[sdk]
    texts = fresh(25)
    for batch in _cut(texts, [10, 10, 5]):
        embed(rig.proxy.http_url, batch)
    new = fresh(2)
    grown = [*texts[:7], new[0], *texts[7:], new[1]]
    rig.sim.clear()
    batches = _cut(grown, [6, 6, 6, 6, 3])
    answers = [embed(rig.proxy.http_url, batch).value for batch in batches]
    assert rig.sim.texts_asked == dict.fromkeys(new, 1)
    assert rig.calls() == 2
    assert answers == [embed(rig.sim.url, batch).value for batch in batches]


def _cut(texts: list[str], sizes: list[int]) -> list[list[str]]:
    assert sum(sizes) == len(texts)
    rest = iter(texts)
    return [list(itertools.islice(rest, size)) for size in sizes]


def entries(rig: Rig) -> set[bytes]:
    """The names of all entries; replicas keep other things in Redis too, when they please."""
    return set(rig.redis.client.scan_iter("*:e:*"))


@pytest.fixture(scope="module")
def replica(module_rig: Rig) -> Iterator[ProxyProcess]:
    """Another replica on the same Redis, without a memory of its own: all that it knows has been through Redis."""
    with ProxyProcess(
        dashscope_url=module_rig.sim.url,
        redis_url=module_rig.redis.url,
        key_secret=module_rig.proxy.key_secret,
        env={**PATIENT, "DASHCACHE_MEMORY_MAX_BYTES": "0"},
    ) as proxy:
        yield proxy


@pytest.mark.parametrize(("sdk", "options"), KINDS, ids=lambda value: str(value) if value else "plain")
@pytest.mark.parametrize("honours_base64", [False, True], ids=["numbers-for-base64", "base64"])
def test_another_replica_shares_entries_by_redis(
    rig: Rig, replica: ProxyProcess, openai_sync: OpenAi, sdk: str, options: dict[str, Any], honours_base64: bool
) -> None:
    rig.sim.configure(honours_base64=honours_base64)
    embed: Ask = dashscope1 if sdk == "dashscope1" else openai_sync
    texts = fresh(8)
    kept = entries(rig)
    first = rig.cached(lambda url: embed(url, texts, **options), items=8)
    wait_until_sync(lambda: len(entries(rig) - kept) >= 8, what="all rows to be in Redis")
    before = rig.calls()
    told = embed(replica.http_url, texts, **options)
    assert rig.calls() == before
    assert_hit(told, 8)
    assert told.said == first.said
