"""Commands pipelined on one connection: each gets its own reply, or none, however the replies come."""

import asyncio
import random
import socket
import time
from typing import Self

import pytest
import uvloop
from redis.asyncio.connection import DefaultParser
from redis.exceptions import BusyLoadingError, NoPermissionError, RedisError

from proxy.cache.redis import deadline as deadline_module
from proxy.cache.redis import pipe as pipe_module
from proxy.cache.redis.breaker import Neutral
from proxy.cache.redis.commands import Garbage, put, script, values
from proxy.cache.redis.pipe import Pipe
from tests.support.clock import FakeClock
from tests.support.waiting import wait_until

DEADLINE_S = 30.0
LOST = ConnectionResetError


class Line:
    """A pipe on a socket whose other end is the test's."""

    def __init__(self, deadline_s: float = DEADLINE_S) -> None:
        self.ended: list[tuple[int, Exception | None]] = []
        self.judged: list[Exception] = []
        self._deadline_s = deadline_s
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)

    async def __aenter__(self) -> Self:
        _, writer = await asyncio.open_connection(sock=self._ours)
        self.pipe = Pipe(
            writer,
            deadline_s=self._deadline_s,
            parse_error=DefaultParser(1).parse_error,
            judge=self._judge,
            ended=lambda mark, error: self.ended.append((mark, error)),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pipe.close()
        self._theirs.close()

    def _judge(self, error: Exception) -> Exception | None:
        self.judged.append(error)
        return error if isinstance(error, BusyLoadingError) else None

    def ask(self, count: int = 1, mark: int | None = 7) -> "asyncio.Future[object]":
        return self.pipe.ask(values([b"name"] * count), mark)

    def is_refused(self) -> bool:
        """Whether nothing can be asked any more."""
        asked = self.pipe.ask(values([b"name"]), 99)
        return asked.done() and isinstance(asked.result(), Neutral)

    def say(self, data: bytes) -> None:
        """Redis says *data*; it arrives as one piece."""
        self.pipe.data_received(data)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._theirs, data)

    async def heard(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += await asyncio.get_running_loop().sock_recv(self._theirs, 1 << 20)
        return data

    def hang_up(self) -> None:
        self._theirs.close()

    @property
    def errors(self) -> list[type | None]:
        """What the guard was told, in order."""
        return [error and type(error) for _, error in self.ended]


def bulk(value: bytes | None) -> bytes:
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def array(*values: bytes | None) -> bytes:
    return b"*%d\r\n" % len(values) + b"".join(map(bulk, values))


REPLIES = ([b"one", None], [b"", b"\r\n$3\r\n"], [None, None], [b"*2\r\n", b"four" * 9])


# --- replies and commands ---------------------------------------------------------------------------------------------


async def test_what_is_sent_is_the_command_in_redis_own_form_once_a_turn():
    async with Line() as line:
        line.pipe.ask(values([b"a", b"\r\nb"]), 1)
        line.pipe.ask(values([b""]), 1)
        wanted = b"*3\r\n$4\r\nMGET\r\n$1\r\na\r\n$3\r\n\r\nb\r\n*2\r\n$4\r\nMGET\r\n$0\r\n\r\n"
        assert await line.heard(len(wanted)) == wanted


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_replies_in_pieces_of_one_size(size):
    async with Line() as line:
        asked = [line.ask(2) for _ in REPLIES]
        data = b"".join(array(*values) for values in REPLIES)
        for start in range(0, len(data), size):
            line.say(data[start : start + size])
        assert [future.result() for future in asked] == list(REPLIES)
        assert line.errors == [None] * len(REPLIES)
        assert line.pipe.is_open


async def test_replies_cut_at_every_byte():
    data = b"".join(array(*values) for values in REPLIES)
    async with Line() as line:
        for cut in range(len(data) + 1):
            asked = [line.ask(2) for _ in REPLIES]
            line.say(data[:cut])
            complete = sum(len(b"".join(array(*values) for values in REPLIES[:n])) <= cut for n in range(1, 5))
            assert [future.done() for future in asked] == [n < complete for n in range(4)]
            line.say(data[cut:])
            assert [future.result() for future in asked] == list(REPLIES)


async def test_who_leaves_takes_nobody_elses_reply_along():
    chance = random.Random(17)
    async with Line() as line:
        for _ in range(50):
            asked = [line.ask() for _ in range(20)]
            left = {at for at in range(20) if chance.random() < 0.5}
            data = b"".join(array(b"%d" % at) for at in range(20))
            for at in left:
                if chance.random() < 0.5:
                    asked[at].cancel()
            cut = chance.randrange(len(data))
            line.say(data[:cut])
            for at in left:
                asked[at].cancel()
            line.say(data[cut:])
            for at in set(range(20)) - left:
                assert asked[at].result() == [b"%d" % at]
        assert line.errors == [None] * 1000, "the operations have ended well, whoever waits for them"


REPLIES_TO_PUT = {b"+OK\r\n": True, b"$-1\r\n": False, b"-OOM no\r\n": False}
REPLIES_TO_SCRIPT = {b":3\r\n": [3], b"-NOPERM no\r\n": None, b"-READONLY no\r\n": None}
REPLIES_TO_SCRIPTS = {b"*2\r\n:0\r\n:-1\r\n": [0, -1], b"-ERR no\r\n": None}


async def test_commands_of_other_kinds_are_sent_and_answered_between():
    async with Line() as line:
        commands = [
            *((put(b"n", b"\r\n", 5, b"NX"), *reply) for reply in REPLIES_TO_PUT.items()),
            *((script("return 3", [b"k"], [b"a", 7]), *reply) for reply in REPLIES_TO_SCRIPT.items()),
            *((script("x", [], [], answers=2), *reply) for reply in REPLIES_TO_SCRIPTS.items()),
        ]
        read = line.ask(1)
        asked = [line.pipe.ask(command, 7) for command, _, _ in commands]
        line.say(array(b"mine") + b"".join(reply for _, reply, _ in commands))
        assert read.result() == [b"mine"]
        assert [future.result() for future in asked] == [wanted for *_, wanted in commands]
        assert line.errors == [None], "only reads vouch for reads"
        sent = b"*6\r\n$3\r\nSET\r\n$1\r\nn\r\n$2\r\n\r\n\r\n$2\r\nPX\r\n$1\r\n5\r\n$2\r\nNX\r\n"
        evaluated = b"*6\r\n$4\r\nEVAL\r\n$8\r\nreturn 3\r\n$1\r\n1\r\n$1\r\nk\r\n$1\r\na\r\n$1\r\n7\r\n"
        heard = await line.heard(26 + 3 * len(sent) + 3 * len(evaluated))
        assert heard.count(sent) == len(REPLIES_TO_PUT)
        assert heard.count(evaluated) == len(REPLIES_TO_SCRIPT)


@pytest.mark.parametrize(
    ("command", "data"),
    [
        (put(b"n", b"v", 5), b":1\r\n"),
        (put(b"n", b"v", 5), b"$2\r\nno\r\n"),
        (put(b"n", b"v", 5), array(b"OK")),
        (script("x", [], []), b"$1\r\n1\r\n"),
        (script("x", [], []), b"$-1\r\n"),
        (script("x", [], []), b"*1\r\n:1\r\n"),
        (script("x", [], [], answers=1), b":1\r\n"),
        (script("x", [], [], answers=2), b"*1\r\n:1\r\n"),
        (script("x", [], [], answers=2), b"*2\r\n:1\r\n$1\r\n1\r\n"),
        (script("x", [], [], answers=2), b"*-1\r\n"),
    ],
)
async def test_a_reply_to_another_command_ends_the_connection(command, data):
    async with Line() as line:
        asked, behind = line.pipe.ask(command, 7), line.ask()
        line.say(data + array(b"x"))
        assert isinstance(asked.result(), Garbage)
        assert isinstance(behind.result(), Neutral)
        assert line.errors == [Garbage, Neutral]


# --- what is no reply -------------------------------------------------------------------------------------------------

NOT_REPLIES = {
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "status": b"+OK\r\n",
    "number": b":2\r\n",
    "one value": b"$3\r\nabc\r\n",
    "nil": b"$-1\r\n",
    "nil array": b"*-1\r\n",
    "too few": array(b"a"),
    "too many": array(b"a", b"b", b"c"),
    "none": b"*0\r\n",
    "a number inside": b"*2\r\n$1\r\na\r\n:1\r\n",
    "an error inside": b"*2\r\n$1\r\na\r\n-ERR no\r\n",
    "an array inside": b"*2\r\n$1\r\na\r\n*1\r\n$1\r\na\r\n",
    "a map": b"%1\r\n$1\r\na\r\n$1\r\nb\r\n",
    "a push": b">2\r\n$1\r\na\r\n$1\r\nb\r\n",
    "a length that is none": b"*2\r\n$x\r\n",
    "a negative length": b"*-5\r\n",
    "half an error": b"-MOVED\r\n",
    "zeros": b"\0" * 20,
}


@pytest.mark.parametrize("data", NOT_REPLIES.values(), ids=NOT_REPLIES.keys())
async def test_whatever_is_not_one_value_per_name_ends_the_connection(data):
    async with Line() as line:
        good, bad, behind = line.ask(2), line.ask(2), line.ask(2)
        line.say(array(b"a", b"b") + data + array(b"c", b"d"))
        assert good.result() == [b"a", b"b"]
        assert isinstance(bad.result(), Garbage)
        assert isinstance(behind.result(), Neutral), "nobody knows any more whose reply is whose"
        assert line.errors == [None, Garbage, Neutral], "one fact about Redis, however many wait"
        assert not line.pipe.is_open
        assert line.is_refused()


@pytest.mark.parametrize("altered", [b"", b"\0", b"9", b"-", b"\r\n"])
async def test_one_altered_byte_spoils_no_reply_before_it_and_no_shape_after_it(altered):
    data = b"".join(array(*values) for values in REPLIES)
    ends = [len(b"".join(array(*values) for values in REPLIES[: at + 1])) for at in range(len(REPLIES))]
    for place in range(len(data)):
        async with Line() as line:
            asked = [line.ask(2) for _ in REPLIES]
            line.say(data[:place] + altered + data[place + 1 :])
            for future, values, end in zip(asked, REPLIES, ends, strict=True):
                if end <= place:
                    assert future.result() == values
                elif future.done() and isinstance(found := future.result(), list):
                    assert len(found) == 2
                    assert {type(value) for value in found} <= {bytes, type(None)}
            assert line.pipe.is_open or all(future.done() for future in asked)


@pytest.mark.parametrize("data", [array(b"a"), b"*", b"-ERR idle\r\n", b"\r\n"])
async def test_a_reply_that_nobody_asked_for_ends_the_connection(data):
    """Or the next command would get it, and the one after that its reply, and so on."""
    async with Line() as line:
        asked = line.ask()
        line.say(array(b"mine") + data)
        assert asked.result() == [b"mine"]
        assert not line.pipe.is_open
    async with Line() as line:
        await line.send(data)
        await wait_until(lambda: not line.pipe.is_open, what="the end")
        assert line.ended == []


async def test_what_comes_after_the_end_is_not_read():
    async with Line() as line:
        line.ask()
        line.say(b"+OK\r\n")
        line.say(array(b"late"))
        assert line.errors == [Garbage]


async def test_errors_that_refuse_one_command_are_its_own():
    async with Line() as line:
        refused, other = line.ask(2), line.ask(2)
        line.say(b"-NOPERM no\r\n" + array(b"a", b"b"))
        assert refused.result() == [None, None]
        assert other.result() == [b"a", b"b"]
        assert line.errors == [None, None]
        assert isinstance(line.judged[0], NoPermissionError)
        line.ask()
        line.say(b"-ERR \xff\xfe\r\n")
        assert line.errors == [None] * 3
        assert line.pipe.is_open


async def test_errors_that_speak_of_redis_end_the_connection():
    async with Line() as line:
        loading, other = line.ask(), line.ask()
        line.say(b"-LOADING Redis is loading the dataset in memory\r\n")
        assert isinstance(loading.result(), BusyLoadingError)
        assert isinstance(other.result(), Neutral)
        assert line.errors == [BusyLoadingError, Neutral]
        assert isinstance(loading.result(), RedisError)
        assert not line.pipe.is_open


@pytest.mark.parametrize("data", [b"", b"*2\r\n$3\r\nab", array(b"a", b"b")[:-1]])
async def test_a_connection_that_breaks_in_a_reply(data):
    async with Line() as line:
        asked = [line.ask(2) for _ in range(3)]
        await line.heard(1)
        await line.send(data)
        line.hang_up()
        await asyncio.wait(asked)
        assert [type(future.result()) for future in asked] == [LOST, Neutral, Neutral]
        assert line.errors == [LOST, Neutral, Neutral]
        assert line.is_refused()


async def test_nothing_is_asked_once_redis_has_said_its_last():
    async with Line() as line:
        line.hang_up()
        await wait_until(lambda: not line.pipe.is_open, what="the end")
        assert line.is_refused()
        assert line.ended == []


async def test_nobody_waits_for_ever_though_the_breaker_stumbles():
    async with Line() as line:
        line.pipe._ended = lambda _mark, _error: 1 / 0
        first, second, third = (line.ask() for _ in range(3))
        with pytest.raises(ZeroDivisionError):  # the loop's to tell
            line.say(array(b"one"))
        assert first.result() == [b"one"]
        assert second.done()
        assert third.done()
        assert not line.pipe.is_open


async def test_closing_ends_what_is_under_way_and_says_nothing_of_redis():
    async with Line() as line:
        asked = line.ask()
        await line.pipe.close()
        assert isinstance(asked.result(), Neutral)
        assert line.errors == [Neutral]
        await line.pipe.close()


# --- the deadline -----------------------------------------------------------------------------------------------------


async def test_silence_fails_all_that_is_under_way_within_the_deadline():
    began_s = time.monotonic()
    async with Line(0.05) as line:
        asked = [line.ask() for _ in range(3)]
        line.ask(mark=None)
        line.say(array(b"one") + b"*1\r\n$5\r\nha")
        await asyncio.wait(asked)
        assert 0.05 <= time.monotonic() - began_s < 2.0
        assert asked[0].result() == [b"one"]
        assert all(isinstance(future.result(), TimeoutError) for future in asked[1:])
        assert line.errors == [None, TimeoutError, TimeoutError], "without a mark, the guard knows by itself"
        assert not line.pipe.is_open


async def test_a_store_that_is_late_is_one_failure_however_much_stands_behind_it():
    async with Line(0.05) as line:
        stores = [line.pipe.ask(put(b"n", b"v", 5), 7) for _ in range(25)]
        claim = line.pipe.ask(script("x", [], []), 7)
        read = line.ask()
        await asyncio.wait([*stores, claim, read])
        assert line.errors == [TimeoutError, *[Neutral] * 25, TimeoutError], "who reads has waited in vain, too"
        assert not line.pipe.is_open


async def test_silence_is_found_though_everybody_has_left():
    async with Line(0.02) as line:
        for _ in range(5):
            line.ask().cancel()
        await wait_until(lambda: line.errors == [TimeoutError] * 5, what="five timeouts")


async def test_each_command_has_the_whole_deadline(monkeypatch):
    """The one before was answered late; the next must not be late for that, nor the idle connection."""
    clock = FakeClock()
    monkeypatch.setattr(deadline_module, "time", clock)

    def pass_slices(count: int) -> None:
        for _ in range(count):
            clock.advance(30.0 / deadline_module.SLICES)
            line.pipe._slices._over()

    async with Line(30.0) as line:
        first = line.ask()
        pass_slices(7)
        second = line.ask()
        line.say(array(b"first"))
        assert first.done()
        pass_slices(deadline_module.SLICES)
        assert line.pipe._last_turn is None, "the slice in which it was asked is not counted"
        assert not second.done()
        pass_slices(1)
        assert line.pipe._last_turn is not None
        line.say(array(b"second"))
        pass_slices(1)
        assert not line.pipe._slices.is_running, "nobody is waited for"


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_busy_loop_of_ours_is_not_a_slow_redis(new_loop):
    """
    The reply arrives while another connection keeps the loop busy, beyond the deadline.

    Then the one loop looks for what has come, and the other at its timers first.
    """

    async def busy() -> None:
        loop = asyncio.get_running_loop()
        other, trigger = socket.socketpair()

        def keep_busy() -> None:
            loop.remove_reader(other)
            busy_until_s = time.monotonic() + 0.2
            while time.monotonic() < busy_until_s:
                pass
            line._theirs.send(array(b"in time"))

        async with Line(0.05) as line:
            asked = line.ask()
            await line.heard(1)
            loop.add_reader(other, keep_busy)
            trigger.send(b"x")
            await asyncio.wait([asked])
            assert asked.result() == [b"in time"]
            assert line.pipe.is_open
        other.close()
        trigger.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(busy())


async def test_a_command_is_not_judged_by_the_silence_before_it():
    async with Line() as line:
        late, next_one = line.ask(), line.ask()
        oldest = line.pipe._pending[0]
        line.say(array(b"at last"))
        line.pipe._judge_silence(oldest)
        assert late.result() == [b"at last"]
        assert not next_one.done()
        assert line.pipe.is_open


async def test_a_loop_that_is_always_busy_does_not_wait_for_ever():
    async with Line(0.01) as line:
        asked = line.ask()

        def keep_busy() -> None:
            until_s = time.monotonic() + 0.01
            while time.monotonic() < until_s:
                pass
            if not asked.done():
                asyncio.get_running_loop().call_soon(keep_busy)

        keep_busy()
        await asyncio.wait_for(asyncio.wait([asked]), 5)
        assert isinstance(asked.result(), TimeoutError)


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_no_more_than_so_many_commands_are_under_way(monkeypatch):
    monkeypatch.setattr(pipe_module, "MAX_PENDING", 10)
    async with Line() as line:
        asked = [line.ask() for _ in range(10)]
        for _ in range(3):
            assert line.is_refused()
        asked[0].cancel()
        assert line.is_refused(), "its reply is still to come"
        line.say(array(b"x"))
        assert not line.is_refused()
        assert line.ended == [(7, None)]


async def test_nothing_is_asked_of_a_redis_that_does_not_take_what_is_sent():
    async with Line() as line:
        name = b"n" * (1 << 20)
        taken = 0
        while not line.pipe.ask(values([name]), 7).done():
            taken += 1
            assert taken < 100, "100 MB were buffered"
            await asyncio.sleep(0)
        assert line.pipe.is_open
        await line.heard(taken << 20)
        await wait_until(lambda: not line.is_refused(), what="room")
