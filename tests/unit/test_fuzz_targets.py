"""The fuzzing's targets without atheris: what they start from passes, and most of it is looked at."""

import importlib
import random

import pytest

from tests.fuzz.runner import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_of_a_target_passes(name):
    target = importlib.import_module(f"tests.fuzz.{name}")
    seeds = list(target.seeds())
    assert len(set(seeds)) >= 20
    for seed in seeds:
        target.one_input(seed)
        target.one_input(seed[: len(seed) // 2])
        if hasattr(target, "mutated"):
            target.one_input(target.mutated(seed, random.Random(seed)))


READ = {
    "embedding_request": lambda target, data: target.check(data[3:], is_compatible=bool(data[0]), hits=0),
    "wire": lambda target, data: target.check("query_doc", data[1:]),
}


@pytest.mark.parametrize("name", READ)
def test_the_seeds_reach_what_is_to_be_checked(name):
    target = importlib.import_module(f"tests.fuzz.{name}")
    assert sum(READ[name](target, seed) for seed in target.seeds()) >= 20


def test_searches_are_widened_and_answers_kept(monkeypatch):
    for name in ("dashvector_http", "dashvector_grpc"):
        target = importlib.import_module(f"tests.fuzz.{name}")
        seen = []
        monkeypatch.setattr(target, "_check_wide", lambda *_, seen=seen: seen.append("wide"))
        judge = target.check_answer
        monkeypatch.setattr(target, "check_answer", lambda *given, judge=judge, seen=seen: seen.append(judge(*given)))
        for seed in target.seeds():
            target.one_input(seed)
        assert "wide" in seen
        assert True in seen
