"""
The proxy beside its peers, in one run: ``python -m benchmarks.versus [--rounds 5] [--seconds 2]``.

Every server that is measured has the first core, Redis and the upstream have the second, wrk has the others; on two
cores wrk goes beside Redis, and the page marks the ratios that mean little then. In each round every
server is measured once, so that whatever disturbs the machine meets all; ratios are taken within a round, and the
median of the rounds is the figure. The proxy runs with its defaults: logging, metrics, limits, breaker, all of it.
Nothing counts if a request failed, or if the upstream was asked during a measurement of hits. Writes
``benchmarks/RESULTS.md`` and ``docs/bench.svg``.
"""

import argparse
import contextlib
import itertools
import socket
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import redis

from benchmarks import grpc_calls
from benchmarks.grpc_parts import Plan, Way
from benchmarks.peers import figures, litellm, nginx, varnish
from benchmarks.peers.content import TEXTS, body, text
from benchmarks.peers.crowd import latencies_ms
from benchmarks.peers.figures import Figure
from benchmarks.peers.load import PROGRAM as WRK
from benchmarks.peers.load import Load, one_by_one_ms, p99, scripts, wrk
from benchmarks.peers.machine import (
    LOAD_CORES,
    OTHER_CORE,
    PLACED,
    SERVER_CORE,
    free_port,
    pin,
    process,
    python,
    resident_mib,
)
from benchmarks.peers.report import write
from tests.support.proxy_process import ProxyProcess
from tests.support.redis_server import RedisServer

_DELAY_MS = 50.0
_IDLE = 1_000

Values = dict[Figure, list[float]]
"""One value for each round."""


@dataclass
class Bench:
    """The servers, by name, and what was found."""

    folder: Path
    seconds: float
    stack: contextlib.ExitStack
    upstream: int = 0
    delayed: int = 0
    ports: dict[str, int] = field(default_factory=dict)
    proxies: dict[str, ProxyProcess] = field(default_factory=dict)
    values: Values = field(default_factory=lambda: defaultdict(list))
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    fresh: Iterator[int] = field(default_factory=lambda: itertools.count(TEXTS))
    """Numbers of texts that nobody has asked for."""

    def __post_init__(self) -> None:
        self.scripts = scripts(self.folder)

    # --- servers ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything that is installed."""
        self.upstream = self._python("upstream", OTHER_CORE)
        self.delayed = self._python("upstream", OTHER_CORE, "--delay-ms", str(_DELAY_MS))
        self.ports["aiohttp"] = self._python("aiohttp", SERVER_CORE)
        self.ports["protocol"] = self._python("protocol", SERVER_CORE)
        self.ports["pipelined"] = self._python("pipelined", SERVER_CORE, "--redis-port", str(self._redis().port))
        self._nginx("nginx-cache", lambda folder, port: nginx.cache(folder, port, self.upstream))
        self._nginx("nginx-relay", lambda folder, port: nginx.relay(folder, port, self.upstream))
        if nginx.has_lua():
            kept = self._redis().port
            self._nginx("nginx-lua", lambda folder, port: nginx.lua_redis(folder, port, self.upstream, kept))
        if varnish.is_there():
            self._peer("varnish", varnish.command)
        if litellm.PROGRAM is not None:
            self._peer("litellm", litellm.command, litellm.ENVIRON)
        self._proxy("memory")
        self._proxy("redis", {"DASHCACHE_MEMORY_MAX_BYTES": "0"})
        self._proxy("delayed", upstream=self.delayed)
        self._proxy("two", workers=2, cores=f"{SERVER_CORE},{OTHER_CORE}")

    def fill(self) -> None:
        """Let every server keep what it will be asked for."""
        for name, script in itertools.product(
            ("memory", "redis", "two", "aiohttp", "nginx-cache", "varnish"), ("repeat", "ten")
        ):
            if name in self.ports:
                wrk(self.ports[name], self.scripts[script], seconds=1)
        wrk(self.ports["memory"], self.scripts["openai"], seconds=1)
        if "litellm" in self.ports:
            wrk(self.ports["litellm"], self.scripts["litellm"], seconds=20)

    def _python(self, kind: str, cores: str, *more: str) -> int:
        port = free_port()
        command = python("benchmarks.peers.servers", kind, str(port), *more)
        self.stack.enter_context(process(command, port, cores))
        return port

    def _nginx(self, name: str, conf: Callable[[Path, int], str]) -> None:
        if not Path(nginx.PROGRAM).exists():
            return
        folder, port = self.folder / name, free_port()
        folder.mkdir()
        (folder / "nginx.conf").write_text(conf(folder, port))
        self.stack.enter_context(
            process([nginx.PROGRAM, "-p", str(folder), "-c", str(folder / "nginx.conf")], port, SERVER_CORE)
        )
        self.ports[name] = port

    def _peer(
        self, name: str, command: Callable[[Path, int, int], list[str]], env: dict[str, str] | None = None
    ) -> None:
        folder, port = self.folder / name, free_port()
        folder.mkdir()
        self.stack.enter_context(process(command(folder, port, self.upstream), port, SERVER_CORE, env))
        self.ports[name] = port

    def _redis(self) -> RedisServer:
        server = self.stack.enter_context(RedisServer())
        pin(server.pid, OTHER_CORE)
        return server

    def _proxy(
        self,
        name: str,
        env: dict[str, str] | None = None,
        *,
        workers: int = 1,
        upstream: int = 0,
        cores: str = SERVER_CORE,
    ) -> None:
        server = self._redis()
        proxy = self.stack.enter_context(
            ProxyProcess(
                dashscope_url=f"http://127.0.0.1:{upstream or self.upstream}",
                redis_url=server.url,
                workers=workers,
                env=env,
            )
        )
        pin(proxy.pid, cores)
        self.ports[name], self.proxies[name] = proxy.http_port, proxy
        if name == "memory":
            self.kept_in = server

    # --- measuring ----------------------------------------------------------------------------------------------------

    def round(self) -> None:
        """Measure each once."""
        repeat, new = self.scripts["repeat"], self.scripts["new"]
        hits = self._hits("memory", "repeat", repeat)
        self._over(figures.REPEAT, hits, self._load("nginx-cache", "repeat", repeat))
        self._load("varnish", "repeat", repeat)
        self._load("protocol", "repeat", repeat)
        self._over(figures.PARSED, self._hits("memory", "new", new), self._load("aiohttp", "new", new))
        in_redis = self._hits("redis", "repeat", repeat)
        self._over(figures.REDIS_NGINX, in_redis, self._load("nginx-lua", "repeat", repeat))
        self._over(figures.REDIS_BARE, in_redis, self._load("pipelined", "repeat", repeat))
        self._over(figures.WORKERS, self._hits("two", "repeat", repeat), hits)
        compatible = self._hits("memory", "openai", self.scripts["openai"])
        self._over(figures.LITELLM, compatible, self._load("litellm", "repeat", self.scripts["litellm"]))
        ten = self.scripts["ten"]
        self._over(figures.TEN, self._hits("memory", "ten", ten), self._load("aiohttp", "ten", ten))
        for figure, script in ((figures.PASS_SMALL, "get"), (figures.PASS_LARGE, "large")):
            passed = self._load("memory", script, self.scripts[script])
            self._over(figure, passed, self._load("nginx-relay", script, self.scripts[script]))
        self._one_connection(repeat)
        self._crowd()
        self._missed()

    def _load(self, name: str, what: str, script: Path, connections: int = 64, longer: int = 1) -> Load | None:
        """Wrk on the server *name*; ``None`` if there is none."""
        if name not in self.ports:
            return None
        seconds = longer * self.seconds
        load = wrk(self.ports[name], script, seconds=seconds, connections=connections, cores=LOAD_CORES)
        self.rates[f"{name}, {what}" + (f", {connections} connections" if connections != 64 else "")].append(load.per_s)
        return load

    def _hits(self, name: str, what: str, script: Path, connections: int = 64, longer: int = 1) -> Load:
        """The same, and the upstream must not hear of it."""
        before = self._made(name)
        load = self._load(name, what, script, connections, longer)
        assert load is not None
        if (calls := self._made(name) - before) > 0:
            raise RuntimeError(f"{name}, {what}: no hits, the upstream was asked {calls} times")
        return load

    def _made(self, name: str) -> int:
        return int(self.proxies[name].stats()["operations"]["embedding"]["upstream_calls"])

    def _over(self, figure: Figure, load: Load, other: Load | None) -> None:
        if other is not None:
            self.values[figure].append(load.per_s / other.per_s)

    def _one_connection(self, script: Path) -> None:
        other = self._load("nginx-lua", "repeat", script, 1)
        if other is None:
            return
        for figure, name in ((figures.P99_MEMORY, "memory"), (figures.P99_REDIS, "redis")):
            self.values[figure].append(self._hits(name, "repeat", script, 1).p99_ms / other.p99_ms)

    def _crowd(self) -> None:
        """Longer than the others, as the first moments of so many connections are another matter."""
        port, seconds, before = self.ports["memory"], 2 * self.seconds, self._made("memory")
        calm = p99(latencies_ms(port, 64, seconds))
        with contextlib.ExitStack() as stack:
            for _ in range(_IDLE):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            crowded = p99(latencies_ms(port, 256, seconds))
        if self._made("memory") > before:
            raise RuntimeError("no hits, the upstream was asked")
        self.values[figures.CROWD].append(crowded / calm)

    def _missed(self) -> None:
        """One request after the other: what a miss adds, and what nine hits of ten save."""
        texts = [body([text(next(self.fresh))]) for _ in range(200)]
        direct, missed = one_by_one_ms(self.upstream, texts), one_by_one_ms(self.ports["memory"], texts)
        self.values[figures.MISS_P50].append(statistics.median(missed) - statistics.median(direct))
        self.values[figures.MISS_P99].append(p99(missed) - p99(direct))
        known = [text(at) for at in range(9)]
        one_by_one_ms(self.ports["delayed"], [body(known)])
        new = [text(next(self.fresh)) for _ in range(20)]
        partly = one_by_one_ms(self.ports["delayed"], [body([*known, each]) for each in new])
        alone = one_by_one_ms(self.delayed, [body([each]) for each in new])
        self.values[figures.NINE].append(statistics.median(partly) / statistics.median(alone))

    # --- once ---------------------------------------------------------------------------------------------------------

    def sizes(self) -> None:
        """Memory, of workers and in Redis."""
        (worker,) = self.proxies["redis"].worker_pids()
        self.values[figures.RESIDENT].append(resident_mib(worker))
        client = redis.Redis(port=self.kept_in.port)
        names = [name for name in client.scan_iter(count=1_000) if b":e:" in name]
        if not names:
            raise RuntimeError("nothing is in Redis")
        used = [client.memory_usage(name, samples=0) for name in names]
        self.values[figures.REDIS_BYTES].append(statistics.mean(used))
        client.close()

    def calls(self, rounds: int) -> None:
        """gRPC: hits beside the very server that answers misses, which is nothing but the library."""

        def shape(ways: tuple[Way, ...], upstream: str) -> Plan:
            return Plan(ways, upstream, delays_ms=(0.0,), rounds=rounds, seconds=self.seconds, concurrency=64)

        samples = grpc_calls.measure(shape)
        hits = [sample.per_s for sample in samples if sample.way == grpc_calls.HIT]
        direct = [sample.per_s for sample in samples if sample.way == grpc_calls.DIRECT]
        self.values[figures.GRPC] += [hit / bare for hit, bare in zip(hits, direct, strict=True)]


def measure(rounds: int, seconds: float) -> Bench:
    """Everything."""
    with tempfile.TemporaryDirectory(prefix="dashcache-bench-") as folder, contextlib.ExitStack() as stack:
        Path(folder).chmod(0o755)
        bench = Bench(Path(folder), seconds, stack)
        bench.start()
        bench.fill()
        for number in range(rounds):
            print(f"round {number + 1} of {rounds} ...", file=sys.stderr, flush=True)
            bench.round()
        bench.sizes()
        stack.close()
        bench.calls(rounds)
    return bench


def smoke() -> int:
    """Whether everything starts and answers, as far as it is installed."""
    with tempfile.TemporaryDirectory(prefix="dashcache-bench-") as folder, contextlib.ExitStack() as stack:
        Path(folder).chmod(0o755)
        bench = Bench(Path(folder), 1.0, stack)
        bench.start()
        for name, port in bench.ports.items():
            if name != "litellm":  # which asks who is there, and speaks one dialect
                one_by_one_ms(port, [body([text(0)]), body([text(0)])])
            print(f"{name}: answers")
    return 0


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement")
    parser.add_argument("--smoke", action="store_true", help="start everything, ask each once, measure nothing")
    given = parser.parse_args()
    print(f"placed: {PLACED}", file=sys.stderr)
    if given.smoke:
        return smoke()
    if WRK is None:
        print("wrk is needed (Debian: apt-get install wrk nginx-core libnginx-mod-http-lua)", file=sys.stderr)
        return 2
    bench = measure(given.rounds, given.seconds)
    command = f"python -m benchmarks.versus --rounds {given.rounds} --seconds {given.seconds:g}"
    print(write(bench.values, bench.rates, command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
