"""Repeated faults: one line each in a while, which says how many there were."""

from proxy.telemetry.log_throttle import Throttle


def test_r21_admin_a_fault_that_repeats_is_told_once_in_a_while() -> None:
    now_s = [0.0]
    throttle = Throttle(10.0, lambda: now_s[0])
    assert throttle.passes("a") == 0
    assert [throttle.passes("a") for _ in range(3)] == [None] * 3
    assert throttle.passes("b") == 0
    now_s[0] = 10.0
    assert throttle.passes("a") == 3
    now_s[0] = 20.0
    assert throttle.passes("a") == 0


def test_r21_admin_kinds_without_end_take_no_memory_without_end() -> None:
    throttle = Throttle()
    for kind in range(10_000):
        throttle.passes(kind)
    assert len(throttle._known) < 300
