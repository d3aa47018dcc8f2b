"""Every example runs as it stands, and shows what it says."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.proxy_process import ROOT, ProxyProcess
from tests.vendor_sim import sim_thread
from tests.vendor_sim.dashvector_runner import DashVectorThreadSim

EXAMPLES = ROOT / "examples"
HIT, MISS = r"dashcache; hit; ttl=.*", r"dashcache; fwd=miss; fwd-status=200; stored.*"
SHOWN = {
    name: "".join(rf"{line}\n" for line in lines)
    for name, lines in {
        "embed_with_dashscope": ["status 200: 1024 numbers"],
        "embed_with_openai": [f"{MISS} 1024 numbers", f"{HIT} 1024 numbers"],
        "batch_with_partial_hits": [
            r"\['red', 'green'\]: 0/2 from the cache",
            r"\['green', 'blue', 'red'\]: 2/3 from the cache",
        ],
        "renew_one_text": [
            f"as usual -> {MISS}",
            r"\{'Cache-Control': 'no-cache'\} -> dashcache; fwd=.*stored",
            f"as usual -> {HIT}",
        ],
        "purge_a_model": [r"purged \{'model': 'text-embedding-v4'\}: confirmed by 1 of 1 workers"],
        "bypass_for_ten_minutes": [".*'embedding': 'bypass'.*", ".*'embedding': 'on'.*"],
        "shadow_mode": [r'\{"hit": 2, "miss": 1\}'],
        "read_the_metrics": [r"\d+ of \d+ items came from the cache.*"],
        "ask_the_workers": [r"worker 1: \d+ connections, breaker closed"],
        "vector_query_and_write": [f"query: {MISS}", f"again: {HIT}", "write: forwarded: a write", f"query: {MISS}"],
    }.items()
}
KEY = "sk-example"


@contextmanager
def collection(proxy: ProxyProcess, name: str) -> Iterator[None]:
    """Made through the proxy, as an app would."""
    lines = {"dashvector-auth-token": KEY, "Content-Type": "application/json"}
    made = json.dumps({"name": name, "dimension": 4}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{proxy.http_url}/v1/collections", made, lines)) as answer:
        assert json.load(answer)["code"] == 0
    yield


@pytest.fixture(scope="module")
def env() -> Iterator[dict[str, str]]:
    vectors = DashVectorThreadSim()
    try:
        with (
            sim_thread() as sim,
            ProxyProcess(
                dashscope_url=sim.url, dashvector_url=vectors.http_url, env={"DASHCACHE_VECTOR_SETTLE_S": "0"}
            ) as proxy,
            collection(proxy, "examples"),
        ):
            yield {
                **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
                "DASHCACHE_URL": proxy.http_url,
                "DASHCACHE_ADMIN": proxy.admin_url,
                "DASHSCOPE_API_KEY": KEY,
                "DASHVECTOR_API_KEY": KEY,
                "COLLECTION": "examples",
            }
    finally:
        vectors.stop()


def test_every_example_is_run_and_listed() -> None:
    found = {path.stem for path in EXAMPLES.glob("*.py")}
    assert found == set(SHOWN)
    assert found == set(re.findall(r"`(\w+)\.py`", (EXAMPLES / "README.md").read_text()))


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_shows_what_it_says(env: dict[str, str], name: str) -> None:
    line = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")]
    ran = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(SHOWN[name], ran.stdout), ran.stdout
