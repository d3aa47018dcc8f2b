"""Replicas agree on modes through one Redis key, whatever else is wrong."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.control.live import encode
from proxy.control.modes import ModeBook
from proxy.control.order_store import Reached
from proxy.control.redis_link import RedisLink
from proxy.control.share import Share
from proxy.control.stored import seal
from proxy.core.key import Secret
from proxy.core.modes import Mode, Modes, Rule
from proxy.runtime.tasks import Tasks
from proxy.settings.model import Start
from tests.support.redis_server import RedisServer


async def nobody(_modes: Modes) -> Reached:
    return Reached(0, 0)


class Replica:
    def __init__(self, url: str, folder: Path, secret: bytes = b"one deployment", deadline_s: float = 10.0) -> None:
        self.tasks = Tasks(lambda _: None)
        self.link = RedisLink(url, "dashcache", self.tasks, deadline_s)
        folder.mkdir()
        self.book = ModeBook(Start(), folder, nobody, lambda: None)
        self.share = Share(self.link, Secret.derive(secret), [self.book])

    @property
    def mode(self) -> Mode:
        return self.book.live.mode("dashscope", "embedding")

    @property
    def key(self) -> bytes:
        return self.share.key(self.book)

    async def synchronise(self) -> bool:
        return await self.share.synchronise(self.book)

    async def close(self) -> None:
        await self.link.close()
        await self.tasks.wait_done(0)


@pytest.fixture
async def pair(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[tuple[Replica, Replica]]:
    one, other = Replica(redis_server.url, tmp_path / "one"), Replica(redis_server.url, tmp_path / "other")
    yield one, other
    await one.close()
    await other.close()


async def test_a_switch_reaches_the_other_replica(pair: tuple[Replica, Replica]) -> None:
    one, other = pair
    await one.book.switch(Rule(Mode.BYPASS))
    assert await one.synchronise()
    assert await other.synchronise()
    assert other.mode is Mode.BYPASS


async def test_the_later_of_two_switches_stands_everywhere(pair: tuple[Replica, Replica]) -> None:
    one, other = pair
    await one.book.switch(Rule(Mode.BYPASS))
    await other.book.switch(Rule(Mode.SHADOW))
    for replica in (one, other, one):
        assert await replica.synchronise()
    assert (one.mode, other.mode) == (Mode.SHADOW, Mode.SHADOW)


async def test_a_rule_that_another_replica_overwrote_comes_back(
    pair: tuple[Replica, Replica], redis_server: RedisServer
) -> None:
    one, other = pair
    await one.book.switch(Rule(Mode.BYPASS, operation="embedding"))
    await other.book.switch(Rule(Mode.SHADOW, operation="rerank"))
    await one.synchronise()
    # Other had read before one wrote.
    redis_server.command("SET", one.key, seal(Secret.derive(b"one deployment"), one.key, encode(other.book.held)))
    await one.synchronise()
    await other.synchronise()
    assert one.book.live.switched == other.book.live.switched
    assert len(one.book.live.switched.rules) == 2


async def test_without_redis_nothing_waits_and_later_it_is_told(
    pair: tuple[Replica, Replica], redis_server: RedisServer
) -> None:
    one, other = pair
    redis_server.kill()
    await one.book.switch(Rule(Mode.BYPASS))
    assert not await one.synchronise()
    assert one.mode is Mode.BYPASS
    redis_server.restart()
    assert await one.synchronise()
    assert await other.synchronise()
    assert other.mode is Mode.BYPASS


async def test_a_hung_redis_costs_one_deadline(redis_server: RedisServer, tmp_path: Path) -> None:
    one = Replica(redis_server.url, tmp_path / "one", deadline_s=0.05)
    redis_server.hang()
    async with asyncio.timeout(5):
        assert not await one.synchronise()
    await one.close()


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"x" * 300_000, seal(Secret.derive(b"else"), b"key", encode(Modes()))],
    ids=["empty", "short", "long", "foreign"],
)
async def test_foreign_content_is_not_believed_and_replaced(
    pair: tuple[Replica, Replica], redis_server: RedisServer, content: bytes
) -> None:
    one, other = pair
    redis_server.command("SET", one.key, content)
    assert await one.synchronise()
    assert one.mode is Mode.ON
    await one.book.switch(Rule(Mode.BYPASS))
    assert await one.synchronise()
    await other.synchronise()
    assert other.mode is Mode.BYPASS


async def test_a_value_of_another_type_is_trouble_and_no_more(
    pair: tuple[Replica, Replica], redis_server: RedisServer
) -> None:
    one, _ = pair
    redis_server.command("LPUSH", one.key, "x")
    assert not await one.synchronise()


async def test_deployments_with_other_secrets_use_other_keys(redis_server: RedisServer, tmp_path: Path) -> None:
    one, other = Replica(redis_server.url, tmp_path / "a"), Replica(redis_server.url, tmp_path / "b", b"another")
    await one.book.switch(Rule(Mode.BYPASS))
    await one.synchronise()
    await other.synchronise()
    assert other.mode is Mode.ON
    await one.close()
    await other.close()
