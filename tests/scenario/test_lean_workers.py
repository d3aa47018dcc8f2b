"""What a worker does without is not loaded: each MiB is one for every core."""

from pathlib import Path

import pytest

from tests.support.proxy_process import ProxyProcess


def _libraries(pid: int) -> set[str]:
    """The folders of the compiled libraries that a process has loaded: ``numpy``, ``grpc``, ``pydantic_core``."""
    paths = (line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    _, _, packages = zip(*(path.partition("/site-packages/") for path in paths), strict=True)
    return {package.partition("/")[0] for package in packages}


@pytest.mark.parametrize(("url", "has_grpc"), [(None, False), ("https://cluster.example", True)])
def test_a_worker_has_no_pydantic_and_grpc_only_for_its_ports(url: str | None, has_grpc: bool) -> None:
    with ProxyProcess(dashvector_url=url) as proxy:
        (pid,) = proxy.worker_pids()
        loaded = _libraries(pid)
        assert "pydantic_core" in _libraries(proxy.pid)  # so it can be seen here
        assert "pydantic_core" not in loaded
        assert "numpy" in loaded
        assert "numpy" not in _libraries(proxy.pid)  # the supervisor reads no vectors
        assert ("grpc" in loaded) is has_grpc
