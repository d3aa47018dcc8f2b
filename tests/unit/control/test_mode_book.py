"""The book of modes: order first, paper after, and nothing waits for Redis."""

from pathlib import Path

import pytest

from proxy.control.modes import ModeBook
from proxy.control.order_store import Reached
from proxy.core.modes import Mode, Modes, Rule
from proxy.settings.model import Start


class Workers:
    """Remembers what was pushed; *confirming* of three confirm."""

    def __init__(self) -> None:
        self.pushed: list[Modes] = []
        self.confirming = 3

    async def push(self, modes: Modes) -> Reached:
        self.pushed.append(modes)
        return Reached(self.confirming, 3)


class Clock:
    def __init__(self) -> None:
        self.unix_s = 1_000_000.0

    def __call__(self) -> float:
        return self.unix_s


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(workers: Workers, clock: Clock, tmp_path: Path) -> ModeBook:
    return ModeBook(Start(), tmp_path, workers.push, lambda: None, clock)


async def test_a_switch_reaches_workers_and_paper(book: ModeBook, workers: Workers, tmp_path: Path) -> None:
    done = await book.switch(Rule(Mode.BYPASS, reason="vendor throttles"))
    assert (done.confirmed, done.workers, done.persisted) == (3, 3, True)
    assert book.live.mode("dashscope", "embedding") is Mode.BYPASS
    assert [rule.mode for rule in workers.pushed[-1].rules] == [Mode.BYPASS]
    assert (tmp_path / "modes.json").stat().st_mode & 0o777 == 0o600


async def test_switches_survive_a_restart(book: ModeBook, workers: Workers, clock: Clock, tmp_path: Path) -> None:
    await book.switch(Rule(Mode.SHADOW, operation="embedding"))
    again = ModeBook(Start(), tmp_path, workers.push, lambda: None, clock)
    again.load()
    assert again.live.mode("dashscope", "embedding") is Mode.SHADOW
    assert again.live.mode("dashscope", "other") is Mode.ON


async def test_the_later_order_wins_even_when_the_clock_was_set_back(book: ModeBook, clock: Clock) -> None:
    await book.switch(Rule(Mode.BYPASS))
    clock.unix_s -= 3_600
    await book.switch(Rule(Mode.ON))
    assert book.live.mode("dashscope", "embedding") is Mode.ON


async def test_an_order_beats_another_replicas_rule_from_the_future(book: ModeBook, clock: Clock) -> None:
    await book.merge(Modes().with_rule(Rule(Mode.BYPASS, set_unix_s=clock.unix_s + 3_600)))
    assert book.live.mode("dashscope", "embedding") is Mode.BYPASS
    await book.switch(Rule(Mode.ON))
    assert book.live.mode("dashscope", "embedding") is Mode.ON


async def test_merging_what_is_known_tells_nobody(book: ModeBook, workers: Workers) -> None:
    await book.switch(Rule(Mode.BYPASS))
    told = len(workers.pushed)
    await book.merge(book.live.switched)
    assert len(workers.pushed) == told


async def test_a_full_disk_does_not_stop_a_switch(book: ModeBook, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("proxy.control.order_store.replace_file", full)
    done = await book.switch(Rule(Mode.BYPASS))
    assert not done.persisted
    assert book.live.mode("dashscope", "embedding") is Mode.BYPASS


@pytest.mark.parametrize("content", [b"", b"{", b'{"format":1,"rules":[{"mode":"off"}]}', b"\x00" * 200_000])
async def test_damaged_paper_is_left_aside(book: ModeBook, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "modes.json").write_bytes(content)
    book.load()
    assert book.live.mode("dashscope", "embedding") is Mode.ON
