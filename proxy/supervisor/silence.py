"""How long a child process has not answered; a busy or suspended machine is not taken for a hung child."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """
    Seconds: between two questions, until a silence is reported, and until the child is given up.

    *start_s* takes the place of the two latter for a child that has not come to serve yet: to load all that it imports
    takes seconds on a machine that swaps.
    """

    turn_s: float = 0.5
    long_s: float = 5.0
    lost_s: float = 15.0
    start_s: float = 60.0


WORKER_PATIENCE = Patience()


@dataclass(slots=True)
class Silence:
    """
    The silence of one child since it was asked, *for_s* seconds by now.

    Only our own turns are counted, each as its nominal length however late it came. Where this process is not run
    (a suspended machine, a stopped process group, no processor to be had), the child was not run either.
    """

    for_s: float = 0.0
    is_asked: bool = False
    is_long: bool = False
    """It has been reported."""
    is_given_up: bool = False

    def ended(self) -> bool:
        """The child has said something; whether its silence had been reported."""
        was_long, self.for_s, self.is_asked, self.is_long = self.is_long, 0.0, False, False
        return was_long

    def goes_on(self, turn_s: float, long_s: float) -> bool:
        """Another turn without a word; whether that makes the silence a long one, to be reported now."""
        self.for_s += turn_s
        if self.is_long or self.for_s < long_s:
            return False
        self.is_long = True
        return True
