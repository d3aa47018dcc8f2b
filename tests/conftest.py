"""Fixtures that every kind of test may ask for; whatever needs options is made in the test itself, with `with`."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.reliability_page import NAMED
from tests.support.redis_server import RedisServer

# A slow machine is no failure; pytest-timeout ends what hangs.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", action="store_true", help="only the tests named after a promise, the slow ones too")


@pytest.hookimpl(optionalhook=True)  # without xdist nobody asks
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a test waits for processes and clocks for more than half of its time."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--rows"):
        config.option.markexpr = ""  # of pyproject.toml, which leaves out the slow ones


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--rows"):
        left_out = [item for item in items if not NAMED.match(item.name)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if NAMED.match(item.name)]


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
