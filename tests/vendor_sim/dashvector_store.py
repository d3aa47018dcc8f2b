"""
Everything DashVector keeps: collections, their partitions and documents, and when each change shows.

Both protocols work on one store, in one event loop, so nothing here is locked. Time comes from a clock that tests may
replace; nothing runs in the background, states are worked out when somebody asks.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from tests.vendor_sim.dashvector_errors import refusal
from tests.vendor_sim.dashvector_model import DEFAULT_PARTITION, CollectionInfo, CollectionSpec, Doc
from tests.vendor_sim.dashvector_partition import Partition
from tests.vendor_sim.dashvector_schema import check_partition_name, checked_spec
from tests.vendor_sim.dashvector_settings import DashVectorSettings

SERVING = "SERVING"
_MS = 1000.0


@dataclass(slots=True)
class Collection:
    """One collection; *status_until* is when INITIALIZED or DROPPING ends."""

    spec: CollectionSpec
    status_until: float
    is_dropped: bool = False
    partitions: dict[str, Partition] = field(default_factory=dict)


class Hold:
    """While it lasts, writes are acknowledged and not shown. Hold several: the last release shows them."""

    def __init__(self, store: "DashVectorStore", collection: str | None) -> None:
        self._store = store
        self.collection = collection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def covers(self, collection: str) -> bool:
        """Whether writes to *collection* are held."""
        return self.collection in (None, collection)

    def release(self) -> None:
        """Show at once what was held, whatever the delay; may be called twice."""
        self._store.release(self)


class DashVectorStore:
    """The collections by name."""

    def __init__(self, settings: DashVectorSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.clock = clock
        self._collections: dict[str, Collection] = {}
        self._holds: list[Hold] = []

    def clear(self) -> None:
        """Forget everything, holds too."""
        self._collections.clear()
        self._holds.clear()

    def hold_visibility(self, collection: str | None = None) -> Hold:
        """From now on reads (of one collection, or of all) see nothing new, until `Hold.release`."""
        hold = Hold(self, collection)
        for name, one in self._collections.items():
            if hold.covers(name) and not self.is_held(name):
                for partition in one.partitions.values():
                    partition.show(self.clock())
        self._holds.append(hold)
        return hold

    def release(self, hold: Hold | None = None) -> None:
        """End *hold*, or all holds, and show everything acknowledged that no other hold covers."""
        ended = list(self._holds) if hold is None else [one for one in self._holds if one is hold]
        self._holds = [one for one in self._holds if one not in ended]
        for name, collection in self._collections.items():
            if any(one.covers(name) for one in ended) and not self.is_held(name):
                for partition in collection.partitions.values():
                    partition.show_all()

    def is_held(self, collection: str) -> bool:
        """Whether writes to *collection* stay invisible for now."""
        return any(hold.covers(collection) for hold in self._holds)

    def names(self) -> list[str]:
        """The collections in alphabetical order, those in creation and deletion too."""
        return sorted(name for name in list(self._collections) if self._find(name))

    def create(self, spec: CollectionSpec) -> None:
        """Create a collection with its default partition; refuses a name that is taken."""
        spec = checked_spec(spec)
        if self._find(spec.name):
            raise refusal("DuplicateCollection")
        until = self.clock() + self.settings.creation_ms / _MS
        collection = Collection(spec, until)
        collection.partitions[DEFAULT_PARTITION] = Partition(until)
        self._collections[spec.name] = collection

    def delete(self, name: str) -> None:
        """Begin to drop a collection; it is DROPPING for as long as the settings say, then gone."""
        collection = self.get(name)
        collection.is_dropped = True
        collection.status_until = self.clock() + self.settings.dropping_ms / _MS

    def get(self, name: str) -> Collection:
        """The collection in whatever state; refuses when there is none."""
        if not name:
            raise refusal("EmptyCollectionName")
        collection = self._find(name)
        if collection is None:
            raise refusal("InexistentCollection")
        return collection

    def serving(self, name: str) -> Collection:
        """The collection; refuses unless it serves."""
        collection = self.get(name)
        if self.status(collection) != SERVING:
            raise refusal("UnreadyCollection")
        return collection

    def status(self, state: Collection | Partition) -> str:
        """INITIALIZED, SERVING or DROPPING."""
        if state.is_dropped:
            return "DROPPING"
        return SERVING if state.status_until <= self.clock() else "INITIALIZED"

    def info(self, name: str) -> CollectionInfo:
        """What describe says."""
        collection = self.get(name)
        partitions = {one: self.status(self._partition(collection, one)) for one in self.partition_names(name)}
        return CollectionInfo(collection.spec, self.status(collection), partitions)

    def partition_names(self, name: str) -> list[str]:
        """The partitions, the default one first."""
        collection = self.get(name)
        return [one for one in list(collection.partitions) if self._find_partition(collection, one)]

    def create_partition(self, name: str, partition: str) -> None:
        """Create a partition; refuses a name that is taken."""
        collection = self.serving(name)
        check_partition_name(partition)
        if self._find_partition(collection, partition):
            raise refusal("DuplicatePartition")
        collection.partitions[partition] = Partition(self.clock() + self.settings.creation_ms / _MS)

    def delete_partition(self, name: str, partition: str) -> None:
        """Begin to drop a partition; the default one stays."""
        found = self.partition(name, partition)
        if partition == DEFAULT_PARTITION:
            raise refusal("InvalidPartitionName", "the default partition cannot be deleted")
        found.is_dropped = True
        found.status_until = self.clock() + self.settings.dropping_ms / _MS

    def partition(self, name: str, partition: str) -> Partition:
        """A partition of a serving collection, in whatever state."""
        return self._partition(self.serving(name), partition)

    def readable(self, name: str, partition: str) -> Partition:
        """The partition with *visible* brought up to now; refuses unless it serves. No name means the default one."""
        found = self.partition(name, partition or DEFAULT_PARTITION)
        if self.status(found) != SERVING:
            raise refusal("UnreadyPartition")
        if not self.is_held(name):
            found.show(self.clock())
        return found

    def write(self, name: str, partition: str, changes: dict[str, Doc | None]) -> None:
        """Acknowledge *changes*; reads see them after the delay in the settings, or when nothing holds them."""
        due = self.clock() + self.settings.visibility_ms / _MS
        self.readable(name, partition).write(changes, due)

    def doc_counts(self, name: str) -> dict[str, int]:
        """The visible documents by partition."""
        return {one: self.doc_count(name, one) for one in self.partition_names(name)}

    def doc_count(self, name: str, partition: str) -> int:
        """The visible documents of one partition."""
        found = self.partition(name, partition)
        if not self.is_held(name):
            found.show(self.clock())
        return len(found.visible)

    def _find(self, name: str) -> Collection | None:
        collection = self._collections.get(name)
        if collection and collection.is_dropped and collection.status_until <= self.clock():
            del self._collections[name]
            return None
        return collection

    def _find_partition(self, collection: Collection, partition: str) -> Partition | None:
        found = collection.partitions.get(partition)
        if found and found.is_dropped and found.status_until <= self.clock():
            del collection.partitions[partition]
            return None
        return found

    def _partition(self, collection: Collection, partition: str) -> Partition:
        if not partition:
            raise refusal("EmptyPartitionName")
        found = self._find_partition(collection, partition)
        if found is None:
            raise refusal("InexistentPartition")
        return found
