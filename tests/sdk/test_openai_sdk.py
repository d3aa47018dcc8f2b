"""openai-python on the compatible path: equal results with and without the proxy."""

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from tests.sdk.asking import KEY, MODEL, Ask, OpenAi, fresh, openai_async
from tests.sdk.rig import Rig, assert_hit
from tests.vendor_sim import Fault

OPTIONS: list[dict[str, Any]] = [
    {},  # the SDK then asks for base64 and decodes what is no list of numbers
    {"encoding_format": "float"},
    {"encoding_format": "base64"},
    {"dimensions": 256},
    {"dimensions": 64, "encoding_format": "float"},
    {"user": "alice"},
    {"model": "text-embedding-v2"},
    {"model": "text-embedding-v2", "encoding_format": "float"},
    {"extra_body": {"of": "tomorrow"}},
]
with_options = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()) or "default"
)


@pytest.fixture(params=[False, True], ids=["numbers-for-base64", "base64"])
def vendor(request: pytest.FixtureRequest, rig: Rig) -> Iterator[Rig]:
    """The rig with a vendor that honours base64, or does not; nobody knows which the real one is."""
    rig.sim.configure(honours_base64=request.param)
    return rig


@pytest.fixture(params=["OpenAI", "AsyncOpenAI"])
def embed(request: pytest.FixtureRequest, openai_sync: OpenAi) -> Ask:
    return openai_sync if request.param == "OpenAI" else openai_async


@with_options
def test_a_string_a_list_and_a_batch_are_answered_equally(vendor: Rig, embed: Ask, options: dict[str, Any]) -> None:
    for texts in (fresh(1)[0], fresh(1), fresh(10)):
        told = vendor.cached(
            lambda url, texts=texts: embed(url, texts, **options), items=1 if isinstance(texts, str) else len(texts)
        )
        is_text = options.get("encoding_format") == "base64" and vendor.sim.sim.settings.honours_base64
        assert {type(row["embedding"]) for row in told.value["data"]} == {str if is_text else list}


@with_options
def test_a_partly_known_batch_asks_for_the_rest_only(vendor: Rig, openai_sync: OpenAi, options: dict[str, Any]) -> None:
    known, new = fresh(3), fresh(3)
    asked = [new[0], known[1], new[2], known[0], known[0], new[1], new[0]]
    vendor.completed(lambda url, texts: openai_sync(url, texts, **options), known, new, asked)


def test_what_the_client_decodes_is_the_vector(vendor: Rig, openai_sync: OpenAi) -> None:
    """The plain call, as everybody makes it; base64 and numbers are the same vector."""
    texts = fresh(2)
    numbers = openai_sync(vendor.sim.url, texts, encoding_format="float").value["data"]
    for _ in range(2):
        answer = openai_sync.client(vendor.proxy.http_url).embeddings.create(model=MODEL, input=texts)
        for row, expected in zip(answer.data, numbers, strict=True):
            assert np.array_equal(np.float32(row.embedding), np.float32(expected["embedding"]))


def test_formats_never_mix(vendor: Rig, openai_sync: OpenAi) -> None:
    """What is kept for one format is never given to a client that asked for another."""
    texts = fresh(2)
    for calls in (1, 0):
        for options in ({"encoding_format": "base64"}, {"encoding_format": "float"}, {"dimensions": 64}):
            told = vendor.through(lambda url, options=options: openai_sync(url, texts, **options), calls=calls)
            assert told.said == openai_sync(vendor.sim.url, texts, **options).said


def test_base64_by_name_is_the_vendors_text(rig: Rig, openai_sync: OpenAi) -> None:
    rig.sim.configure(honours_base64=True)
    text = fresh(1)[0]
    told = rig.cached(lambda url: openai_sync(url, text, encoding_format="base64"), items=1)
    assert len(base64.b64decode(told.value["data"][0]["embedding"])) == 4 * 1024


def test_the_user_field_does_not_split_entries(rig: Rig, openai_sync: OpenAi) -> None:
    texts = fresh(2)
    openai_sync(rig.proxy.http_url, texts, user="alice")
    for options in ({"user": "bob"}, {}):
        assert_hit(rig.through(lambda url, options=options: openai_sync(url, texts, **options), calls=0), 2)


def test_another_key_asks_for_itself(rig: Rig, openai_sync: OpenAi) -> None:
    texts = fresh(2)
    openai_sync(rig.proxy.http_url, texts)
    rig.cached(lambda url: openai_sync(url, texts, api_key="sk-two"), items=2)


def test_both_clients_share_entries(rig: Rig, openai_sync: OpenAi) -> None:
    texts = fresh(3)
    openai_sync(rig.proxy.http_url, texts)
    assert_hit(rig.through(lambda url: openai_async(url, texts), calls=0), 3)


def test_a_hit_tells_how_it_came_about(rig: Rig, openai_sync: OpenAi) -> None:
    text = fresh(1)[0]
    first, again = (
        openai_sync.client(rig.proxy.http_url).embeddings.with_raw_response.create(model=MODEL, input=text)
        for _ in range(2)
    )
    assert first.headers["cache-status"] == "dashcache; fwd=miss; fwd-status=200; stored"
    assert again.headers["cache-status"].startswith("dashcache; hit; ttl=")
    assert again.headers["x-dashcache-origin"] == first.headers["x-request-id"]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert again.http_response.json()["id"] == again.headers["x-request-id"]


def test_the_clients_own_retries_work_through_the_proxy(rig: Rig) -> None:
    """The vendor's wish for a pause reaches the client, and a retry's new headers do not split entries."""
    text = fresh(1)[0]
    rig.sim.add_faults(Fault(error="burst_rate", text=text, times=2, headers={"retry-after-ms": "1"}))
    with openai.OpenAI(api_key=KEY, base_url=f"{rig.proxy.http_url}/compatible-mode/v1") as client:
        retried = client.embeddings.with_raw_response.create(model=MODEL, input=text)
        assert retried.retries_taken == 2
        assert rig.calls() == 3
        client.embeddings.create(model=MODEL, input=text)
    assert rig.calls() == 3
