"""dashscope 1.27.8: equal results with and without the proxy."""

import io
import secrets
import urllib.request
from typing import Any

import dashscope
import orjson
import pytest
from dashscope import TextEmbedding

from tests.sdk.rig import Rig
from tests.vendor_sim.models import EMBEDDING_MODELS

DIMENSIONS = [
    (model.name, dimension)
    for model in EMBEDDING_MODELS.values()
    if model.has_dimension_choice
    for dimension in model.dimensions
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"text_type": "query"},
    {"text_type": "document"},
    {"dimension": 512, "text_type": "query", "instruct": "Given a query, find passages"},
    {"output_type": "sparse"},
    {"output_type": "dense&sparse", "dimension": 64},
    {"an_unknown_parameter": {"of": "tomorrow"}},
]


def embed(url: str, texts: Any, *, api_key: str = "sk-sdk", model: str = "text-embedding-v4", **options: Any) -> Any:
    """What the SDK makes of the answer, less the id of the request."""
    dashscope.base_http_api_url = f"{url}/api/v1"
    answer = TextEmbedding.call(model=model, input=texts, api_key=api_key, **options)
    return answer.status_code, answer.code, answer.message, answer.output, answer.usage


def fresh(count: int) -> list[str]:
    """Texts that nobody has asked for."""
    return [f"文本 {secrets.token_hex(8)}" for _ in range(count)]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "none")
def test_a_single_text_and_a_batch_are_answered_equally(rig: Rig, options: dict[str, Any]) -> None:
    for texts in (fresh(1)[0], fresh(1), fresh(10)):
        status = rig.three_ways(lambda url, texts=texts: embed(url, texts, **options))[0][0]
        assert status == 200


@pytest.mark.parametrize(("model", "dimension"), DIMENSIONS)
def test_each_dimension_of_each_model_is_answered_equally(rig: Rig, model: str, dimension: int) -> None:
    texts = fresh(2)
    answer = rig.three_ways(lambda url: embed(url, texts, model=model, dimension=dimension))[0]
    assert {len(row["embedding"]) for row in answer[3]["embeddings"]} == {dimension}


@pytest.mark.parametrize("model", ["text-embedding-v1", "text-embedding-v2"])
def test_models_of_true_float64_keep_every_digit(rig: Rig, model: str) -> None:
    texts = fresh(25)
    rig.three_ways(lambda url: embed(url, texts, model=model))


def test_a_file_becomes_a_batch(rig: Rig) -> None:
    lines = "\n".join(fresh(3))
    rig.three_ways(lambda url: embed(url, io.StringIO(lines)))


def test_a_partly_known_batch_asks_for_the_rest_only_and_puts_every_vector_in_its_place(rig: Rig) -> None:
    known, new = fresh(4), fresh(4)
    embed(rig.proxy.http_url, known)
    mixed = [known[2], new[0], new[1], known[0], new[0], known[0], new[2], new[3], known[1]]
    direct = embed(rig.sim.url, mixed)
    rig.sim.clear()
    through = embed(rig.proxy.http_url, mixed)
    assert through[3] == direct[3]
    assert rig.sim.texts_asked == dict.fromkeys(new, 1)
    assert embed(rig.proxy.http_url, mixed) == through  # the usage too is the same when the batch comes again


def test_texts_are_shared_however_a_framework_cuts_its_batches(rig: Rig) -> None:
    texts = fresh(25)
    for start in range(0, 25, 10):
        embed(rig.proxy.http_url, texts[start : start + 10])
    before = rig.calls()
    for start in range(0, 25, 6):
        assert embed(rig.proxy.http_url, texts[start : start + 6])[0] == 200
    assert rig.calls() == before


def test_the_java_sdks_spelling_shares_entries(rig: Rig) -> None:
    """Gson: compact, members in another order, no parameters when there are none."""
    texts = fresh(2)
    embed(rig.proxy.http_url, texts)
    before = rig.calls()
    request = urllib.request.Request(
        f"{rig.proxy.http_url}/api/v1/services/embeddings/text-embedding/text-embedding",
        data=orjson.dumps({"input": {"texts": texts}, "model": "text-embedding-v4"}),
        headers={
            "Authorization": "Bearer sk-sdk",
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": "dashscope/2.22.3; java/17.0.15; platform/Linux; processor/amd64",
        },
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["X-Dashcache-Items"] == "2/2"
        assert answer.headers["Cache-Status"].startswith("dashcache; hit; ttl=")
    assert rig.calls() == before


def test_another_key_asks_for_itself(rig: Rig) -> None:
    texts = fresh(2)
    embed(rig.proxy.http_url, texts, api_key="sk-one")
    before = rig.calls()
    embed(rig.proxy.http_url, texts, api_key="sk-two")
    assert rig.calls() == before + 1


def test_bypassed_results_are_equal_and_never_from_the_cache(rig: Rig) -> None:
    texts = fresh(2)
    known = embed(rig.proxy.http_url, texts)
    rig.proxy.mode("bypass")
    try:
        before = rig.calls()
        assert embed(rig.proxy.http_url, texts) == known
        assert rig.calls() == before + 1
    finally:
        rig.proxy.mode("on")
