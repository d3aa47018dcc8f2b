"""``dashcache check`` warns of an upstream that is the proxy itself; the settings are good all the same."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli import main
from proxy.settings.circles import circles
from proxy.settings.load import load
from tests.support.configuration import HOME, empty_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return empty_config(tmp_path)


NAMES = {"vendor.test": frozenset({"203.0.113.1"}), "hosts.test": frozenset({"127.0.0.1"})}


def addresses_of(host: str) -> frozenset[str]:
    return NAMES.get(host, frozenset({"127.0.0.1", "::1"} if host == "localhost" else {host}))


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("127.0.0.1:8080", "http://localhost:8080"),
        ("localhost:8080", "http://127.0.0.1:8080"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("0.0.0.0:80", "http://127.0.0.2"),
        ("127.0.0.1:443", "https://hosts.test"),
    ],
)
def test_r20_an_upstream_that_is_the_proxy_itself_is_warned_of(listen: str, url: str, folder: Path) -> None:
    settings = load(HOME | {"DASHCACHE_HTTP_LISTEN": listen, "DASHCACHE_DASHSCOPE_URL": url}, folder)
    (warning,) = circles(settings, addresses_of)
    assert warning.startswith("dashscope leads back to this proxy: ")
    assert f"is listen.http ({listen})" in warning


def test_r20_a_grpc_upstream_that_is_the_proxy_itself_is_warned_of(folder: Path) -> None:
    stated = {
        "DASHCACHE_DASHVECTOR_URL": "http://127.0.0.1:9",
        "DASHCACHE_DASHVECTOR_GRPC_URL": "http://127.0.0.1:50051",
    }
    (warning,) = circles(load(HOME | stated, folder), addresses_of)
    assert warning.startswith("dashvector leads back to this proxy: 127.0.0.1:50051 is listen.grpc (127.0.0.1:50051)")


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8081"),
        ("0.0.0.0:8080", "http://vendor.test:8080"),
        ("0.0.0.0:8080", "http://203.0.113.1:8080"),
        ("127.0.0.1:0", "http://127.0.0.1:80"),
    ],
)
def test_another_port_or_another_machine_is_another_server(listen: str, url: str, folder: Path) -> None:
    settings = load(HOME | {"DASHCACHE_HTTP_LISTEN": listen, "DASHCACHE_DASHSCOPE_URL": url}, folder)
    assert not list(circles(settings, addresses_of))


def test_check_tells(folder: Path) -> None:
    stated = HOME | {"DASHCACHE_HTTP_LISTEN": "127.0.0.1:8080", "DASHCACHE_DASHSCOPE_URL": "http://localhost:8080"}
    result = CliRunner().invoke(main, ["check"], env={**stated, "DASHCACHE_CONFIG_DIR": str(folder)})
    assert result.exit_code == 0
    assert "warning: dashscope leads back to this proxy" in result.output
