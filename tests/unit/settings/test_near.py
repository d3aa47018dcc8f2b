"""The nearest of the names that are allowed."""

import pytest

from proxy.core.errors import ConfigError
from proxy.settings.load import load
from proxy.settings.near import near

LEVELS = ("debug", "info", "warning", "error")


@pytest.mark.parametrize(
    ("name", "said"),
    [("warn", "warning"), ("WARNING", "warning"), (" Info ", "info"), ("err", "error"), ("dbg", "debug")],
)
def test_what_is_nearly_right_is_answered_with_the_right_word(name: str, said: str) -> None:
    assert near(name, LEVELS) == f"; did you mean {said}?"


@pytest.mark.parametrize("name", ["", "loud", 7, "x" * 10_000])
def test_what_is_like_nothing_gets_no_advice(name: object) -> None:
    assert near(name, LEVELS) == ""


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DASHCACHE_LOG_LEVEL", "warn", "did you mean warning?"),
        ("DASHCACHE_LOG_FORMAT", "JSON", "did you mean json?"),
        ("DASHCACHE_PROFILE", "prod", "did you mean production?"),
        ("DASHCACHE_START_MODE", "bypas", "did you mean bypass?"),
    ],
)
def test_settings_with_a_list_of_values_name_the_nearest(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"HOME": "/nowhere", name: value})
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"{name}: ")
    assert mistake.endswith(said)
