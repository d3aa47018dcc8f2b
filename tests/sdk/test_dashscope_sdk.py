"""dashscope 1.27.8: equal results with and without the proxy."""

import io
from pathlib import Path
from typing import Any

import dashscope
import pytest

from tests.sdk.asking import KEY, MODEL, dashscope1, fresh, told1
from tests.sdk.rig import Rig, assert_hit
from tests.vendor_sim.models import EMBEDDING_MODELS

SIZES = [(model.name, size) for model in EMBEDDING_MODELS.values() for size in (None, *model.dimensions)]
SPARSE = [model.name for model in EMBEDDING_MODELS.values() if model.has_sparse]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"text_type": "query"},
    {"text_type": "document"},
    {"dimension": 512},
    {"dimension": 512, "text_type": "query", "instruct": "Given a query, find 段落"},
    {"output_type": "dense"},
    {"output_type": "sparse"},
    {"output_type": "sparse", "text_type": "query"},
    {"output_type": "dense&sparse", "dimension": 64},
    {"an_unknown_parameter": {"of": "tomorrow"}},
]


def named(options: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items()) or "none"


with_options = pytest.mark.parametrize("options", OPTIONS, ids=named)


@with_options
def test_a_string_a_list_and_a_batch_are_answered_equally(rig: Rig, options: dict[str, Any]) -> None:
    for texts in (fresh(1)[0], fresh(1), fresh(10)):
        told = rig.cached(
            lambda url, texts=texts: dashscope1(url, texts, **options),
            items=1 if isinstance(texts, str) else len(texts),
        )
        assert told.value[1] == 200


@with_options
def test_a_batch_with_duplicates_is_answered_equally_and_asks_once_for_each_text(
    rig: Rig, options: dict[str, Any]
) -> None:
    first, second, third = fresh(3)
    texts = [first, second, first, third, second, first]
    rig.cached(lambda url: dashscope1(url, texts, **options), items=6, is_usage_exact=False)
    assert rig.sim.requests[1].texts == (first, second, third)


@with_options
def test_a_partly_known_batch_asks_for_the_rest_only_and_puts_every_vector_in_its_place(
    rig: Rig, options: dict[str, Any]
) -> None:
    known, new = fresh(4), fresh(4)
    asked = [known[2], new[0], new[1], known[0], new[0], known[0], new[2], new[3], known[1]]
    rig.completed(lambda url, texts: dashscope1(url, texts, **options), known, new, asked)


@pytest.mark.parametrize(("model", "size"), SIZES)
def test_each_dimension_of_each_model_is_answered_equally(rig: Rig, model: str, size: int | None) -> None:
    options = {} if size is None else {"dimension": size}
    for texts in (fresh(1), fresh(3)):
        told = rig.cached(
            lambda url, texts=texts: dashscope1(url, texts, model=model, **options),
            items=len(texts),
        )
        lengths = {len(row["embedding"]) for row in told.value[4]["embeddings"]}
        assert lengths == {size or EMBEDDING_MODELS[model].dimensions[0]}


@pytest.mark.parametrize("model", EMBEDDING_MODELS)
def test_the_largest_batch_of_each_model_is_answered_equally(rig: Rig, model: str) -> None:
    """v1 and v2 send numbers that no float32 holds."""
    texts = fresh(EMBEDDING_MODELS[model].max_texts)
    rig.cached(lambda url: dashscope1(url, texts, model=model), items=len(texts))


@pytest.mark.parametrize("output_type", ["sparse", "dense&sparse"])
@pytest.mark.parametrize("model", SPARSE)
def test_sparse_vectors_of_each_model_are_answered_equally(rig: Rig, model: str, output_type: str) -> None:
    texts = fresh(2)
    told = rig.cached(lambda url: dashscope1(url, texts, model=model, output_type=output_type), items=2)
    assert all(row["sparse_embedding"] for row in told.value[4]["embeddings"])
    assert all(("embedding" in row) == ("dense" in output_type) for row in told.value[4]["embeddings"])


def test_a_file_becomes_a_batch(rig: Rig, tmp_path: Path) -> None:
    """One text per line; from the second time on, a list of the same texts would hit as well."""
    lines = [text.replace("\n", " ").replace("\u2028", " ") for text in fresh(5)]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(lines), encoding="utf-8", newline="")

    def ask(url: str) -> Any:
        with path.open(encoding="utf-8", newline="\n") as file:
            return dashscope1(url, file)

    told = rig.cached(ask, items=5)
    assert len(told.value[4]["embeddings"]) == 5
    rig.through(lambda url: dashscope1(url, io.StringIO("\n".join(lines))), calls=0)


def test_known_texts_are_answered_in_any_order_and_number(rig: Rig) -> None:
    texts = fresh(10)
    dashscope1(rig.proxy.http_url, texts)
    for asked in (texts[::-1], texts[3:7], [texts[5]], [texts[9]] * 4):
        told = rig.through(lambda url, asked=asked: dashscope1(url, asked), calls=0)
        assert told.value == dashscope1(rig.sim.url, asked).value
        assert_hit(told, len(asked))


def test_options_never_mix(rig: Rig) -> None:
    """One text, asked in every way: no way is answered with what another has left behind."""
    texts = fresh(2)
    for round_calls in (1, 0):
        for options in OPTIONS:
            told = rig.through(lambda url, options=options: dashscope1(url, texts, **options), calls=round_calls)
            assert told.said == dashscope1(rig.sim.url, texts, **options).said


def test_models_never_mix(rig: Rig) -> None:
    texts = fresh(2)
    for model in EMBEDDING_MODELS:
        rig.cached(lambda url, model=model: dashscope1(url, texts, model=model), items=2)


@pytest.mark.parametrize("other", [{"api_key": "sk-two"}, {"workspace": "ws-two"}], ids=named)
def test_another_account_asks_for_itself(rig: Rig, other: dict[str, Any]) -> None:
    texts = fresh(2)
    dashscope1(rig.proxy.http_url, texts)
    rig.cached(lambda url: dashscope1(url, texts, **other), items=2)


def test_the_address_may_be_given_with_the_call(rig: Rig) -> None:
    texts = fresh(2)

    def ask(url: str) -> Any:
        given: dict[str, Any] = {"model": MODEL, "input": texts, "api_key": KEY}
        return told1(dashscope.TextEmbedding.call(**given, base_address=f"{url}/api/v1"))

    rig.cached(ask, items=2)
