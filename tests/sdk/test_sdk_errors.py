"""Every error of the vendor reaches the SDKs as the vendor sent it, and none is ever kept."""

from typing import Any

import openai
import pytest

from tests.sdk.rig import Rig
from tests.sdk.test_dashscope_sdk import embed, fresh
from tests.vendor_sim import Fault
from tests.vendor_sim.errors import ERRORS


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_an_error_arrives_as_it_was_sent_and_is_not_kept(rig: Rig, name: str) -> None:
    texts = fresh(2)
    rig.sim.add_faults(Fault(error=name, text=texts[0]))
    direct, cold, _ = rig.three_ways(lambda url: embed(url, texts), is_cached=False)
    assert direct[0] == ERRORS[name].status
    assert direct[1]
    rig.sim.reset()
    assert embed(rig.proxy.http_url, texts) == embed(rig.sim.url, texts)
    assert cold[0] != 200


@pytest.mark.parametrize("name", ["throttling", "internal", "data_inspection_failed", "arrearage"])
def test_an_error_for_the_missing_half_of_a_batch_is_the_answer_to_the_whole(rig: Rig, name: str) -> None:
    known, new = fresh(1), fresh(1)
    embed(rig.proxy.http_url, known)
    rig.sim.add_faults(Fault(error=name, text=new[0]))
    assert embed(rig.proxy.http_url, known + new) == embed(rig.sim.url, known + new)
    rig.sim.reset()
    assert embed(rig.proxy.http_url, known + new)[0] == 200


def test_a_code_inside_status_200_is_an_error_and_is_not_kept(rig: Rig) -> None:
    texts = fresh(2)
    rig.sim.add_faults(Fault(wrong="code_in_200", text=texts[0]))
    assert embed(rig.proxy.http_url, texts) == embed(rig.sim.url, texts)
    rig.sim.reset()
    assert embed(rig.proxy.http_url, texts)[3] == embed(rig.sim.url, texts)[3]


@pytest.mark.parametrize("wrong", ["drop_index", "duplicate_index", "extra_index", "wrong_dimension", "null_value"])
def test_a_wrong_answer_is_passed_on_and_not_kept(rig: Rig, wrong: Any) -> None:
    texts = fresh(3)
    rig.sim.add_faults(Fault(wrong=wrong, text=texts[0]))
    rig.three_ways(lambda url: embed(url, texts, dimension=64), is_cached=False)
    rig.sim.reset()
    assert embed(rig.proxy.http_url, texts, dimension=64) == embed(rig.sim.url, texts, dimension=64)


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        (["t"] * 11, {}),
        ([""], {}),
        (["a"], {"model": "no-such-model"}),
        (["a"], {"dimension": 3}),
        (["a"], {"api_key": "sk-wrong"}),
        ([3], {}),
        ([], {}),
    ],
    ids=["over the cap", "empty text", "unknown model", "wrong dimension", "wrong key", "not a text", "no text"],
)
def test_bad_input_gets_the_vendors_own_words(rig: Rig, texts: list[Any], options: dict[str, Any]) -> None:
    for text in fresh(1):  # a warm cache changes nothing about it
        embed(rig.proxy.http_url, text)
    results = rig.three_ways(lambda url: embed(url, texts, **options), is_cached=False)
    assert results[0][0] >= 400


@pytest.mark.parametrize(
    "name", ["rate_quota", "burst_rate", "allocation_quota", "arrearage", "invalid_api_key", "internal"]
)
def test_openai_raises_the_same_error(rig: Rig, name: str) -> None:
    text = fresh(1)[0]
    rig.sim.add_faults(Fault(error=name, text=text))

    def fail(url: str) -> Any:
        with (
            openai.OpenAI(api_key="sk-openai", base_url=f"{url}/compatible-mode/v1", max_retries=0) as client,
            pytest.raises(openai.APIStatusError) as raised,
        ):
            client.embeddings.create(model="text-embedding-v4", input=text)
        error = raised.value
        return type(error), error.status_code, error.code, error.type, str(error.body)

    rig.three_ways(fail, is_cached=False)


def test_an_upstream_that_breaks_off_is_an_error_and_nothing_is_kept(rig: Rig) -> None:
    texts = fresh(2)
    rig.sim.add_faults(Fault(wrong="truncated_body", text=texts[0], times=5))
    assert embed(rig.proxy.http_url, texts)[0] == 502
    rig.sim.reset()
    assert embed(rig.proxy.http_url, texts) == embed(rig.sim.url, texts)
