"""Fixtures that every kind of test may ask for; whatever needs options is made in the test itself, with `with`."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.redis_server import RedisServer

# A slow machine is no failure; pytest-timeout ends what hangs.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of the test's own: empty, nothing persistent, gone afterwards whatever the test did to it."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty folder with a short path: a Unix socket in it must stay below 108 bytes, which tmp_path may not."""
    folder = Path(tempfile.mkdtemp(prefix="dashcache-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
