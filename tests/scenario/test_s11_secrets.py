"""S11: secrets stay out of whatever the proxy writes, shows, keeps or hands to its children. Everything at DEBUG."""

import asyncio
import contextlib
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.scenario.telling import COMPATIBLE, JSON, NATIVE, Lines, native
from tests.support import wire
from tests.support.canary import assert_absent, assert_absent_from_files, make_secret, make_text
from tests.support.child import descendants
from tests.support.proxy_process import ROOT, ProxyProcess
from tests.support.raw_client import RawClient, RawResponse, request_bytes
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.vendor_sim import Fault, ThreadSim, sim_thread

CHAT = "/compatible-mode/v1/chat/completions"


@dataclass
class Secrets:
    """One canary for each place where a secret can stand."""

    key: str = field(default_factory=make_secret)
    other_key: str = field(default_factory=make_secret)
    workspace: str = field(default_factory=make_secret)
    header: str = field(default_factory=make_secret)
    cookie: str = field(default_factory=make_secret)
    agent: str = field(default_factory=make_secret)
    segment: str = field(default_factory=make_secret)
    query: str = field(default_factory=make_secret)
    model: str = field(default_factory=make_secret)
    name: str = field(default_factory=lambda: make_secret("x-"))
    texts: list[str] = field(default_factory=lambda: [make_text() for _ in range(6)])
    password: str = field(default_factory=make_secret)
    token: str = field(default_factory=make_secret)
    key_secret: str = field(default_factory=make_secret)

    @property
    def all(self) -> list[str]:
        return [*self.of_clients, self.password, self.token, self.key_secret]

    @property
    def of_clients(self) -> list[str]:
        """What only clients know."""
        single = [self.key, self.other_key, self.workspace, self.header, self.cookie, self.agent, self.segment]
        return [*single, self.query, self.model, self.name, *self.texts]

    @property
    def lines(self) -> Lines:
        return (
            (b"Authorization", b"Bearer " + self.key.encode()),
            (b"X-DashScope-WorkSpace", self.workspace.encode()),
            (self.name.encode(), self.header.encode()),
            (b"Cookie", b"session=" + self.cookie.encode()),
            (b"User-Agent", self.agent.encode()),
            JSON,
        )


@dataclass
class Rig:
    """Everything that may hold a secret it should not."""

    secrets: Secrets
    redis: RedisServer
    sim: ThreadSim
    proxy: ProxyProcess
    ours: list[bytes] = field(default_factory=list)
    """Error answers of the proxy's own, byte for byte."""

    async def ask(self, target: str, body: bytes, *more: tuple[bytes, bytes], method: str = "POST") -> RawResponse:
        async with await RawClient.connect(self.proxy.http_port) as client:
            response = await client.request(method, target, (*self.secrets.lines, *more), body)
        if response.header("X-Dashcache-Error"):
            self.ours.append(response.raw)
        return response

    async def send(self, data: bytes) -> bytes:
        """What is no request; the connection's whole answer, which nobody's secret belongs in."""
        async with await RawClient.connect(self.proxy.http_port) as client:
            await client.send(data)
            client.half_close()
            answer = await client.read_until_closed()
        self.ours.append(answer)
        return answer


@contextlib.asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    secrets = Secrets()
    settings = {
        "DASHCACHE_LOG_LEVEL": "debug",
        "DASHCACHE_ADMIN_TOKEN": secrets.token,
        "DASHCACHE_UPSTREAM_READ_TIMEOUT_S": "0.3",
        "DASHCACHE_BREAKER_FAIL_MAX": "2",
        "DASHCACHE_BREAKER_RESET_S": "0.1",
        "DASHCACHE_LIMITS_MAX_KEY_BODY_BYTES": "20000",
        "DASHCACHE_CACHE_STATUS_ON_PASS": "true",
    }
    log_all = ["slowlog-log-slower-than 0", "slowlog-max-len 10000"]
    with RedisServer(log_all, password=secrets.password) as redis, sim_thread() as sim:
        async with ProxyProcess(
            dashscope_url=sim.url, redis_url=redis.url, workers=2, key_secret=secrets.key_secret, env=settings
        ) as proxy:
            yield Rig(secrets, redis, sim, proxy)


def process_file(pid: int, name: str) -> bytes:
    """What /proc shows of a process."""
    return Path(f"/proc/{pid}/{name}").read_bytes()


def compatible(*texts: str, **fields: object) -> bytes:
    return json.dumps({"model": "text-embedding-v4", "input": texts, **fields}, ensure_ascii=False).encode()


async def well_formed(rig: Rig) -> None:
    """Hits, misses, partial hits, bypasses and what only passes through."""
    secrets = rig.secrets
    query = f"?token={secrets.query}"
    for body in (native(*secrets.texts[:3]), native(*secrets.texts[:3]), native(*secrets.texts[1:6])):
        for target in (NATIVE, NATIVE + query):
            assert (await rig.ask(target, body)).status == 200
    for body in (compatible(*secrets.texts), compatible(secrets.texts[0], user=secrets.header)):
        assert (await rig.ask(COMPATIBLE, body)).status == 200
    other = ((b"X-DashScope-ApiKey", secrets.other_key.encode()), (b"Cache-Control", b"no-cache"))
    assert (await rig.ask(NATIVE, native(*secrets.texts), *other)).status == 200
    await rig.ask(NATIVE, native(secrets.texts[0]), (b"Cache-Control", b"no-store"))
    await rig.ask(NATIVE, native("never asked"), (b"Cache-Control", f"only-if-cached, x={secrets.header}".encode()))
    await rig.ask(NATIVE, b'{"a":"' + secrets.texts[0].encode() * 400 + b'"}')
    await rig.ask(f"/api/v1/{secrets.segment}/x{query}", b"{}")
    await rig.ask(f"/{secrets.segment}", b"", method="DELETE")
    await rig.ask(CHAT, json.dumps({"model": "qwen-plus", "messages": [{"content": secrets.texts[0]}]}).encode())


async def refused_by_the_vendor(rig: Rig) -> None:
    """Errors of every kind that the vendor gives, and answers that are wrong."""
    secrets = rig.secrets
    await rig.ask(NATIVE, json.dumps({"model": secrets.model, "input": {"texts": secrets.texts}}).encode())
    for body in (
        b"",
        b"{",
        secrets.texts[0].encode(),
        native(*secrets.texts * 9),
        native(secrets.texts[0], dimension=7),
    ):
        await rig.ask(NATIVE, body)
    wrongs = (
        "drop_index",
        "duplicate_index",
        "wrong_dimension",
        "null_value",
        "code_in_200",
        "truncated_body",
        "disconnect",
    )
    for number, wrong in enumerate(wrongs):
        rig.sim.add_faults(Fault(wrong=wrong, times=2))  # type: ignore[arg-type]
        for cached in ((), (secrets.texts[0],)):
            with contextlib.suppress(ConnectionError, wire.WireError):
                await rig.ask(NATIVE, native(*cached, f"{secrets.texts[1]} {number}"))
        rig.sim.call(lambda sim: sim.faults.clear())
    for error in (
        "invalid_api_key",
        "throttling",
        "internal",
        "arrearage",
        "data_inspection_failed",
        "model_unavailable",
    ):
        rig.sim.add_faults(Fault(error=error, times=1))
        await rig.ask(NATIVE, native(f"{secrets.texts[2]} {error}"))
    rig.sim.add_faults(Fault(latency_ms=600, times=1))
    assert (await rig.ask(NATIVE, native(f"{secrets.texts[3]} late"))).status == 504


async def malformed(rig: Rig) -> None:
    """Refused at the door, each with a canary where the fault is."""
    secrets = rig.secrets
    head = request_bytes("POST", NATIVE, secrets.lines)[:-2]
    canary, target = secrets.header.encode(), f"/{secrets.segment}".encode()
    host = b"Host: x\r\n"
    for data in (
        canary + b"\r\n\r\n",
        b"GET " + target + b"\r\n\r\n",
        b"GET " + target + b" HTTP/1.1\r\n" + canary + b"\r\n\r\n",
        b"GET " + target + b" HTTP/1.1\r\n" + host + canary + b" : x\r\n\r\n",
        b"GET " + target + b" HTTP/1.1\r\n" + host + b"X: " + canary + b"\0\r\n\r\n",
        b"GET " + target + b" HTTP/1.1\r\nHost: " + canary + b"{}\r\n\r\n",
        b"GET " + target + b" HTTP/1.1\r\n" + host + host + b"X: " + canary + b"\r\n\r\n",
        b"GET " + target + b" HTTP/2.0\r\n" + host + b"\r\n",
        b"GET " + target + b"#" + canary + b" HTTP/1.1\r\n" + host + b"\r\n",
        b"GET http://" + canary + target + b" HTTP/1.1\r\n" + host + b"\r\n",
        b"CONNECT " + canary + b":443 HTTP/1.1\r\n" + host + b"\r\n",
        canary[:20].upper() + b" " + target + b" HTTP/1.1\r\n" + host + b"\r\n",
        b"GET " + target + b" HTTP/1.1\r\n" + host + b"X: " + canary * 2000 + b"\r\n\r\n",
        b"GET " + target + b" HTTP/1.1\r\n" + host + b"Expect: " + canary + b"\r\n\r\n",
        b"GET " + target + b" HTTP/1.1\r\n" + host + b"X: " + canary + b"\xff\r\n\r\n",
        b"GET "
        + target
        + b" HTTP/1.1\r\n"
        + host
        + b"Upgrade: websocket\r\nConnection: Upgrade\r\nX: "
        + canary
        + b"\r\n\r\n",
        head + b"Content-Length: " + canary + b"\r\n\r\n",
        head + b"Transfer-Encoding: " + canary + b"\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n" + canary + b"\r\n",
        head + b"Content-Length: 400\r\n\r\n" + secrets.texts[0].encode(),
    ):
        answer = await rig.send(data)
        assert answer[:12] in (b"", *(b"HTTP/1.1 %d" % status for status in (400, 405, 417, 431, 501, 505))), data[:80]


async def with_redis_in_trouble(rig: Rig) -> None:
    """Hung, full, killed, back again."""
    secrets = rig.secrets

    async def ask(times: int, name: str) -> None:
        for number in range(times):
            assert (
                await rig.ask(NATIVE, native(secrets.texts[0], f"{secrets.texts[4]} {name} {number}"))
            ).status == 200

    rig.redis.hang()
    await ask(4, "hung")
    rig.redis.resume()
    await asyncio.sleep(0.2)
    rig.redis.config_set("maxmemory", 1)
    rig.redis.config_set("maxmemory-policy", "noeviction")
    await ask(3, "full")
    rig.redis.config_set("maxmemory", 0)
    rig.redis.restart(empty=False)
    await ask(3, "restarted")
    await asyncio.sleep(0.2)
    await ask(6, "back")


async def test_s11_secrets_stay_out() -> None:
    async with rig() as everything:
        secrets, proxy, redis = everything.secrets, everything.proxy, everything.redis
        await well_formed(everything)
        await refused_by_the_vendor(everything)
        await malformed(everything)
        await with_redis_in_trouble(everything)
        await asyncio.to_thread(proxy.mode, "bypass", reason="a test", for_s=0.1)
        for path in ("/healthz", "/readyz", "/metrics", "/v1/stats", "/v1/mode", f"/{secrets.segment}"):
            for token in ({}, {"Authorization": f"Bearer {secrets.key}"}):
                said = await asyncio.to_thread(proxy.admin, "GET", path, None, token)
                assert_absent(said.body + repr(said.headers).encode(), *secrets.all, where=path)
        stats = proxy.stats()
        by_state = stats["operations"]["embedding"]["requests_by_state"]
        assert all(by_state[name] >= 1 for name in ("hit", "partial", "miss", "bypass", "refused")), by_state
        assert stats["redis"]["failures"].get("timeout"), stats["redis"]

        assert len(everything.ours) >= 20
        for answer in everything.ours:
            assert_absent(answer, *secrets.all, where="an error answer")
        await wait_until(lambda: b":e:" in b"".join(redis.keys()))
        for key, value in redis.dump().items():
            assert_absent(key + b"\0" + value, *secrets.all, where="Redis")
        assert_absent(repr(redis.command("SLOWLOG", "GET", "10000")), *secrets.all, where="commands to Redis")
        assert_absent(redis.log, *secrets.all, where="Redis' log")
        for child in descendants(proxy.pid):
            told = process_file(child.pid, "cmdline") + b"\0" + process_file(child.pid, "environ")
            assert_absent(told, *secrets.all, where=f"arguments and environment of {child.command}")
            (folder,) = re.findall(rb"PROMETHEUS_MULTIPROC_DIR=([^\0]+)", told)
            assert assert_absent_from_files(Path(os.fsdecode(folder)), *secrets.all) >= 2
        assert_absent(process_file(proxy.pid, "cmdline"), *secrets.all, where="our own arguments")
        assert assert_absent_from_files(proxy.data_dir, *secrets.all) >= 2
        await asyncio.to_thread(proxy.stop)
        assert len(proxy.logs) >= 60
        assert_absent(proxy.output, *secrets.all, where="the log")
        assert proxy.exit_code == 0


async def test_s11_one_callers_error_shows_nothing_of_anothers() -> None:
    """B is refused, cut off and served around A's requests: nothing of A's is in anything that B gets."""
    async with rig() as everything:
        secrets, port = everything.secrets, everything.proxy.http_port
        await well_formed(everything)
        lines = ((b"Authorization", b"Bearer sk-b"), JSON)
        received = []
        async with await RawClient.connect(port) as client:
            for number in range(6):
                everything.sim.add_faults(Fault(error="throttling", times=1))
                for target, body in ((NATIVE, native(f"of B's {number}")), (COMPATIBLE, b"{"), ("/nothing", b"")):
                    received.append((await client.request("POST", target, lines, body)).raw)
                    await everything.ask(NATIVE, native(*secrets.texts))
        for answer in received:
            assert_absent(answer, *secrets.all, where="B's answer")


async def test_s11_a_made_key_secret_is_only_where_it_is_kept() -> None:
    with sim_thread() as sim:
        secrets = Secrets()
        async with ProxyProcess(
            dashscope_url=sim.url, env={"DASHCACHE_KEY_SECRET": "", "DASHCACHE_LOG_LEVEL": "debug"}
        ) as proxy:
            for body in (native(*secrets.texts), native(*secrets.texts)):
                async with await RawClient.connect(proxy.http_port) as client:
                    assert (await client.request("POST", NATIVE, secrets.lines, body)).status == 200
            made = (proxy.data_dir / "key.secret").read_text().strip()
            hidden = [made, *secrets.of_clients]
            for path in [proxy.data_dir, *proxy.data_dir.iterdir()]:
                mode = stat.S_IMODE(path.lstat().st_mode)
                assert mode & 0o077 == 0, (path, oct(mode))
            assert stat.S_IMODE((proxy.data_dir / "key.secret").stat().st_mode) == 0o600
            for info in descendants(proxy.pid):
                for name in ("cmdline", "environ"):
                    assert_absent(process_file(info.pid, name), *hidden, where=name)
            assert_absent(proxy.metrics() + json.dumps(proxy.stats()), *hidden, where="the admin API")
            await asyncio.to_thread(proxy.stop)
            assert_absent(proxy.output, *hidden, where="the log")
            kept = {path.name: path.read_bytes() for path in proxy.data_dir.iterdir() if path.is_file()}
            assert b"dashcache:e:" in kept["cache.rdb"]  # the embedded server's data, uncompressed
            for name, content in kept.items():
                assert_absent(content, *secrets.of_clients, *([] if name == "key.secret" else [made]), where=name)


def run(command: str, settings: dict[str, str]) -> "subprocess.CompletedProcess[bytes]":
    """The command line with these settings and nothing else of ours."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    command_line = [sys.executable, "-m", "proxy", command]
    return subprocess.run(
        command_line, env={**kept, **settings}, cwd=ROOT, capture_output=True, timeout=30, check=False
    )


@pytest.mark.parametrize("command", ["check", "run"])
def test_s11_mistakes_in_settings_are_told_without_their_values(command: str) -> None:
    secrets = Secrets()
    mistakes = {
        "DASHCACHE_DASHSCOPE_URL": f"https://user:{secrets.key}@vendor.test/?k={secrets.query}",
        "REDIS_URL": f"http://:{secrets.password}@127.0.0.1:1",
        "DASHCACHE_KEY_SECRET": secrets.key_secret,
        "DASHCACHE_ADMIN_TOKEN": secrets.token,
        "DASHCACHE_ADMIN_LISTEN": "127.0.0.1",
    }
    done = run(command, mistakes)
    assert done.returncode == 2
    assert b"REDIS_URL" in done.stderr
    assert_absent(done.stdout + done.stderr, *secrets.all, where="what check says")


def test_s11_the_settings_in_force_are_shown_without_secrets(tmp_path: Path) -> None:
    secrets = Secrets()
    own = tmp_path / "own.toml"
    own.write_text(f'key_secret = "{secrets.key_secret}"\n[listen]\nadmin_token = "{secrets.token}"\n')
    done = run("check", {"DASHCACHE_CONFIG": str(own), "REDIS_URL": f"rediss://u:{secrets.password}@127.0.0.1:1/0"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"(set)") == 3
    assert_absent(done.stdout + done.stderr, *secrets.all, where="what check says")
