"""
The repoint table tried with clients that the tests do not depend on: ``python -m tests.sdk.clients [NAME …]``.

Each client is installed into an environment of its own (``--folder`` keeps them between runs), and asks for one
embedding twice, each time in a new process. The first time the proxy has to ask the simulated vendor, the second time
it must not; both answers must be equal. Not part of ``make test``: it needs a package index, npm for Node's clients,
and root (Linux' namespaces) for clients whose host or port is fixed. ``docs/clients.md`` says what was tried last.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.namespace import in_namespaces, obstacle, resolving
from tests.support.namespace_certificate import certificate_for
from tests.support.proxy_process import PASSED_ON, ProxyProcess
from tests.support.waiting import wait_until_sync
from tests.vendor_sim import sim_process

_HERE = Path(__file__).parent
_FIXED_HOST = "dashscope.aliyuncs.com"
_NAME = "vectors.test"
_HTTPS, _GRPC = "127.0.0.9", "127.0.0.8"
_INSTALL_S = 900
_ASK_S = 180

_LANGCHAIN = ("langchain-community==0.4.2", "langchain-openai==1.7.4", "dashscope==1.27.8", "dashvector==1.0.23")
_NODE = (
    "ai@6.0.326",
    "@ai-sdk/openai-compatible@2.0.92",
    "@ai-sdk/alibaba@1.0.61",
    "@langchain/community@1.1.29",
    "@langchain/core@1.4.0",
    "openai@7.59.0",
)


@dataclass(frozen=True)
class Client:
    """A script beside this file, the packages that it needs, and its variables; ``{url}`` is the proxy's address."""

    script: str
    packages: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    """Names that lead to addresses of the proxy's, as DNS would have it."""
    operation: str = "embedding"

    @property
    def environment(self) -> str:
        """The folder of packages; clients with the same packages share it."""
        return "node" if self.script.endswith(".mjs") else self.packages[0].partition("==")[0]


_NATIVE = {"DASHSCOPE_HTTP_BASE_URL": "{url}/api/v1"}
_COMPATIBLE = {"OPENAI_BASE_URL": "{url}/compatible-mode/v1"}

CLIENTS: Mapping[str, Client] = {
    "langchain": Client("langchain.py", _LANGCHAIN, _NATIVE),
    "langchain-openai": Client("langchain_openai.py", _LANGCHAIN, _COMPATIBLE),
    "langchain-dashvector": Client(
        "langchain_dashvector.py", _LANGCHAIN, {"DASHVECTOR_INSECURE_MODE": "true"}, {_NAME: _GRPC}, "vector-query"
    ),
    "llamaindex": Client("llamaindex.py", ("llama-index-embeddings-dashscope==0.6.0", "dashscope==1.27.8"), _NATIVE),
    "litellm": Client("litellm_.py", ("litellm==1.80.0",), _COMPATIBLE),
    "haystack": Client("haystack_.py", ("haystack-ai==3.4.1",), _COMPATIBLE),
    "chroma": Client("chroma.py", ("chromadb==1.5.9", "openai"), _COMPATIBLE),
    "mem0": Client("mem0_.py", ("mem0ai==2.2.1",), _COMPATIBLE),
    "openai-node": Client("openai.mjs", _NODE, _COMPATIBLE),
    "vercel-openai-compatible": Client("vercel_compatible.mjs", _NODE, _COMPATIBLE),
    "vercel-alibaba": Client("vercel_alibaba.mjs", _NODE, {"BASE": "{url}"}),
    "langchain-js-tongyi": Client("tongyi.mjs", _NODE, {"NODE_EXTRA_CA_CERTS": "{authority}"}, {_FIXED_HOST: _HTTPS}),
}


def _installed(client: Client, folder: Path) -> list[str | Path]:
    """The command that runs *client*, whose packages are in *folder* afterwards."""
    home = folder / client.environment
    done = home / ".installed"
    wanted = "\n".join(client.packages)
    is_node = client.script.endswith(".mjs")
    if not done.exists() or done.read_text() != wanted:
        home.mkdir(parents=True, exist_ok=True)
        if is_node:
            command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--legacy-peer-deps"]
            subprocess.run([*command, *client.packages], cwd=home, check=True, timeout=_INSTALL_S)
        else:
            subprocess.run([sys.executable, "-m", "venv", home], check=True, timeout=_INSTALL_S)
            pip = [home / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
            subprocess.run([*pip, *client.packages], check=True, timeout=_INSTALL_S)
        done.write_text(wanted)
    if is_node:
        # Node looks for packages beside the script.
        (script := home / client.script).write_bytes((_HERE / client.script).read_bytes())
        return ["node", script]
    return [home / "bin" / "python", "-P", _HERE / client.script]


def _asked(name: str, command: list[str | Path], client: Client, env: Mapping[str, str], folder: Path) -> str:
    surroundings = {each: os.environ[each] for each in PASSED_ON if each in os.environ}
    if client.names:
        files = resolving(folder / f"names-{name}", client.names)
        command = [*in_namespaces(command, own_network=False, files=files)]
    done = subprocess.run(
        command, env={**surroundings, **env}, capture_output=True, text=True, check=False, timeout=_ASK_S
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-2_000:])
    return done.stdout


def _try(name: str, proxy: ProxyProcess, authority: Path, folder: Path) -> str:
    """Nothing when all is well, or what is not."""
    client = CLIENTS[name]
    if client.names and (why := obstacle()):
        return f"not tried: {why}"
    key = f"sk-{name}"  # what is cached is each client's own
    keys = ("DASHSCOPE_API_KEY", "OPENAI_API_KEY", "ALIBABA_API_KEY", "DASHVECTOR_API_KEY")
    told = {each: text.format(url=proxy.http_url, authority=authority) for each, text in client.env.items()}
    env = {**dict.fromkeys(keys, key), **told}

    def counted() -> tuple[int, int]:
        stats = proxy.stats()["operations"][client.operation]
        return sum(stats["hits"].values()), stats["upstream_calls"]

    try:
        command = _installed(client, folder)
        answers = []
        for is_hit in (False, True):
            hits, calls = counted()
            answers.append(_asked(name, command, client, env, folder))
            wait_until_sync(lambda hits=hits, calls=calls: counted() != (hits, calls), what="the proxy to be asked")
            more_hits, more_calls = counted()
            if (more_hits > hits, more_calls > calls) != (is_hit, not is_hit):
                return f"hits {hits} -> {more_hits}, calls {calls} -> {more_calls}"
    except (RuntimeError, subprocess.SubprocessError, TimeoutError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "" if answers[0] == answers[1] else f"answers differ: {answers}"


def main() -> int:
    """Try those that are named, or all."""
    parser = argparse.ArgumentParser(prog="tests.sdk.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CLIENTS))
    parser.add_argument("--folder", type=Path, help="where the packages are kept; by default a temporary one")
    given = parser.parse_args()
    names = given.names or list(CLIENTS)
    if unknown := set(names) - set(CLIENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    wrong = 0
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clients-")))
        certificate = certificate_for(_FIXED_HOST, temporary)
        sim = stack.enter_context(sim_process("--dashvector-grpc-port", "0"))
        chain, key, authority = map(Path, certificate)
        listen = {
            "DASHCACHE_HTTPS_LISTEN": f"{_HTTPS}:443",
            "DASHCACHE_GRPC_LISTEN": f"{_GRPC}:443",
            "DASHCACHE_TLS_CERTIFICATE": str(chain),
            "DASHCACHE_TLS_KEY": str(key),
            "DASHCACHE_VECTOR_SETTLE_S": "0.05",
            "DASHCACHE_REDIS_DEADLINE_MS": "5000",
        }
        proxy = stack.enter_context(
            ProxyProcess(
                dashscope_url=sim.url,
                dashvector_url=sim.url,
                dashvector_grpc_url=f"http://{sim.grpc_address}",
                env=listen,
            )
        )
        for name in names:
            trouble = _try(name, proxy, authority, (given.folder or temporary).absolute())
            wrong += bool(trouble)
            print(f"{name:26} {trouble or 'ok: a miss, then a hit'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
