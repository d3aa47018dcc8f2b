"""The load: one call at a time as `open_loop` asks for it, each judged as soon as it is answered."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import grpc
from yarl import URL

from tests.consistency.calls import PROTOCOLS, Answer
from tests.soak.history import Excuse, History
from tests.soak.rig import Replica, Rig
from tests.soak.truth import VENDORS_ERRORS, Ask, Questions, headers_of, without_ids
from tests.soak.vectors import Documents
from tests.support.open_loop import Outcome

MIX = {
    "embedding": 30,
    "compatible embedding": 15,
    "rerank": 8,
    "vector read": 32,
    "vector write": 2,
    "pass": 7,
    "stream": 6,
}
"""Of a hundred calls."""
LEAVING, AT_MOST_S = 0.3, 0.03
"""While clients leave: the share that does, and how long they stay."""
TOKENS = ("sk-dv-ann", "sk-dv-bob")
LIMIT_S = 20.0
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
CANCELLED = grpc.StatusCode.CANCELLED.value[0]
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
SECOND_LOOK_S = 2.5
"""A stale hit is judged again so much later, when it is known whether Redis had been told of the write."""

NO_BREACH = ("vendor's own: ", "inevitable: ", "left")
"""How verdicts begin that are no breach of a promise."""


@dataclass(slots=True)
class Kept:
    """One call that broke a promise, for the report."""

    at_s: float
    kind: str
    verdict: str


class Load:
    """Calls of the mix, through whichever replica serves."""

    def __init__(self, rig: Rig, history: History, seed: int) -> None:
        self._rig, self._history = rig, history
        self._chance = random.Random(f"load:{seed}")
        self.questions = Questions(random.Random(f"questions:{seed}"))
        self.documents = Documents(history, random.Random(f"documents:{seed}"))
        self.kinds: dict[int, str] = {}
        self.breaches: list[Kept] = []

    async def prepare(self) -> None:
        """Learn the truth and make the collections."""
        await self.questions.learn(self._rig.clients.session, self._rig.sim.url)
        await self.documents.create(self._rig)

    async def call(self, index: int) -> Outcome:
        """One call."""
        (kind,) = self._chance.choices(list(MIX), list(MIX.values()))
        self.kinds[index] = kind
        began_s = time.monotonic()
        replica = self._chance.choice([replica for replica in self._rig.replicas if replica.is_serving])
        make = {"vector read": self._vector_read, "vector write": self._vector_write}.get(kind)
        work = make(replica) if make else self._http(replica, self._ask(kind))
        stays_s = LIMIT_S
        if self._history.are_leaving and self._chance.random() < LEAVING:
            stays_s = self._chance.uniform(0, AT_MOST_S)
        try:
            async with asyncio.timeout(stays_s):
                verdict, is_hit = await work
        except TimeoutError:
            verdict, is_hit = ("left" if stays_s < LIMIT_S else self._unanswered(replica, began_s, kind)), None
        if verdict and not verdict.startswith(NO_BREACH):
            self.breaches.append(Kept(began_s, kind, verdict))
        return Outcome(not verdict, verdict.partition(";")[0] or None, is_hit)

    def _ask(self, kind: str) -> Ask:
        draw: dict[str, Callable[[], Ask]] = {
            "embedding": self.questions.native,
            "compatible embedding": self.questions.compatible,
        }
        return draw[kind]() if kind in draw else self.questions.passed(kind)

    # --- DashScope ----------------------------------------------------------------------------------------------------

    async def _http(self, replica: Replica, request: Ask) -> tuple[str, bool | None]:
        """What is wrong with the answer, and whether it came from the cache."""
        began_s = time.monotonic()
        session, url = self._rig.clients.session, URL(replica.proxy.http_url + request.target, encoded=True)
        try:
            async with session.request(request.method, url, data=request.body, headers=headers_of(request)) as response:
                body = await response.read()
        except (aiohttp.ClientError, ConnectionError) as error:
            return self._broken(replica, began_s, error), None
        is_hit = response.headers.get("Cache-Status", "").startswith("dashcache; hit")
        if is_hit and (objection := self._too_early(began_s, response.headers.get("Age"))):
            return objection, is_hit
        if request.is_right(response.status, body):
            return "", is_hit
        if is_hit:
            return f"wrong: {request.kind} from the cache; {body[:300]!r}", is_hit
        return self._explained(replica, began_s, request.kind, response, body), is_hit

    def _explained(
        self, replica: Replica, began_s: float, kind: str, response: aiohttp.ClientResponse, body: bytes
    ) -> str:
        """Whose fault it is that an answer of the upstream's is none that it should be."""
        ours, status = response.headers.get("X-Dashcache-Error"), response.status
        if ours in ("UpstreamUnreachable", "UpstreamProtocolError") and self._is_excused("upstream line", began_s):
            return "inevitable: upstream line"
        if ours == "UpstreamTimeout" and (verdict := self._silent(began_s, kind)):
            return verdict
        if ours is None and without_ids(body) in VENDORS_ERRORS and self._is_excused("vendor", began_s):
            return f"vendor's own: HTTP {status}"
        if ours is None and status == 200 and self._is_excused("vendor", began_s):
            return "vendor's own: wrong answer"
        if status == 200:
            return f"wrong: answer; {response.headers.get('Cache-Status')} {body[:300]!r}"
        return f"error: HTTP {status} {ours or ''}; replica {replica.name} {body[:300]!r}"

    def _unanswered(self, replica: Replica, began_s: float, kind: str) -> str:
        return self._of_worker(replica, began_s) or self._silent(began_s, kind) or "error: no answer"

    def _of_worker(self, replica: Replica, began_s: float) -> str:
        """Whether the worker that had the call was killed or hung; empty when it was not."""
        causes: tuple[Excuse, ...] = ("worker killed", "worker hung")
        found = (cause for cause in causes if replica.name == "B" and self._is_excused(cause, began_s))
        return next((f"inevitable: {cause}" for cause in found), "")

    def _silent(self, began_s: float, kind: str) -> str:
        """Whether it may have been one of the few calls of *kind* that the vendor never answered; empty when not."""
        is_excused = self._history.excuses("silent call", began_s, time.monotonic(), kind)
        return "inevitable: silent call" if is_excused else ""

    def _broken(self, replica: Replica, began_s: float, error: Exception) -> str:
        if verdict := self._of_worker(replica, began_s):
            return verdict
        if isinstance(error, aiohttp.ClientPayloadError) and self._is_excused("upstream line", began_s):
            return "inevitable: upstream line"
        return f"error: {type(error).__name__}; replica {replica.name} {error}"

    def _is_excused(self, excuse: Excuse, began_s: float) -> bool:
        return self._history.excuses(excuse, began_s, time.monotonic())

    def _too_early(self, began_s: float, age: str | None) -> str:
        """What is wrong with a hit, whatever it says."""
        if self._history.is_bypassed(began_s):
            return "wrong: a hit while bypassed"
        purged_s = self._history.purged_s
        # Entries tell their age in whole seconds; other replicas learn of a purge within a second.
        if purged_s is not None and began_s > purged_s + 2 and age and int(age) > began_s - purged_s + 2:
            return f"wrong: a hit from before the purge; Age {age}, purged {began_s - purged_s:.1f} s ago"
        return ""

    # --- DashVector ---------------------------------------------------------------------------------------------------

    async def _vector_read(self, replica: Replica) -> tuple[str, bool | None]:
        door = replica.door(self._rig.clients, self._chance.choice(PROTOCOLS), self._chance.choice(TOKENS))
        call, began_s = self.documents.question(), time.monotonic()
        floors = self.documents.floors(call)
        answer, verdict = await self._asked(replica, "vector read", lambda: door.ask(call, timeout_s=LIMIT_S))
        if answer is None:
            return verdict, None
        if answer.is_hit and (objection := self._too_early(began_s, answer.marks.get("age"))):
            return objection, True
        objection = self.documents.objection(call, answer, began_s, floors)
        if objection.startswith("stale") and answer.is_hit:
            await asyncio.sleep(SECOND_LOOK_S)
            objection = self.documents.objection(call, answer, began_s, floors)
        if objection.startswith("incomplete") and not answer.is_hit and self._is_excused("vendor", began_s):
            return "vendor's own: wrong answer", False
        told = f"wrong: {objection.partition(':')[0]}; {objection} ({door.protocol}, {answer.cache})"
        return objection and told, answer.is_hit

    async def _vector_write(self, replica: Replica) -> tuple[str, bool | None]:
        door = replica.door(self._rig.clients, self._chance.choice(PROTOCOLS), self._chance.choice(TOKENS))
        change = self.documents.change()
        if change is None:
            return await self._vector_read(replica)
        (call, known), began_s, answer = change, time.monotonic(), None
        try:
            answer, verdict = await self._asked(replica, "vector write", lambda: door.ask(call, timeout_s=LIMIT_S))
        finally:
            self.documents.done(call, known, began_s, is_acknowledged=answer is not None)
        return verdict, None

    async def _asked(
        self, replica: Replica, kind: str, ask: Callable[[], Awaitable[Answer]]
    ) -> tuple[Answer | None, str]:
        """A successful answer; or none, and why."""
        began_s = time.monotonic()
        try:
            answer = await ask()
        except (aiohttp.ClientError, ConnectionError) as error:
            return None, self._broken(replica, began_s, error)
        if answer.is_success:
            return answer, ""
        what = f"{answer.protocol} {answer.status}"
        if answer.is_hit:
            return None, f"wrong: {what} from the cache; {answer}"
        if answer.marks.get("x-dashcache-error") is None and self._is_excused("vendor", began_s):
            return None, f"vendor's own: {what}"
        if answer.status in (502, UNAVAILABLE) and self._is_excused("upstream line", began_s):
            return None, "inevitable: upstream line"
        if answer.status in (UNAVAILABLE, CANCELLED) and (verdict := self._of_worker(replica, began_s)):
            return None, verdict
        if answer.status in (504, DEADLINE_EXCEEDED):
            cause = self._of_worker(replica, began_s) or self._silent(began_s, kind)
            return None, cause or f"error: {what}; replica {replica.name} {answer}"
        return None, f"error: {what}; replica {replica.name} {answer}"
