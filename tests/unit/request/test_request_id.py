"""Ids of answers: the vendor's form, and no two alike."""

import uuid

from proxy.request.request_id import request_ids


def test_ids_have_the_form_of_random_uuids() -> None:
    variants = set()
    for _ in range(200):
        request_id = request_ids()
        for _ in range(5):
            made = request_id()
            read = uuid.UUID(made)
            assert str(read) == made
            assert (read.version, read.variant) == (4, uuid.RFC_4122)
            variants.add(made[19])
    assert variants == set("89ab")


def test_no_two_are_alike_in_one_process_or_in_two() -> None:
    here, there = request_ids(), request_ids()
    made = [make() for _ in range(20_000) for make in (here, there)]
    assert len(set(made)) == len(made)


def test_every_digit_that_may_differ_does_from_one_process_to_another() -> None:
    made = [request_ids()() for _ in range(500)]
    fixed = [at for at in range(36) if len({text[at] for text in made}) == 1]
    assert fixed == [8, 13, 14, 18, 23]


def test_they_begin_anew_from_time_to_time() -> None:
    request_id = request_ids()
    assert len({request_id()[:24] for _ in range(20_000)}) == 5
