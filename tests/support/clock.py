"""A clock that tests turn by hand. Handed to whatever takes its time from outside: breaker, tiers, modes, refresh."""


class FakeClock:
    """
    A monotonic and a wall clock, apart from each other as in life.

    `advance` is time passing: both move. `step_wall` is somebody setting the date: only the wall clock jumps.
    """

    def __init__(self, monotonic_s: float = 1_000.0, wall_unix_s: float = 1_700_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._wall_unix_s = wall_unix_s

    def monotonic(self) -> float:
        """Seconds since some moment; stands in for ``time.monotonic``."""
        return self._monotonic_s

    def wall(self) -> float:
        """Unix seconds; stands in for ``time.time``."""
        return self._wall_unix_s

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass, on both clocks."""
        if seconds < 0:
            raise ValueError("time does not pass backwards; step_wall sets the date")
        self._monotonic_s += seconds
        self._wall_unix_s += seconds

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward, or with a negative number back; no time passes."""
        self._wall_unix_s += seconds
