"""Real SDKs through a proxy that batches and cuts: they get what they would have got alone."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dashscope
import openai
import pytest

from tests.sdk.asking import KEY, MODEL, Ask, OpenAi, dashscope1, fresh, openai_async, openai_told
from tests.sdk.rig import PATIENT, Rig, Told, assert_hit
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_sync
from tests.vendor_sim import Fault, SimSettings, sim_thread

CAP = 10
BATCHING = {**PATIENT, "DASHCACHE_BATCHING_WINDOW_MS": "100", "DASHCACHE_BATCHING_CUT": "true"}


@pytest.fixture(scope="module")
def module_rig() -> Iterator[Rig]:
    with (
        sim_thread(SimSettings(shuffles_embeddings=True)) as sim,
        RedisServer() as redis,
        ProxyProcess(dashscope_url=sim.url, redis_url=redis.url, env=BATCHING, workers=2) as proxy,
    ):
        yield Rig(sim, redis, proxy)
        dashscope.close_shared_sync_session()


def ask_singly(url: str, texts: list[str], **options: Any) -> list[Told]:
    """Each text in a call of its own, all at once, by the SDK that fits the options."""
    if "text_type" in options:
        with ThreadPoolExecutor(len(texts)) as threads:
            return list(threads.map(lambda text: dashscope1(url, text, **options), texts))

    async def work() -> list[Told]:
        async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/compatible-mode/v1", max_retries=0) as client:
            create = client.embeddings.with_raw_response.create
            answers = await asyncio.gather(*(create(model=MODEL, input=text, **options) for text in texts))
            return [openai_told(answer) for answer in answers]

    return asyncio.run(work())


@pytest.mark.parametrize(
    "options",
    [
        {"text_type": "query"},
        {"text_type": "document", "output_type": "dense&sparse"},
        {},
        {"encoding_format": "float"},
    ],
    ids=["dashscope", "dashscope-sparse", "openai", "openai-float"],
)
def test_many_single_calls_at_once_are_few_and_right(rig: Rig, options: dict[str, Any]) -> None:
    texts = fresh(30)
    direct = ask_singly(rig.sim.url, texts, **options)
    rig.sim.clear()
    cold = ask_singly(rig.proxy.http_url, texts, **options)
    assert [told.value for told in cold] == [told.value for told in direct]
    assert rig.calls() < 30, "each on its own would be 30"
    assert rig.sim.texts_asked == dict.fromkeys(texts, 1)
    for told in cold:
        assert told.header("cache-status") == "dashcache; fwd=miss; fwd-status=200; stored"

    def all_known() -> list[Told] | None:
        """Rows are kept after their answer is out, so a client that is quick enough asks before that."""
        warm = ask_singly(rig.proxy.http_url, texts, **options)
        assert [told.said for told in warm] == [told.said for told in cold], "usage too: a share stays what it was"
        return warm if all(told.header("cache-status").startswith("dashcache; hit") for told in warm) else None

    for told in wait_until_sync(all_known):
        assert_hit(told, 1)


def test_usage_adds_up_to_what_the_vendor_counted(rig: Rig) -> None:
    """The one thing in which a text that came with others may differ: the vendor counts per request only."""
    texts = fresh(20)
    cold = ask_singly(rig.proxy.http_url, texts, text_type="query")
    counted = dashscope1(rig.sim.url, texts[:CAP]).usage["total_tokens"]
    counted += dashscope1(rig.sim.url, texts[CAP:]).usage["total_tokens"]
    assert sum(told.usage["total_tokens"] for told in cold) == counted


def test_one_bad_text_is_refused_alone(rig: Rig) -> None:
    bad, *good = fresh(8)
    rig.sim.add_faults(Fault(error="data_inspection_failed", text=bad))
    direct = [dashscope1(rig.sim.url, text) for text in (bad, *good)]
    told = ask_singly(rig.proxy.http_url, [bad, *good], text_type="document")
    assert [each.value for each in told] == [each.value for each in direct]
    assert told[0].value[1] == 400


@pytest.mark.parametrize("embed", [dashscope1, openai_async], ids=["dashscope", "openai"])
def test_a_large_batch_is_answered_as_if_there_were_no_cap(rig: Rig, embed: Ask, openai_sync: OpenAi) -> None:
    texts = fresh(24)
    parts = [embed(rig.sim.url, texts[at : at + CAP]) for at in range(0, len(texts), CAP)]
    assert "batch size is invalid" in str(embed(rig.sim.url, texts).value)
    cold = rig.through(lambda url: embed(url, texts), calls=3)
    name, at = ("embeddings", "text_index") if embed is dashscope1 else ("data", "index")
    rows, expected = rows_of(cold, name), [row for part in parts for row in rows_of(part, name)]
    assert [row[at] for row in rows] == list(range(24))
    assert [{**row, at: 0} for row in rows] == [{**row, at: 0} for row in expected]
    assert total(cold) == sum(map(total, parts))
    warm = rig.through(lambda url: embed(url, texts), calls=0)
    assert warm.said == cold.said
    assert_hit(warm, 24)


def rows_of(told: Told, name: str) -> list[dict[str, Any]]:
    """In the order of their positions."""
    rows = told.value[4][name] if isinstance(told.value, tuple) else told.value[name]
    return sorted(rows, key=lambda row: row.get("text_index", row.get("index")))


def total(told: Told) -> int:
    return int(told.usage["total_tokens"])
