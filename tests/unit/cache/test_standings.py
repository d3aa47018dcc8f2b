"""Which credentials get nothing from the cache because the vendor has refused them."""

from proxy.cache import credential_status
from proxy.cache.credential_status import Standings
from proxy.cache.redis.tier import ACCEPTED, MARK_BYTES
from proxy.runtime.tasks import Tasks
from tests.support.clock import FakeClock

A, B = b"owner-a", b"owner-b"


class FakeRedis:
    """Standings by owner, as the commands leave them."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}
        self.calls: list[str] = []
        self.reachable = True
        self.accepted = ACCEPTED + b"incarnation-0001"

    async def refuse(self, owner, mark, life_ms, *, is_known):
        self.calls.append("refuse")
        if self.reachable and (is_known or owner in self.held):
            self.held[owner] = mark

    async def accept(self, owner, mark, life_ms):
        self.calls.append("accept")
        held = self.held.get(owner)
        if self.reachable and (held is None or held == mark or len(held) != MARK_BYTES):
            self.held[owner] = self.accepted
        return self.reachable


class Process:
    """One process's standings."""

    def __init__(self, redis: FakeRedis | None, clock: FakeClock | None = None) -> None:
        self.redis, self.faults = redis, list[BaseException]()
        self.tasks = Tasks(self.faults.append)
        monotonic = (clock or FakeClock()).monotonic
        self.known = Standings(redis, self.tasks, longest_ms=1000, monotonic=monotonic)  # type: ignore[arg-type]

    def look(self, owner: bytes = A, *, has_entries: bool = False) -> bytes | None:
        """As a request does, that asks Redis."""
        return self.known.mark(owner, self.redis.held.get(owner) if self.redis else None, has_entries=has_entries)

    async def accepted(self, mark: bytes | None = None, owner: bytes = A) -> None:
        self.known.accepted(owner, mark)
        await self.tasks.wait_done(1)

    async def refused(self, owner: bytes = A) -> None:
        await self.known.refused(owner)


async def test_s17_refused_here_is_refused_elsewhere_until_accepted_anywhere():
    redis = FakeRedis()
    one, two = Process(redis), Process(redis)
    await one.accepted()
    assert one.look() is two.look() is None
    await one.refused()
    mark = one.look()
    assert mark is not None
    assert two.look() == mark
    await two.accepted(mark)
    assert two.look() is None
    assert one.look() == mark, "until it has seen so itself"
    await one.accepted(mark)
    assert one.look() is None


async def test_s17_who_was_sent_on_before_a_refusal_does_not_lift_it():
    for process in (Process(FakeRedis()), Process(None)):
        await process.accepted()
        before = process.look()
        await process.refused()
        await process.accepted(before)
        assert process.look() is not None
        first = process.look()
        await process.refused()
        await process.accepted(first)
        assert process.look() is not None


async def test_s17_a_stale_acceptance_elsewhere_does_not_lift_it_either():
    redis = FakeRedis()
    one, two = Process(redis), Process(redis)
    await one.accepted()
    await one.refused()
    await two.accepted(None)
    assert two.look() is not None


async def test_s17_strangers_leave_no_trace_and_push_nobody_out(monkeypatch):
    monkeypatch.setattr(credential_status, "_MAX_KNOWN", 10)
    redis = FakeRedis()
    process = Process(redis)
    await process.accepted()
    await process.refused()
    for number in range(100):
        await process.refused(b"stranger-%d" % number)
        assert process.look(b"stranger-%d" % number) is None
    assert set(redis.held) == {A}
    assert process.look() is not None


async def test_what_can_be_no_mark_is_none():
    redis = FakeRedis()
    process = Process(redis)
    for junk in (b"", b"2", b"x" * 17, b"x" * 2**20):
        process.known.redis_went_back()
        redis.held[A] = junk
        assert len(process.look() or b"") != MARK_BYTES


async def test_who_has_entries_and_is_not_known_to_be_accepted_is_asked_of_the_vendor_once():
    for forgotten in (None, ACCEPTED, ACCEPTED + b"incarnation-0000"):
        redis = FakeRedis()
        process, other = Process(redis), Process(redis)
        if forgotten is not None:
            redis.held[A] = forgotten
        doubt = process.look(has_entries=True)
        assert doubt is not None
        assert other.look(has_entries=True) == doubt
        await process.accepted(doubt)
        assert redis.held == {A: redis.accepted}
        assert process.look(has_entries=True) is other.look(has_entries=True) is None


async def test_c13_a_redis_that_went_back_vouches_for_nobody_and_a_refusal_that_is_known_here_stays():
    redis = FakeRedis()
    process, other = Process(redis), Process(redis)
    await process.accepted()
    await process.accepted(owner=B)
    assert other.look() is other.look(B) is None
    before = dict(redis.held)
    await process.refused()
    redis.held, redis.accepted = before, ACCEPTED + b"incarnation-0002"
    version = other.known.version
    for each in (process, other):
        each.known.redis_went_back()
    assert other.known.version > version, "answers that are made already must be looked at again"
    assert process.look(has_entries=True) is not None
    assert other.look(has_entries=True) is not None, "it has not seen the refusal, and Redis has forgotten it"
    await other.accepted(other.look(B, has_entries=True), B)
    assert process.look(B, has_entries=True) is None


async def test_a_refusal_is_seen_by_who_is_in_doubt_and_not_lifted_by_its_answer():
    redis = FakeRedis()
    process, other = Process(redis), Process(redis)
    doubt = process.look(has_entries=True)
    await other.accepted()
    await other.refused()
    await process.accepted(doubt)
    assert process.look() == redis.held[A] != redis.accepted


async def test_redis_is_told_once_a_minute_and_again_when_it_was_not_there():
    redis, clock = FakeRedis(), FakeClock()
    process = Process(redis, clock)
    redis.reachable = False
    await process.accepted()
    redis.reachable = True
    for _ in range(3):
        await process.accepted()
    assert redis.calls == ["accept", "accept"]
    clock.advance(61)
    await process.accepted()
    assert redis.calls == ["accept"] * 3
    await process.accepted(owner=B)
    assert set(redis.held) == {A, B}
