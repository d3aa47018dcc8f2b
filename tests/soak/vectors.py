"""
Documents with rising versions, written and read through both replicas; and which version an answer must at least show.

- A hit that began after a write was acknowledged shows it: the replicas settle for longer than the vendor takes.
- While Redis could not be told (it was away during the write), a replica may not know of a write through the other one:
  then a hit may be as old as its lifetime, and no older. All is strict again once everything was told.
- A miss shows what the vendor shows: every write that was acknowledged before the vendor's own delay.
- Nothing shows a version that was never sent, and everything but versions is as the vendor says.

After a write of unknown outcome its document is left alone until nothing of it can be under way any more; a write that
came late would otherwise set the vendor itself back.
"""

import itertools
import random
import re
import time
from dataclasses import dataclass, field

from tests.consistency.calls import PROTOCOLS, Answer, Call
from tests.soak.history import History
from tests.soak.rig import JITTER, VECTOR_LIFETIME_S, VISIBLE_S, Rig

COLLECTIONS, DOCS = 24, ("a", "b")
READ_KINDS = ("query_doc", "query_doc", "query_doc_group_by", "fetch_doc")
LATE_S = 10.0
OLDEST_S = VECTOR_LIFETIME_S * (1 + JITTER) + 2.0
"""The lifetime, its jitter, and what a busy machine may add."""


@dataclass(slots=True)
class Written:
    """One acknowledged version."""

    version: int
    began_s: float
    acknowledged_s: float


@dataclass(slots=True)
class Document:
    """What is known of one document; *written* has the acknowledged versions, oldest first, as far as they matter."""

    sent: int = 1
    written: list[Written] = field(default_factory=lambda: [Written(1, 0.0, 0.0)])
    free_at_s: float = 0.0
    """Until then nobody writes to it."""

    def acknowledged(self, write: Written, now_s: float) -> None:
        """Note it, and forget what is older than anything may be."""
        old = [one for one in self.written if one.acknowledged_s < now_s - 2 * OLDEST_S]
        self.written = [*old[-1:], *(one for one in self.written if one not in old), write]


def shape(answer: Answer) -> str:
    """All that an answer says but for versions: the same for each collection, as all have the same vectors."""
    if answer.protocol == "grpc":
        return repr([(doc, score) for doc, _, score in answer.output])
    return re.sub(r"'version': \d+", "", repr(answer.output))


class Documents:
    """The collections and what is known of them."""

    def __init__(self, history: History, chance: random.Random) -> None:
        self._history = history
        self._chance = chance
        self._all = {(f"soak{number}", doc): Document() for number in range(COLLECTIONS) for doc in DOCS}
        self._shapes: dict[tuple[str, str], str] = {}
        self.excused = 0
        """Hits that were older than the last write, as they may be while Redis cannot be told."""

    async def create(self, rig: Rig) -> None:
        """All of them, past the proxies."""
        for number in range(COLLECTIONS):
            await rig.direct(Call("create_collection", f"soak{number}"))
            await rig.direct(Call("upsert_doc", f"soak{number}", version=1, docs=DOCS))
        for protocol, kind in itertools.product(PROTOCOLS, sorted(set(READ_KINDS))):
            self._shapes[protocol, kind] = shape(await rig.direct(Call(kind, "soak0", docs=DOCS), protocol))

    def question(self) -> Call:
        """A read."""
        return Call(self._chance.choice(READ_KINDS), f"soak{self._chance.randrange(COLLECTIONS)}", docs=DOCS)

    def change(self) -> tuple[Call, Document] | None:
        """A write and its document, which is taken until `done`; None when there is none that may be written now."""
        now_s = time.monotonic()
        free = [(name, known) for name, known in self._all.items() if now_s >= known.free_at_s]
        if not free:
            return None
        (collection, doc), known = self._chance.choice(free)
        known.sent += 1
        known.free_at_s = float("inf")
        return Call("upsert_doc", collection, version=known.sent, docs=(doc,)), known

    def done(self, call: Call, known: Document, began_s: float, *, is_acknowledged: bool) -> None:
        """The write is over, or nobody knows."""
        now_s = time.monotonic()
        if is_acknowledged:
            known.acknowledged(Written(call.version, began_s, now_s), now_s)
        known.free_at_s = now_s if is_acknowledged else now_s + LATE_S

    def floors(self, call: Call) -> dict[str, tuple[Document, list[Written]]]:
        """What is known when a read begins."""
        return {doc: (known := self._all[call.collection, doc], list(known.written)) for doc in DOCS}

    def objection(
        self, call: Call, answer: Answer, began_s: float, floors: dict[str, tuple[Document, list[Written]]]
    ) -> str:
        """What is wrong with a successful *answer*; empty when nothing is."""
        if set(answer.versions) != set(DOCS):
            return f"incomplete: documents {sorted(answer.versions)}"
        if self._shapes and shape(answer) != self._shapes[answer.protocol, call.operation]:
            return f"different: {shape(answer)}"
        for doc, (known, written) in floors.items():
            version = answer.versions[doc]
            if version > known.sent:
                return "invented: a version that was never sent"
            if answer.is_hit and version < written[-1].version:
                missed = [one for one in written if one.version > version]
                if any(self._must_show(one, began_s) for one in missed):
                    return f"stale: {call.operation} hit of {call.collection}/{doc} at {version}, {missed} were written"
                self.excused += 1
            if not answer.is_hit:
                shown = [one.version for one in written if one.acknowledged_s < began_s - VISIBLE_S * 1.5]
                if shown and version < shown[-1]:
                    return f"stale: {call.operation} from the vendor at {version}, {shown[-1]} was visible"
        return ""

    def _must_show(self, write: Written, read_s: float) -> bool:
        is_untold = self._history.is_untold(write.began_s, write.acknowledged_s, read_s)
        return not is_untold or write.acknowledged_s < read_s - OLDEST_S
