"""
One simulator, one Redis and one proxy for a module of SDK tests, and the comparisons that they all make.

A question is asked three times: straight at the vendor, through the proxy before it knows the answer, and through the
proxy when it does. What the SDK returns must be equal; the headers and the vendor's own count say who answered.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer
from tests.vendor_sim import SimSettings, ThreadSim, sim_thread


@dataclass(frozen=True)
class Told:
    """
    What an SDK returned or raised, less the ids, which are new with every call.

    *usage* stands apart, because a part of a batch costs what its rows' shares say. *headers* have lower-case names;
    None where the SDK does not show them.
    """

    value: Any
    usage: Any = None
    headers: Mapping[str, str] | None = None

    @property
    def said(self) -> tuple[Any, Any]:
        """All that has to be equal."""
        return self.value, self.usage

    def header(self, name: str) -> str:
        """A header line's value, empty when it is absent."""
        return (self.headers or {}).get(name, "")


AskAt = Callable[[str], Told]
AskTexts = Callable[[str, Sequence[str]], Told]


@dataclass(frozen=True)
class Rig:
    """What the SDKs talk to."""

    sim: ThreadSim
    redis: RedisServer
    proxy: ProxyProcess

    @property
    def urls(self) -> tuple[str, str]:
        """The vendor's address and the proxy's."""
        return self.sim.url, self.proxy.http_url

    def calls(self) -> int:
        """How many requests the vendor has seen."""
        return len(self.sim.requests)

    def through(self, ask: AskAt, *, calls: int) -> Told:
        """What *ask* gets through the proxy, which must cost just so many calls of the vendor."""
        before = self.calls()
        told = ask(self.proxy.http_url)
        assert self.calls() - before == calls
        return told

    def cached(self, ask: AskAt, *, items: int, is_usage_exact: bool = True) -> Told:
        """
        Direct, cold and warm are equal, and only the first two reached the vendor; returns the direct one.

        Usage is not exact where a text stands twice: the vendor, asked for it once only, charges it once.
        """
        direct = ask(self.sim.url)
        cold = self.through(ask, calls=1)
        warm = self.through(ask, calls=0)
        assert direct.value == cold.value == warm.value
        assert cold.usage == warm.usage
        assert cold.usage == direct.usage or not is_usage_exact
        assert not direct.header("cache-status")
        assert cold.header("cache-status") == "dashcache; fwd=miss; fwd-status=200; stored"
        assert cold.header("x-dashcache-items") == f"0/{items}"
        assert_hit(warm, items)
        return direct

    def completed(self, ask: AskTexts, known: list[str], new: list[str], asked: list[str]) -> None:
        """With *known* cached, *asked* (of known and new texts) is as direct, and asks the vendor for *new* alone."""
        assert ask(self.proxy.http_url, known).header("cache-status").endswith("stored")
        direct = ask(self.sim.url, asked)
        self.sim.clear()
        partial = self.through(lambda url: ask(url, asked), calls=1)
        assert self.sim.texts_asked == dict.fromkeys(new, 1)
        assert partial.value == direct.value
        hits = sum(text in known for text in asked)
        assert partial.header("cache-status").startswith("dashcache; fwd=partial; fwd-status=200; ttl=")
        assert partial.header("x-dashcache-items") == f"{hits}/{len(asked)}"
        again = self.through(lambda url: ask(url, asked), calls=0)
        assert again.said == partial.said
        assert_hit(again, len(asked))

    def refused(self, ask: AskAt, *, is_partial: bool = False) -> Told:
        """
        The vendor's refusal is the same through the proxy, every time anew; returns the direct one.

        *is_partial*: some items are known. What the vendor says to the rest is shown only if it speaks of nobody's
        items; else it is asked once more, for all of them.
        """
        direct = ask(self.sim.url)
        for _ in range(2):
            before = self.calls()
            told = ask(self.proxy.http_url)
            assert self.calls() - before in ((1, 2) if is_partial else (1,))
            assert told.said == direct.said
            assert not told.header("x-dashcache-error")
            if told.headers is not None:
                status = told.header("cache-status")
                assert status.startswith(("dashcache; fwd=miss; ", "dashcache; fwd=bypass; "))
                assert "stored" not in status
        return direct

    def passed(self, ask: AskAt, *, calls: int = 1) -> Told:
        """Not ours to cache: equal, every time from the vendor, and nothing says that we were there."""
        direct = ask(self.sim.url)
        for _ in range(2):
            told = self.through(ask, calls=calls)
            assert told.said == direct.said
            assert not told.header("cache-status")
        return direct


def assert_hit(told: Told, items: int) -> None:
    """The headers say that all came from the cache."""
    assert told.header("cache-status").startswith("dashcache; hit; ttl=")
    assert told.header("x-dashcache-items") == f"{items}/{items}"
    assert told.header("x-request-id") not in told.header("x-dashcache-origin")


# A busy machine's pauses are no trouble with Redis.
PATIENT = {"DASHCACHE_REDIS_DEADLINE_MS": "2000"}


@contextmanager
def serving() -> Iterator[Rig]:
    """A rig, gone afterwards."""
    with (
        sim_thread(SimSettings()) as sim,
        RedisServer() as redis,
        ProxyProcess(dashscope_url=sim.url, redis_url=redis.url, env=PATIENT) as proxy,
    ):
        yield Rig(sim, redis, proxy)
