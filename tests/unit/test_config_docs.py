"""
Configuration files, ``docs/settings.md`` and what ``dashcache check`` prints say what the sections of settings say.

Run as a program (``python tests/unit/test_config_docs.py``), it writes the tables of ``docs/settings.md`` anew.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))  # for the run as a program

from proxy.core.upstream import PRESETS, Upstream, split_base_url, split_vector_url  # noqa: E402
from proxy.settings.explain import explain  # noqa: E402
from proxy.settings.load import (  # noqa: E402
    CONTROL_NAMES,
    Leaf,
    allowed,
    dotted,
    environment_names,
    leaves,
    load,
    load_with_sources,
)
from proxy.settings.model import Section, Settings  # noqa: E402
from tests.support.redis_server import find_redis_programs  # noqa: E402

CONFIG = ROOT / "config"
PAGE = ROOT / "docs" / "settings.md"
MARK = "<!-- Written by tests/unit/test_config_docs.py from proxy/settings/model.py. Change the texts there. -->\n"
UNITS = {"_s": " seconds", "_ms": " milliseconds", "_bytes": " bytes"}
CANARY = "canary-4711-of-the-settings"
HOME = {"HOME": "/home/somebody"}
PROFILES = ("development", "staging", "production")


@functools.cache
def descriptions() -> dict[tuple[str, str], str]:
    """By section and field, the text under each field; Python itself throws these away."""
    found = {}
    for section in ast.parse((ROOT / "proxy" / "settings/model.py").read_text()).body:
        for field, below in itertools.pairwise(getattr(section, "body", ())):
            match field, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    found[section.name, name] = inspect.cleandoc(text)
    return found


def settings_table() -> str:
    """Every setting as Markdown: one table per section, in the order of the sections."""
    sections: dict[str, list[str]] = {}
    for leaf in leaves():
        section = leaf.path[0] if len(leaf.path) > 1 else "General"
        sections.setdefault(section, []).append(_row(leaf))
    head = "| name | environment variable | unit, default | what and why |\n|---|---|---|---|\n"
    return "\n".join(
        f"## {name}\n\n{_about(name)}\n\n{head}" + "\n".join(rows) + "\n" for name, rows in sections.items()
    )


def _about(section: str) -> str:
    if section == "General":
        return "What holds for the whole proxy; in TOML before the first section."
    kind = next(field.type for field in dataclasses.fields(Settings) if field.name == section)
    if isinstance(kind, type) and issubclass(kind, Section):
        return kind.__doc__
    written = {"models": '`[models."text-embedding-v4"]`: ', "upstreams": "`[[upstreams]]`, as many as needed: "}
    texts = {
        "models": "what an operator knows better about one model.",
        "upstreams": "a vendor's host, chosen by listener or by the Host asked for. What none claims goes to "
        "`dashscope_url`, the upstream named `dashscope`.",
    }
    return written[section] + texts[section]


def _row(leaf: Leaf) -> str:
    words = [_default(leaf)]
    if not leaf.is_secret and (limits := allowed(leaf)).startswith(("one of", "a whole number,", "a number,")):
        words.append(limits.removeprefix("a whole number, ").removeprefix("a number, "))
    name = dotted(leaf.path).replace("models.*", "models.<model>").replace("upstreams.*", "upstreams[]")
    environment = f"`{leaf.environment}`" if leaf.environment else "TOML only"
    what = descriptions()[leaf.section.__name__, leaf.field.name].replace("``", "`").replace("\n", " ")
    return f"| `{name}` | {environment} | {'; '.join(words)} | {what} |"


def _default(leaf: Leaf) -> str:
    default = _stated_default(leaf)
    if default is dataclasses.MISSING:
        return "required"
    if leaf.path == ("data_dir",):
        return "`~/.local/state/dashcache`"
    if default in (None, (), {}):
        return "none"
    if isinstance(default, tuple):
        return f"`{', '.join(default)}`"
    unit = next((text for ending, text in UNITS.items() if leaf.path[-1].endswith(ending)), "")
    shown = str(default).lower() if isinstance(default, bool) else f"{default:.10g}" if unit else str(default)
    return f"`{shown}`{unit}"


def _stated_default(leaf: Leaf) -> object:
    field = leaf.field
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _flat(table: dict, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _plain_leaves() -> list[Leaf]:
    return [leaf for leaf in leaves() if "*" not in leaf.path]


def test_default_toml_states_the_models_defaults() -> None:
    stated = dict(_flat(tomllib.loads((CONFIG / "default.toml").read_text())))
    for leaf in _plain_leaves():
        default = _stated_default(leaf)
        if default is None or leaf.path == ("data_dir",):
            assert leaf.path not in stated
        else:
            assert stated.pop(leaf.path) == (list(default) if isinstance(default, tuple) else default), leaf.path
    assert stated == {}


def test_default_toml_names_every_setting_and_says_a_word_on_each() -> None:
    text = (CONFIG / "default.toml").read_text()
    for leaf in leaves():
        assert re.search(rf"^(# )?{leaf.path[-1]} = .*\S +# \S", text, re.MULTILINE), leaf.path


def test_default_toml_loads_to_the_defaults() -> None:
    environ = {"HOME": "/home/somebody", "DASHCACHE_CONFIG_DIR": str(CONFIG)}
    assert load(environ) == Settings(data_dir=Path("/home/somebody/.local/state/dashcache"))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_loads(profile: str) -> None:
    loaded = load_with_sources({"HOME": "/", "DASHCACHE_PROFILE": profile}, CONFIG)
    assert loaded.settings.profile == profile
    assert f"{profile}.toml" in loaded.sources.values()
    assert loaded.warnings == ()


def test_development_keeps_entries_for_5_to_10_minutes() -> None:
    lifetimes = load({"HOME": "/", "DASHCACHE_PROFILE": "development"}, CONFIG).lifetimes
    for lifetime_s in (lifetimes.embedding_s, lifetimes.vector_query_s, lifetimes.vector_stats_s):
        assert lifetime_s * (1 - lifetimes.jitter) >= 300
        assert lifetime_s * (1 + lifetimes.jitter) <= 600


def test_every_setting_says_what_it_is() -> None:
    assert [leaf.path for leaf in leaves() if not descriptions().get((leaf.section.__name__, leaf.field.name))] == []


def test_the_page_is_in_step() -> None:
    """If this fails: ``python tests/unit/test_config_docs.py`` writes the tables anew."""
    assert PAGE.read_text().partition(MARK)[2] == "\n" + settings_table()


def test_the_page_lists_every_name() -> None:
    page = PAGE.read_text()
    for name in (*environment_names(), *CONTROL_NAMES):
        assert f"`{name}`" in page
    for leaf in _plain_leaves():
        assert f"`{dotted(leaf.path)}`" in page


def _redis_conf() -> dict[str, str]:
    lines = (CONFIG / "redis.conf").read_text().splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))


def test_redis_conf_has_the_promised_values() -> None:
    conf = _redis_conf()
    promised = {"port": "0", "maxmemory": "256mb", "maxmemory-policy": "allkeys-lru", "save": "60 1000"}
    assert conf | promised | {"appendonly": "no"} == conf


def test_a_server_comes_along() -> None:
    assert find_redis_programs()


@pytest.mark.parametrize("program", find_redis_programs())
def test_redis_conf_loads(program: str, tmp_path: Path) -> None:
    """The server starts with it, on a Unix socket only, and says so; it is told to end over that socket."""
    redis = pytest.importorskip("redis")
    address = tmp_path / "r.sock"
    command = [program, str(CONFIG / "redis.conf"), "--unixsocket", str(address), "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        try:
            with redis.Redis(
                unix_socket_path=str(address), retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.05), 200)
            ) as client:
                assert client.ping()
                assert client.config_get("port") == {"port": "0"}
                assert client.config_get("maxmemory") == {"maxmemory": str(256 * 2**20)}
                assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
                assert client.config_get("save") == {"save": "60 1000"}
                assert address.stat().st_mode & 0o077 == 0
        finally:
            server.terminate()


def test_the_fixed_names_are_known() -> None:
    names = environment_names()
    assert names["DASHCACHE_HTTP_LISTEN"] == ("listen", "http")
    assert names["DASHCACHE_HTTPS_LISTEN"] == ("listen", "https")
    assert names["DASHCACHE_GRPC_LISTEN"] == ("listen", "grpc")
    assert names["DASHCACHE_GRPCS_LISTEN"] == ("listen", "grpcs")
    assert names["DASHCACHE_TLS_CERTIFICATE"] == ("listen", "certificate")
    assert names["DASHCACHE_TLS_KEY"] == ("listen", "key")
    assert names["DASHCACHE_ADMIN_LISTEN"] == ("listen", "admin")
    assert names["DASHCACHE_ADMIN_TOKEN"] == ("listen", "admin_token")
    assert names["REDIS_URL"] == ("redis", "url")
    for name in (
        "dashscope_url",
        "dashvector_url",
        "dashvector_grpc_url",
        "profile",
        "workers",
        "key_secret",
        "data_dir",
    ):
        assert names[f"DASHCACHE_{name.upper()}"] == (name,)


def test_every_setting_that_fits_a_line_has_one_name_of_its_own() -> None:
    names = [leaf.environment for leaf in leaves() if leaf.environment]
    assert len(names) == len(set(names))
    assert [leaf.path for leaf in leaves() if not leaf.environment and "*" not in leaf.path] == [
        ("start", "operations")
    ]
    for name in ("REDIS_DEADLINE_MS", "BREAKER_RESET_S", "LIFETIMES_EMBEDDING_S", "START_MODE", "CACHE_STATUS_ON_PASS"):
        assert f"DASHCACHE_{name}" in names


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        *PRESETS.items(),
        ("workspace:WS-1a.cn-beijing", "https://ws-1a.cn-beijing.maas.aliyuncs.com"),
        ("https://Host", "https://host"),
        ("https://host/", "https://host"),
        ("https://host:443", "https://host"),
        ("https://host:8443", "https://host:8443"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("http://host:80", "http://host"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_base_urls_and_presets(text: str, origin: str) -> None:
    assert Upstream("u", "dashscope", *split_base_url(text)).origin == origin


def test_the_presets_are_the_vendors_hosts_and_on_the_page() -> None:
    page = PAGE.read_text()
    assert [
        name for name, url in PRESETS.items() if f"| `{name}` | `{url.removeprefix('https://')}` |" not in page
    ] == []
    assert PRESETS == {
        "china": "https://dashscope.aliyuncs.com",
        "international": "https://dashscope-intl.aliyuncs.com",
        "us": "https://dashscope-us.aliyuncs.com",
        "hongkong": "https://cn-hongkong.dashscope.aliyuncs.com",
        "finance": "https://dashscope-finance.aliyuncs.com",
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("https://host/api/v1", "leave out /api/v1: the client's path is forwarded as it is"),
        ("https://host?a=1", "leave out the query"),
        ("https://host#a", "leave out the fragment"),
        ("https://user@host", "leave out the user info"),
        ("ftp://host", "the scheme must be http or https"),
        ("https://", "the host or the port is not valid"),
        ("https://ho st", "the host or the port is not valid"),
        ("https://host\n", "the host or the port is not valid"),
        ("https://host\\@other", "leave out the user info"),
        ("https://host:0", "the port must be from 1 to 65535"),
        ("https://host:99999", "the port must be from 1 to 65535"),
        ("https://[1:2]", "what stands in brackets is not an IPv6 address"),
        ("https://[", "not a URL"),
        ("chna", "neither a URL nor a preset (nearest: china)"),
        ("", "neither a URL nor a preset; allowed: http(s)://host[:port], or a preset: china, international"),
        ("workspace:one.two.three", "neither a URL nor a preset"),
    ],
)
def test_what_is_no_base_url(text: str, fault: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is compared below
        split_base_url(text)
    assert str(refused.value).startswith(fault)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("china", "not a URL; allowed: http(s)://host[:port]"),
        ("workspace:ws.cn-beijing", "not a URL; allowed: http(s)://host[:port]"),
        ("vrs-1.dashvector.example", "not a URL; allowed: http(s)://host[:port]"),
        ("ftp://host", "the scheme must be http or https; allowed: http(s)://host[:port]"),
        ("https://host:0", "the port must be from 1 to 65535"),
    ],
)
def test_what_is_no_url_of_a_vector_cluster(text: str, fault: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is compared below
        split_vector_url(text)
    assert str(refused.value) == fault


def test_explain_shows_each_value_and_its_source(tmp_path: Path) -> None:
    (tmp_path / "default.toml").write_text("workers = 2\n[models.m]\nttl_s = 60.0\nbatch_cap = 5")
    (tmp_path / "production.toml").write_text('[start.operations]\nembedding = "shadow"')
    (tmp_path / "mine.toml").write_text('[[upstreams]]\nname = "us"\nurl = "us"\nhosts = ["us.internal"]')
    environ = {"DASHCACHE_CONFIG": str(tmp_path / "mine.toml"), "DASHCACHE_LOG_LEVEL": "error"}
    loaded = load_with_sources(HOME | environ, tmp_path)
    lines = [" ".join(line.split()) for line in explain(loaded.settings, loaded.sources, "(not set)").splitlines()]
    for line in (
        "workers 2 default.toml",
        "data_dir /home/somebody/.local/state/dashcache default",
        "deadline_ms 50 default",
        "requests true default",
        "level error environment DASHCACHE_LOG_LEVEL",
        "operations embedding = shadow production.toml",
        "ignore_headers (none) default",
        "m.ttl_s 60.0 default.toml",
        "m.batch_cap 5 default.toml",
        "dashscope https://dashscope.aliyuncs.com for whatever no other claims default",
        f"us https://dashscope-us.aliyuncs.com for us.internal {tmp_path}/mine.toml",
    ):
        assert line in lines
    assert [line for line in lines if line and " " not in line] == [
        *("general", "listen", "redis", "breaker", "upstream", "limits", "flights", "grace", "negative"),
        *("batching", "memory", "lifetimes", "vector", "identity"),
        *("start", "log", "models", "upstreams"),
    ]


def test_explain_shows_both_protocols_of_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "default.toml").touch()
    rule = '[[upstreams]]\nname = "b"\nvendor = "dashvector"\nurl = "http://b:80"\n'
    (tmp_path / "production.toml").write_text(rule + 'listen = "127.0.0.1:1"\ngrpc_listen = "127.0.0.1:2"')
    loaded = load_with_sources(HOME | {"DASHCACHE_DASHVECTOR_URL": "https://a"}, tmp_path)
    lines = [" ".join(line.split()) for line in explain(loaded.settings, loaded.sources, "(not set)").splitlines()]
    for line in (
        "dashvector gRPC https://a for 127.0.0.1:50051 environment DASHCACHE_DASHVECTOR_URL",
        "b http://b for b, 127.0.0.1:1 production.toml",
        "b gRPC http://b:443 for 127.0.0.1:2 production.toml",
    ):
        assert line in lines


def test_explain_takes_a_model_of_which_nothing_is_said(tmp_path: Path) -> None:
    for name in ("default", "production"):
        (tmp_path / f"{name}.toml").write_text("[models.m]" if name == "default" else "")
    loaded = load_with_sources(HOME, tmp_path)
    assert "\nmodels\n" in explain(loaded.settings, loaded.sources, "(not set)")


def test_explain_hides_secrets(tmp_path: Path) -> None:
    for name in ("default", "production"):
        (tmp_path / f"{name}.toml").touch()
    secrets = {
        "REDIS_URL": f"redis://:{CANARY}@host",
        "DASHCACHE_ADMIN_TOKEN": CANARY,
        "DASHCACHE_KEY_SECRET": CANARY,
    }
    loaded = load_with_sources(HOME | secrets, tmp_path)
    text = explain(loaded.settings, loaded.sources, "(not set)")
    assert CANARY not in text
    assert CANARY not in repr(loaded)
    assert text.count("(set)") == 3
    bare = load_with_sources(HOME, tmp_path)
    assert explain(bare.settings, bare.sources, "(not set)").count("(not set)") == 3


if __name__ == "__main__":
    before, mark, _ = PAGE.read_text().partition(MARK)
    PAGE.write_text(f"{before}{mark}\n{settings_table()}")
