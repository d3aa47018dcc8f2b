"""
C17: the modes of several replicas against a model that fits in a few lines: all words ever said, and who knows them.

The real books are used, with their files and the form in which orders are shared and handed to workers. Only the clock
and the place in Redis are stand-ins.
"""

import asyncio
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from structlog.testing import capture_logs

from proxy.control.live import LiveModes, decode, encode
from proxy.control.modes import ModeBook
from proxy.control.order_store import Reached
from proxy.core.modes import Mode, Modes, Rule
from proxy.settings.model import Start

UPSTREAMS = ("dashscope", "dashvector")
OPERATIONS = ("embedding", "vector-query")
REPLICAS = st.integers(0, 1)


@dataclass(frozen=True)
class Word:
    """An operator's order, as the model remembers it."""

    said: int
    mode: Mode
    upstream: str
    operation: str
    until_unix_s: float | None


@dataclass
class Replica:
    """One real book and a worker's modes; *knows* is the model's."""

    folder: Path
    book: ModeBook
    worker: LiveModes
    knows: set[Word] = field(default_factory=set)


class ModesMachine(RuleBasedStateMachine):
    """Random orders, ends, exchanges and restarts; after each step every replica does what the model says."""

    @initialize(start=st.sampled_from([Start(), Start(mode=Mode.SHADOW), Start(operations={"embedding": Mode.BYPASS})]))
    def begin(self, start: Start) -> None:
        self.runner = asyncio.Runner()
        self.now_unix_s = 1_000_000.0
        self.start = start
        self.root = Path(tempfile.mkdtemp(prefix="modes-"))
        self.redis: tuple[bytes, set[Word]] = (b"", set())
        self.said = 0
        self.replicas = [self._replica(self.root / str(number)) for number in range(2)]

    def _replica(self, folder: Path) -> Replica:
        folder.mkdir(exist_ok=True)
        worker = LiveModes(self.start, lambda: self.now_unix_s)

        async def push(modes: Modes) -> Reached:
            worker.replace(Modes(modes.rules))
            return Reached(1, 1)

        book = ModeBook(self.start, folder, push, lambda: None, lambda: self.now_unix_s)
        book.load()
        worker.replace(Modes(book.held.rules))  # as a worker's first message does
        return Replica(folder, book, worker)

    @rule(
        at=REPLICAS,
        mode=st.sampled_from(Mode),
        upstream=st.sampled_from(["*", UPSTREAMS[0]]),
        operation=st.sampled_from(["*", OPERATIONS[0]]),
        for_s=st.sampled_from([None, 2, 10, 40]),
    )
    def say(self, at: int, mode: Mode, upstream: str, operation: str, for_s: int | None) -> None:
        self.now_unix_s += 0.5  # what two replicas hear in one instant is another test's
        self.said += 1
        until_unix_s = None if for_s is None else self.now_unix_s + for_s
        replica = self.replicas[at]
        self.runner.run(replica.book.switch(Rule(mode, upstream, operation, until_unix_s)))
        replica.knows.add(Word(self.said, mode, upstream, operation, until_unix_s))

    @rule(seconds=st.sampled_from([1, 5, 15, 45]))
    def pass_time(self, seconds: int) -> None:
        self.now_unix_s += seconds

    @rule(at=REPLICAS)
    def notice_ends(self, at: int) -> None:
        self.runner.run(self.replicas[at].book.tell_ended())

    @rule(at=REPLICAS, writes=st.booleans())
    def exchange(self, at: int, *, writes: bool) -> None:
        """As ``Share`` does; without *writes* another replica's write came in between, or Redis went away."""
        replica, (stored, known) = self.replicas[at], self.redis
        self.runner.run(replica.book.merge(decode(stored) if stored else Modes()))
        replica.knows |= known
        if writes:
            self.redis = (encode(replica.book.held), set(replica.knows))

    @rule()
    def lose_redis(self) -> None:
        self.redis = (b"", set())

    @rule(at=REPLICAS)
    def restart(self, at: int) -> None:
        old = self.replicas[at]
        new = self.replicas[at] = self._replica(old.folder)
        new.knows = old.knows

    @invariant()
    def all_do_as_the_model_says(self) -> None:
        for replica in getattr(self, "replicas", ()):
            for upstream in UPSTREAMS:
                for operation in OPERATIONS:
                    expected = self._expected(replica.knows, upstream, operation)
                    assert replica.worker.mode(upstream, operation) is expected
                    assert replica.book.live.deciding(upstream, operation).mode is expected

    def _expected(self, knows: set[Word], upstream: str, operation: str) -> Mode:
        valid = [
            word
            for word in knows
            if word.upstream in ("*", upstream)
            and word.operation in ("*", operation)
            and (word.until_unix_s is None or self.now_unix_s < word.until_unix_s)
        ]
        if not valid:
            return self.start.operations.get(operation, self.start.mode)
        return max(valid, key=lambda word: word.said).mode

    def teardown(self) -> None:
        if hasattr(self, "root"):
            self.runner.close()
            shutil.rmtree(self.root)


def test_c17_the_last_word_about_a_scope_wins_in_every_replica() -> None:
    run_state_machine_as_test(ModesMachine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))


async def test_c17_each_end_is_logged_once_also_one_that_came_while_nobody_ran(tmp_path: Path) -> None:
    clock = [1_000_000.0]

    async def push(_modes: Modes) -> Reached:
        return Reached(1, 1)

    def opened() -> ModeBook:
        book = ModeBook(Start(), tmp_path, push, lambda: None, lambda: clock[0])
        book.load()
        return book

    def written_now() -> None:
        os.utime(tmp_path / "modes.json", (clock[0], clock[0]))

    book = opened()
    await book.switch(Rule(Mode.SHADOW, until_unix_s=clock[0] + 30, reason="third"))
    await book.switch(Rule(Mode.BYPASS, until_unix_s=clock[0] + 20, reason="second"))
    await book.switch(Rule(Mode.ON, until_unix_s=clock[0] + 10, reason="first"))
    with capture_logs() as logs:
        await book.tell_ended()
        clock[0] += 15
        await book.tell_ended()
        await book.tell_ended()
        written_now()
    assert [(line["event"], line["reason"], line["now"]) for line in logs] == [("mode_ended", "first", Mode.BYPASS)]
    clock[0] += 10  # "second" ends unseen
    for told in (["second"], []):
        book = opened()
        with capture_logs() as logs:
            await book.tell_ended()
            written_now()
        assert [line["reason"] for line in logs if line["event"] == "mode_ended"] == told
