"""Settings that only make sense together; upstreams, listeners and TLS."""

import dataclasses
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from proxy.core.upstream import Endpoint, Upstream
from proxy.settings.conflicts import conflicts
from proxy.settings.load import checked, load
from proxy.settings.types import is_loopback
from tests.support.certificate import made_certificate
from tests.support.configuration import HOME, empty_config, mistakes, operator_mistakes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration folder of its own: all files there, all empty."""
    return empty_config(tmp_path)


# --- settings that only make sense together ---


@pytest.mark.parametrize("address", ["0.0.0.0:9180", "[::]:9180", "10.0.0.1:9180", "admin.internal:9180"])
def test_an_exposed_admin_listener_needs_a_token(address: str, folder: Path) -> None:
    (found,) = mistakes({"DASHCACHE_ADMIN_LISTEN": address}, folder)
    assert found.startswith(f"DASHCACHE_ADMIN_LISTEN: {address} can be reached from outside and no token is set; ")
    load(HOME | {"DASHCACHE_ADMIN_LISTEN": address, "DASHCACHE_ADMIN_TOKEN": "t"}, folder)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.8.0.1:1", "[::1]:9180", "localhost:9180"])
def test_a_loopback_admin_listener_needs_none(address: str, folder: Path) -> None:
    assert is_loopback(load(HOME | {"DASHCACHE_ADMIN_LISTEN": address}, folder).listen.admin)


def test_an_empty_token_is_none(folder: Path) -> None:
    found = operator_mistakes('[listen]\nadmin = "0.0.0.0:1"\nadmin_token = ""', folder)
    assert found == ["listen.admin_token: cannot be used; allowed: text that is not empty"]


@pytest.mark.parametrize(
    ("http", "admin", "clash"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        ("localhost:80", "127.0.0.1:80", True),
        ("127.0.0.1:80", "127.0.0.2:80", False),
        ("127.0.0.1:80", "127.0.0.1:81", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_listeners_that_share_a_port(http: str, admin: str, clash: bool) -> None:
    settings = checked({"listen": {"http": http, "admin": admin}})
    assert bool(conflicts(settings)) is clash


def test_upstreams_that_contradict_each_other(folder: Path) -> None:
    text = """
        [[upstreams]]
        name = "one"
        url = "us"
        hosts = ["A.internal"]
        [[upstreams]]
        name = "one"
        url = "us"
        hosts = ["a.internal"]
        [[upstreams]]
        name = "dashscope"
        url = "us"
        listen = "127.0.0.1:8080"
        [[upstreams]]
        name = "idle"
        url = "us"
    """
    assert operator_mistakes(text, folder) == [
        "upstreams: the name dashscope is taken twice (dashscope_url has it); allowed: a name for each",
        "upstreams: the name one is taken twice; allowed: a name for each",
        "upstreams: the host a.internal is claimed twice; allowed: each host once",
        "upstreams: nothing selects idle; allowed: hosts, listen, or both",
        "upstreams: listen.http (127.0.0.1:8080) and upstream dashscope (127.0.0.1:8080) share a port; allowed: two",
    ]


def test_vector_upstreams_that_contradict(folder: Path) -> None:
    text = """
        dashvector_url = "https://one"
        [listen]
        grpc = "0.0.0.0:1"
        [[upstreams]]
        name = "dashvector"
        vendor = "dashvector"
        url = "https://two"
        grpc_listen = "127.0.0.1:1"
        [[upstreams]]
        name = "idle"
        vendor = "dashvector"
        url = "https://three"
        [[upstreams]]
        name = "preset"
        vendor = "dashvector"
        url = "china"
        hosts = ["a"]
        [[upstreams]]
        name = "scope"
        url = "china"
        hosts = ["b"]
        grpc_url = "https://four"
        grpc_listen = "127.0.0.1:50051"
    """
    assert operator_mistakes(text, folder) == [
        "upstreams: the name dashvector is taken twice (dashvector_url has it); allowed: a name for each",
        "upstreams: nothing selects idle; allowed: hosts, listen, grpc_listen, or several",
        "upstreams: the url of preset is one of DashScope's presets; allowed for DashVector: http(s)://host[:port]",
        "upstreams: scope has a grpc_url, but DashScope speaks no gRPC; allowed: with vendor = dashvector",
        "upstreams: scope has a grpc_listen, but DashScope speaks no gRPC; allowed: with vendor = dashvector",
        "listen.grpc: listen.grpc (0.0.0.0:1) and gRPC of upstream dashvector (127.0.0.1:1) share a port; allowed: two",
    ]


def test_the_name_dashvector_is_free_without_a_dashvector_url() -> None:
    rule = {"name": "dashvector", "vendor": "dashvector", "url": "https://two", "listen": "127.0.0.1:1"}
    assert conflicts(checked({"upstreams": [rule]})) == []


def test_a_grpc_url_needs_the_clusters_url(folder: Path) -> None:
    (found,) = mistakes({"DASHCACHE_DASHVECTOR_GRPC_URL": "https://one"}, folder)
    assert found.startswith("DASHCACHE_DASHVECTOR_GRPC_URL: is of no use without the cluster's URL; allowed: ")


def test_a_mode_for_writes_is_refused(folder: Path) -> None:
    (found,) = operator_mistakes('[start.operations]\nvector-write = "bypass"', folder)
    assert found.startswith("start.operations.vector-write: has no mode: a write is always forwarded, and makes ")


@pytest.mark.parametrize(
    ("environ", "places"),
    [
        ({"DASHCACHE_GRPC_LISTEN": "127.0.0.1:8080"}, []),  # not opened
        ({"DASHCACHE_GRPC_LISTEN": "127.0.0.1:8080", "DASHCACHE_DASHVECTOR_URL": "https://h"}, ["GRPC"]),
        ({"DASHCACHE_GRPC_LISTEN": "127.0.0.1:9180", "DASHCACHE_DASHVECTOR_URL": "https://h"}, ["GRPC"]),
        ({"DASHCACHE_HTTPS_LISTEN": "127.0.0.1:9180"}, ["HTTPS"]),
        ({"DASHCACHE_HTTPS_LISTEN": "127.0.0.1:1", "DASHCACHE_GRPCS_LISTEN": "127.0.0.1:1"}, []),  # the latter is not
        (
            {
                "DASHCACHE_HTTPS_LISTEN": "127.0.0.1:1",
                "DASHCACHE_GRPCS_LISTEN": "127.0.0.1:1",
                "DASHCACHE_DASHVECTOR_URL": "https://h",
            },
            ["HTTPS"],
        ),
    ],
)
def test_only_listeners_that_are_opened_can_clash(
    environ: dict[str, str], places: list[str], folder: Path, pem: tuple[Path, Path]
) -> None:
    environ = environ | {"DASHCACHE_TLS_CERTIFICATE": str(pem[0]), "DASHCACHE_TLS_KEY": str(pem[1])}
    if places:
        found = mistakes(environ, folder)
        assert [line.split("_")[1] for line in found] == places
        assert all("share a port" in line for line in found)
    else:
        load(HOME | environ, folder)


# --- TLS ---

LONE = "TLS needs a certificate and its key; allowed: DASHCACHE_TLS_CERTIFICATE and DASHCACHE_TLS_KEY together"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key."""
    return made_certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize(
    ("stated", "place"),
    [
        ({"DASHCACHE_HTTPS_LISTEN": "127.0.0.1:1"}, "DASHCACHE_HTTPS_LISTEN"),
        ({"DASHCACHE_GRPCS_LISTEN": "127.0.0.1:1"}, "DASHCACHE_GRPCS_LISTEN"),
        ({"DASHCACHE_HTTPS_LISTEN": "127.0.0.1:1", "DASHCACHE_TLS_KEY": "key"}, "DASHCACHE_TLS_KEY"),
        ({"DASHCACHE_TLS_CERTIFICATE": "crt"}, "DASHCACHE_TLS_CERTIFICATE"),
        ({"DASHCACHE_TLS_KEY": "key"}, "DASHCACHE_TLS_KEY"),
    ],
)
def test_tls_needs_both_files(stated: dict[str, str], place: str, folder: Path) -> None:
    assert mistakes(stated, folder) == [f"{place}: {LONE}"]


def test_tls_files_are_tried(folder: Path, pem: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    certificate, key = pem
    _, strange = made_certificate(tmp_path_factory.mktemp("other"))
    locked = folder / "locked.pem"
    locked.write_bytes(_with_passphrase(key))
    missing = folder / "missing"
    unusable = "are not a certificate and its key; allowed: PEM, the key without a passphrase"
    for files, fault in (
        ((missing, key), f"{missing} cannot be read: No such file or directory; allowed: a PEM file"),
        ((certificate, folder), f"{folder} cannot be read: Is a directory; allowed: a PEM file"),
        ((certificate, strange), f"{certificate} and {strange} {unusable}"),
        ((certificate, locked), f"{certificate} and {locked} {unusable}"),
        ((key, key), f"{key} and {key} {unusable}"),
    ):
        environ = {"DASHCACHE_TLS_CERTIFICATE": str(files[0]), "DASHCACHE_TLS_KEY": str(files[1])}
        assert mistakes(environ, folder) == [f"DASHCACHE_TLS_CERTIFICATE: {fault}"]
    environ = {"DASHCACHE_TLS_CERTIFICATE": str(certificate), "DASHCACHE_TLS_KEY": str(key)}
    load(HOME | environ | {"DASHCACHE_HTTPS_LISTEN": "127.0.0.1:1"}, folder)


def _with_passphrase(key: Path) -> bytes:
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    form = serialization.PrivateFormat.PKCS8
    return loaded.private_bytes(serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"pass"))


# --- upstreams ---


def test_all_upstreams_begin_with_the_default_one() -> None:
    rule = {"name": "sgp", "url": "international", "hosts": ["SGP.internal"], "listen": "127.0.0.1:8081"}
    settings = checked({"dashscope_url": "http://127.0.0.1:9000", "upstreams": [rule]})
    assert conflicts(settings) == []
    assert settings.all_upstreams() == (
        Upstream("dashscope", "dashscope", "http", "127.0.0.1", 9000),
        Upstream("sgp", "dashscope", "https", "dashscope-intl.aliyuncs.com", 443, ("sgp.internal",), "127.0.0.1:8081"),
    )


def test_a_vector_cluster_comes_second_with_its_two_endpoints() -> None:
    host = "vrs-1.dashvector.example"
    settings = checked(
        {
            "dashvector_url": f"https://{host}",
            "upstreams": [
                {
                    "name": "further",
                    "vendor": "dashvector",
                    "url": "http://plain:9000",
                    "hosts": ["ours.internal"],
                    "listen": "127.0.0.1:1",
                    "grpc_listen": "127.0.0.1:2",
                },
                {"name": "apart", "vendor": "dashvector", "url": "http://h", "grpc_url": "https://g:1", "hosts": ["i"]},
            ],
        }
    )
    assert conflicts(settings) == []
    _, first, further, apart = settings.all_upstreams()
    assert first == Upstream(
        "dashvector", "dashvector", "https", host, 443, hosts=(host,), grpc=Endpoint("https", host, 443)
    )
    assert (further.origin, further.authority) == ("http://plain:9000", "plain:9000")
    assert further.grpc == Endpoint("http", "plain", 443)
    assert further.grpc.origin == "http://plain:443"
    assert (further.hosts, further.listen, further.grpc_listen) == (
        ("ours.internal", "plain"),
        "127.0.0.1:1",
        "127.0.0.1:2",
    )
    assert (apart.origin, apart.grpc) == ("http://h", Endpoint("https", "g", 1))


@pytest.mark.parametrize(
    ("url", "others", "hosts"),
    [
        ("https://cluster.example", {}, ("cluster.example",)),
        ("https://127.0.0.1:9000", {}, ()),
        ("https://[::1]:9000", {}, ()),
        ("http://localhost:9000", {}, ()),
        ("http://proxy.internal:9000", {"listen": {"http": "proxy.internal:8080"}}, ()),
        ("http://vendor.example:1", {"dashscope_url": "http://vendor.example:2"}, ()),
        (
            "https://cluster.example",
            {"upstreams": [{"name": "a", "url": "us", "hosts": ["cluster.example"]}]},
            (),
        ),
    ],
)
def test_a_vendors_own_name_leads_to_it_if_it_can_mean_nothing_else(
    url: str, others: dict[str, object], hosts: tuple[str, ...]
) -> None:
    settings = checked({"dashvector_url": url, **others})
    assert settings.all_upstreams()[1].hosts == hosts
    assert settings.all_upstreams()[0].hosts == ()


def test_listeners_are_those_that_are_opened() -> None:
    tls = {"https": "127.0.0.1:2", "grpcs": "127.0.0.1:4"}
    listen = {"http": "127.0.0.1:1", "grpc": "127.0.0.1:3", **tls}
    cluster = {"name": "b", "vendor": "dashvector", "url": "https://b", "listen": "127.0.0.1:5"}
    rules = [cluster | {"grpc_listen": "127.0.0.1:6"}, {"name": "c", "url": "us", "hosts": ["c"]}]
    settings = checked({"listen": listen, "upstreams": rules})
    rules_own = [("http", "b", "127.0.0.1:5"), ("grpc", "b", "127.0.0.1:6")]
    http = [("http", "", "127.0.0.1:1"), ("https", "", "127.0.0.1:2")]
    assert [tuple(listener[:3]) for listener in settings.listeners()] == [*http, *rules_own]
    settings = dataclasses.replace(settings, dashvector_url="https://a")
    grpc = [("grpc", "dashvector", "127.0.0.1:3"), ("grpcs", "dashvector", "127.0.0.1:4")]
    assert [tuple(listener[:3]) for listener in settings.listeners()] == [*http, *grpc, *rules_own]
