"""Rules from several replicas: merging is commutative, associative and idempotent, whatever the rules."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.modes import Mode, Modes, Rule

TIMES = st.sampled_from([0.0, 1.0, 2.0, 2.5, 1e9])
RULES = st.lists(
    st.builds(
        Rule,
        mode=st.sampled_from(Mode),
        upstream=st.sampled_from(["*", "a", "b"]),
        operation=st.sampled_from(["*", "embedding"]),
        until_unix_s=st.none() | TIMES,
        set_unix_s=TIMES,
        reason=st.sampled_from(["", "x", "y"]),
    ),
    max_size=8,
)


@given(RULES, RULES)
def test_merging_is_commutative(one, other):
    assert Modes().merged(one).merged(other) == Modes().merged(other).merged(one)


@given(RULES, RULES, RULES)
def test_merging_is_associative(one, other, third):
    left = Modes().merged(one).merged(Modes().merged(other).merged(third).rules)
    assert left == Modes().merged(one).merged(other).merged(third)


@given(RULES)
def test_merging_again_changes_nothing(rules):
    modes = Modes().merged(rules)
    assert modes.merged(rules) == modes.merged(modes.rules) == modes


@given(RULES, st.sampled_from(["a", "b", "c"]), st.sampled_from(["embedding", "rerank"]), TIMES)
def test_the_last_set_decides(rules, upstream, operation, now_unix_s):
    """No active rule that fits was set later than the one whose mode holds."""
    modes = Modes().merged(rules)
    mode = modes.mode(upstream, operation, now_unix_s)
    fitting = [
        rule
        for rule in modes.active(now_unix_s)
        if rule.upstream in ("*", upstream) and rule.operation in ("*", operation)
    ]
    if not fitting:
        assert mode is Mode.ON
        return
    latest = max(rule.set_unix_s for rule in fitting)
    assert mode in {rule.mode for rule in fitting if rule.set_unix_s == latest}


@given(RULES, st.sampled_from(["a", "b", "c"]), st.sampled_from(["embedding", "rerank"]), TIMES)
def test_what_is_left_out_would_never_decide(rules, upstream, operation, now_unix_s):
    decides = [rule for rule in rules if rule.covers(upstream, operation) and rule.is_active(now_unix_s)]
    expected = max(decides, key=lambda rule: rule.rank, default=None)
    assert Modes().merged(rules).deciding(upstream, operation, now_unix_s) == expected


@given(RULES)
def test_no_rule_is_kept_that_another_silences(rules):
    kept = Modes().merged(rules).rules
    assert not any(one.silences(other) for one in kept for other in kept)
