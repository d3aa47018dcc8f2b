"""LiveModes and what is believed of stored rules."""

import msgspec
import pytest

from proxy.control.live import MAX_RULES, LiveModes, decode, encode, tidied
from proxy.control.stored import BadOrders, seal, unseal
from proxy.core.key import Secret
from proxy.core.modes import Mode, Modes, Rule
from proxy.settings.model import Start

SECRET = Secret.derive(b"one deployment")
KEY = b"dashcache:modes:x"


class Clock:
    def __init__(self) -> None:
        self.unix_s = 1_000_000.0

    def __call__(self) -> float:
        return self.unix_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def live(clock: Clock, start: Start | None = None) -> LiveModes:
    return LiveModes(start or Start(), clock)


def test_without_rules_the_settings_hold(clock: Clock) -> None:
    modes = live(clock, Start(mode=Mode.BYPASS, operations={"embedding": Mode.SHADOW}))
    assert modes.mode("dashscope", "embedding") is Mode.SHADOW
    assert modes.mode("dashscope", "rerank") is Mode.BYPASS


def test_a_switch_holds_at_once_although_an_answer_was_remembered(clock: Clock) -> None:
    modes = live(clock)
    assert modes.mode("dashscope", "embedding") is Mode.ON
    modes.replace(Modes().with_rule(Rule(Mode.BYPASS, set_unix_s=clock.unix_s)))
    assert modes.mode("dashscope", "embedding") is Mode.BYPASS


def test_a_switch_for_all_beats_a_setting_for_one(clock: Clock) -> None:
    modes = live(clock, Start(operations={"embedding": Mode.SHADOW}))
    modes.replace(Modes().with_rule(Rule(Mode.BYPASS, set_unix_s=clock.unix_s)))
    assert modes.mode("dashscope", "embedding") is Mode.BYPASS


def test_when_a_switch_ends_the_settings_hold_again(clock: Clock) -> None:
    modes = live(clock, Start(mode=Mode.SHADOW))
    until = clock.unix_s + 600
    modes.replace(Modes().with_rule(Rule(Mode.BYPASS, until_unix_s=until, set_unix_s=clock.unix_s)))
    clock.unix_s = until - 0.001
    assert modes.mode("dashscope", "embedding") is Mode.BYPASS
    clock.unix_s = until
    assert modes.mode("dashscope", "embedding") is Mode.SHADOW
    assert [rule.mode for rule in modes.valid().rules] == [Mode.SHADOW]


def test_answers_for_unknown_names_are_right_but_not_all_remembered(clock: Clock) -> None:
    modes = live(clock, Start(mode=Mode.BYPASS))
    assert {modes.mode("dashscope", f"made-up-{number}") for number in range(5 * MAX_RULES)} == {Mode.BYPASS}
    assert len(modes._answers) == MAX_RULES


def test_rules_survive_being_written_down() -> None:
    modes = Modes().merged(
        [
            Rule(Mode.BYPASS, set_unix_s=5.25, reason="vendor \u00fc"),
            Rule(Mode.SHADOW, "dashscope", "embedding", until_unix_s=99.5, set_unix_s=7.125),
        ]
    )
    assert decode(encode(modes)) == modes
    assert decode(unseal(SECRET, KEY, seal(SECRET, KEY, encode(modes)))) == modes


@pytest.mark.parametrize(
    "rule",
    [
        {"mode": "off"},
        {"mode": "on", "set_unix_s": 0},
        {"mode": "on", "set_unix_s": -1},
        {"mode": "on", "set_unix_s": 1e300},
        {"mode": "on", "set_unix_s": "5"},
        {"mode": "on", "set_unix_s": 5, "until_unix_s": 1e300},
        {"mode": "on", "set_unix_s": 5, "operation": "A B"},
        {"mode": "on", "set_unix_s": 5, "upstream": "x" * 65},
        {"mode": "on", "set_unix_s": 5, "upstream": "**"},
        {"mode": "on", "set_unix_s": 5, "reason": "x" * 201},
        {"mode": "on", "set_unix_s": 5, "reason": "line\nfeed"},
        {"mode": "on", "set_unix_s": 5, "by": "x" * 81},
        {"mode": "on", "set_unix_s": 5, "by": "line\nfeed"},
    ],
)
def test_rules_that_no_operator_could_set_are_refused(rule: dict[str, object]) -> None:
    with pytest.raises(BadOrders):
        decode(msgspec.json.encode({"format": 1, "rules": [rule]}))


@pytest.mark.parametrize(
    "stored",
    [b"", b"null", b"{}", b"\xff", b'{"format":2,"rules":[]}', b'{"format":1,"rules":[],"more":1}', b"[" * 200_000],
)
def test_what_is_not_a_set_of_rules_is_refused(stored: bytes) -> None:
    with pytest.raises(BadOrders):
        decode(stored)


def test_more_rules_than_fit_are_refused() -> None:
    rules = [{"mode": "on", "set_unix_s": 5, "operation": f"o{number}"} for number in range(MAX_RULES + 1)]
    with pytest.raises(BadOrders):
        decode(msgspec.json.encode({"format": 1, "rules": rules}))


def test_sealed_rules_altered_anywhere_are_refused() -> None:
    sealed = seal(SECRET, KEY, encode(Modes().with_rule(Rule(Mode.BYPASS, set_unix_s=5.0))))
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises(BadOrders):
            unseal(SECRET, KEY, bytes(altered))
        with pytest.raises(BadOrders):
            unseal(SECRET, KEY, sealed[:position])


def test_sealed_rules_open_with_one_secret_and_under_one_key() -> None:
    sealed = seal(SECRET, KEY, encode(Modes()))
    with pytest.raises(BadOrders):
        unseal(Secret.derive(b"another"), KEY, sealed)
    with pytest.raises(BadOrders):
        unseal(SECRET, b"elsewhere", sealed)


def test_rules_that_ended_long_ago_and_too_many_are_tidied_away() -> None:
    old = Rule(Mode.BYPASS, operation="old", until_unix_s=10.0, set_unix_s=5.0)
    many = [Rule(Mode.ON, operation=f"o{number}", set_unix_s=100.0 + number) for number in range(MAX_RULES + 3)]
    kept = tidied(Modes().merged([old, *many]), 10.0 + 90_000)
    assert len(kept.rules) == MAX_RULES
    assert min(rule.set_unix_s for rule in kept.rules) == 103.0


def test_a_rule_without_an_end_outlasts_any_number_of_timed_ones() -> None:
    lasting = Rule(Mode.BYPASS, set_unix_s=5.0)
    many = [Rule(Mode.ON, until_unix_s=9_000.0 - age, set_unix_s=10.0 + age) for age in range(MAX_RULES + 3)]
    kept = tidied(Modes().merged([lasting, *many]), 100.0)
    assert len(kept.rules) == MAX_RULES
    assert lasting in kept.rules
    assert kept.mode("dashscope", "embedding", 9_001.0) is Mode.BYPASS
