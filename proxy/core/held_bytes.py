"""
One budget of bytes per worker, for all that is held before it is answered: heads, bodies, messages, answers.

Each holder's first 4 KiB are free, so that what is small pays nothing and is let in when the budget is used up. What
that lets through is bounded by the number of connections; ``docs/decisions/0024-held-bytes.md`` has the sum.
"""

FREE_BYTES = 4 * 1024


class HeldBytes:
    """At most *limit* bytes at a time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.now = 0

    def hold(self, free: int = FREE_BYTES) -> "Hold":
        """A new holder's share; its first *free* bytes are not counted."""
        return Hold(self, free)


class Hold:
    """The bytes of one holder, until ``end``; then it may begin anew."""

    __slots__ = ("_budget", "_free", "kept", "size")

    def __init__(self, budget: HeldBytes, free: int) -> None:
        self._budget = budget
        self._free = free
        self.size = 0
        self.kept = 0
        """Bytes that whoever takes pieces out of a buffer has put aside: they are still held."""

    def add(self, size: int) -> bool:
        """Hold so many bytes more; False, with nothing changed, where there is no room for them."""
        return self.become(self.size + size)

    def become(self, size: int) -> bool:
        """Hold so many bytes altogether; False, with nothing changed, where there is no room for more than before."""
        more = max(0, size - self._free) - max(0, self.size - self._free)
        if more > 0 and self._budget.now + more > self._budget.limit:
            return False
        self._budget.now += more
        self.size = size
        return True

    def end(self) -> None:
        """All of it is let go."""
        self.become(0)
        self.kept = 0
