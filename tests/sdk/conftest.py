"""The rig of a module, the SDKs that hold something open, and SDKs that are put back as they were."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import dashscope
import pytest

from tests.sdk.asking import Dashscope2, OpenAi
from tests.sdk.rig import Rig, serving
from tests.vendor_sim import SimSettings


@pytest.fixture(scope="module")
def module_rig() -> Iterator[Rig]:
    with serving() as rig:
        yield rig
        dashscope.close_shared_sync_session()


@pytest.fixture
def rig(module_rig: Rig) -> Iterator[Rig]:
    """The module's rig; after each test its simulator is healthy again, and the cache is on."""
    yield module_rig
    module_rig.sim.reset()
    module_rig.sim.configure(**dataclasses.asdict(SimSettings()))


@pytest.fixture(scope="module")
def openai_sync() -> Iterator[OpenAi]:
    sdk = OpenAi()
    yield sdk
    sdk.close()


@pytest.fixture(scope="session")
def dashscope2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashscope2]:
    sdk = Dashscope2(Path(tmp_path_factory.mktemp("home")))
    yield sdk
    sdk.close()


@pytest.fixture(autouse=True)
def sdks_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies of the surroundings have no business here, and a test may repoint as it likes."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("base_http_api_url", "base_websocket_api_url"):
        monkeypatch.setattr(dashscope, name, getattr(dashscope, name))
