"""The command line against a scripted admin API, and without any."""

import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from proxy.admin.health import State
from proxy.admin.legend import COLUMNS
from proxy.admin.stats import stats as stats_document
from proxy.cli import main
from proxy.control.live import LiveModes
from proxy.core.listening import Port
from proxy.core.purges import Mark, Marks
from proxy.runtime.data_folder import DataFolder
from proxy.settings.model import Start
from proxy.vendors.operations import of_vendor

TOKEN = "token-canary-77aa"


class Admin(http.server.ThreadingHTTPServer):
    """Answers every request with *status* and *document*; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self.status = 200
        self.document: Any = {}
        self.location: str | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Admin

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(
            {
                "method": self.command,
                "path": self.path,
                "authorization": self.headers.get("Authorization"),
                "body": json.loads(body) if body else None,
            }
        )
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.document).encode())

    do_GET = do_PUT = do_POST = _answer  # noqa: N815  the base class's names

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def admin() -> Iterator[Admin]:
    with Admin() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REDIS_URL", "DASHCACHE_ADMIN_TOKEN", "DASHCACHE_ADMIN_LISTEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DASHCACHE_DATA_DIR", str(tmp_path))
    # A proxy of the surroundings would be asked for everything, and would see the token.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")


def call(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment)


SWITCHED = {
    "workers": {"confirmed": 4, "serving": 4, "unconfirmed": []},
    "persisted": True,
    "replicas": "none",
    "effective": {"dashscope": {"embedding": "bypass"}},
}


@pytest.mark.parametrize(
    ("arguments", "order"),
    [
        (["bypass", "on"], {"mode": "bypass"}),
        (["bypass", "off"], {"mode": "on"}),
        (["mode", "shadow"], {"mode": "shadow"}),
        (["bypass", "on", "--for", "10m"], {"mode": "bypass", "for_s": 600}),
        (["bypass", "on", "--for", "1.5h"], {"mode": "bypass", "for_s": 5_400}),
        (
            ["mode", "on", "--operation", "embedding", "--upstream", "us", "--reason", "test"],
            {"mode": "on", "operation": "embedding", "upstream": "us", "reason": "test"},
        ),
    ],
)
def test_switches_become_orders(admin: Admin, arguments: list[str], order: dict[str, Any]) -> None:
    admin.document = SWITCHED
    result = call(*arguments, DASHCACHE_ADMIN_LISTEN=admin.address)
    assert result.exit_code == 0, result.output
    (asked,) = admin.asked
    assert (asked["method"], asked["path"]) == ("PUT", "/v1/mode")
    assert asked["body"] == {"operation": "*", "upstream": "*", "reason": "", **order}
    assert "confirmed by 4 of 4 workers" in result.output
    assert "dashscope embedding: bypass" in result.output


PURGED = {
    "token": "ab" * 16,
    "unknown": {},
    "confirmed": 4,
    "workers": 4,
    "unconfirmed": [],
    "persisted": True,
    "replicas": "none",
}


@pytest.mark.parametrize(
    ("arguments", "order", "said"),
    [
        (["--all", "--yes"], {"all": True}, "purged everything"),
        (["--model", "text-embedding-v4"], {"model": "text-embedding-v4"}, "purged model text-embedding-v4"),
        (
            ["--upstream", "v", "--operation", "vector-query", "--collection", "users"],
            {"upstream": "v", "operation": "vector-query", "collection": "users"},
            "purged upstream v, operation vector-query, collection users",
        ),
    ],
)
def test_a_purge_becomes_an_order(admin: Admin, arguments: list[str], order: dict[str, Any], said: str) -> None:
    admin.document = {**PURGED, "scope": order}
    result = call("purge", *arguments, DASHCACHE_ADMIN_LISTEN=admin.address)
    assert result.exit_code == 0, result.output
    (asked,) = admin.asked
    assert (asked["method"], asked["path"], asked["body"]) == ("POST", "/v1/purge", order)
    assert f"{said}: confirmed by 4 of 4 workers" in result.output
    assert PURGED["token"] in result.output
    assert "Redis" not in result.output


def test_a_purge_of_what_nothing_is_known_of_says_so_and_is_done(admin: Admin) -> None:
    admin.document = {**PURGED, "scope": {"model": "text-embeding-v4"}, "unknown": {"model": "text-embeding-v4"}}
    result = call("purge", "--model", "text-embeding-v4", DASHCACHE_ADMIN_LISTEN=admin.address)
    assert result.exit_code == 0
    assert "purged model text-embeding-v4: confirmed by 4 of 4 workers" in result.output
    assert "nothing is known here of model text-embeding-v4:" in result.output
    admin.document = {**admin.document, "unknown": {}}
    assert "nothing is known" not in call("purge", "--model", "m", DASHCACHE_ADMIN_LISTEN=admin.address).output


def test_a_purge_that_has_not_come_everywhere_says_so(admin: Admin) -> None:
    admin.document = {**PURGED, "scope": {"model": "m"}, "persisted": False, "replicas": "pending"}
    result = call("purge", "--model", "m", DASHCACHE_ADMIN_LISTEN=admin.address)
    assert result.exit_code == 0
    assert "Redis cannot be reached" in result.output
    assert "a restart will forget it" in result.output


def test_r18_an_order_that_not_all_confirmed_has_status_1_and_names_them(admin: Admin) -> None:
    admin.document = {**PURGED, "scope": {"model": "m"}, "confirmed": 3, "unconfirmed": [2]}
    purged = call("purge", "--model", "m", DASHCACHE_ADMIN_LISTEN=admin.address)
    admin.document = {**SWITCHED, "workers": {"confirmed": 2, "serving": 4, "unconfirmed": [1, 3]}}
    switched = call("bypass", "on", DASHCACHE_ADMIN_LISTEN=admin.address)
    for result, said in ((purged, "not confirmed by worker 2:"), (switched, "not confirmed by worker 1, 3:")):
        assert result.exit_code == 1
        assert said in result.output


@pytest.mark.parametrize(("answer", "code", "asked"), [("y\n", 0, 1), ("n\n", 1, 0), ("", 1, 0)])
def test_purging_everything_is_asked_about_first(admin: Admin, answer: str, code: int, asked: int) -> None:
    admin.document = {**PURGED, "scope": {"all": True}}
    environment = {"DASHCACHE_ADMIN_LISTEN": admin.address}
    result = CliRunner().invoke(main, ["purge", "--all"], input=answer, env=environment)
    assert result.exit_code == code
    assert len(admin.asked) == asked


@pytest.mark.parametrize("arguments", [[], ["--all", "--model", "m"], ["--yes"]])
def test_a_purge_must_say_what(admin: Admin, arguments: list[str]) -> None:
    result = call("purge", *arguments, DASHCACHE_ADMIN_LISTEN=admin.address)
    assert result.exit_code == 2
    assert "say either --all, or what" in result.output
    assert not admin.asked


@pytest.mark.parametrize("duration", ["10", "m", "-5m", "0s", "10 m", "1w", "nan", "1e3s"])
def test_what_is_no_duration_is_refused(duration: str) -> None:
    result = call("bypass", "on", f"--for={duration}")
    assert result.exit_code == 2
    assert "allowed: 30s, 10m, 2h, 1d" in result.output


def test_a_reload_is_ordered_and_its_mistakes_are_shown(admin: Admin) -> None:
    admin.document = {"workers": {"serving": 4, "wanted": 4}, "settings": {}}
    result = call("reload", DASHCACHE_ADMIN_LISTEN=admin.address)
    assert (result.exit_code, result.output) == (0, "reloaded: 4 of 4 workers serve with the settings of now\n")
    (asked,) = admin.asked
    assert (asked["method"], asked["path"], asked["body"]) == ("POST", "/v1/reload", {})
    admin.status, admin.document = 400, {"error": "BadSettings", "mistakes": ["one: wrong", "two: too"]}
    result = call("reload", DASHCACHE_ADMIN_LISTEN=admin.address)
    assert (result.exit_code, result.output) == (1, "one: wrong\ntwo: too\n")


def test_the_token_comes_from_the_settings(admin: Admin) -> None:
    admin.document = {"status": "healthy"}
    for arguments in (["health"], ["health", "--admin", f"http://{admin.address}"]):
        environment = {"DASHCACHE_ADMIN_LISTEN": admin.address, "DASHCACHE_ADMIN_TOKEN": TOKEN}
        assert call(*arguments, **environment).exit_code == 0
    assert [asked["authorization"] for asked in admin.asked] == [f"Bearer {TOKEN}"] * 2


def test_a_missing_or_wrong_token_is_asked_for_by_its_variable(admin: Admin) -> None:
    admin.status, admin.document = 401, {"error": "TokenNeeded", "mistakes": ["send the admin token"]}
    result = call("stats", DASHCACHE_ADMIN_LISTEN=admin.address)
    assert result.exit_code == 1
    assert "set DASHCACHE_ADMIN_TOKEN" in result.output


def test_no_line_of_the_help_is_cut_at_a_terminal_of_80_columns() -> None:
    listing = CliRunner().invoke(main, ["--help"], terminal_width=80).output.partition("Commands:")[2]
    assert len(listing.splitlines()) > len(main.commands)
    assert "..." not in listing


def test_the_token_follows_no_redirect(admin: Admin) -> None:
    admin.status, admin.location = 302, f"http://{admin.address}/elsewhere"
    assert call("health", DASHCACHE_ADMIN_LISTEN=admin.address, DASHCACHE_ADMIN_TOKEN=TOKEN).exit_code == 1
    assert len(admin.asked) == 1


def test_refusals_are_shown_in_words(admin: Admin) -> None:
    admin.status, admin.document = (
        400,
        {"error": "BadRequest", "mistakes": ["operation: unknown; allowed: *, embedding"]},
    )
    result = call("bypass", "on", "--operation", "embeding", DASHCACHE_ADMIN_LISTEN=admin.address)
    assert result.exit_code == 1
    assert "operation: unknown; allowed: *, embedding" in result.output


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_health_is_the_exit_status(admin: Admin, status: int, code: int) -> None:
    admin.status, admin.document = status, {"status": "whatever"}
    result = call("health", DASHCACHE_ADMIN_LISTEN=admin.address)
    assert result.exit_code == code
    assert "whatever" in result.output


def test_nobody_there_is_said_so() -> None:
    result = call("health", "--admin", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "is the proxy running?" in result.output


@pytest.mark.parametrize("url", ["127.0.0.1:9180", "ftp://x", "http://", "http://x/path", "http://x?y=1"])
def test_an_admin_address_must_be_one(url: str) -> None:
    result = call("health", "--admin", url)
    assert result.exit_code == 1
    assert "must be http://host:port" in result.output


def test_stats_are_a_table_or_json(admin: Admin) -> None:
    state = State(listening=[Port("http", "", "127.0.0.1", 8080), Port("grpc", "dashvector", "127.0.0.1", 50051)])
    redis = {"kind": "none", "ok": None, "round_trip_ms": None}
    totals = {
        ("dashcache_items_total", (("operation", "embedding"), ("result", "memory"))): 9.0,
        ("dashcache_items_total", (("operation", "embedding"), ("result", "forwarded"))): 1.0,
        ("dashcache_tokens_saved_total", (("operation", "embedding"), ("model", "text-embedding-v4"))): 2_000_000.0,
        ("dashcache_tokens_saved_total", (("operation", "embedding"), ("model", "brand-new"))): 40.0,
        ("dashcache_items_total", (("operation", "vector-query"), ("result", "redis"))): 3.0,
        ("dashcache_items_total", (("operation", "vector-query"), ("result", "forwarded"))): 1.0,
        ("dashcache_operation_calls_total", (("operation", "vector-query"), ("result", "saved"))): 3.0,
        ("dashcache_invalidations_total", (("result", "told"),)): 5.0,
        ("dashcache_invalidations_total", (("result", "untold"),)): 2.0,
        ("dashcache_pending_invalidations", ()): 1.0,
    }
    marks = Marks((Mark("ab" * 16, 1.0), Mark("cd" * 16, 2.0, upstream="dashvector", collection="users")))
    upstreams = {name: of_vendor(name) for name in ("dashscope", "dashvector")}
    document = stats_document(totals, state, redis, LiveModes(Start()), upstreams, marks=marks)
    assert document["operations"]["embedding"]["hit_ratio"] == 0.9
    assert document["money_saved"]["amount"] == 1.0  # 2 million tokens at 0.0005 CNY per thousand
    embedding = {"requests_per_s": 12.346, "calls_per_s": 0.5, "hit_ratio": 0.875}
    minute, hour = ({"over_s": 60, "operations": {"embedding": embedding}}, {"over_s": 90, "operations": {}})
    document["rates"] = {"last_minute": minute, "last_hour": hour}
    admin.document = json.loads(json.dumps(document))
    table = call("stats", DASHCACHE_ADMIN_LISTEN=admin.address)
    assert table.exit_code == 0, table.output
    assert "90.0%" in table.output
    assert "about 1.00 CNY; unknown price: 40 tokens of model brand-new" in table.output
    lines = [line.split() for line in table.output.splitlines()]
    assert ["listening", "http", "127.0.0.1:8080;", "grpc", "127.0.0.1:50051"] in lines
    assert ["vector-query", "0", "4", "0", "3", "1", "75.0%", "0", "3", "0"] in lines
    assert "7 times by writes, 2 without Redis; 1 pending" in table.output
    assert re.search(
        r"^purged +upstream dashvector, collection users, \d+d( \d+[hms])? ago; 2 marks in all$",
        table.output,
        re.MULTILINE,
    )
    assert ["embedding", "12.35", "-", "0.50", "-", "87.5%", "-"] in lines
    explained = [heading for headings in COLUMNS for heading in headings.split(", ")]
    operations = next(line for line in table.output.splitlines() if line.startswith("operation "))
    assert set(re.split(" {2,}", operations)[1:]) <= set(explained)
    assert all(meaning in table.output for meaning in COLUMNS.values())
    as_json = call("stats", "--json", DASHCACHE_ADMIN_LISTEN=admin.address)
    assert json.loads(as_json.output) == admin.document


def test_check_shows_what_holds_and_hides_secrets() -> None:
    result = call("check", DASHCACHE_KEY_SECRET=TOKEN, DASHCACHE_WORKERS="3")
    assert result.exit_code == 0, result.output
    assert "DASHCACHE_WORKERS" in result.output
    assert TOKEN not in result.output


def test_check_shows_whether_a_key_secret_was_made_and_where(tmp_path: Path) -> None:
    place = tmp_path / "data" / "key.secret"
    environment = {"DASHCACHE_DATA_DIR": str(place.parent)}
    assert f"(none yet: the first start makes {place})" in call("check", **environment).output
    assert not place.parent.exists()
    folder = DataFolder(place.parent)
    secret = folder.key_secret().decode()
    folder.close()
    made = call("check", **environment).output
    assert f"(made by a start, in {place})" in made
    assert secret not in made
    assert str(place) not in call("check", DASHCACHE_KEY_SECRET=TOKEN, **environment).output
    place.parent.rename(tmp_path / "moved")
    place.parent.write_text("a file in the folder's place")
    assert f"({place} cannot be looked at: Not a directory)" in call("check", **environment).output


@pytest.mark.parametrize("command", ["check", "run", "health"])
def test_every_mistake_is_shown(command: str) -> None:
    result = call(command, DASHCACHE_WORKERS="many", DASHCACHE_HTTP_LISTEN="nowhere", DASHCACHE_WOKRERS="1")
    assert result.exit_code == 2
    for name in ("DASHCACHE_WORKERS", "DASHCACHE_HTTP_LISTEN", "DASHCACHE_WOKRERS"):
        assert f"  {name}: " in result.output


def test_a_worker_is_nothing_to_start_by_hand() -> None:
    result = call("worker")
    assert result.exit_code == 2
    assert "worker" not in [line.split()[0] for line in call("--help").output.splitlines() if line.startswith("  ")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stat"], "there is no command 'stat'; did you mean stats?"),
        (["xyz"], "there is no command 'xyz'\n"),
        (["bypass", "onn"], "'onn' is not one of on, off; did you mean on?"),
        (["mode", "Bypass"], "'Bypass' is not one of on, bypass, shadow; did you mean bypass?"),
        (["mode", "7"], "'7' is not one of on, bypass, shadow\n"),
    ],
)
def test_a_word_that_is_nearly_right_is_answered_with_the_right_one(arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.output
