"""The nearest of the names that are allowed, for messages about one that is not."""

import difflib
from collections.abc import Iterable

_ALIKE = 0.6
"""Below this, a short word would be taken for another of the same letters: ``no`` for ``on``."""


def near(name: object, allowed: Iterable[str]) -> str:
    """``; did you mean warning?``; empty if nothing is like *name*."""
    by_folded = {each.casefold(): each for each in allowed}
    given = str(name).strip().casefold()[:64]
    begun = [each for each in by_folded if len(given) > 2 and each.startswith(given)]
    found = begun or difflib.get_close_matches(given, by_folded, n=1, cutoff=_ALIKE)
    return f"; did you mean {by_folded[found[0]]}?" if found else ""
