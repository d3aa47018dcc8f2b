"""
The vendor's client before and behind the proxy, inside namespaces: ``python -m tests.sdk.namespace_rig ASKED``.

There the vendor's name leads to the simulator, for the proxy as for a client without one. A client behind the proxy has
a mount namespace more, in which the same name leads to the proxy: all that is changed is where the name leads. Each
client takes the same walk, phase by phase, on a store that is empty at first; what it was told, and what the vendor was
asked meanwhile, is printed as JSON. `run_rig` is the outside of it.
"""

import dataclasses
import functools
import http.client
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import certifi

from tests.support.child import descendants, kill_leftovers, reap, spawn
from tests.support.namespace import in_namespaces, resolving
from tests.support.namespace_certificate import Certificate
from tests.support.proxy_process import ROOT, ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_sync
from tests.vendor_sim import ProcessSim, sim_process

Protocol = Literal["grpc", "http"]

ENDPOINT: Final = "vrs-cn-test.dashvector.cn-hangzhou.aliyuncs.com"
VENDOR: Final = "127.0.0.2"
PROXY: Final = "127.0.0.3"
# Both protocols want port 443 when they speak TLS.
PROXY_TLS: Final[Mapping[Protocol, str]] = {"grpc": "127.0.0.4", "http": "127.0.0.5"}

# Phases of the script. Twice is without the cache, then out of it; refusals have two forms over gRPC.
WALK: Final = ("fill", "read", "read", "refuse", "refuse", "change", "read", "clear")
COLD, WARM, REFUSED = 1, 2, 3
SETTLE_S: Final = 0.05

_SCRIPT: Final = Path(__file__).with_name("namespace_script.py")
_COLLECTIONS: Final = ("articles", "sides", "sparse", "words", "bytes", "made-ids")
_LONGEST_S: Final = 50.0
_PATIENCE_S: Final = 10.0
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


@dataclass(frozen=True)
class Phase:
    """What the client was told in one phase, by the call's name, and what the vendor was asked meanwhile."""

    name: str
    told: list[list[Any]]
    asked: dict[str, int]
    outcomes: dict[str, int]
    """What the proxy logged of the calls, by outcome; nothing without one."""


@dataclass(frozen=True)
class Asked:
    """What the rig is to do; *authority* and what follows it are for TLS."""

    protocol: Protocol
    folder: str
    certificate: tuple[str, str, str] | None = None


def run_rig(
    protocol: Protocol, folder: Path, certificate: Certificate | None = None
) -> tuple[list[Phase], list[Phase]]:
    """The walk without the proxy, and the walk behind it; over TLS if there is a *certificate*, else plain text."""
    paths = (str(certificate.chain), str(certificate.key), str(certificate.authority)) if certificate else None
    asked = json.dumps(dataclasses.asdict(Asked(protocol, str(folder), paths)))
    files = resolving(folder / "vendor", {ENDPOINT: VENDOR, "localhost": "127.0.0.1"})
    process = spawn(
        in_namespaces([sys.executable, "-m", "tests.sdk.namespace_rig", asked], files=files),
        env=_environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        printed, complaints = process.communicate(timeout=_LONGEST_S)
    except BaseException:
        known = descendants(process.pid)
        process.kill()
        kill_leftovers(process.pid, known)
        raise
    left = kill_leftovers(process.pid)
    assert process.returncode == 0, complaints.decode(errors="replace")
    assert not left, left
    without, behind = json.loads(printed)
    return _phases(without), _phases(behind)


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


def _phases(printed: list[dict[str, Any]]) -> list[Phase]:
    return [Phase(**phase) for phase in printed]


# --- inside -----------------------------------------------------------------------------------------------------------


class Script:
    """The client's process; its vendor's name leads to *address*."""

    def __init__(self, asked: Asked, name: str, address: str) -> None:
        folder = Path(asked.folder) / name
        files = resolving(folder, {ENDPOINT: address})
        environment = {**_environment(), "DASHVECTOR_INSECURE_MODE": "true"}
        if asked.certificate is not None and name == "behind":
            environment = {**_environment(), **_trusting(asked, folder, files)}
        self._process = subprocess.Popen(
            in_namespaces([sys.executable, "-P", _SCRIPT, asked.protocol, ENDPOINT], own_network=False, files=files),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        if reap(self._process, _PATIENCE_S) is None:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def told(self, phase: str) -> list[Any]:
        """What the client is told in *phase*."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(phase.encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the client's process has ended in {phase}; its reason is on standard error")
        told: list[Any] = json.loads(line)
        return told


def _trusting(asked: Asked, folder: Path, files: dict[Path, Path]) -> dict[str, str]:
    """
    Let a client trust the authority, as the README advises.

    Over gRPC the SDK gives the library certifi's bundle, so the authority is appended to that; *files* gains it. Over
    HTTP it leaves the choice to Python, and a variable does.
    """
    assert asked.certificate is not None
    authority = Path(asked.certificate[2])
    if asked.protocol == "http":
        return {"SSL_CERT_FILE": str(authority)}
    bundle = Path(certifi.where())
    (longer := folder / "cacert.pem").write_bytes(bundle.read_bytes() + b"\n" + authority.read_bytes())
    files[bundle] = longer
    return {}


def _walk(sim: ProcessSim, script: Script, proxy: ProxyProcess | None, calls: list[int]) -> Iterator[Phase]:
    """Go through all phases on an empty store; *calls* says how many a proxy will see in each."""
    sim.control("POST", "dashvector/reset")
    sim.control("PUT", "dashvector/settings", {"grpc_refusals": "message"})
    logged = 0
    for number, name in enumerate(WALK):
        if number == COLD and proxy is not None:
            logged += len(_said(proxy, logged, _wait_settled()))
        if number == REFUSED + 1:
            sim.control("PUT", "dashvector/settings", {"grpc_refusals": "status"})
        before = _asked(sim)
        told = script.told(name)
        asked = _asked(sim) - before
        said = _said(proxy, logged, calls[number])
        logged += len(said)
        yield Phase(name, told, dict(asked), dict(Counter(said)))


def _asked(sim: ProcessSim) -> Counter[str]:
    return Counter(sim.control("GET", "dashvector/stats")["asked"])


def _said(proxy: ProxyProcess | None, after: int, calls: int) -> list[str]:
    """How the proxy says that it answered what came after its first *after* requests: *calls*, or whatever it says."""
    if proxy is None:
        return []

    def said() -> list[str]:
        return [record["state"] for record in proxy.logs if record.get("event") == "request"][after:]

    with suppress(TimeoutError):  # what is missing is for the test to tell
        wait_until_sync(lambda: len(said()) >= calls, _PATIENCE_S)
    return said()


def _wait_settled() -> int:
    """Wait until the proxy keeps again what it is asked of the catalogue and all collections; how often it was asked."""
    asked = itertools.count()

    def is_kept(path: str) -> bool:
        next(asked)
        return "stored" in _status_of(path)

    for path in ("/v1/collections", *(f"/v1/collections/{name}/stats" for name in _COLLECTIONS)):
        wait_until_sync(functools.partial(is_kept, path), _PATIENCE_S, f"the proxy to keep {path}")
    return next(asked)


def _status_of(path: str) -> str:
    connection = http.client.HTTPConnection(PROXY, timeout=_PATIENCE_S)
    try:
        # Somebody else's token: what is kept here is none of the client's.
        connection.request("GET", path, headers={"Host": ENDPOINT, "dashvector-auth-token": "sk-dv-other"})
        answer = connection.getresponse()
        answer.read()
        return answer.getheader("Cache-Status", "")
    finally:
        connection.close()


@contextmanager
def _proxy(asked: Asked) -> Iterator[ProxyProcess]:
    environment = {
        "DASHCACHE_DASHVECTOR_URL": f"http://{ENDPOINT}",
        "DASHCACHE_DASHVECTOR_GRPC_URL": f"http://{ENDPOINT}:443",
        "DASHCACHE_HTTP_LISTEN": f"{PROXY}:80",
        "DASHCACHE_GRPC_LISTEN": f"{PROXY}:443",
        "DASHCACHE_VECTOR_SETTLE_S": str(SETTLE_S),
        # A busy machine's pauses are no trouble with Redis.
        "DASHCACHE_REDIS_DEADLINE_MS": "2000",
    }
    if asked.certificate is not None:
        chain, key, _ = asked.certificate
        environment |= {
            "DASHCACHE_GRPCS_LISTEN": f"{PROXY_TLS['grpc']}:443",
            "DASHCACHE_HTTPS_LISTEN": f"{PROXY_TLS['http']}:443",
            "DASHCACHE_TLS_CERTIFICATE": chain,
            "DASHCACHE_TLS_KEY": key,
        }
    with RedisServer() as redis, ProxyProcess(redis_url=redis.url, env=environment) as proxy:
        yield proxy


def _both_walks(asked: Asked) -> tuple[list[Phase], list[Phase]]:
    behind = PROXY if asked.certificate is None else PROXY_TLS[asked.protocol]
    with (
        sim_process("--host", VENDOR, "--port", "80", "--dashvector-grpc-port", "443") as sim,
        _proxy(asked) as proxy,
        Script(asked, "without", VENDOR) as first,
        Script(asked, "behind", behind) as second,
    ):
        without = list(_walk(sim, first, None, [0] * len(WALK)))
        calls = [sum(phase.asked.values()) for phase in without]
        return without, list(_walk(sim, second, proxy, calls))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps([[dataclasses.asdict(phase) for phase in walk] for walk in _both_walks(Asked(**given))]))
