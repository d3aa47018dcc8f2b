"""One simulator per test process: every test finds it healthy, fast and without records."""

from collections.abc import Iterator

import pytest

from tests.vendor_sim import ProcessSim, sim_process

_HEALTHY = {"records": True, "latency_ms": 0.0, "jitter_ms": 0.0, "capacity": None}


@pytest.fixture(scope="session")
def _sim_process() -> Iterator[ProcessSim]:
    with sim_process() as sim:
        yield sim


@pytest.fixture
def sim(_sim_process: ProcessSim) -> ProcessSim:
    """The vendor, in a process of its own so that load here does not slow it."""
    _sim_process.reset()
    _sim_process.configure(**_HEALTHY)
    return _sim_process
