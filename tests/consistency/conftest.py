"""One vendor, one Redis and two replicas for the tests of a file; each test makes collections of its own."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.consistency.calls import Clients
from tests.consistency.rig import Rig, rig
from tests.consistency.vendor import Vendor
from tests.support.redis_server import RedisServer


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def _vendor() -> AsyncIterator[Vendor]:
    async with Vendor() as vendor:
        yield vendor


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def clients() -> AsyncIterator[Clients]:
    made = Clients()
    yield made
    await made.close()


@pytest.fixture
def vendor(_vendor: Vendor) -> Iterator[Vendor]:
    """The vendor: healthy, nobody waits, no records."""
    _vendor.healthy()
    yield _vendor
    _vendor.healthy()


@pytest.fixture(scope="session")
def _redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


# Not for the session: idle processes take time too, and many other tests come after.
@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def _pair(_vendor: Vendor, clients: Clients, _redis: RedisServer) -> AsyncIterator[Rig]:
    async with rig(_vendor, clients, _redis, replicas=2) as made:
        yield made


@pytest.fixture
def pair(_pair: Rig, vendor: Vendor) -> Rig:
    """Two replicas of one worker each before one healthy Redis, for tests that break neither."""
    return _pair
