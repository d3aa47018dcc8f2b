"""The 2.x client, which has an environment of its own: equal results with and without the proxy."""

from typing import Any

import pytest

from tests.sdk.asking import Ask, Dashscope2, dashscope1, fresh
from tests.sdk.rig import Rig, assert_hit
from tests.vendor_sim import Fault

OPTIONS: list[dict[str, Any]] = [
    {},
    {"model": "text-embedding-v2"},
    {"text_type": "query", "dimension": 512, "instruct": "Given a query, find passages"},
    {"output_type": "sparse"},
    {"output_type": "dense&sparse", "dimension": 64},
    {"parameters": {"of": "tomorrow"}},
]
with_options = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()) or "none"
)


@pytest.fixture(params=["Client", "AsyncClient"])
def embed(request: pytest.FixtureRequest, dashscope2: Dashscope2) -> Ask:
    return dashscope2.embed if request.param == "Client" else dashscope2.embed_async


@with_options
def test_a_string_and_a_batch_are_answered_equally(rig: Rig, embed: Ask, options: dict[str, Any]) -> None:
    for texts in (fresh(1)[0], fresh(10)):
        told = rig.cached(
            lambda url, texts=texts: embed(url, texts, **options), items=1 if isinstance(texts, str) else len(texts)
        )
        assert all(row["embedding"] or row["sparse_embedding"] for row in told.value["answer"]["embeddings"])


@with_options
def test_a_partly_known_batch_asks_for_the_rest_only(rig: Rig, embed: Ask, options: dict[str, Any]) -> None:
    known, new = fresh(3), fresh(3)
    asked = [new[0], known[1], new[2], known[0], known[0], new[1], new[0]]
    rig.completed(lambda url, texts: embed(url, texts, **options), known, new, asked)


@with_options
def test_it_shares_entries_with_the_1x_sdk(rig: Rig, embed: Ask, options: dict[str, Any]) -> None:
    texts = fresh(3)
    options1 = {**options, **options.get("parameters", {})}
    options1.pop("parameters", None)
    first = dashscope1(rig.proxy.http_url, texts, **options1)
    told = rig.through(lambda url: embed(url, texts, **options), calls=0)
    assert_hit(told, 3)
    assert told.header("x-dashcache-origin") == first.header("x-request-id")
    assert told.said == embed(rig.sim.url, texts, **options).said


def test_the_1x_sdk_shares_its_entries(rig: Rig, embed: Ask) -> None:
    texts = fresh(3)
    embed(rig.proxy.http_url, texts)
    told = rig.through(lambda url: dashscope1(url, texts), calls=0)
    assert_hit(told, 3)
    assert told.said == dashscope1(rig.sim.url, texts).said


def test_its_own_retries_work_through_the_proxy(rig: Rig, embed: Ask) -> None:
    texts = fresh(2)
    rig.sim.add_faults(Fault(error="burst_rate", text=texts[0], times=2, headers={"retry-after-ms": "1"}))
    told = embed(rig.proxy.http_url, texts, client={"max_retries": 2})
    assert told.header("cache-status").endswith("stored")
    assert rig.calls() == 3
    assert_hit(rig.through(lambda url: embed(url, texts), calls=0), 2)


@pytest.mark.parametrize("name", ["rate_quota", "invalid_api_key", "internal"])
def test_errors_that_are_not_raised_are_equal(rig: Rig, embed: Ask, name: str) -> None:
    """`raise_on_error` off; those that are raised stand among the errors of all SDKs."""
    texts = fresh(2)
    rig.sim.add_faults(Fault(error=name, text=texts[0]))
    told = rig.refused(lambda url: embed(url, texts, client={"raise_on_error": False}))
    assert told.value["answer"]["is_error"]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["Client", "AsyncClient"])
def test_a_batch_job_is_submitted_and_waited_for(rig: Rig, dashscope2: Dashscope2, asynchronous: bool) -> None:
    """Same path as the cached operation: only a header and the body tell them apart."""

    def call(url: str, method: str, **options: Any) -> dict[str, Any]:
        asked = dashscope2.ask(url, f"embeddings.jobs.{method}", asynchronous=asynchronous, **options)
        return dict(asked.value["answer"])

    jobs = []
    for url in (*rig.urls, rig.proxy.http_url):
        job = call(url, "create", model="text-embedding-async-v2", file_url="https://example.com/t.txt")
        assert job["status"] == "PENDING"
        done = call(url, "wait", job=job["task_id"], poll_interval=0.001, max_interval=0.001)
        assert done["status"] == "SUCCEEDED"
        jobs.append(job["task_id"])
    assert len(set(jobs)) == 3


@pytest.mark.parametrize("asynchronous", [False, True], ids=["Client", "AsyncClient"])
def test_rerank_chat_and_multimodal_pass(rig: Rig, dashscope2: Dashscope2, asynchronous: bool) -> None:
    questions: dict[str, dict[str, Any]] = {
        "rerank.create": {"model": "qwen3-rerank", "query": "q", "documents": ["a", "b"], "return_documents": True},
        "chat.completions.create": {"model": "qwen-plus", "messages": [{"role": "user", "content": "你好"}]},
        "multimodal.embeddings.create": {"model": "qwen3-vl-embedding", "input": [{"text": "a"}]},
        "models.list": {},
    }
    for method, options in questions.items():
        rig.passed(
            lambda url, method=method, options=options: dashscope2.ask(
                url, method, asynchronous=asynchronous, **options
            )
        )
