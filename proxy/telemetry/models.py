"""The tokens that hits have saved, by model: a bounded number of series, although clients choose what they ask for."""

from prometheus_client import Counter

from proxy.telemetry import asked
from proxy.telemetry.labels import OTHER
from proxy.vendors.prices import CNY_PER_1K_TOKENS

MOST_UNLISTED = 32
"""Per worker. Tokens are saved only of models that the vendor has answered for, so more are not to be expected."""


class TokensSaved:
    """
    Adds to *counter* by operation and model.

    The models with a price have labels, and so have the first few others that are seen; the rest share ``other``, which
    has no price.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._unlisted: set[str] = set()
        self._children: dict[tuple[str, str], Counter] = {}
        """Finding a child in the counter takes longer than all else here."""

    def add(self, operation: str, model: str, tokens: int) -> None:
        """So many more *tokens* of *model*, as it was asked for."""
        child = self._children.get((operation, model))
        if child is None:
            label = self._label(model)
            child = self._counter.labels(operation, label)
            self._children[operation, label] = child
        child.inc(tokens)

    def _label(self, model: str) -> str:
        if model in CNY_PER_1K_TOKENS or model in self._unlisted:
            return model
        if not model or asked.name(model) != model or len(self._unlisted) >= MOST_UNLISTED:
            return OTHER
        self._unlisted.add(model)
        return model
