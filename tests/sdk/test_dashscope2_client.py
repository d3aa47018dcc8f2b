"""The 2.x client; it cannot be installed beside the other SDKs, and so runs in an environment of its own."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.rig import Rig
from tests.sdk.test_dashscope_sdk import embed, fresh
from tests.vendor_sim import Fault

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-dashscope2" / "bin" / "python"


def ask(url: str, *, asynchronous: bool = False, **options: Any) -> Any:
    """What the client makes of the answer, less the id of the request."""
    assert PYTHON.exists(), "the 2.x client's environment is missing: `make test` sets it up"
    question = {
        "api_key": "sk-sdk",
        "base_url": f"{url}/api/v1",
        "asynchronous": asynchronous,
        "options": {"model": "text-embedding-v4", **options},
    }
    ran = subprocess.run(
        [PYTHON, Path(__file__).with_name("client2.py")],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return _without_ids(json.loads(ran.stdout))


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_ids(member) for name, member in value.items() if name not in ("request_id", "headers")}
    return [_without_ids(member) for member in value] if isinstance(value, list) else value


@pytest.mark.parametrize("asynchronous", [False, True], ids=["Client", "AsyncClient"])
def test_a_batch_is_answered_equally(rig: Rig, asynchronous: bool) -> None:
    texts = fresh(3)
    answer = rig.three_ways(lambda url: ask(url, asynchronous=asynchronous, input=texts))[0]
    assert len(json.dumps(answer)) > 3 * 1_024 * 10


def test_it_shares_entries_with_the_1x_sdk(rig: Rig) -> None:
    texts = fresh(2)
    embed(rig.proxy.http_url, texts)
    before = rig.calls()
    ask(rig.proxy.http_url, input=texts)
    assert rig.calls() == before


@pytest.mark.parametrize("name", ["rate_quota", "invalid_api_key", "internal"])
def test_errors_are_equal(rig: Rig, name: str) -> None:
    texts = fresh(1)
    rig.sim.add_faults(Fault(error=name, text=texts[0]))
    rig.three_ways(lambda url: ask(url, input=texts), is_cached=False)
