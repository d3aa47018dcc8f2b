"""The rig of a module, and SDKs that are put back as they were."""

from collections.abc import Iterator

import dashscope
import pytest

from tests.sdk.rig import Rig, serving


@pytest.fixture(scope="module")
def module_rig() -> Iterator[Rig]:
    with serving() as rig:
        yield rig


@pytest.fixture
def rig(module_rig: Rig) -> Iterator[Rig]:
    """The module's rig, its simulator healthy again after each test."""
    yield module_rig
    module_rig.sim.reset()


@pytest.fixture(autouse=True)
def sdk_as_it_was() -> Iterator[None]:
    http, websocket = dashscope.base_http_api_url, dashscope.base_websocket_api_url
    yield
    dashscope.base_http_api_url, dashscope.base_websocket_api_url = http, websocket
