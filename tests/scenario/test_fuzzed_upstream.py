"""Broken answers of an upstream to a real proxy: some here, many at night; see ``tests/fuzz/upstream_answers.py``."""

import random

import pytest

from tests.fuzz.upstream_answers import LIMITS, AnswersRig, drawn
from tests.scenario.wire_rig import wire_rig


@pytest.mark.parametrize("inputs", [40, pytest.param(2_000, marks=[pytest.mark.slow, pytest.mark.timeout(1_200)])])
async def test_nothing_of_a_broken_answer_is_kept_or_goes_to_somebody_else(inputs, record_property):
    async with wire_rig(**LIMITS) as rig:
        answers = AnswersRig(rig)
        for number in range(inputs):
            await answers.one_input(random.Random(number))
        answers.check_log()
        assert answers.kept, "no answer was sound enough to be kept"
    record_property("figure", f"{inputs} inputs, {answers.answers} answers, {answers.kept} kept")


def test_answers_with_another_one_behind_them_are_among_the_inputs():
    found = [drawn(random.Random(number), b"of this", b"of the next")[0] for number in range(50)]
    assert any(b"of this" in data and data.endswith(b"of the next") for data in found)
