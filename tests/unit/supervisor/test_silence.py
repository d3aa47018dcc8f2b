"""How silence is counted: in turns that this process took, and reported once."""

from proxy.supervisor.silence import Silence


def test_a_silence_is_reported_once_and_begins_anew_with_a_word() -> None:
    silence = Silence()
    assert [silence.goes_on(0.5, 1.0) for _ in range(4)] == [False, True, False, False]
    assert (silence.for_s, silence.is_long) == (2.0, True)
    assert silence.ended()
    assert (silence.for_s, silence.is_long, silence.is_asked) == (0.0, False, False)
    assert not silence.ended()
    assert [silence.goes_on(0.5, 1.0) for _ in range(2)] == [False, True]
