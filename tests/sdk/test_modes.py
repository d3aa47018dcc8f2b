"""An operator may switch the cache off at any time, and no SDK notices but by the headers."""

from collections.abc import Iterator

import pytest

from tests.sdk.asking import Ask, Dashscope2, OpenAi, dashscope1, fresh, openai_async
from tests.sdk.rig import Rig, assert_hit


@pytest.fixture(params=["dashscope1", "openai", "openai_async", "dashscope2", "dashscope2_async"])
def embed(request: pytest.FixtureRequest, openai_sync: OpenAi, dashscope2: Dashscope2) -> Ask:
    sdks: dict[str, Ask] = {
        "dashscope1": dashscope1,
        "openai": openai_sync,
        "openai_async": openai_async,
        "dashscope2": dashscope2.embed,
        "dashscope2_async": dashscope2.embed_async,
    }
    return sdks[request.param]


@pytest.fixture
def switched(rig: Rig) -> Iterator[Rig]:
    """The rig, on again afterwards."""
    yield rig
    rig.proxy.mode("on")


@pytest.mark.parametrize("mode", ["bypass", "shadow"])
def test_nothing_is_answered_from_the_cache(switched: Rig, embed: Ask, mode: str) -> None:
    known, new = fresh(2), fresh(2)
    embed(switched.proxy.http_url, known)
    switched.proxy.mode(mode)
    for texts in (known, [*known, *new], new, new):
        told = switched.through(lambda url, texts=texts: embed(url, texts), calls=1)
        assert told.said == embed(switched.sim.url, texts).said
        kept = "; stored" if mode == "shadow" else ""
        assert told.header("cache-status") == f"dashcache; fwd=bypass; fwd-status=200{kept}; detail={mode}"
    switched.proxy.mode("on")
    assert_hit(switched.through(lambda url: embed(url, known), calls=0), 2)
    # Bypass keeps nothing; shadow keeps what it sees.
    switched.through(lambda url: embed(url, new), calls=1 if mode == "bypass" else 0)
