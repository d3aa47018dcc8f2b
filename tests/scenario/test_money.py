"""The savings by hits are told by model: at the model's own price, and as tokens alone where no price is known."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from proxy.admin.table import table
from tests.scenario.telling import NATIVE, bearer, native, post, state, telling
from tests.scenario.wire_rig import WireRig, wire_rig
from tests.support.waiting import wait_until

FLASH, UNLISTED = "qwen3.7-text-embedding-flash", "text-embedding-v9"


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[WireRig]:
    async with wire_rig() as one:
        one.upstream.answer = telling()
        yield one


def of_model(model: str, *texts: str) -> bytes:
    return json.dumps({**json.loads(native(*texts)), "model": model}).encode()


async def test_each_model_has_its_own_price_and_an_unlisted_one_has_none(rig: WireRig) -> None:
    for model, hits in ((FLASH, 3), (UNLISTED, 2)):
        bodies = [of_model(model, "a")] * (1 + hits)
        states = [state(await post(rig.proxy.http_port, NATIVE, bearer("k"), body)) for body in bodies]
        assert states == ["miss"] + ["hit"] * hits
    document = rig.proxy.admin("GET", "/v1/stats").json()
    money = document["money_saved"]
    assert money["amount"] == 2.625e-6
    assert money["unknown_price_tokens"] >= 14
    assert money["models"][FLASH] == {"tokens": 21, "price_per_1k": 0.000125, "amount": money["amount"]}
    assert money["models"][UNLISTED] == {"tokens": 14, "price_per_1k": None, "amount": None}
    assert document["operations"]["embedding"]["tokens_saved"] == 21 + money["unknown_price_tokens"]
    shown = next(line for line in table(document).splitlines() if line.startswith("saved"))
    assert "about 0.00000262 CNY; unknown price: " in shown
    assert f"14 tokens of model {UNLISTED}" in shown


async def test_names_that_clients_make_up_are_no_labels(rig: WireRig) -> None:
    for model in ("sk-0123456789", "a b", "x" * 65, *(f"made-up-{number}" for number in range(40))):
        for _ in range(2):
            assert (await post(rig.proxy.http_port, NATIVE, bearer("k"), of_model(model, "b"))).status == 200

    def saved() -> dict[str, Any]:
        return rig.proxy.admin("GET", "/v1/stats").json()["money_saved"]  # type: ignore[no-any-return]

    # Many hits in a moment are told of together, a moment later.
    await wait_until(lambda: saved()["unknown_price_tokens"] == 7 * (3 + 40), what="all hits to be counted")
    models = saved()["models"]
    assert len(set(models) - {"other"}) == 32
    assert set(models) <= {"other", *(f"made-up-{number}" for number in range(40))}
    assert models["other"] == {"tokens": 7 * (3 + 8), "price_per_1k": None, "amount": None}
