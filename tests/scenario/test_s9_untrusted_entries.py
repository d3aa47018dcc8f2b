"""S9: entries from Redis are untrusted. Whatever somebody did to one, it is a miss, and it is replaced."""

import base64
import contextlib
import functools
import random
import re
import struct
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from proxy.cache import codec
from proxy.cache.vector_packing import Form
from proxy.core.entry import Entry
from proxy.core.key import TAG_BYTES, Secret, authentication_tag
from tests.scenario.telling import NATIVE, bearer, heard, native, state, telling, told
from tests.support.proxy_process import ProxyProcess
from tests.support.raw_client import RawClient
from tests.support.raw_upstream import RawUpstream
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

LINES = bearer("sk-a")
SECRET = "the deployment's secret"


@dataclass
class Rig:
    """A proxy without a memory tier, so that every request asks Redis; its entries by text."""

    redis: RedisServer
    proxy: ProxyProcess
    client: RawClient
    keys: dict[str, bytes]
    values: dict[str, bytes]
    rejected: int = 0

    async def ask(self, *texts: str) -> str:
        """Ask, hold the answer against what is true, and return how it came about."""
        response = await self.client.request("POST", NATIVE, LINES, native(*texts))
        assert response.status == 200
        assert heard(response) == told(NATIVE, LINES, native(*texts))
        return state(response)

    async def fill(self, text: str) -> None:
        """Have *text* stored, and remember where."""
        known = self.redis.entries()
        assert await self.ask(text) == "miss"
        (self.keys[text],) = await wait_until(lambda: self.redis.entries() - known)
        self.values[text] = self.redis.command("GET", self.keys[text])
        assert await self.ask(text) == "hit"

    async def spoil(self, text: str, value: bytes) -> None:
        """Put *value* where the entry of *text* is: a miss, counted, and replaced by a good one."""
        self.redis.command("SET", self.keys[text], value)
        assert await self.ask(text) == "miss"
        self.rejected += 1
        await self.wait_replaced(text, value)

    async def wait_replaced(self, text: str, bad: bytes) -> None:
        await wait_until(lambda: self.redis.command("GET", self.keys[text]) != bad, what="a good entry again")

    def counted(self) -> int:
        """What the metrics say."""
        found = re.search(r"^dashcache_entries_rejected_total (\S+)$", self.proxy.metrics(), re.MULTILINE)
        assert found is not None
        return int(float(found[1]))

    def assert_counted(self) -> None:
        assert self.counted() == self.rejected
        metrics = self.proxy.metrics()
        assert "dashcache_background_failures_total 0.0" in metrics
        assert "dashcache_breaker_open_workers 0.0" in metrics
        assert not re.search(r"^dashcache_redis_failures_total\{.*\} [^0]", metrics, re.MULTILINE)
        assert not [line for line in self.proxy.logs if line["level"] in ("warning", "error")]


async def is_hit(rig: Rig) -> bool:
    return await rig.ask("text 0") == "hit"


@contextlib.asynccontextmanager
async def filled(texts: int) -> AsyncIterator[Rig]:
    settings = {"DASHCACHE_MEMORY_MAX_BYTES": "0", "DASHCACHE_REDIS_DEADLINE_MS": "5000"}
    with RedisServer() as redis:
        async with (
            RawUpstream(telling()) as upstream,
            ProxyProcess(dashscope_url=upstream.url, redis_url=redis.url, key_secret=SECRET, env=settings) as proxy,
            await RawClient.connect(proxy.http_port) as client,
        ):
            rig = Rig(redis, proxy, client, {}, {})
            for number in range(texts):
                await rig.fill(f"text {number}")
            yield rig
            rig.assert_counted()


async def test_s9_altered_entries_are_misses() -> None:
    """Every byte of one, every length of one, random places of others; each in one bit, in all bits, or put in."""
    chance = random.Random(9)
    async with filled(12) as rig:
        whole = rig.values["text 0"]
        for position in range(len(whole)):
            altered = bytearray(whole)
            altered[position] ^= chance.choice([1, 0x80, 0xFF, 1 << chance.randrange(8)])
            await rig.spoil("text 0", bytes(altered))
        for length in range(len(whole)):
            await rig.spoil("text 0", whole[:length])
        for _ in range(150):
            text = f"text {chance.randrange(1, 12)}"
            value, position = rig.values[text], chance.randrange(len(rig.values[text]))
            change = chance.choice([b"", b"\0", chance.randbytes(1), chance.randbytes(9)])
            skipped = chance.choice([0, 1, 7])
            altered = value[:position] + change + value[position + skipped :]
            if altered not in (value, rig.redis.command("GET", rig.keys[text])):
                await rig.spoil(text, altered)
        for behind in (b"\0", whole, b" " * 1000):
            await rig.spoil("text 0", whole + behind)
            await rig.spoil("text 0", behind + whole)


async def test_s9_entries_moved_or_made_by_others_are_misses() -> None:
    async with filled(8) as rig:
        texts = list(rig.keys)
        for one, other in zip(texts, texts[1:] + texts[:1], strict=True):
            await rig.spoil(one, rig.values[other])
        # Two at once, changed for one another, in one batch.
        for text, value in (("text 1", rig.values["text 2"]), ("text 2", rig.values["text 1"])):
            rig.redis.command("SET", rig.keys[text], value)
        assert await rig.ask("text 0", "text 1", "text 2", "text 1") == "partial"
        rig.rejected += 2
        await rig.wait_replaced("text 1", rig.values["text 2"])
        # Another deployment's entry for the very same request.
        async with (
            RawUpstream(telling()) as upstream,
            ProxyProcess(
                dashscope_url=upstream.url,
                redis_url=rig.redis.url,
                key_secret="the secret of somebody else",
                env={"DASHCACHE_REDIS_CHECK_FINGERPRINT": "false"},
            ) as stranger,
            await RawClient.connect(stranger.http_port) as client,
        ):
            known = rig.redis.entries()
            await client.request("POST", NATIVE, LINES, native("text 3"))
            (theirs,) = await wait_until(lambda: rig.redis.entries() - known)
            await rig.spoil("text 3", rig.redis.command("GET", theirs))


async def test_s9_junk_is_a_miss() -> None:
    chance = random.Random(9)
    async with filled(4) as rig:
        junk = [
            b"",
            b"\0",
            b"null",
            b"{}",
            b"OK",
            b"\x80\x04.",
            b"\xff" * 64,
            bytes(4096),
            chance.randbytes(20 * 2**20),
        ]
        junk += [chance.randbytes(chance.randrange(1, 500)) for _ in range(40)]
        for value in junk:
            await rig.spoil("text 0", value)
        # To MGET a key of another type is absent, so that it is a miss like any other, and a store puts it right.
        for command in (
            ("RPUSH", "x"),
            ("HSET", "x", "y"),
            ("SADD", "x"),
            ("ZADD", "1", "x"),
            ("XADD", "*", "x", "y"),
        ):
            rig.redis.command("DEL", rig.keys["text 0"])
            rig.redis.command(command[0], rig.keys["text 0"], *command[1:])
            assert await rig.ask("text 0") == "miss"
            # Not always by that miss: it may have shared a flight whose entry had been kept, and deleted here since.
            await wait_until(functools.partial(is_hit, rig), what=f"a good entry after {command[0]}")
            assert rig.redis.command("TYPE", rig.keys["text 0"]) == b"string"


async def test_s9_even_with_the_right_tag_nothing_grows_or_lives_on() -> None:
    """Who has the secret is trusted, but old formats, bombs and entries put back after their end are not served."""
    secret = Secret.derive(SECRET.encode())
    codec_ = codec.Codec(secret, 4 * 2**20)

    async with filled(2) as rig:
        name = rig.keys["text 0"].rpartition(b":")[2]
        key = base64.urlsafe_b64decode(name + b"=" * (-len(name) % 4))
        entry = codec_.open(key, rig.values["text 0"])
        whole = rig.values["text 0"][TAG_BYTES:]

        def sealed(stored: bytes) -> bytes:
            return authentication_tag(secret, key, stored) + stored

        assert sealed(whole) == rig.values["text 0"]
        header = struct.Struct(codec._HEADER.format)
        _, form, stored_ms, ttl_ms, _, length = header.unpack_from(whole)
        surroundings = whole[header.size : header.size + length]
        bomb = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        large = (bomb.compress(bytes(50 * 2**20)) + bomb.flush())[:65_000]
        vector_bomb = zlib.compress(b"[" + b"0," * (50 * 2**20) + b"0]", 9)
        await rig.spoil("text 0", sealed(bytes([codec.FORMAT_VERSION + 1]) + whole[1:]))
        await rig.spoil("text 0", sealed(b"\0" + whole[1:]))
        await rig.spoil("text 0", sealed(whole[:1] + b"\x63" + whole[2:]))
        await rig.spoil(
            "text 0", sealed(header.pack(codec.FORMAT_VERSION, form, stored_ms, ttl_ms, 0, len(large)) + large)
        )
        text_form = header.pack(codec.FORMAT_VERSION, Form.TEXT, stored_ms, ttl_ms, 0, len(surroundings))
        await rig.spoil("text 0", sealed(text_form + surroundings + vector_bomb))
        for position in range(1, len(whole), 3):
            await rig.spoil("text 0", sealed(whole[:position]))

        # Put back after its end, without an end in Redis: not damaged, but not served either.
        ended = codec_.seal(key, Entry(entry.row, int(time.time() * 1000) - entry.ttl_ms - 1, entry.ttl_ms))
        assert ended is not None
        rig.redis.command("SET", rig.keys["text 0"], ended)
        assert await rig.ask("text 0") == "miss"
        await rig.wait_replaced("text 0", ended)
