"""The book of purges, what is believed of stored marks, and how replicas learn of them."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from proxy.control import live
from proxy.control.modes import ModeBook
from proxy.control.order_store import Reached
from proxy.control.purges import MAX_STORED_BYTES, LivePurges, PurgeBook, decode, encode
from proxy.control.redis_link import LinkDown, RedisLink
from proxy.control.redis_sweep import Sweep
from proxy.control.share import Share
from proxy.control.stored import BadOrders, seal
from proxy.core.key import Secret
from proxy.core.modes import Modes
from proxy.core.purges import MAX_MARKS, NO_MARKS, Mark, Marks
from proxy.runtime.tasks import Tasks
from proxy.settings.model import Start
from tests.support.redis_server import RedisServer

ALL = ("*", "*", "*", "*")
MODEL = ("*", "*", "text-embedding-v4", "*")
SECRET = Secret.derive(b"one deployment")
TOKEN = "0123456789abcdef" * 2


class Workers:
    def __init__(self) -> None:
        self.pushed: list[Marks] = []

    async def push(self, marks: Marks) -> Reached:
        self.pushed.append(marks)
        return Reached(2, 3, (1,))


class Clock:
    unix_s = 1_000_000.0

    def __call__(self) -> float:
        return self.unix_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def book(workers: Workers, clock: Clock, tmp_path: Path) -> PurgeBook:
    return PurgeBook(tmp_path, workers.push, clock)


# --- the book ---------------------------------------------------------------------------------------------------------


async def test_a_purge_reaches_workers_and_paper(
    book: PurgeBook, workers: Workers, clock: Clock, tmp_path: Path
) -> None:
    mark, done = await book.purge(MODEL)
    assert (done.confirmed, done.workers, done.persisted) == (2, 3, True)
    assert workers.pushed == [Marks((mark,))]
    assert (mark.extent, mark.set_unix_s) == (MODEL, clock.unix_s)
    assert (tmp_path / "purges.json").stat().st_mode & 0o777 == 0o600
    again = PurgeBook(tmp_path, workers.push, clock)
    again.load()
    assert again.held == book.held


async def test_a_purge_is_later_than_all_that_are_known(book: PurgeBook, clock: Clock) -> None:
    await book.merge(Marks((Mark(TOKEN, clock.unix_s + 3_600),)))
    clock.unix_s -= 7_200
    mark, _ = await book.purge(MODEL)
    assert mark.set_unix_s > clock.unix_s + 7_200 + 3_600
    assert mark in book.held.marks


async def test_purging_twice_makes_two_tokens(book: PurgeBook) -> None:
    one, _ = await book.purge(ALL)
    other, _ = await book.purge(ALL)
    assert one.token != other.token
    assert bytes.fromhex(other.token) in book.held.tokens_for("u", "o", "m", ())


async def test_merging_what_is_known_tells_nobody(book: PurgeBook, workers: Workers) -> None:
    await book.purge(ALL)
    await book.merge(book.held)
    await book.merge(NO_MARKS)
    assert len(workers.pushed) == 1


async def test_a_full_disk_does_not_stop_a_purge(book: PurgeBook, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("proxy.control.order_store.replace_file", full)
    mark, done = await book.purge(ALL)
    assert not done.persisted
    assert book.held.marks == (mark,)


def test_a_worker_asks_what_it_was_last_told() -> None:
    live_purges = LivePurges()
    assert live_purges.tokens_for("u", "o", "m", ()) == ()
    live_purges.replace(Marks((Mark(TOKEN, 1.0),)))
    assert live_purges.tokens_for("u", "o", "m", ()) == (bytes.fromhex(TOKEN),)


# --- what is believed -------------------------------------------------------------------------------------------------


def test_marks_survive_being_written_down() -> None:
    one, other = Mark(TOKEN, 5.25, "dashscope", "embedding", "模型 1"), Mark(TOKEN, 7.125, collection="u_-1")
    marks = NO_MARKS.merged([one, other])
    assert decode(encode(marks)) == marks


def test_as_many_marks_as_there_can_be_fit() -> None:
    longest = [
        Mark(TOKEN, 1.7e9 + at / 7, "u" * 64, "o" * 64, '"' * 121 + f"{at:07}", "c" * 32) for at in range(MAX_MARKS)
    ]
    stored = encode(NO_MARKS.merged(longest))
    assert len(stored) <= MAX_STORED_BYTES
    assert len(decode(stored).marks) == MAX_MARKS


@pytest.mark.parametrize(
    "mark",
    [
        {"set_unix_s": 5},
        {"token": TOKEN},
        {"token": TOKEN, "set_unix_s": 0},
        {"token": TOKEN, "set_unix_s": 1e300},
        {"token": TOKEN[1:], "set_unix_s": 5},
        {"token": TOKEN.upper(), "set_unix_s": 5},
        {"token": TOKEN + "\n", "set_unix_s": 5},
        {"token": TOKEN, "set_unix_s": 5, "upstream": "A B"},
        {"token": TOKEN, "set_unix_s": 5, "operation": ""},
        {"token": TOKEN, "set_unix_s": 5, "model": ""},
        {"token": TOKEN, "set_unix_s": 5, "model": "a\nb"},
        {"token": TOKEN, "set_unix_s": 5, "model": "x" * 129},
        {"token": TOKEN, "set_unix_s": 5, "collection": "a/b"},
    ],
)
def test_marks_that_no_purge_could_set_are_refused(mark: dict[str, object]) -> None:
    with pytest.raises(BadOrders):
        decode(msgspec.json.encode({"format": 1, "marks": [mark]}))


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"null",
        b"{}",
        b'{"marks":[]}',
        b'{"format":2,"marks":[]}',
        b'{"format":1,"marks":[],"more":1}',
        b"[" * 2**21,
    ],
)
async def test_what_is_not_a_set_of_marks_is_left_aside(book: PurgeBook, tmp_path: Path, stored: bytes) -> None:
    with pytest.raises(BadOrders):
        decode(stored)
    (tmp_path / "purges.json").write_bytes(stored)
    book.load()
    assert book.held == NO_MARKS


def test_more_marks_than_fit_are_refused() -> None:
    marks = [{"token": TOKEN, "set_unix_s": 5, "collection": f"c{at:04}"} for at in range(MAX_MARKS + 1)]
    with pytest.raises(BadOrders):
        decode(msgspec.json.encode({"format": 1, "marks": marks}))


# --- replicas ---------------------------------------------------------------------------------------------------------


class Replica:
    def __init__(self, url: str, folder: Path) -> None:
        folder.mkdir()
        self.tasks = Tasks(lambda _: None)
        self.link = RedisLink(url, "dashcache", self.tasks, 10.0)
        self.workers = Workers()
        self.modes = ModeBook(Start(), folder, self._nobody, lambda: None)
        self.book = PurgeBook(folder, self.workers.push)
        self.share = Share(self.link, SECRET, [self.modes, self.book])

    async def synchronise(self) -> bool:
        return await self.share.synchronise(self.book)

    async def _nobody(self, _modes: Modes) -> Reached:
        return Reached(0, 0)

    async def close(self) -> None:
        await self.link.close()
        await self.tasks.wait_done(0)


@pytest.fixture
async def pair(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[tuple[Replica, Replica]]:
    one, other = Replica(redis_server.url, tmp_path / "one"), Replica(redis_server.url, tmp_path / "other")
    yield one, other
    await one.close()
    await other.close()


async def test_a_purge_reaches_the_other_replicas_workers(pair: tuple[Replica, Replica]) -> None:
    one, other = pair
    mark, _ = await one.book.purge(MODEL)
    assert await one.synchronise()
    await other.share.first()
    assert other.workers.pushed == [Marks((mark,))]


async def test_purges_of_two_replicas_are_both_kept(pair: tuple[Replica, Replica]) -> None:
    one, other = pair
    await one.book.purge(MODEL)
    await other.book.purge(("*", "*", "*", "users"))
    for replica in (one, other, one):
        assert await replica.synchronise()
    assert one.book.held == other.book.held
    assert len(one.book.held.marks) == 2


async def test_an_old_state_of_redis_undoes_no_purge(pair: tuple[Replica, Replica], redis_server: RedisServer) -> None:
    one, other = pair
    key = one.share.key(one.book)
    await one.book.purge(MODEL)
    await one.synchronise()
    old = redis_server.command("GET", key)
    await one.book.purge(MODEL)
    await one.synchronise()
    for state in (old, b"garbage", b"", None):
        redis_server.command("DEL", key) if state is None else redis_server.command("SET", key, state)
        assert await one.synchronise()
        assert len(one.book.held.marks) == 2
        await other.synchronise()
        assert other.book.held == one.book.held


async def test_without_redis_a_purge_waits_for_its_return(
    pair: tuple[Replica, Replica], redis_server: RedisServer
) -> None:
    one, other = pair
    redis_server.kill()
    await one.book.purge(ALL)
    assert not await one.synchronise()
    await one.share.first()  # gives up
    redis_server.restart()
    assert await one.synchronise()
    assert await other.synchronise()
    assert other.book.held == one.book.held


async def test_rules_played_back_as_marks_are_refused(pair: tuple[Replica, Replica], redis_server: RedisServer) -> None:
    one, _ = pair
    redis_server.command("SET", one.share.key(one.book), seal(SECRET, one.share.key(one.modes), live.encode(Modes())))
    assert await one.synchronise()
    assert one.book.held == NO_MARKS


# --- the sweep --------------------------------------------------------------------------------------------------------


async def test_a_sweep_removes_entries_and_nothing_else(
    pair: tuple[Replica, Replica], redis_server: RedisServer
) -> None:
    replica, _ = pair
    others = [b"dashcache:g:x", b"dashcache:modes:x", b"dashcacheX:e:x", b"another:e:x", b"xdashcache:e:x", b"e"]
    for name in others:
        redis_server.command("SET", name, b"1")
    for number in range(1_000):
        redis_server.command("SET", b"dashcache:e:%d" % number, b"1")
    sweep = Sweep(replica.link, replica.tasks)
    sweep.start()
    sweep.start()  # the first is given up
    assert await replica.tasks.wait_done(20) == 0
    assert redis_server.keys() == sorted(others)


async def test_a_sweep_without_redis_ends(pair: tuple[Replica, Replica], redis_server: RedisServer) -> None:
    replica, _ = pair
    redis_server.kill()
    with pytest.raises(LinkDown):
        await replica.link.remove_some(b"dashcache:e:", 0, 10)
    Sweep(replica.link, replica.tasks).start()
    assert await replica.tasks.wait_done(20) == 0
