"""Operating modes: which rule decides, and how rules of several replicas come together."""

from proxy.core.modes import Mode, Modes, Rule


def test_on_is_the_mode_without_rules():
    assert Modes().mode("default", "embedding", 0) is Mode.ON


def test_a_rule_reaches_what_it_names_and_no_more():
    modes = Modes((Rule(Mode.BYPASS, "a", "embedding"),))
    assert modes.mode("a", "embedding", 0) is Mode.BYPASS
    assert modes.mode("b", "embedding", 0) is Mode.ON
    assert modes.mode("a", "rerank", 0) is Mode.ON


def test_the_last_set_decides_even_over_narrower_rules():
    modes = Modes().with_rule(Rule(Mode.BYPASS, "a", "embedding", set_unix_s=1)).with_rule(Rule(Mode.ON, set_unix_s=2))
    assert modes.mode("a", "embedding", 5) is Mode.ON
    modes = modes.with_rule(Rule(Mode.SHADOW, "a", set_unix_s=3))
    assert modes.mode("a", "embedding", 5) is Mode.SHADOW
    assert modes.mode("b", "embedding", 5) is Mode.ON


def test_of_rules_set_at_once_the_narrower_decides():
    rules = [Rule(Mode.ON), Rule(Mode.SHADOW, operation="embedding"), Rule(Mode.BYPASS, upstream="a")]
    assert Modes().merged(rules).mode("a", "embedding", 0) is Mode.BYPASS
    assert Modes().merged(rules).mode("b", "embedding", 0) is Mode.SHADOW
    assert Modes().merged(rules).mode("b", "rerank", 0) is Mode.ON


def test_a_rule_ends_at_its_time_and_the_one_before_it_counts_again():
    modes = Modes().merged([Rule(Mode.SHADOW, set_unix_s=1), Rule(Mode.BYPASS, "a", until_unix_s=100.0, set_unix_s=2)])
    assert modes.mode("a", "embedding", 99.9) is Mode.BYPASS
    assert modes.mode("a", "embedding", 100.0) is Mode.SHADOW
    assert [rule.mode for rule in modes.active(100.0)] == [Mode.SHADOW]


def test_what_a_later_rule_covers_for_as_long_is_forgotten():
    modes = Modes().with_rule(Rule(Mode.BYPASS, set_unix_s=2)).with_rule(Rule(Mode.ON, set_unix_s=1))
    assert modes.rules == (Rule(Mode.BYPASS, set_unix_s=2),)


def test_a_bypass_that_was_switched_off_does_not_come_back_when_a_later_one_ends():
    modes = (
        Modes()
        .with_rule(Rule(Mode.BYPASS, operation="embedding", set_unix_s=1))
        .with_rule(Rule(Mode.ON, set_unix_s=2))
        .with_rule(Rule(Mode.BYPASS, until_unix_s=6.0, set_unix_s=3))
    )
    assert modes.mode("a", "embedding", 5.9) is Mode.BYPASS
    assert modes.mode("a", "embedding", 6.0) is Mode.ON


def test_when_a_timed_rule_ends_the_latest_before_it_that_is_valid_holds():
    modes = Modes().merged(
        [
            Rule(Mode.SHADOW, set_unix_s=1),
            Rule(Mode.BYPASS, until_unix_s=50.0, set_unix_s=2),
            Rule(Mode.ON, until_unix_s=20.0, set_unix_s=3),
            Rule(Mode.SHADOW, "a", until_unix_s=10.0, set_unix_s=4),
        ]
    )
    held = [modes.mode("a", "embedding", now_unix_s) for now_unix_s in (5, 10, 20, 50)]
    assert held == [Mode.SHADOW, Mode.ON, Mode.BYPASS, Mode.SHADOW]
    assert modes.mode("b", "embedding", 5) is Mode.ON


def test_replicas_that_hear_two_rules_of_one_instant_agree():
    """Two operators in the same clock tick: every replica keeps the same rule, whichever it heard first."""
    one = Rule(Mode.BYPASS, until_unix_s=10.0, set_unix_s=1, reason="one")
    for two in (
        Rule(Mode.BYPASS, until_unix_s=20.0, set_unix_s=1, reason="one"),
        Rule(Mode.BYPASS, until_unix_s=None, set_unix_s=1, reason="one"),
        Rule(Mode.BYPASS, until_unix_s=10.0, set_unix_s=1, reason="two"),
        Rule(Mode.ON, until_unix_s=10.0, set_unix_s=1, reason="one"),
    ):
        assert Modes().merged([one, two]) == Modes().merged([two, one])
