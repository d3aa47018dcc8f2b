"""Settings: their layers, the environment, and the mistakes that are refused."""

from pathlib import Path

import pytest

from proxy.core.modes import Mode
from proxy.settings.load import config_folder, environment_names, load, load_with_sources
from proxy.settings.types import split_address
from tests.support.configuration import HOME, empty_config, mistakes, operator_mistakes

UNSUPPORTED = (
    " is not supported; allowed: "
    "db, ssl_ca_certs, ssl_ca_path, ssl_cert_reqs, ssl_certfile, ssl_check_hostname, ssl_keyfile, ssl_min_version"
)
CANARY = "canary-4711"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration folder of its own: all files there, all empty."""
    return empty_config(tmp_path)


# --- layers ---


def test_later_layers_win(folder: Path) -> None:
    (folder / "default.toml").write_text(
        "workers = 1\n[redis]\ndeadline_ms = 1\nmax_connections = 4\n[breaker]\nfail_max = 1"
    )
    (folder / "production.toml").write_text("[redis]\ndeadline_ms = 2\nmax_connections = 5\n[breaker]\nfail_max = 2")
    (folder / "mine.toml").write_text("[redis]\ndeadline_ms = 3\n[breaker]\nfail_max = 3")
    environ = {"DASHCACHE_CONFIG": str(folder / "mine.toml"), "DASHCACHE_BREAKER_FAIL_MAX": "4"}
    loaded = load_with_sources(HOME | environ, folder)
    settings = loaded.settings
    assert (settings.workers, settings.redis.max_connections) == (1, 5)
    assert (settings.redis.deadline_ms, settings.breaker.fail_max) == (3, 4)
    assert loaded.sources["workers",] == "default.toml"
    assert loaded.sources["redis", "max_connections"] == "production.toml"
    assert loaded.sources["redis", "deadline_ms"] == str(folder / "mine.toml")
    assert loaded.sources["breaker", "fail_max"] == "environment DASHCACHE_BREAKER_FAIL_MAX"


def test_the_profile_is_the_environments_then_the_default_files_then_production(folder: Path) -> None:
    assert load(HOME, folder).profile == "production"
    (folder / "default.toml").write_text('profile = "staging"')
    (folder / "staging.toml").write_text("workers = 7")
    assert load(HOME, folder).workers == 7
    assert load(HOME | {"DASHCACHE_PROFILE": "development"}, folder).workers == 0


def test_a_file_read_after_the_profile_was_chosen_cannot_choose_another(folder: Path) -> None:
    found = operator_mistakes('profile = "staging"', folder)
    assert found == ["profile: cannot be chosen here; allowed: default.toml or DASHCACHE_PROFILE"]


def test_tables_join_and_lists_replace(folder: Path) -> None:
    (folder / "default.toml").write_text('[models.a]\nttl_s = 1\n[identity]\nignore_headers = ["x-a"]')
    (folder / "production.toml").write_text('[models.b]\nttl_s = 2\n[identity]\nignore_headers = ["x-b"]')
    settings = load(HOME, folder)
    assert list(settings.models) == ["a", "b"]
    assert settings.identity.ignore_headers == ("x-b",)


def test_the_config_folder_is_the_stated_one_else_the_repositorys(tmp_path: Path) -> None:
    assert config_folder({"DASHCACHE_CONFIG_DIR": str(tmp_path)}) == tmp_path
    assert (config_folder({}) / "default.toml").is_file()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/h"}, "/h/.local/state/dashcache"),
        ({"HOME": "/h", "XDG_STATE_HOME": "/state"}, "/state/dashcache"),
        ({"HOME": "/h", "DASHCACHE_DATA_DIR": "/data"}, "/data"),
    ],
)
def test_data_folder(environ: dict[str, str], expected: str, folder: Path) -> None:
    assert load(environ, folder).data_dir == Path(expected)


def test_no_home_folder_is_said_together_with_the_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    found = mistakes({"HOME": "", "DASHCACHE_WORKERS": "x"}, folder)
    assert [line.partition(":")[0] for line in found] == ["DASHCACHE_DATA_DIR", "DASHCACHE_WORKERS"]


# --- environment ---


def test_values_from_the_environment(folder: Path) -> None:
    environ = {
        "DASHCACHE_START_MODE": "bypass",
        "DASHCACHE_LOG_REQUESTS": "false",
        "DASHCACHE_IDENTITY_IGNORE_HEADERS": "X-Trace-Id, x-span ,",
        "DASHCACHE_LIFETIMES_JITTER": "0.25",
        "DASHCACHE_ADMIN_TOKEN": f"{CANARY}\n",
        "DASHCACHE_INTERNAL_CONTROL_FD": "7",
    }
    settings = load(HOME | environ, folder)
    assert settings.start.mode is Mode.BYPASS
    assert settings.log.requests is False
    assert settings.identity.ignore_headers == ("x-trace-id", "x-span")
    assert settings.lifetimes.jitter == 0.25
    assert settings.listen.admin_token is not None
    assert settings.listen.admin_token.reveal() == CANARY


def test_an_empty_variable_counts_as_not_set(folder: Path) -> None:
    environ = dict.fromkeys((*environment_names(), "DASHCACHE_CONFIG"), " ")
    loaded = load_with_sources(HOME | environ, folder)
    assert loaded.sources == {}
    assert loaded.warnings == ()


def test_what_kubernetes_announces_for_a_service_is_not_ours(folder: Path) -> None:
    announced = {
        "DASHCACHE_SERVICE_HOST": "10.0.0.1",
        "DASHCACHE_SERVICE_PORT": "8080",
        "DASHCACHE_SERVICE_PORT_HTTP": "8080",
        "DASHCACHE_PORT": "tcp://10.0.0.1:8080",
        "DASHCACHE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "DASHCACHE_PORT_8080_TCP_ADDR": "10.0.0.1",
        "DASHCACHE_ADMIN_SERVICE_HOST": "10.0.0.2",
    }
    load(HOME | announced, folder)
    assert mistakes({"DASHCACHE_PORT": "8080"}, folder)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("DASHCACHE_WORKER", "nearest known: DASHCACHE_WORKERS"),
        ("DASHCACHE_REDIS_URL", "nearest known: REDIS_URL"),
        ("DASHCACHE_LISTEN_HTTP", "nearest known: DASHCACHE_HTTP_LISTEN"),
        ("DASHCACHE_LISTEN_KEY", "nearest known: DASHCACHE_TLS_KEY"),
        ("DASHCACHE_REDIS_DEADLINE", "nearest known: DASHCACHE_REDIS_DEADLINE_MS"),
        ("DASHCACHE_CONFIGDIR", "nearest known: DASHCACHE_CONFIG_DIR"),
        ("DASHCACHE_START_OPERATIONS", "can only be set in a TOML file"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_name(name: str, hint: str, folder: Path) -> None:
    assert mistakes({name: CANARY}, folder) == [f"{name}: unknown name; {hint}"]


# --- mistakes ---


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("DASHCACHE_WORKERS", "many", "'many' cannot be used; allowed: a whole number, at least 0, at most 256"),
        (
            "DASHCACHE_PROFILE",
            "prod",
            "'prod' cannot be used; allowed: one of development, staging, production; did you mean production?",
        ),
        ("DASHCACHE_START_MODE", "off", "'off' cannot be used; allowed: one of on, bypass, shadow"),
        ("DASHCACHE_LOG_REQUESTS", "2", "'2' cannot be used; allowed: true or false"),
        ("DASHCACHE_BREAKER_RESET_S", "nan", "'nan' cannot be used; allowed: a number, above 0, at most 600"),
        ("DASHCACHE_MEMORY_MAX_AGE_S", "inf", "'inf' cannot be used; allowed: a number, at least 0"),
        ("DASHCACHE_REDIS_KEY_PREFIX", "a b", "'a b' cannot be used; allowed: text like ^[A-Za-z0-9_.-]{1,32}$"),
        ("DASHCACHE_HTTP_LISTEN", "8080", "'8080' must be host:port, for example 127.0.0.1:8080 or [::1]:8080"),
        ("DASHCACHE_HTTP_LISTEN", "::1:80", "'::1:80' must be host:port, for example 127.0.0.1:8080 or [::1]:8080"),
        ("DASHCACHE_HTTP_LISTEN", "[::g]:80", "'[::g]:80' must be host:port, for example 127.0.0.1:8080 or [::1]:8080"),
        ("DASHCACHE_HTTP_LISTEN", "[1:2]:80", "'[1:2]:80' what stands in brackets is not an IPv6 address"),
        ("DASHCACHE_HTTP_LISTEN", "h:99999", "'h:99999' the port must be from 0 to 65535 (0: any free one)"),
        (
            "DASHCACHE_KEY_SECRET",
            "fifteen letters",
            "has fewer than 16 characters; allowed: 16 or more, best random ones",
        ),
        ("REDIS_URL", "redis://h/zero", "the database must be a number"),
        (
            "REDIS_URL",
            "redis://h/0?socket_timeout=9",
            "the option socket_timeout" + UNSUPPORTED,
        ),
        (
            "REDIS_URL",
            "redis://h/0?db=1&retry_on_timeout=yes",
            "the option retry_on_timeout" + UNSUPPORTED,
        ),
        ("REDIS_URL", "redis://u:12?34=x@h/0", "what stands after the ?" + UNSUPPORTED),
        ("REDIS_URL", "http://h", "the scheme must be redis, rediss or unix"),
        ("REDIS_URL", "redis://", "the host is missing; allowed: redis://[user:password@]host[:port][/database]"),
        ("REDIS_URL", "redis://h:x", "not a URL; allowed: redis://, rediss:// or unix://"),
        ("REDIS_URL", "unix://", "the path of the socket is missing; allowed: unix:///path/to/redis.sock"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, value: str, fault: str, folder: Path) -> None:
    assert mistakes({name: value}, folder) == [f"{name}: {fault}"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("deadline_ms = 5", "deadline_ms: unknown name; nearest known: redis.deadline_ms"),
        ("[redsi]\nurl = 1", "redsi: unknown name; nearest known: redis"),
        ("[log]\nworkers = 1", "log.workers: unknown name; nearest known: workers"),
        ('[models."m.1"]\nttl = 1', 'models."m.1".ttl: unknown name; nearest known: models."m.1".ttl_s'),
        ("[models.m]\nttl_s = 0", "models.m.ttl_s: 0 cannot be used; allowed: a number, above 0"),
        ("redis = 5", "redis: is not a table; allowed: a table"),
        ("upstreams = 5", "upstreams: is not a list; allowed: a list"),
        ("[start]\noperations = 5", "start.operations: is not a table; allowed: a table"),
        (
            '[start.operations]\nembedding = "no"',
            "start.operations.embedding: 'no' cannot be used; allowed: one of on, bypass, shadow",
        ),
        (
            '[identity]\nignore_headers = ["a b"]',
            "identity.ignore_headers.0: 'a b' must be the name of a header, for example x-trace-id",
        ),
        (
            '[identity]\nignore_headers = ["Authorization"]',
            "identity.ignore_headers.0: 'Authorization' names the caller and cannot be ignored; allowed: others",
        ),
        ("dashvector_url = 5", "dashvector_url: cannot be used; allowed: http(s)://host[:port]"),
        ("dashvector_url = 'china'", "dashvector_url: not a URL; allowed: http(s)://host[:port]"),
        (
            "[vector]\noverfetch_topk = 1025",
            "vector.overfetch_topk: 1025 cannot be used; allowed: a whole number, at least 0, at most 1024",
        ),
        ("[vector]\nsettle_s = 601", "vector.settle_s: 601 cannot be used; allowed: a number, at least 0, at most 600"),
        (
            '[[upstreams]]\nname = "b"\nurl = "us"\nhosts = ["h:80"]',
            "upstreams.0.hosts.0: 'h:80' must be a host name without scheme and port, for example embeddings.internal",
        ),
    ],
)
def test_a_mistake_in_a_file_is_named_with_file_and_place(text: str, fault: str, folder: Path) -> None:
    assert operator_mistakes(text, folder) == [fault]


@pytest.mark.parametrize("name", ["x-dashscope-apikey", "X-DashScope-WorkSpace", "DashVector-Auth-Token"])
def test_no_header_that_names_the_caller_can_be_ignored(name: str, folder: Path) -> None:
    (found,) = operator_mistakes(f'[identity]\nignore_headers = ["{name}"]', folder)
    assert found.startswith(f"identity.ignore_headers.0: '{name}' names the caller and cannot be ignored; ")


def test_a_missing_url_says_what_may_stand_there(folder: Path) -> None:
    (found,) = operator_mistakes('[[upstreams]]\nname = "b"\nhosts = ["b"]', folder)
    assert found.startswith("upstreams.0.url: is missing; allowed: http(s)://host[:port], or a preset: china")


def test_files_that_cannot_be_read(folder: Path) -> None:
    (folder / "default.toml").write_text("a = ")
    (folder / "production.toml").unlink()
    (folder / "mine.toml").write_bytes(b"# \xff")
    found = mistakes({"DASHCACHE_CONFIG": str(folder / "mine.toml"), "DASHCACHE_WORKERS": "x"}, folder)
    assert found[0].startswith(f"{folder}/default.toml: is not TOML: ")
    assert found[1] == f"{folder}/production.toml: cannot be read (No such file or directory); allowed: a TOML file"
    assert found[2] == f"{folder}/mine.toml: is not UTF-8; allowed: a TOML file"
    assert found[3].startswith("DASHCACHE_WORKERS: ")


def test_every_mistake_is_found_at_once(folder: Path) -> None:
    """Wrong values, unknown names and contradictions in one run, though a contradiction needs right values."""
    (folder / "production.toml").write_text("[memory]\nmax_bytes = -1")
    text = 'nonsense = 1\n[[upstreams]]\nname = "dashscope"\nurl = "us"\nlisten = "0.0.0.0:9180"'
    environ = {"DASHCACHE_ADMIN_LISTEN": "0.0.0.0:9180", "DASHCACHE_WORKERS": "x", "DASHCACHE_TYPO": "1"}
    found = operator_mistakes(text, folder, **environ)
    places = [line.split(":")[0] for line in found]
    assert sorted(places) == [
        "DASHCACHE_ADMIN_LISTEN",
        "DASHCACHE_ADMIN_LISTEN",
        "DASHCACHE_TYPO",
        "DASHCACHE_WORKERS",
        "nonsense",
        "production.toml",
        "upstreams",
    ]


def test_a_default_in_place_of_a_wrong_value_is_no_contradiction(folder: Path) -> None:
    """The wrong data port falls back to 8080 while the rest is checked; an admin port 8080 is no mistake then."""
    found = mistakes({"DASHCACHE_HTTP_LISTEN": "wrong", "DASHCACHE_ADMIN_LISTEN": "127.0.0.1:8080"}, folder)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", f"htp://:{CANARY}@host"),
        ("REDIS_URL", f"redis://:{CANARY}@host:port"),
        ("DASHCACHE_DASHSCOPE_URL", f"https://user:{CANARY}@host"),
        ("DASHCACHE_DASHSCOPE_URL", f"https://host?key={CANARY}"),
        ("DASHCACHE_DASHSCOPE_URL", f"ftp://user:{CANARY}@host"),
        ("DASHCACHE_DASHSCOPE_URL", f"user:{CANARY}@host"),
        ("DASHCACHE_DASHVECTOR_URL", f"https://user:{CANARY}@host"),
        ("DASHCACHE_DASHVECTOR_GRPC_URL", f"user:{CANARY}@host"),
    ],
)
def test_no_mistake_repeats_a_secret(name: str, value: str, folder: Path) -> None:
    assert CANARY not in "\n".join(mistakes({name: value}, folder))


@pytest.mark.parametrize(
    "text",
    [
        f'redis = "{CANARY}"',
        f'[redis]\nurl = ["{CANARY}"]',
        f'[listen]\nadmin_token = {{ value = "{CANARY}" }}',
        f'upstreams = ["https://user:{CANARY}@host"]',
        f'key_secrte = "{CANARY}"',
    ],
)
def test_no_mistake_in_a_file_repeats_a_secret(text: str, folder: Path) -> None:
    assert CANARY not in "\n".join(operator_mistakes(text, folder))


# --- forms ---


def test_paths_are_the_same_for_every_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    assert load(HOME | {"DASHCACHE_DATA_DIR": "~/data"}, folder).data_dir == folder / "data"
    assert load(HOME | {"DASHCACHE_DATA_DIR": "data"}, folder).data_dir == folder / "data"
    assert mistakes({"DASHCACHE_DATA_DIR": "~nobody-of-this-name/x"}, folder) == [
        "DASHCACHE_DATA_DIR: '~nobody-of-this-name/x' begins with ~ and there is no such home folder; allowed: a path"
    ]


def test_addresses_are_split() -> None:
    assert split_address("[::1]:80") == ("::1", 80)
    assert split_address("localhost:0") == ("localhost", 0)
