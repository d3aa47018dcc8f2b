"""The budget of bytes: small things are free, everything is given back, and nothing is lost on the way."""

import random

from proxy.core.held_bytes import HeldBytes


def test_what_is_small_is_free_however_many_there_are():
    budget = HeldBytes(100)
    holds = [budget.hold(64) for _ in range(1000)]
    assert all(hold.add(64) for hold in holds)
    assert budget.now == 0


def test_beyond_the_threshold_bytes_count_until_there_is_no_room():
    budget = HeldBytes(100)
    one, other = budget.hold(10), budget.hold(10)
    assert one.add(5)
    assert one.add(85)
    assert budget.now == 80
    assert not other.add(31)
    assert budget.now == 80
    assert other.add(30)
    assert budget.now == 100
    one.end()
    one.end()
    assert budget.now == 20
    assert one.add(90)
    assert budget.now == 100


def test_whatever_happens_the_budget_is_what_the_holders_have():
    chance = random.Random(1)
    budget = HeldBytes(5_000)
    holds = [budget.hold(chance.choice([0, 64])) for _ in range(20)]
    for _ in range(5_000):
        hold = chance.choice(holds)
        if chance.random() < 0.2:
            hold.end()
        elif chance.random() < 0.5:
            hold.become(chance.randrange(2_000))
        else:
            hold.add(chance.randrange(500))
        assert 0 <= budget.now <= budget.limit
    for hold in holds:
        hold.end()
    assert budget.now == 0


def test_a_holder_may_always_have_less():
    budget = HeldBytes(100)
    hold = budget.hold(10)
    assert hold.become(110)
    assert not budget.hold(0).add(1)
    assert not hold.become(111)
    assert hold.become(60)
    assert (budget.now, hold.size) == (50, 60)
