"""Questions to workers: who answers in time is heard, and nobody is waited for in vain."""

import asyncio
from types import SimpleNamespace
from typing import Any

from proxy.control.channel import Answered, Question
from proxy.supervisor.questions import Questions


class FakeWorker:
    """Remembers what it was asked."""

    def __init__(self, number: int) -> None:
        self.place = SimpleNamespace(number=number)
        self.process = SimpleNamespace(pid=1_000 + number)
        self.channel = self
        self.age_s = 1.0
        self.asked: list[Any] = []

    def send(self, message: Any) -> None:
        self.asked.append(message)


async def replies(questions: Questions, workers: list[FakeWorker], within_s: float, then: Any) -> dict[int, Any]:
    asking = asyncio.ensure_future(questions.ask(workers, Question.STATE, within_s))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    then()
    return {reply.worker: reply.document for reply in await asking}


async def test_all_that_answer_are_heard_in_the_order_of_places() -> None:
    questions, workers = Questions(), [FakeWorker(number) for number in (2, 1)]

    def answer() -> None:
        for worker in workers:
            questions.answered(worker, Answered(worker.asked[-1].number, {"of": worker.place.number}))  # type: ignore[arg-type]

    assert list((await replies(questions, workers, 10, answer)).items()) == [(1, {"of": 1}), (2, {"of": 2})]


async def test_one_that_ends_or_says_nothing_is_not_waited_for() -> None:
    questions, workers = Questions(), [FakeWorker(1), FakeWorker(2)]
    assert await replies(questions, workers, 10, lambda: [questions.lost(each) for each in workers]) == {
        1: None,
        2: None,
    }  # type: ignore[arg-type]
    assert await replies(questions, workers, 0.01, lambda: None) == {1: None, 2: None}


async def test_an_answer_that_comes_too_late_is_nobodys() -> None:
    questions, workers = Questions(), [FakeWorker(1)]
    assert await replies(questions, workers, 0.01, lambda: None) == {1: None}
    late = Answered(workers[0].asked[-1].number, {"late": 1})

    def answer() -> None:
        questions.answered(workers[0], late)  # type: ignore[arg-type]
        questions.answered(workers[0], Answered(workers[0].asked[-1].number, {"fresh": 1}))  # type: ignore[arg-type]

    assert await replies(questions, workers, 10, answer) == {1: {"fresh": 1}}


async def test_nobody_asked_is_an_answer() -> None:
    assert await Questions().ask([], Question.STATE) == []
