"""
The vendor's client before and behind the proxy, inside namespaces: ``python -m tests.sdk.namespace_rig ASKED``.

There the vendor's name leads to the simulator, for the proxy as for a client without one. A client behind the proxy has
a mount namespace more: in plain text the same name leads to the proxy there, so that this is all that is changed, and
over TLS the proxy has a name of its own. Each client takes the same walk, phase by phase, on a store that is empty at
first; what it was told, and what the vendor was asked meanwhile, is printed as JSON. `run_rig` is the outside of it.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import certifi

from tests.support.child import descendants, kill_leftovers, reap, spawn
from tests.support.namespace import in_namespaces, resolving
from tests.support.namespace_certificate import certificate_for
from tests.support.proxy_process import PASSED_ON, ROOT, ProxyProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until_sync
from tests.vendor_sim import ProcessSim, sim_process

Protocol = Literal["grpc", "http"]

ENDPOINT: Final = "vrs-cn-test.dashvector.cn-hangzhou.aliyuncs.com"
# A name that somebody gives to the proxy.
OWN_NAME: Final = "vectors.test"
VENDOR: Final = "127.0.0.2"
PROXY: Final = "127.0.0.3"
# Both protocols want port 443 when they speak TLS.
PROXY_TLS: Final[Mapping[Protocol, str]] = {"grpc": "127.0.0.4", "http": "127.0.0.5"}

# Phases of the script. Reads twice in a row are without the cache, then out of it: so there is something that each
# change could leave stale. Refusals have two forms over gRPC.
READS: Final = ("read", "look")
_CHANGES: Final = (
    "update",
    "write two at once",
    "upsert",
    "insert",
    "delete",
    "delete all",
    "create partition",
    "delete partition",
)
_BEGIN: Final = ("fill", "read", "read", "refuse", "refuse")
_END: Final = ("look", "look", "clear")
WALK: Final = (*_BEGIN, "look", "look", *_CHANGES, *_END)
"""Every call of the client's, and every change."""
LONG_WALK: Final = (*_BEGIN, *itertools.chain.from_iterable(("look", "look", change) for change in _CHANGES), *_END)
"""The same, with a look after each change."""
SETTLE_S: Final = 0.05

_SCRIPT: Final = Path(__file__).with_name("namespace_script.py")
_COLLECTIONS: Final = ("articles", "sides", "sparse", "words", "bytes", "made-ids")
_LONGEST_S: Final = 240.0
_PATIENCE_S: Final = 30.0


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
    """What the rig is to do; the certificate's files in the order of `Certificate`."""

    protocol: Protocol
    phases: tuple[str, ...]
    folder: str
    certificate: tuple[str, ...]


def run_rig(protocol: Protocol, phases: Sequence[str], folder: Path) -> dict[str, list[Phase]]:
    """The walks: ``without`` the proxy, and behind it in ``plain`` text and over ``tls``."""
    certificate = certificate_for(OWN_NAME, folder)
    asked = json.dumps(dataclasses.asdict(Asked(protocol, tuple(phases), str(folder), tuple(map(str, certificate)))))
    files = resolving(folder / "vendor", {ENDPOINT: VENDOR, "localhost": "127.0.0.1"})
    with spawn(
        in_namespaces([sys.executable, "-m", "tests.sdk.namespace_rig", asked], files=files),
        env=_environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
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
    return {name: [Phase(**phase) for phase in walk] for name, walk in json.loads(printed).items()}


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}


# --- inside -----------------------------------------------------------------------------------------------------------


class Script:
    """The client's process: its *endpoint* is a name that leads to *address*."""

    def __init__(self, asked: Asked, walk: str, endpoint: str, address: str) -> None:
        folder = Path(asked.folder) / walk
        files = resolving(folder, {endpoint: address})
        special = {"DASHVECTOR_INSECURE_MODE": "true"}
        if walk == "tls":
            special, bundle = _trusting(asked, folder)
            files |= bundle
        environment = {**_environment(), **special}
        self._process = subprocess.Popen(
            in_namespaces([sys.executable, "-P", _SCRIPT, asked.protocol, endpoint], own_network=False, files=files),
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


def _trusting(asked: Asked, folder: Path) -> tuple[dict[str, str], dict[Path, Path]]:
    """
    Let a client trust the authority: by these variables and these files, as the README advises.

    Over gRPC the SDK hands certifi's bundle to the library, so the authority is appended to that. Over HTTP it leaves
    the choice to Python, and a variable does.
    """
    authority = Path(asked.certificate[2])
    if asked.protocol == "http":
        return {"SSL_CERT_FILE": str(authority)}, {}
    bundle = Path(certifi.where())
    (longer := folder / "cacert.pem").write_bytes(bundle.read_bytes() + b"\n" + authority.read_bytes())
    return {}, {bundle: longer}


def _walk(
    sim: ProcessSim,
    script: Script,
    phases: Sequence[str],
    proxy: ProxyProcess | None = None,
    calls: Sequence[int] = (),
) -> Iterator[Phase]:
    """Go through all phases on an empty store; *calls* says how many the *proxy* will see in each."""
    sim.control("POST", "dashvector/reset")
    sim.control("PUT", "dashvector/settings", {"grpc_refusals": "message"})
    logged = len(_said(proxy, 0, 0)) if proxy else 0
    for number, (last, name) in enumerate(zip(("", *phases), phases, strict=False)):
        if proxy is not None and name in READS and name != last:
            logged += len(_said(proxy, logged, _wait_settled()))
        if name == last == "refuse":
            sim.control("PUT", "dashvector/settings", {"grpc_refusals": "status"})
        before = _asked(sim)
        told = script.told(name)
        asked = _asked(sim) - before
        said = _said(proxy, logged, calls[number]) if proxy is not None else []
        logged += len(said)
        yield Phase(name, told, dict(asked), dict(Counter(said)))


def _asked(sim: ProcessSim) -> Counter[str]:
    return Counter(sim.control("GET", "dashvector/stats")["asked"])


def _said(proxy: ProxyProcess, after: int, calls: int) -> list[str]:
    """How the proxy says that it answered the *calls* that came after its first *after* requests."""

    def said() -> list[str]:
        return [record["state"] for record in proxy.logs if record.get("event") == "request"][after:]

    wait_until_sync(
        lambda: len(said()) >= calls, _PATIENCE_S, lambda: f"{calls} calls to reach the proxy, which saw {len(said())}"
    )
    return said()


def _wait_settled() -> int:
    """Wait until the proxy keeps what it is told of the catalogue and all collections; how often it had to be asked."""
    asked = itertools.count()

    def is_kept(path: str) -> bool:
        next(asked)
        return _status_of(path).startswith("dashcache; hit")

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
    chain, key, _ = asked.certificate
    environment = {
        "DASHCACHE_DASHVECTOR_URL": f"http://{ENDPOINT}",
        "DASHCACHE_DASHVECTOR_GRPC_URL": f"http://{ENDPOINT}:443",
        "DASHCACHE_HTTP_LISTEN": f"{PROXY}:80",
        "DASHCACHE_GRPC_LISTEN": f"{PROXY}:443",
        "DASHCACHE_GRPCS_LISTEN": f"{PROXY_TLS['grpc']}:443",
        "DASHCACHE_HTTPS_LISTEN": f"{PROXY_TLS['http']}:443",
        "DASHCACHE_TLS_CERTIFICATE": chain,
        "DASHCACHE_TLS_KEY": key,
        "DASHCACHE_VECTOR_SETTLE_S": str(SETTLE_S),
        "DASHCACHE_LOG_HITS_SINGLY": "1000000",  # each call is told from the others by its line
        # A busy machine's pauses are no trouble with Redis.
        "DASHCACHE_REDIS_DEADLINE_MS": "2000",
    }
    with RedisServer() as redis:
        with ProxyProcess(redis_url=redis.url, env=environment) as proxy:
            yield proxy
        assert not proxy.left_behind


def _all_walks(asked: Asked) -> dict[str, list[Phase]]:
    with (
        sim_process("--host", VENDOR, "--port", "80", "--dashvector-grpc-port", "443") as sim,
        _proxy(asked) as proxy,
        Script(asked, "without", ENDPOINT, VENDOR) as alone,
        Script(asked, "plain", ENDPOINT, PROXY) as plain,
        Script(asked, "tls", OWN_NAME, PROXY_TLS[asked.protocol]) as tls,
    ):
        without = list(_walk(sim, alone, asked.phases))
        calls = [sum(phase.asked.values()) for phase in without]
        return {
            "without": without,
            "plain": list(_walk(sim, plain, asked.phases, proxy, calls)),
            "tls": list(_walk(sim, tls, asked.phases, proxy, calls)),
        }


if __name__ == "__main__":
    walks = _all_walks(Asked(**json.loads(sys.argv[1])))
    print(json.dumps({name: [dataclasses.asdict(phase) for phase in walk] for name, walk in walks.items()}))
