"""
One budget of bytes per worker, for all that is held before it is answered: heads, bodies, messages, answers.

Small things are free, so that what is quick pays nothing: each holder counts from its own threshold on. What that lets
through is bounded by the number of connections instead; ``docs/decisions/0024-held-bytes.md`` has the sum.
"""

FREE_BYTES = 64 * 1024
"""Of a body, or of an answer."""
FREE_HEAD_BYTES = 4 * 1024


class HeldBytes:
    """At most *limit* bytes at a time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.now = 0

    def hold(self, free: int = FREE_BYTES) -> "Hold":
        """What one holder has; its first *free* bytes are not counted."""
        return Hold(self, free)


class Hold:
    """What one holder has, until ``end``."""

    __slots__ = ("_budget", "_counted", "_free", "_size")

    def __init__(self, budget: HeldBytes, free: int) -> None:
        self._budget = budget
        self._free = free
        self._size = 0
        self._counted = 0

    def add(self, size: int) -> bool:
        """Hold so many bytes more; False, with nothing changed, where there is no room for them."""
        more = max(0, self._size + size - self._free) - self._counted
        if self._budget.now + more > self._budget.limit:
            return False
        self._size += size
        self._counted += more
        self._budget.now += more
        return True

    def end(self) -> None:
        """All of it is let go; what is added later counts from zero."""
        self._budget.now -= self._counted
        self._size = self._counted = 0
