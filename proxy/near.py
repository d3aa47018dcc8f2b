"""The nearest of the names that are allowed, for messages about one that is not."""

import difflib
from collections.abc import Iterable

_ALIKE = 0.5


def near(name: object, allowed: Iterable[str]) -> str:
    """``; did you mean warning?``; empty if nothing is like *name*."""
    by_folded = {each.casefold(): each for each in allowed}
    found = difflib.get_close_matches(str(name).strip().casefold()[:64], by_folded, n=1, cutoff=_ALIKE)
    return f"; did you mean {by_folded[found[0]]}?" if found else ""
