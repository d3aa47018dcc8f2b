"""
Of which models and collections something was kept in the cache, or answered from it, since the start.

Workers tell of a name when they first meet it; the supervisor keeps what they have told, also of those that are gone.
"""

from collections.abc import Callable

from proxy.core.outcome import Outcome
from proxy.core.purges import EVERY, Extent

MOST_NAMES = 1_000
"""Names are a client's text, so there is a bound; beyond it nothing is said to be unknown."""

Name = tuple[str, str]
"""``model`` or ``collection``, and which."""


class Names:
    """The names that are known; *tell* hears of each that is new."""

    def __init__(self, tell: Callable[[Name], None] = lambda _: None) -> None:
        self._tell = tell
        self._known: set[Name] = set()

    def note(self, outcome: Outcome) -> None:
        """Know what *outcome* is about, if the cache had or has an answer to it."""
        if outcome.planned is None or not (outcome.stored or outcome.hits_memory or outcome.hits_redis):
            return
        _, _, model, scopes = outcome.planned.extent
        if model:
            self.add(("model", model))
        for scope in scopes:
            if scope[0] == "collection":
                self.add(("collection", scope[1]))

    def add(self, name: Name) -> None:
        """Know *name* from now on, if there is room."""
        if name not in self._known and len(self._known) < MOST_NAMES:
            self._known.add(name)
            self._tell(name)

    def unknown(self, extent: Extent) -> dict[str, str]:
        """The model and the collection that *extent* names and of which nothing is known."""
        if len(self._known) >= MOST_NAMES:
            return {}
        named = zip(("model", "collection"), extent[2:], strict=True)
        return {kind: name for kind, name in named if name != EVERY and (kind, name) not in self._known}
