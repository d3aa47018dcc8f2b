"""Which credentials count as accepted, and for how long."""

from proxy.cache import recently_accepted
from proxy.cache.recently_accepted import Leases
from tests.support.clock import FakeClock


def test_a_lease_ends_and_is_renewed():
    clock = FakeClock()
    held = Leases(60.0, clock.monotonic)
    assert not held.has(b"one")
    held.note(b"one")
    clock.advance(59.0)
    assert held.has(b"one")
    assert not held.has(b"two")
    held.note(b"one")
    clock.advance(59.0)
    assert held.has(b"one")
    clock.advance(1.0)
    assert not held.has(b"one")


def test_the_date_has_nothing_to_do_with_it():
    clock = FakeClock()
    held = Leases(60.0, clock.monotonic)
    held.note(b"one")
    clock.step_wall(1e6)
    assert held.has(b"one")


def test_no_lease_time_means_no_lease():
    held = Leases(0.0, FakeClock().monotonic)
    held.note(b"one")
    assert not held.has(b"one")


def test_many_strangers_push_out_others_and_no_more(monkeypatch):
    monkeypatch.setattr(recently_accepted, "_MAX_REMEMBERED", 100)
    held = Leases(60.0, FakeClock().monotonic)
    held.note(b"one")
    for number in range(1_000):
        held.note(b"%d" % number)
    assert not held.has(b"one")
    assert len(held._accepted) == 100
