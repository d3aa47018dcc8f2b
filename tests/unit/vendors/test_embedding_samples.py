"""Every recorded exchange of text embeddings goes through plan, split and join and comes out byte for byte."""

import dataclasses
import gzip
import json

import pytest

from proxy.cache.codec import Codec
from proxy.core.coding import decoded
from proxy.core.entry import Entry
from proxy.core.plan import NotStorable, Pass, PassReason, Refusal
from proxy.core.request import Request
from tests.unit.vendors.exchanges import EMBEDDINGS, INDEX, SECRET, exchange, planned, read


def plan_of(name: str):
    """The plan for a sample; samples cut vectors short, so the dimension asked for cannot be checked."""
    sample = exchange(name)
    plan = read(Request(sample.method, sample.target, sample.headers, "default", sample.request))
    return sample, dataclasses.replace(plan, asked=dataclasses.replace(plan.asked, dimension=None))


def test_the_samples_are_there():
    assert len(EMBEDDINGS) == 10


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_recorded_answer_is_made_again_byte_for_byte(name):
    sample, plan = plan_of(name)
    rows = plan.split(sample.response, range(len(plan.items)))
    document = json.loads(sample.response)
    request_id = document.get("request_id") or document["id"]
    assert plan.join(rows, request_id) == sample.response
    assert {row.origin for row in rows} == {request_id}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_recorded_answer_survives_the_store_byte_for_byte(name):
    sample, plan = plan_of(name)
    codec = Codec(SECRET, 1 << 22)
    entries = [Entry(row, 1_700_000_000_000, 9) for row in plan.split(sample.response, range(len(plan.items)))]
    opened = [codec.open(b"%032d" % at, codec.seal(b"%032d" % at, entry)) for at, entry in enumerate(entries)]
    assert opened == entries
    assert plan.join([entry.row for entry in opened], opened[0].row.origin) == sample.response


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_recorded_answer_is_read_the_same_when_it_came_gzipped(name):
    sample, plan = plan_of(name)
    text = decoded(gzip.compress(sample.response), (b"gzip",), 1 << 20)
    assert plan.split(text, range(len(plan.items))) == plan.split(sample.response, range(len(plan.items)))


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_sample_cut_short_anywhere_is_refused(name):
    sample, plan = plan_of(name)
    step = max(1, len(sample.response) // 400)
    for length in range(0, len(sample.response), step):
        with pytest.raises(NotStorable):
            plan.split(sample.response[:length], range(len(plan.items)))


def test_the_dimension_that_was_asked_for_is_checked():
    sample = exchange("text_embedding_dense")
    plan = read(Request(sample.method, sample.target, sample.headers, "default", sample.request))
    with pytest.raises(NotStorable) as caught:
        plan.split(sample.response, range(2))
    assert caught.value.refusal is Refusal.WRONG_DIMENSION


@pytest.mark.parametrize("name", sorted(set(INDEX["exchanges"]) - set(EMBEDDINGS)))
@pytest.mark.parametrize("like", ["text_embedding_dense", "compat_embeddings_float"])
def test_no_other_recorded_answer_passes_for_an_embedding(name, like):
    """Errors, tasks, streams, reranks and multimodal answers: none of them is ever kept as the answer to texts."""
    other = exchange(name)
    _, plan = plan_of(like)
    with pytest.raises(NotStorable) as caught:
        plan.split(other.response, range(2))
    assert caught.value.refusal in (Refusal.VENDOR_ERROR, Refusal.SHAPE, Refusal.INCOMPLETE)


def test_a_recorded_task_submission_is_passed():
    sample = exchange("batch_text_embedding_submit")
    request = Request(sample.method, sample.target, sample.headers, "default", sample.request)
    assert planned(request) in (Pass(PassReason.UNKNOWN_SHAPE, "embedding"), Pass(PassReason.ASYNC_TASK, "embedding"))
