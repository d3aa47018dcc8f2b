"""
Two processes, one Redis, one collection, and everything in any order: what was written to is never served as it was.

Every command to Redis and every call to the upstream waits in a list until a rule lets it happen: as it should, unheard
(it happens, the process gives up before), late (the process gives up, it happens whenever), or not at all. Between them
processes are killed, Redis is emptied and set back, time passes, and the clock of their machine jumps ahead. Replicas
whose clocks disagree are in ``tests/unit/cache/test_voidable.py``.
"""

import asyncio
import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.cache.codec import Codec
from proxy.cache.invalidation.generations import Generations, Journal
from proxy.cache.invalidation.tier import Effect, VoidableTier
from proxy.cache.tiers import Found
from proxy.core.entry import Entry, Row
from proxy.core.key import Secret
from proxy.runtime.tasks import Tasks
from tests.support.guarded_store import Store

CODEC = Codec(Secret.derive(b"deployment"), 1 << 20)
KEY, SCOPES = b"k" * 32, (b"endpoint", b"collection")
SETTLE_S = 2.0
START_S = 1_700_000_000.0
PROCESSES = st.sampled_from([0, 1])
ANY = st.integers(0, 1_000)


@dataclasses.dataclass(eq=False)
class Pending:
    """A command or call under way: what it does, and who waits for it (nobody, once it was given up)."""

    effect: Callable[[], Any]
    waiting: "asyncio.Future[Any]"


class Scheduled:
    """A process's way to Redis: each command waits for its turn; those of a dead process are not even sent."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.is_dead = False

    async def read_guarded(self, keys, scopes, owner):
        return await self._turn(lambda: self._world.store.read(keys, scopes))

    async def make_tokens(self, scopes, tokens):
        return await self._turn(lambda: self._world.store.make(scopes, tokens))

    async def fill_guarded(self, key, sealed, ttl_ms, scopes, tokens):
        return bool(await self._turn(lambda: self._world.store.fill(key, sealed, scopes, tokens)))

    async def void(self, tokens, hold_ms):
        return await self._turn(lambda: self._world.store.void(tokens, hold_ms))

    async def _turn(self, effect: Callable[[], Any]) -> Any:
        if self.is_dead:
            await asyncio.get_running_loop().create_future()
        return await self._world.turn(effect)


class Quiet:
    """Telemetry that must not be told of a fault."""

    def stored(self, entries: int, failed: int) -> None:
        pass

    def invalidated(self, told: bool) -> None:
        pass

    def entries_rejected(self, entries: int) -> None:
        raise AssertionError("nobody alters entries here")


class Process:
    """
    One process's life.

    ``acknowledged`` is the last version whose write it has answered, ``epoch`` how often Redis had been set back then.
    """

    def __init__(self, world: "World", number: int) -> None:
        self.acknowledged, self.epoch = 0, world.epoch
        self.is_new = True
        """It has answered no write in this life."""
        self.redis, self._world = Scheduled(world), world
        self.faults: list[BaseException] = []
        self.tasks = Tasks(self.faults.append)
        self.journal = Journal.of_worker(world.folder, number + 1, 2)
        self.tier = VoidableTier(
            self.redis,  # type: ignore[arg-type]
            CODEC,
            Generations(self.journal, lambda: self.now_ms() / 1000),
            self.tasks,
            Quiet(),  # type: ignore[arg-type]
            settle_s=SETTLE_S,
            is_strict=False,
            max_pending_stores=100,
        )

    def now_ms(self) -> int:
        """Its wall clock."""
        return int(START_S * 1000) + self._world.ahead_ms + self._world.store.now_ms


class World(RuleBasedStateMachine):
    """The model. Versions count the writes that the upstream has taken; it shows them a little later."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="dashcache-"))
        self.store, self.snapshot = Store(), Store()
        self.pending: list[Pending] = []
        self.wrong: list[str] = []
        self.version = self.shown = self.epoch = self.ahead_ms = 0
        self.known_to_all = 0
        """The last version whose write Redis was told of, since it was last set back."""
        self.processes: list[Process] = []
        self.dead: list[Process] = []
        """Kept, so that what they will never end is not collected and told of."""
        self.taken_at_ms: dict[int, int] = {}

    @initialize()
    def start(self):
        self.processes = [Process(self, number) for number in range(2)]

    def teardown(self) -> None:
        self.loop.run_until_complete(self._end())
        self.loop.close()
        shutil.rmtree(self.folder)

    async def _end(self) -> None:
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0)
        for process in self.processes:
            process.journal.close()

    async def turn(self, effect: Callable[[], Any]) -> Any:
        """Wait until a rule lets it happen."""
        pending = Pending(effect, self.loop.create_future())
        self.pending.append(pending)
        return await pending.waiting

    def _run(self) -> None:
        """Go on until everybody waits. It takes longer than there are tokens made."""
        self._move_on(10)

        async def drain() -> None:
            for _ in range(25):
                await asyncio.sleep(0)

        self.loop.run_until_complete(drain())

    # --- what clients do ----------------------------------------------------------------------------------------------

    @rule(number=PROCESSES)
    def read(self, number):
        self._start(self.processes[number], self._reading(self.processes[number]))

    async def _reading(self, process: Process) -> None:
        seen, known, shown = process.acknowledged, self.known_to_all, self.shown
        found = await process.tier.read([KEY], SCOPES, b"owner")
        # What Redis lost meanwhile, nobody is promised any more.
        seen, known = min(seen, process.acknowledged), min(known, self.known_to_all)
        for entry in found.entries.values():
            if int(entry.row.origin) < min(seen, shown):
                self.wrong.append(f"a hit on {entry.row.origin} after this process had answered the write of {seen}")
            if int(entry.row.origin) < min(known, shown):
                self.wrong.append(f"a hit on {entry.row.origin} after Redis had been told of {known}")
        if not found.entries:
            await self._fetching(process, found)

    async def _fetching(self, process: Process, found: Found) -> None:
        version = await self.turn(lambda: self.shown)
        if version is not None:
            row = Row(b"{}", b"", b"", (), str(version))
            entry = Entry(row, process.now_ms(), 3_600_000, b"".join(found.tokens or ()))
            process.tier.fill({KEY: entry}, SCOPES, found.tokens)

    @rule(number=PROCESSES)
    def read_at_once(self, number):
        """With nothing in between; what else is under way stays so."""
        self._at_once(lambda: self.read(number))

    @rule(number=PROCESSES)
    def rest_and_read(self, number):
        """All holds end; then what is not there is fetched, and what is there is served."""
        self.pass_time(SETTLE_S + 0.1)
        for _ in range(3):
            self._at_once(lambda: self.read(number))

    def _at_once(self, start: Callable[[], None]) -> None:
        before = len(self.pending)
        start()
        while len(self.pending) > before:
            self.happen(before)

    @rule(number=PROCESSES)
    def write_at_once(self, number):
        self._at_once(lambda: self.write(number, announce=True, is_wide=False))

    @rule(number=PROCESSES, announce=st.booleans(), is_wide=st.booleans())
    def write(self, number, announce, is_wide):
        self._start(self.processes[number], self._writing(self.processes[number], announce=announce, is_wide=is_wide))

    async def _writing(self, process: Process, *, announce: bool, is_wide: bool) -> None:
        scopes = SCOPES[:1] if is_wide else SCOPES[1:]

        async def forward() -> int:
            if announce:
                await process.tier.announce(scopes)
            version = await self.turn(self._take)
            await self.turn(lambda: None)  # the answer is on its way
            return version

        taken = await process.tier.writing(scopes, forward, effect=lambda _: Effect.KNOWN)
        if taken is None:  # the call was lost
            return
        process.acknowledged, process.epoch = max(process.acknowledged, taken), self.epoch
        process.is_new = False
        if not process.tier.is_pending(SCOPES):
            self.known_to_all = max(self.known_to_all, taken)

    def _take(self) -> int:
        self.version += 1
        self.taken_at_ms[self.version] = self.store.now_ms
        return self.version

    def _start(self, process: Process, work: Any) -> None:
        async def start() -> None:
            process.tasks.start(work)

        self.loop.run_until_complete(start())
        self._run()

    @rule(number=PROCESSES)
    def write_untold(self, number):
        """A whole write, while Redis does not answer."""
        before = len(self.pending)
        self.write(number, announce=False, is_wide=False)
        for happens in (self.happen, self.happen, lambda which: self.fail(which, "lost")):
            happens(before)

    @rule(number=PROCESSES)
    def tell(self, number):
        self._start(self.processes[number], self.processes[number].tier.tell())

    # --- what becomes of it -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.pending)
    @rule(which=ANY)
    def happen(self, which):
        pending = self.pending.pop(which % len(self.pending))
        result = pending.effect()
        if not pending.waiting.done():
            pending.waiting.set_result(result)
        self._run()

    @precondition(lambda self: self.pending)
    @rule(which=ANY, how=st.sampled_from(["unheard", "late", "lost"]))
    def fail(self, which, how):
        """A deadline passed. What is late stays in the list, with nobody to wait for it."""
        pending = self.pending[which % len(self.pending)]
        if how != "late":
            self.pending.remove(pending)
        if how == "unheard":
            pending.effect()
        if not pending.waiting.done():
            pending.waiting.set_result(None)
        self._run()

    @rule(number=PROCESSES)
    def kill(self, number):
        """And start anew, with the journal of the one before. Its commands may still arrive."""
        before = self.processes[number]
        before.redis.is_dead = True
        self.dead.append(before)
        before.journal.close()
        for task in tuple(before.tasks._running):
            task.cancel()
        self._run()
        self.processes[number] = Process(self, number)
        if before.epoch == self.epoch:  # else only its memory knew that Redis had been set back
            self.processes[number].acknowledged = before.acknowledged

    # --- what happens to Redis and to time ----------------------------------------------------------------------------

    @rule()
    def show(self):
        """The upstream shows all that it has taken."""
        self.shown = self.version

    @rule(step_s=st.sampled_from([0.001, 0.5, 1.9, 2.1, 60.0]))
    def pass_time(self, step_s):
        """The upstream shows a write before it has been taken for as long as nothing is stored."""
        self._move_on(int(step_s * 1000))

    def _move_on(self, step_ms: int) -> None:
        self.store.now_ms += step_ms
        due = [version for version, at_ms in self.taken_at_ms.items() if at_ms + SETTLE_S * 1000 <= self.store.now_ms]
        self.shown = max(self.shown, *due, 0)

    @rule(step_s=st.sampled_from([1.0, 120.0]))
    def step_clock(self, step_s):
        self.ahead_ms += int(step_s * 1000)

    @rule()
    def save(self):
        self.snapshot = self.store.copy()

    @rule(is_emptied=st.booleans())
    def set_back(self, is_emptied):
        """
        Those who did not see a write may believe what they find; those who did, and were not killed since, not.

        The holds go too, so the upstream shows all here: what only clocks can tell is left to another test.
        """
        self.show()
        self.store.set_back(Store() if is_emptied else self.snapshot)
        self.known_to_all = 0
        self.epoch += 1
        for process in self.processes:
            if process.is_new:
                process.acknowledged = 0

    @invariant()
    def nothing_old_was_served(self):
        assert not self.wrong
        assert not [fault for process in self.processes for fault in process.faults]


TestGenerations = World.TestCase
_PROFILE = settings.get_profile(settings._current_profile)
# A run takes a hundredth of a second, and what is wrong shows in one of some hundred.
TestGenerations.settings = settings(_PROFILE, max_examples=3 * _PROFILE.max_examples, stateful_step_count=40)
