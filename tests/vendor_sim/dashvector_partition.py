"""The documents of one partition: what has been acknowledged, and what reads see of it."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.vendor_sim.dashvector_model import Doc

# A change to each document: its new state, or None when it is deleted.
Changes = Mapping[str, Doc | None]


@dataclass(frozen=True, slots=True)
class PendingWrite:
    """An acknowledged write that reads do not see before *due*."""

    due: float
    changes: Changes


@dataclass(slots=True)
class Partition:
    """
    Documents in two states.

    Writes judge by *current* (operations are executed in order), reads by *visible*, which follows write by write.
    """

    status_until: float = 0.0
    is_dropped: bool = False
    current: dict[str, Doc] = field(default_factory=dict)
    visible: dict[str, Doc] = field(default_factory=dict)
    pending: deque[PendingWrite] = field(default_factory=deque)

    def write(self, changes: Changes, due: float) -> None:
        """Acknowledge *changes*, to be seen from *due* on."""
        _apply(self.current, changes)
        self.pending.append(PendingWrite(due, dict(changes)))

    def show(self, now: float) -> None:
        """Let reads see the writes that are due; a later write never overtakes an earlier one."""
        while self.pending and self.pending[0].due <= now:
            _apply(self.visible, self.pending.popleft().changes)

    def show_all(self) -> None:
        """Let reads see everything that was acknowledged."""
        self.show(float("inf"))


def _apply(docs: dict[str, Doc], changes: Changes) -> None:
    for doc_id, doc in changes.items():
        if doc is None:
            docs.pop(doc_id, None)
        else:
            docs[doc_id] = doc


def in_order(docs: Mapping[str, Doc], ids: Sequence[str]) -> list[Doc]:
    """The documents among *ids* that exist, each once."""
    return [docs[doc_id] for doc_id in dict.fromkeys(ids) if doc_id in docs]
