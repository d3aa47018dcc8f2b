"""
C26: a vendor that takes larger batches than it is listed to is believed, batch by batch, and until it refuses one.

The vendor is the simulator, which says what it would have answered to the client's very own request.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.scenario.telling import COMPATIBLE, NATIVE, bearer, heard, post, state
from tests.scenario.wire_rig import WireRig, wire_rig
from tests.support import answers
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawResponse
from tests.vendor_sim import ThreadSim, sim_thread

MODEL = "text-embedding-v4"
CAP = 10
DIALECTS = (NATIVE, COMPATIBLE)


def asking(dialect: str, texts: list[str], model: str = MODEL) -> bytes:
    return json.dumps({"model": model, "input": {"texts": texts} if dialect == NATIVE else texts}).encode()


def texts(prefix: str, count: int) -> list[str]:
    return [f"{prefix} {number}" for number in range(count)]


def error(response: RawResponse) -> Any:
    """The vendor's error less its id."""
    assert response.status == 400
    document = json.loads(response.body)
    return {name: value for name, value in document.items() if name not in ("request_id", "id")}


@dataclass(frozen=True)
class Rig:
    sim: ThreadSim
    proxy: ProxyProcess

    async def ask(self, dialect: str, asked: list[str], *, calls: int) -> RawResponse:
        """The proxy's answer, which costs so many calls and says what the vendor itself would have said."""
        before = len(self.sim.requests)
        response = await post(self.proxy.http_port, dialect, bearer("k"), asking(dialect, asked))
        assert len(self.sim.requests) - before == calls
        return response

    async def right(self, dialect: str, asked: list[str], *, calls: int) -> str:
        """How the batch was answered; each vector stands at its text's place."""
        response = await self.ask(dialect, asked, calls=calls)
        direct = await post(int(self.sim.url.rpartition(":")[2]), dialect, bearer("k"), asking(dialect, asked))
        vectors = heard(direct)
        assert vectors is not None
        assert len({tuple(vector) for vector in vectors}) == len(set(asked))
        assert heard(response) == vectors
        return state(response)

    async def refused(self, dialect: str, asked: list[str], *, calls: int = 1) -> str:
        """How the batch was answered, which is the vendor's own refusal."""
        response = await self.ask(dialect, asked, calls=calls)
        direct = await post(int(self.sim.url.rpartition(":")[2]), dialect, bearer("k"), asking(dialect, asked))
        assert error(response) == error(direct)
        return state(response)

    async def told(self) -> list[tuple[str, int, int]]:
        """What the log says of limits, up to the line of a request that is sent last."""
        marker = f"marker-{uuid.uuid4()}"
        await post(self.proxy.http_port, NATIVE, bearer("k"), asking(NATIVE, ["last"], marker))
        await asyncio.to_thread(self.proxy.wait_log, "request", model=marker)
        lines = [line for line in self.proxy.logs if str(line.get("event")).startswith("batch_limit_")]
        assert all(
            (line["level"], line["upstream"], line["model"]) == ("warning", "dashscope", MODEL) for line in lines
        )
        return [(line["event"].removeprefix("batch_limit_"), line["before"], line["now"]) for line in lines]


@pytest.fixture
def rig() -> Iterator[Rig]:
    with sim_thread() as sim, ProxyProcess(dashscope_url=sim.url) as proxy:
        yield Rig(sim, proxy)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_c26_a_limit_that_was_raised_is_learned_and_one_that_was_lowered_is_forgotten(
    rig: Rig, dialect: str
) -> None:
    assert await rig.refused(dialect, texts("before", 12)) == "bypass"
    rig.sim.configure(max_texts=40)
    a, b = texts("a", 12), texts("b", 12)
    assert await rig.right(dialect, a, calls=1) == "bypass"
    assert await rig.right(dialect, a, calls=0) == "hit"
    assert await rig.right(dialect, b, calls=1) == "miss"
    # Partly known, and in another order: only what is missing is asked for, and each vector finds its place.
    asked = [text for pair in zip(b[::-1], texts("c", 5) + a[:1], strict=False) for text in pair]
    assert len(asked) == 12
    rig.sim.clear()
    assert await rig.right(dialect, asked, calls=1) == "partial"
    assert await rig.right(dialect, asked, calls=0) == "hit"
    assert await rig.right(dialect, texts("d", 13), calls=1) == "bypass"
    assert await rig.right(dialect, texts("e", 13), calls=1) == "miss"
    assert await rig.told() == [("learned", 10, 12)]

    rig.sim.configure(max_texts=None)
    assert await rig.refused(dialect, texts("f", 13)) == "miss"
    assert await rig.refused(dialect, texts("f", 13)) == "bypass"
    assert await rig.refused(dialect, a) == "bypass"  # also what was answered a moment ago, byte for byte
    assert await rig.right(dialect, a[:10], calls=0) == "hit"
    assert await rig.told() == [("learned", 10, 12), ("taken_back", 13, 10)]

    rig.sim.configure(max_texts=12)
    assert await rig.right(dialect, texts("g", 12), calls=1) == "bypass"
    assert await rig.right(dialect, texts("h", 12), calls=1) == "miss"
    assert await rig.right(dialect, a, calls=0) == "hit"
    assert len(await rig.told()) == 2


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_c26_after_a_partial_hit_the_refusal_is_that_of_the_clients_own_batch(rig: Rig, dialect: str) -> None:
    rig.sim.configure(max_texts=40)
    known = texts("known", 14)
    assert await rig.right(dialect, known, calls=1) == "bypass"
    rig.sim.configure(max_texts=None)
    # Eleven are missing, which the vendor refuses in other words than fourteen.
    assert await rig.refused(dialect, [*known[:3], *texts("new", 11)], calls=2) == "miss"
    assert await rig.refused(dialect, [*known[:4], *texts("new", 10)]) == "bypass"
    assert await rig.told() == [("learned", 10, 14), ("taken_back", 14, 10)]


async def test_c26_what_is_reduced_to_an_ordinary_size_tells_nothing_of_large_ones(rig: Rig) -> None:
    rig.sim.configure(max_texts=40)
    known = texts("known", 14)
    assert await rig.right(NATIVE, known, calls=1) == "bypass"
    rig.sim.configure(max_texts=None)
    response = await rig.ask(NATIVE, [*known[:4], *texts("new", 9), ""], calls=2)
    assert response.status == 400
    assert state(response) == "miss"
    assert [change for change, _, _ in await rig.told()] == [
        "learned",
        "taken_back",
    ]  # by the client's own, which is large


async def test_c26_a_batch_beyond_what_may_be_learned_is_passed_each_time(rig: Rig) -> None:
    rig.sim.configure(max_texts=100)
    for _ in range(2):
        assert await rig.right(NATIVE, texts("many", 41), calls=1) == "bypass"
    assert await rig.told() == []


async def test_c26_a_text_that_stands_twice_counts_as_often_as_it_is_sent(rig: Rig) -> None:
    rig.sim.configure(max_texts=40)
    asked = [*texts("twice", 6), *texts("twice", 6)]
    assert await rig.right(NATIVE, asked, calls=1) == "bypass"
    assert await rig.right(NATIVE, asked, calls=0) == "hit"
    assert await rig.told() == [("learned", 10, 12)]


@pytest_asyncio.fixture
async def raw() -> AsyncIterator[WireRig]:
    async with wire_rig() as one:
        yield one


def rows(count: int, **members: Any) -> bytes:
    found = [{"embedding": [float(at)], "text_index": at} for at in range(count)]
    return json.dumps({"output": {"embeddings": found}, "usage": {"total_tokens": 40}, **members}).encode()


async def test_c26_nothing_but_a_complete_and_right_answer_teaches(raw: WireRig) -> None:
    body = asking(NATIVE, texts("a", 12))
    wrong = [
        (200, rows(11)),
        (200, rows(13)),
        (200, rows(12, code="X")),
        (200, b"{}"),
        (206, rows(12)),
        (201, rows(12)),
    ]
    wrong += [(status, rows(12)) for status in (400, 401, 403, 429, 500, 503)]
    for status, content in wrong:
        raw.upstream.answer = answers.respond_json(content, status)
        response = await post(raw.proxy.http_port, NATIVE, bearer("k"), body)
        assert (response.status, response.body, state(response)) == (status, content, "bypass")
        assert b"detail=over-cap" in (response.header("Cache-Status") or b"")
    raw.upstream.answer = answers.respond_json(rows(12))
    states = [state(await post(raw.proxy.http_port, NATIVE, bearer("k"), body)) for _ in range(2)]
    assert states == ["bypass", "hit"]


@pytest.mark.parametrize("status", [401, 403, 404, 413, 429, 500, 503])
async def test_c26_only_a_400_takes_back_what_was_learned(raw: WireRig, status: int) -> None:
    async def asked(name: str) -> str:
        return state(await post(raw.proxy.http_port, NATIVE, bearer("k"), asking(NATIVE, texts(name, 12))))

    raw.upstream.answer = answers.respond_json(rows(12))
    assert [await asked("a"), await asked("b")] == ["bypass", "miss"]
    raw.upstream.answer = answers.respond_json(b"{}", status)
    assert await asked("c") == "miss"
    raw.upstream.answer = answers.respond_json(rows(12))
    assert await asked("d") == "miss"
