"""openai-python on the compatible path: equal results with and without the proxy."""

import secrets
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.sdk.rig import Rig, serving
from tests.vendor_sim.settings import SimSettings

OPTIONS: list[dict[str, Any]] = [
    {},
    {"encoding_format": "float"},
    {"encoding_format": "base64"},
    {"dimensions": 256},
    {"dimensions": 64, "encoding_format": "float"},
]


@pytest.fixture(scope="module", params=[False, True], ids=["answers-numbers", "honours-base64"])
def module_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with serving(SimSettings(honours_base64=request.param)) as rig:
        yield rig


@pytest.fixture
def rig(module_rig: Rig) -> Iterator[Rig]:
    """Resetting would put the simulator's options back as well."""
    yield module_rig
    module_rig.sim.clear()


def embed(url: str, texts: Any, **options: Any) -> Any:
    with openai.OpenAI(api_key="sk-openai", base_url=f"{url}/compatible-mode/v1", max_retries=0) as client:
        answer = client.embeddings.create(model="text-embedding-v4", input=texts, **options)
    return [(row.index, row.embedding) for row in answer.data], answer.model, answer.object, answer.usage


def fresh(count: int) -> list[str]:
    return [f"衣服 é {secrets.token_hex(8)}" for _ in range(count)]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(map(str, options.values())) or "default")
def test_a_single_text_and_a_batch_are_answered_equally(rig: Rig, options: dict[str, Any]) -> None:
    for texts in (fresh(1)[0], fresh(10)):
        rig.three_ways(lambda url, texts=texts: embed(url, texts, **options))


async def test_the_asynchronous_client_is_answered_equally(rig: Rig) -> None:
    texts = fresh(3)
    answers = []
    for url in (rig.sim.url, rig.proxy.http_url, rig.proxy.http_url):
        async with openai.AsyncOpenAI(api_key="sk-openai", base_url=f"{url}/compatible-mode/v1") as client:
            answer = await client.embeddings.create(model="text-embedding-v4", input=texts)
            answers.append(([row.embedding for row in answer.data], answer.usage))
    assert answers[0] == answers[1] == answers[2]


def test_formats_do_not_mix(rig: Rig) -> None:
    """What was kept for one format is never given to a client that asked for another."""
    text = fresh(1)[0]
    base64 = embed(rig.proxy.http_url, text, encoding_format="base64")
    before = rig.calls()
    numbers = embed(rig.proxy.http_url, text, encoding_format="float")
    assert rig.calls() == before + 1
    assert numbers == embed(rig.sim.url, text, encoding_format="float")
    assert base64 == embed(rig.sim.url, text, encoding_format="base64")


def test_the_user_field_does_not_split_entries(rig: Rig) -> None:
    text = fresh(1)[0]
    embed(rig.proxy.http_url, text, user="alice")
    before = rig.calls()
    embed(rig.proxy.http_url, text, user="bob")
    assert rig.calls() == before


def test_a_hit_tells_how_it_came_about(rig: Rig) -> None:
    text = fresh(1)[0]
    with openai.OpenAI(api_key="sk-openai", base_url=f"{rig.proxy.http_url}/compatible-mode/v1") as client:
        first = client.embeddings.with_raw_response.create(model="text-embedding-v4", input=text)
        again = client.embeddings.with_raw_response.create(model="text-embedding-v4", input=text)
    assert first.headers["cache-status"] == "dashcache; fwd=miss; fwd-status=200; stored"
    assert again.headers["cache-status"].startswith("dashcache; hit; ttl=")
    assert again.headers["x-dashcache-origin"] == first.headers["x-request-id"]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
