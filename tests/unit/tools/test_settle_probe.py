"""The timing of the settle probe: replicas that lag behind, on a clock that moves only when something takes time."""

import asyncio
import json
from collections.abc import Callable, Collection, Iterator
from itertools import chain, cycle, pairwise, repeat
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.tools.settle_probe import (
    Kind,
    Plan,
    ProbeError,
    RateLimitedError,
    Reader,
    Samples,
    SettleProbe,
    Watch,
    quantiles,
    recommended_s,
)
from proxy.tools.settle_report import as_json, exposition, report, table, warnings, write_metrics
from tests.support.clock import FakeClock
from tests.support.gate import Gate

LATENCY_S = 0.001
ACKNOWLEDGE_S = 0.02


class Replicas:
    """A document on replicas which show a write so many seconds after its acknowledgement, and are read in turn."""

    name = "the document"

    def __init__(self, clock: FakeClock, *delays_s: float) -> None:
        self.clock = clock
        self.calls: list[str] = []
        self.sleeps: list[float] = []
        self.before_read: Callable[[Reader], None] = lambda _: None
        self.before_write: Callable[[str], None] = lambda _: None
        self._turns: dict[Reader, Iterator[float]] = {reader: cycle(delays_s or (0.0,)) for reader in Reader}
        self._states: list[tuple[float, int | None]] = [(0.0, None)]

    @property
    def current(self) -> int | None:
        return self._states[-1][1]

    async def upsert(self, value: int) -> None:
        self._write("upsert", value)

    async def delete(self) -> None:
        self._write("delete", None)

    async def read(self, reader: Reader, value: int) -> Collection[int | None]:
        self.calls.append(reader)
        self.clock.advance(LATENCY_S)
        self.before_read(reader)
        delay_s = next(self._turns[reader])
        state = next(one for since_s, one in reversed(self._states) if since_s + delay_s <= self.clock.monotonic())
        return {state if reader is Reader.FETCH or state == value else None}

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    def _write(self, operation: str, value: int | None) -> None:
        self.calls.append(operation)
        self.clock.advance(ACKNOWLEDGE_S)
        self.before_write(operation)
        self._states.append((self.clock.monotonic(), value))


def probe(replicas: Replicas, told: list[str] | None = None, **plan: float) -> SettleProbe:
    tell = pytest.fail if told is None else told.append
    chosen = Plan(**{"rounds": 3, **plan})  # type: ignore[arg-type]
    return SettleProbe(replicas, chosen, tell, now=replicas.clock.monotonic, sleep=replicas.sleep)


def refusing(*times: bool) -> Callable[[object], None]:
    """Refuses for its rate each call for which the next of *times* is true, and none after them."""
    refused = chain(times, repeat(False))

    def call(_: object) -> None:
        if next(refused):
            raise RateLimitedError("too many calls")

    return call


async def test_each_kind_is_timed_from_the_acknowledgement() -> None:
    samples = await probe(Replicas(FakeClock(), 0.1), interval_s=0.01).run()
    turn_s = 0.01 + 2 * LATENCY_S
    for kind in Kind:
        assert len(samples.elapsed_s[kind]) == 3
        assert all(0.1 <= elapsed_s <= 0.1 + turn_s for elapsed_s in samples.elapsed_s[kind]), kind
    assert samples.rate_limited == 0


async def test_what_shows_at_once_takes_one_read() -> None:
    samples = await probe(Replicas(FakeClock())).run()
    assert samples.elapsed_s[Kind.SHOWN_BY_FETCH] == pytest.approx([LATENCY_S] * 3)
    assert samples.elapsed_s[Kind.GONE_BY_QUERY] == pytest.approx([2 * LATENCY_S] * 3)


async def test_the_slowest_replica_decides() -> None:
    samples = await probe(Replicas(FakeClock(), 0.0, 0.05, 0.3)).run()
    turn_s = 0.01 + 2 * LATENCY_S
    # The slow one is asked every third time, so its last old answer may be three turns before its first new one.
    assert all(0.3 - 2 * turn_s <= elapsed_s <= 0.3 + turn_s for kind in Kind for elapsed_s in samples.elapsed_s[kind])
    hasty = await probe(Replicas(FakeClock(), 0.0, 0.05, 0.3), sightings=1).run()
    assert max(hasty.elapsed_s[Kind.SHOWN_BY_FETCH]) < 0.3, "else the replicas above prove nothing"


def test_an_old_state_starts_the_count_anew() -> None:
    watch = Watch(acknowledged_s=10.0, sightings=3)
    for at_s, is_new in ((10.1, True), (10.2, True), (10.3, False), (10.4, True), (10.5, True)):
        watch.note(at_s, is_new=is_new)
        assert not watch.is_settled
    watch.note(10.6, is_new=True)
    assert watch.is_settled
    assert watch.elapsed_s == pytest.approx(0.4)
    watch.note(10.7, is_new=False)
    assert not watch.is_settled


async def test_a_reader_that_had_settled_may_fall_back() -> None:
    clock = FakeClock()
    replicas = Replicas(clock)
    start_s = clock.monotonic() + ACKNOWLEDGE_S

    async def read(reader: Reader, value: int) -> Collection[int | None]:
        clock.advance(LATENCY_S)
        passed_s = clock.monotonic() - start_s
        is_old = passed_s < 0.2 if reader is Reader.QUERY else 0.1 <= passed_s < 0.15
        return {None if is_old and replicas.current else replicas.current}

    replicas.read = read  # type: ignore[method-assign]
    samples = await probe(replicas, rounds=1).run()
    assert 0.15 <= samples.elapsed_s[Kind.SHOWN_BY_FETCH][0] < 0.2
    assert samples.elapsed_s[Kind.SHOWN_BY_QUERY][0] >= 0.2


async def test_values_are_new_in_every_round_and_fit_a_field() -> None:
    replicas = Replicas(FakeClock())
    await probe(replicas, rounds=4).run()
    values = [value for _, value in replicas._states if value is not None]
    assert [later - value for value, later in pairwise(values)] == [1, 1, 1]
    assert 0 < values[0] <= 2**31 - 1 - 10_000
    assert replicas.calls.count("upsert") == replicas.calls.count("delete") == 4, "nothing is deleted twice"


@pytest.mark.parametrize(("delay_s", "text"), [(40.0, "shown by fetch and shown by query"), (20.0, "gone by fetch")])
async def test_a_round_ends_at_its_timeout(delay_s: float, text: str) -> None:
    replicas = Replicas(FakeClock(), delay_s)
    with pytest.raises(ProbeError, match=rf"^round 1: not {text}.*, 3 times in a row, within 30 s$"):
        await probe(replicas).run()
    assert replicas.current is None
    assert replicas.clock.monotonic() < 1_000.0 + 31.0


async def test_a_vendor_that_contradicts_itself_is_never_settled() -> None:
    replicas = Replicas(FakeClock())

    async def read(reader: Reader, value: int) -> Collection[int | None]:
        replicas.clock.advance(LATENCY_S)
        return {None, replicas.current}

    replicas.read = read  # type: ignore[method-assign]
    with pytest.raises(ProbeError, match="not shown by fetch and shown by query"):
        await probe(replicas).run()


async def test_refused_polls_say_nothing_and_are_repeated_more_slowly() -> None:
    replicas = Replicas(FakeClock())
    replicas.before_read = refusing(False, False, True, True, True, True)
    samples = await probe(replicas, rounds=1).run()
    assert samples.rate_limited == 4
    assert samples.elapsed_s[Kind.SHOWN_BY_FETCH] == pytest.approx([LATENCY_S]), "the first sighting still counts"
    assert replicas.sleeps[:5] == [0.01, 0.02, 0.04, 0.01, 0.01]


async def test_pauses_grow_to_a_second_and_the_reason_is_told() -> None:
    replicas = Replicas(FakeClock())
    replicas.before_read = refusing(*[True] * 1_000)
    with pytest.raises(ProbeError, match="the vendor refuses calls for their rate: poll less often"):
        await probe(replicas).run()
    assert max(replicas.sleeps) == 1.0


async def test_refused_writes_are_repeated_until_the_timeout() -> None:
    replicas = Replicas(FakeClock())
    replicas.before_write = refusing(True, True, False, True)
    samples = await probe(replicas, rounds=1).run()
    assert replicas.calls.count("upsert") == 3
    assert replicas.calls.count("delete") == 2
    assert samples.rate_limited == 3
    replicas.before_write = refusing(*[True] * 100)
    told: list[str] = []
    with pytest.raises(ProbeError, match="round 1, upsert: too many calls"):
        await probe(replicas, told).run()
    assert told == ["the document may be left behind: too many calls"]


@pytest.mark.parametrize("error", [ProbeError("no connection"), asyncio.CancelledError()])
async def test_the_document_is_deleted_when_a_read_fails(error: BaseException) -> None:
    replicas = Replicas(FakeClock())

    def fail(_: Reader) -> None:
        raise error

    replicas.before_read = fail
    with pytest.raises(type(error)):
        await probe(replicas).run()
    assert replicas.calls == ["upsert", "fetch", "delete"]
    assert replicas.current is None


async def test_a_write_without_an_answer_may_have_happened() -> None:
    replicas = Replicas(FakeClock())

    def lose(operation: str) -> None:
        if operation == "upsert":
            raise ProbeError("no answer in time")

    replicas.before_write = lose
    with pytest.raises(ProbeError, match="no answer in time"):
        await probe(replicas).run()
    assert replicas.calls == ["upsert", "delete"]


async def test_an_interruption_waits_for_the_write_under_way() -> None:
    replicas, gate = Replicas(FakeClock()), Gate()

    async def upsert(value: int) -> None:
        await gate.wait()
        replicas._write("upsert", value)

    replicas.upsert = upsert  # type: ignore[method-assign]
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(probe(replicas).run())
        await gate.wait_arrived()
        run.cancel()
        await asyncio.sleep(0)
        assert replicas.calls == []
        gate.open()
    assert run.cancelled()
    assert replicas.calls == ["upsert", "delete"], "the other way round, the document would stay"


async def test_deleting_is_tried_three_times_and_failing_is_told() -> None:
    replicas = Replicas(FakeClock(), 40.0)

    def fail(operation: str) -> None:
        if operation == "delete":
            raise ProbeError(f"failure {replicas.calls.count('delete')}")

    replicas.before_write = fail
    told: list[str] = []
    with pytest.raises(ProbeError, match="not shown by fetch"):
        await probe(replicas, told).run()
    assert replicas.calls.count("delete") == 3
    assert told == ["the document may be left behind: failure 3"]


async def test_a_second_interruption_ends_the_deletion_and_is_told() -> None:
    replicas = Replicas(FakeClock())

    def interrupt(_: object) -> None:
        raise asyncio.CancelledError

    def interrupt_deletion(operation: str) -> None:
        if operation == "delete":
            raise asyncio.CancelledError

    replicas.before_read, replicas.before_write = interrupt, interrupt_deletion
    told: list[str] = []
    with pytest.raises(asyncio.CancelledError):
        await probe(replicas, told).run()
    assert told == ["the document may be left behind: interrupted again"]


@pytest.mark.parametrize(
    ("longest_s", "least_s"),
    [
        (0.0, 0.1),
        (0.05, 0.1),
        (0.051, 0.2),
        (0.12, 0.3),
        (0.15, 0.3),
        (0.5, 1.0),
        (0.51, 1.5),
        (1.24, 2.5),
        (5.0, 10.0),
        (5.1, 11.0),
        (29.0, 58.0),
    ],
)
def test_the_recommendation_is_twice_the_longest_rounded_up(longest_s: float, least_s: float) -> None:
    assert recommended_s(longest_s) == least_s


def test_the_recommendation_never_rounds_down() -> None:
    for thousandths in range(20_000):
        assert recommended_s(thousandths / 1_000) >= thousandths / 500 - 1e-9


def test_quantiles_are_values_that_were_measured() -> None:
    assert quantiles([0.3, 0.1, 0.2]) == {"min": 0.1, "median": 0.2, "p99": 0.3, "max": 0.3}
    assert quantiles([float(number) for number in range(1, 201)])["p99"] == 198.0


def outcome(longest_s: float = 0.1204, configured_s: float = 2.0, rate_limited: int = 0) -> tuple[str, ...]:
    samples = Samples({kind: [0.1, longest_s] for kind in Kind}, rate_limited)
    made = report("https://vendor.test", "scratch", Plan(rounds=2), samples, configured_s)
    return table(made), as_json(made), exposition(made), "\n".join(warnings(made))


def test_people_get_a_table_and_the_rule() -> None:
    text, *_, warned = outcome()
    lines = text.splitlines()
    assert lines[0] == "scratch at https://vendor.test, rounds: 2"
    assert lines[2].split()[-4:] == ["min", "median", "p99", "max"]
    assert [line.split() for line in lines[3:7]] == [
        [*words, "100.0", "110.2", "120.4", "120.4"]
        for words in (
            ["shown", "by", "fetch"],
            ["shown", "by", "query"],
            ["gone", "by", "fetch"],
            ["gone", "by", "query"],
        )
    ]
    assert lines[-1].startswith("settle_s: at least 0.3 (2 times the longest")
    assert lines[-1].endswith("configured: 2")
    assert warned == ""


@pytest.mark.parametrize(("configured_s", "is_enough"), [(0.3, True), (0.2, False), (0.0, False)])
def test_a_shorter_window_is_warned_of(configured_s: float, is_enough: bool) -> None:
    _, document, _, warned = outcome(configured_s=configured_s)
    assert json.loads(document)["is_enough"] is is_enough
    assert ("vector.settle_s is" in warned) is not is_enough


def test_coarse_figures_are_warned_of() -> None:
    assert "7 calls were refused" in outcome(rate_limited=7)[-1]


def test_json_has_the_same_figures() -> None:
    document = json.loads(outcome()[1])
    figures = {"min": 100.0, "median": 110.2, "p99": 120.4, "max": 120.4}
    assert document == {
        "url": "https://vendor.test",
        "collection": "scratch",
        "rounds": 2,
        "sightings": 3,
        "rate_limited": 0,
        "milliseconds": {
            "shown_by_fetch": figures,
            "shown_by_query": figures,
            "gone_by_fetch": figures,
            "gone_by_query": figures,
        },
        "recommended_settle_s": 0.3,
        "configured_settle_s": 2.0,
        "is_enough": True,
    }


def test_prometheus_can_read_the_figures() -> None:
    families = {family.name: family for family in text_string_to_metric_families(outcome()[2])}
    figures = {
        (one.labels["kind"], one.labels["quantile"]): one.value for one in families["dashcache_settle_seconds"].samples
    }
    assert figures["gone_by_query", "max"] == 0.1204
    assert len(figures) == 16
    assert families["dashcache_settle_seconds"].type == "gauge"
    assert [one.value for one in families["dashcache_settle_recommended_seconds"].samples] == [0.3]


def test_the_metrics_file_is_replaced_at_once(tmp_path: Path) -> None:
    made = report("https://vendor.test", "scratch", Plan(), Samples({kind: [0.1] for kind in Kind}), 2.0)
    path = tmp_path / "dashcache.prom"
    path.write_text("old")
    with path.open() as old:
        write_metrics(made, path)
        assert old.read() == "old", "who was reading it goes on with the old one"
    assert path.read_text() == exposition(made)
    assert path.stat().st_mode & 0o044 == 0o044, "the collector is somebody else"
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write_metrics(made, path)
    assert list(tmp_path.iterdir()) == [path]
