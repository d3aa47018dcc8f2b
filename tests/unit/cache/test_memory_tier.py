"""The nearest tier: bounded in bytes, in age, and by use."""

from proxy.cache.memory import MemoryTier
from proxy.core.entry import Entry, Row
from tests.support.clock import FakeClock


def entry(size: int = 1_000, mark: str = "") -> Entry:
    row = Row(b"", b"", b"x" * (size - 400), (), mark)
    assert row.size == size
    return Entry(row, 0, 10**9)


def tier(clock: FakeClock, max_bytes: int = 10_000, max_age_s: float = 60.0) -> MemoryTier:
    return MemoryTier(max_bytes, max_age_s, clock.monotonic)


def test_what_was_put_is_there():
    memory = tier(FakeClock())
    one = entry()
    memory.put(b"k", one, 10**6)
    assert memory.get(b"k") is one
    assert memory.get(b"other") is None
    assert (memory.entries, memory.bytes) == (1, 1_000)


def test_bytes_never_exceed_the_bound():
    memory = tier(FakeClock())
    for number in range(100):
        memory.put(b"%d" % number, entry(400 + 37 * (number % 100)), 10**6)
        assert memory.bytes <= 10_000
    assert memory.entries > 1


def test_the_least_recently_used_goes_first():
    memory = tier(FakeClock())
    for number in range(10):
        memory.put(b"%d" % number, entry(), 10**6)
    memory.get(b"0")
    memory.put(b"new", entry(2_000), 10**6)
    assert [number for number in range(10) if memory.get(b"%d" % number) is None] == [1, 2]


def test_an_entry_stays_no_longer_than_the_age_limit():
    clock = FakeClock()
    memory = tier(clock)
    memory.put(b"k", entry(), 10**9)
    clock.advance(59.999)
    assert memory.get(b"k") is not None
    clock.advance(0.001)
    assert memory.get(b"k") is None
    assert memory.bytes == 0


def test_being_read_does_not_make_an_entry_younger():
    clock = FakeClock()
    memory = tier(clock)
    memory.put(b"k", entry(), 10**9)
    for _ in range(60):
        assert memory.get(b"k") is not None
        clock.advance(1)
    assert memory.get(b"k") is None


def test_an_entry_stays_no_longer_than_its_own_lifetime():
    clock = FakeClock()
    memory = tier(clock)
    memory.put(b"k", entry(), 1_500)
    clock.advance(1.499)
    assert memory.get(b"k") is not None
    clock.advance(0.001)
    assert memory.get(b"k") is None


def test_r16_wall_clock_steps_move_nothing():
    clock = FakeClock()
    memory = tier(clock)
    memory.put(b"k", entry(), 10**9)
    for step_s in (3_600, -7_200, 10**9):
        clock.step_wall(step_s)
        assert memory.get(b"k") is not None
    clock.advance(60)
    clock.step_wall(-3_600)
    assert memory.get(b"k") is None


def test_what_is_over_already_is_not_held():
    memory = tier(FakeClock())
    for remaining_ms in (0, -1, -(10**9)):
        memory.put(b"k", entry(), remaining_ms)
        assert memory.get(b"k") is None


def test_a_newer_entry_takes_the_place_and_the_bytes_of_the_older():
    memory = tier(FakeClock())
    for size in (1_000, 5_000, 700):
        newer = entry(size)
        memory.put(b"k", newer, 10**6)
        assert memory.get(b"k") is newer
        assert (memory.entries, memory.bytes) == (1, size)


def test_a_newer_entry_that_cannot_be_held_leaves_no_older_one_behind():
    memory = tier(FakeClock())
    for size, remaining_ms in ((10_001, 10**6), (1_000, 0)):
        memory.put(b"k", entry(mark="old"), 10**6)
        memory.put(b"k", entry(size, mark="new"), remaining_ms)
        assert memory.get(b"k") is None


def test_an_entry_larger_than_the_tier_pushes_nobody_out():
    memory = tier(FakeClock())
    memory.put(b"small", entry(), 10**6)
    memory.put(b"large", entry(10_001), 10**6)
    assert memory.get(b"large") is None
    assert memory.get(b"small") is not None


def test_a_tier_of_no_size_or_no_age_holds_nothing():
    for memory in (tier(FakeClock(), max_bytes=0), tier(FakeClock(), max_age_s=0.0)):
        memory.put(b"k", entry(400), 10**6)
        assert memory.get(b"k") is None
        assert (memory.entries, memory.bytes) == (0, 0)


def test_clear_forgets_everything():
    memory = tier(FakeClock())
    for number in range(5):
        memory.put(b"%d" % number, entry(), 10**6)
    memory.clear()
    assert (memory.entries, memory.bytes, memory.get(b"0")) == (0, 0, None)
    memory.put(b"0", entry(), 10**6)
    assert memory.get(b"0") is not None


def test_a_clock_that_moves_on_between_two_looks_is_no_error():
    """The entry may end between being found and being handed over."""
    memory = MemoryTier(10_000, 60.0, iter(i * 0.5 for i in range(10_000)).__next__)
    for number in range(200):
        memory.put(b"%d" % (number % 7), entry(), 600 + number)
        memory.get(b"%d" % ((number + 3) % 7))
        assert memory.bytes <= 10_000
