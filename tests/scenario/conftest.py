"""Fixtures of the tests against a real proxy process."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.scenario.wire_rig import WireRig, wire_rig


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_rig() -> AsyncIterator[WireRig]:
    """One proxy process for the module, for Hypothesis' tests; `rig` is what others want."""
    async with wire_rig() as rig:
        yield rig


@pytest_asyncio.fixture(loop_scope="module")
async def rig(module_rig: WireRig) -> AsyncIterator[WireRig]:
    """The module's proxy and upstream, with nothing left of the test before."""
    await module_rig.renew()
    yield module_rig
    failures, module_rig.upstream.failures = module_rig.upstream.failures, []
    assert not failures
