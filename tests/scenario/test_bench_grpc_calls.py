"""The comparison of gRPC calls: every way is measured as what it says it is."""

import dataclasses
from itertools import islice

import orjson
import pytest

from benchmarks.grpc_calls import DIRECT, HIT, MISS, RELAY, is_right, lines, measure, shown
from benchmarks.grpc_parts import DOCUMENTS, Plan, Sample, Way, answer, question, questions, read_plan
from tests.vendor_sim.dashvector_package import pb


@pytest.mark.slow
def test_hits_never_reach_the_upstream_and_all_others_always_do() -> None:
    def shape(ways: tuple[Way, ...], upstream: str) -> Plan:
        return Plan(ways, upstream, delays_ms=(1.0,), rounds=2, seconds=0.15, concurrency=4, channels=2)

    found = lines(measure(shape))
    assert [line.way for line in found] == [DIRECT, RELAY, MISS, HIT]
    assert [line.upstream_share for line in found] == [1, 1, 1, 0]
    assert is_right(found)
    assert found[0].p50_ms.median > 1.0
    assert all(line.per_s.low > 0 for line in found)


def test_no_question_is_asked_twice() -> None:
    asked = list(islice(questions(), 50))
    assert len(set(asked)) == 50
    assert {len(each) for each in asked} == {len(question())}
    assert [pb.QueryDocRequest.FromString(each).vector.float_vector.values[0] for each in asked[:2]] == [2.0, 3.0]


def test_the_answer_has_its_documents() -> None:
    assert len(pb.QueryDocResponse.FromString(answer()).output) == DOCUMENTS


def test_a_plan_survives_the_way_to_the_client() -> None:
    plan = Plan((Way("direct", "127.0.0.1:1"), Way("hit", "127.0.0.1:2", is_repeated=True)), "127.0.0.1:1")
    assert read_plan(orjson.dumps(dataclasses.asdict(plan)).decode()) == plan


def _sample(way: str, p50_ms: float, *, upstream_calls: int = 10, failed: int = 0) -> Sample:
    return Sample(0.0, way, p50_ms, 2 * p50_ms, 1_000 / p50_ms, 10, upstream_calls, failed)


def test_ratios_are_to_the_direct_call_of_the_same_round() -> None:
    rounds = [(1.0, 2.0), (10.0, 30.0), (1.0, 4.0)]
    samples = [_sample(way, ms) for pair in rounds for way, ms in zip((DIRECT, MISS), pair, strict=True)]
    direct, miss = lines(samples)
    assert direct.p50_ratio == 1
    assert miss.p50_ratio == 3
    assert (miss.p50_ms.median, miss.p50_ms.low, miss.p50_ms.high) == (4, 2, 30)
    assert "3.00x" in shown(miss)


@pytest.mark.parametrize(
    "sample",
    [
        _sample(HIT, 1, upstream_calls=1),
        _sample(HIT, 1, upstream_calls=0, failed=1),
        _sample(MISS, 1, upstream_calls=9),
    ],
)
def test_a_way_that_was_not_what_it_says_is_not_right(sample: Sample) -> None:
    assert not is_right(lines([_sample(DIRECT, 1), sample]))
