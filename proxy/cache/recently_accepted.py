"""Which credentials the upstream has accepted lately."""

from collections.abc import Callable

from cachetools import TTLCache

_MAX_REMEMBERED = 10_000


class Leases:
    """
    Owners (keyed hashes of endpoint and credential) that were accepted within the last *lease_s* seconds.

    Bounded: whoever sends many credentials pushes out others' leases, which costs those nothing but a step that the end
    of their next write makes up for.
    """

    def __init__(self, lease_s: float, monotonic: Callable[[], float]) -> None:
        self._accepted: TTLCache[bytes, bool] = TTLCache(_MAX_REMEMBERED, lease_s, monotonic)

    def note(self, owner: bytes) -> None:
        """*owner* was accepted just now."""
        self._accepted[owner] = True

    def end(self, owner: bytes) -> None:
        """*owner* was refused just now."""
        self._accepted.pop(owner, None)

    def has(self, owner: bytes) -> bool:
        """Whether *owner* was accepted lately."""
        return owner in self._accepted
