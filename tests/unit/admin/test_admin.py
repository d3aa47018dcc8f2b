"""The admin API: what it answers, and to whom (reliability S12)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proxy.admin import api as admin_module
from proxy.admin.api import Admin
from proxy.admin.health import Phase, RedisKind, State
from proxy.admin.metric_files import MetricFiles
from proxy.control.modes import ModeBook
from proxy.control.order_store import Reached
from proxy.control.purges import PurgeBook
from proxy.control.redis_link import RedisLink
from proxy.core.listening import Port
from proxy.core.modes import Mode, Modes
from proxy.core.purges import NO_MARKS, Marks
from proxy.runtime.tasks import Tasks
from proxy.settings.model import Listen, Settings, Start
from proxy.settings.types import SecretText
from proxy.supervisor.sockets import bind
from proxy.telemetry.names import MOST_NAMES, Names
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

TOKEN = "token-canary-1c9e"
ROUTES = [
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/v1/stats"),
    ("GET", "/v1/mode"),
    ("PUT", "/v1/mode"),
    ("POST", "/v1/purge"),
    ("POST", "/v1/reload"),
]


@dataclass
class Answer:
    status: int
    headers: Any
    text: str
    json: Any


class FakeWorkers:
    """As many as are said to serve; each confirms."""

    serving = 2
    silent: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.names = Names()

    async def set_modes(self, _modes: Modes) -> Reached:
        return Reached(self.serving, self.serving)

    async def set_purges(self, _marks: Marks) -> Reached:
        return Reached(self.serving, self.serving)


@dataclass
class Rig:
    admin: Admin
    state: State
    book: ModeBook
    purges: PurgeBook
    url: str
    session: aiohttp.ClientSession
    workers: FakeWorkers = field(default_factory=FakeWorkers)

    async def ask(self, method: str, path: str, *, headers: dict[str, str] | None = None, **body: Any) -> Answer:
        async with self.session.request(method, self.url + path, headers=headers, **body) as answer:
            text = await answer.text()
            is_json = answer.content_type == "application/json" and text
            return Answer(answer.status, answer.headers, text, await answer.json() if is_json else None)

    async def switch(self, **order: Any) -> Answer:
        return await self.ask("PUT", "/v1/mode", json=order)

    async def purge(self, **order: Any) -> Answer:
        return await self.ask("POST", "/v1/purge", json=order)


Make = Callable[..., Any]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    rigs: list[Rig] = []
    files = MetricFiles(tmp_path)

    async def made(token: str | None = None, **stated: Any) -> Rig:
        listen = Listen(admin="127.0.0.1:0", admin_token=SecretText(token) if token else None)
        state = State(phase=Phase.SERVING, wanted=2, listening=[Port("http", "", "127.0.0.1", 8080)])
        workers = FakeWorkers()
        state.workers = workers  # type: ignore[assignment]
        book = ModeBook(Start(), tmp_path, workers.set_modes, lambda: None)
        purges = PurgeBook(tmp_path, workers.set_purges)
        admin = Admin(Settings(listen=listen, **stated), state, book, purges, files)
        bound = bind("127.0.0.1", 0, shared=False)
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        await admin.start(bound)
        rigs.append(Rig(admin, state, book, purges, url, aiohttp.ClientSession(), workers))
        return rigs[-1]

    yield made
    for rig in rigs:
        await rig.session.close()
        await rig.admin.close()
    files.close()


@pytest.fixture
async def rig(make: Make) -> Rig:
    found: Rig = await make()
    return found


# --- health -----------------------------------------------------------------------------------------------------------


async def test_healthy_and_ready(rig: Rig) -> None:
    health = await rig.ask("GET", "/healthz")
    assert (health.status, health.json["status"]) == (200, "healthy")
    assert health.json["workers"] == {"serving": 2, "wanted": 2}
    assert (await rig.ask("GET", "/readyz")).status == 200


async def test_a_missing_worker_degrades(rig: Rig) -> None:
    rig.workers.serving = 1
    health = await rig.ask("GET", "/healthz")
    assert (health.status, health.json["status"]) == (200, "degraded")
    assert (await rig.ask("GET", "/readyz")).status == 200


async def test_without_workers_it_is_unhealthy(rig: Rig) -> None:
    rig.workers.serving = 0
    assert (await rig.ask("GET", "/healthz")).status == 503
    assert (await rig.ask("GET", "/readyz")).status == 503


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING])
async def test_not_ready_before_and_after(rig: Rig, phase: Phase) -> None:
    rig.state.phase = phase
    assert (await rig.ask("GET", "/readyz")).status == 503
    assert (await rig.ask("GET", "/healthz")).status == 200


async def test_redis_trouble_degrades_and_leaves_readiness_alone(rig: Rig, redis_server: RedisServer) -> None:
    tasks = Tasks(lambda _: None)
    rig.state.link, rig.state.redis = RedisLink(redis_server.url, "dashcache", tasks, 1.0), RedisKind.CONFIGURED
    health = await rig.ask("GET", "/healthz")
    assert health.json["status"] == "healthy"
    assert health.json["redis"]["round_trip_ms"] > 0
    for trouble in (redis_server.hang, redis_server.kill):
        trouble()
        health = await rig.ask("GET", "/healthz")
        assert (health.status, health.json["status"], health.json["redis"]["ok"]) == (200, "degraded", False)
        assert (await rig.ask("GET", "/readyz")).status == 200
        assert (await rig.switch(mode="bypass")).status == 200
    await rig.state.link.close()
    await tasks.wait_done(0)


# --- figures ----------------------------------------------------------------------------------------------------------


async def test_metrics_are_text_for_prometheus(rig: Rig) -> None:
    await rig.switch(mode="bypass")
    metrics = await rig.ask("GET", "/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain")
    assert 'dashcache_mode_active{mode="bypass",operation="embedding"} 1.0' in metrics.text


async def test_stats_have_what_operators_look_for(rig: Rig) -> None:
    stats = (await rig.ask("GET", "/v1/stats")).json
    assert stats["operations"]["embedding"]["hit_ratio"] is None
    assert stats["listeners"]["http"] == ["127.0.0.1:8080"]
    money = stats["money_saved"]
    assert (money["amount"], money["currency"], money["unknown_price_tokens"], money["models"]) == (0, "CNY", 0, {})
    assert stats["breaker"]["state"] == "closed"
    assert stats["modes"]["effective"] == {"dashscope": {"embedding": "on"}}
    assert stats["uptime_s"] >= 0
    assert list(stats["rates"]) == ["last_minute", "last_hour"]


async def test_healthz_and_stats_list_the_ports_of_every_protocol(rig: Rig) -> None:
    rig.state.listening += [Port("grpc", "dashvector", "::1", 50051), Port("http", "b", "127.0.0.1", 8081)]
    expected = {"http": ["127.0.0.1:8080", "127.0.0.1:8081"], "grpc": ["[::1]:50051"], "admin": ""}
    assert (await rig.ask("GET", "/healthz")).json["listeners"] == expected
    assert (await rig.ask("GET", "/v1/stats")).json["listeners"] == expected


async def test_the_operations_are_those_of_the_vendors_that_are_configured(make: Make) -> None:
    assert list((await (await make()).ask("GET", "/v1/stats")).json["operations"]) == ["embedding", "other"]
    rig = await make(dashvector_url="https://cluster.example")
    stats = (await rig.ask("GET", "/v1/stats")).json
    assert list(stats["operations"]) == ["embedding", "vector-query", "vector-stats", "vector-write", "other"]
    assert stats["modes"]["effective"] == {
        "dashscope": {"embedding": "on"},
        "dashvector": {"vector-query": "on", "vector-stats": "on"},
    }
    assert stats["invalidations"] == {"told": 0, "untold": 0, "pending": 0}


# --- modes ------------------------------------------------------------------------------------------------------------


async def test_a_switch_tells_how_far_it_came(rig: Rig) -> None:
    answer = await rig.switch(mode="bypass", operation="embedding", for_s=600, reason="vendor throttles")
    assert answer.status == 200
    assert answer.json["workers"] == {"confirmed": 2, "serving": 2, "unconfirmed": []}
    assert answer.json["persisted"] is True
    assert answer.json["replicas"] == "none"
    assert answer.json["effective"] == {"dashscope": {"embedding": "bypass"}}
    (rule,) = [rule for rule in answer.json["rules"] if rule["source"] == "switched"]
    assert rule["until_unix_s"] == pytest.approx(rule["set_unix_s"] + 600, abs=1)
    assert rig.book.live.mode("dashscope", "embedding") is Mode.BYPASS
    shown = (await rig.ask("GET", "/v1/mode")).json
    assert shown["rules"] == answer.json["rules"]


@pytest.mark.parametrize(
    ("order", "mistakes"),
    [
        ({}, ["mode"]),
        ({"mode": "off"}, ["mode"]),
        ({"mode": "on", "operatoin": "embedding"}, ["operatoin"]),
        ({"mode": "on", "operation": "embeding"}, ["operation"]),
        ({"mode": "on", "upstream": "nowhere"}, ["upstream"]),
        ({"mode": "on", "for_s": 0}, ["for_s"]),
        ({"mode": "on", "for_s": -5}, ["for_s"]),
        ({"mode": "on", "for_s": "600"}, ["for_s"]),
        ({"mode": "on", "for_s": True}, ["for_s"]),
        ({"mode": "on", "for_s": 1e12}, ["for_s"]),
        ({"mode": "on", "reason": "x" * 201}, ["reason"]),
        ({"mode": "on", "reason": "a\nb"}, ["reason"]),
        ({"mode": 1, "operation": "x", "upstream": "y", "z": 0}, ["mode", "operation", "upstream", "z"]),
        ([], ["body"]),
    ],
)
async def test_every_mistake_in_an_order_is_named(rig: Rig, order: Any, mistakes: list[str]) -> None:
    answer = await rig.ask("PUT", "/v1/mode", json=order)
    assert answer.status == 400
    assert [mistake.partition(":")[0] for mistake in answer.json["mistakes"]] == mistakes
    assert not [mistake for mistake in answer.json["mistakes"] if "nput" in mistake or "Value error" in mistake]
    assert rig.book.live.switched == Modes()


@pytest.mark.parametrize("operation", ["vector-query", "vector-stats"])
async def test_vector_reads_can_be_switched(rig: Rig, operation: str) -> None:
    assert (await rig.switch(mode="shadow", operation=operation)).status == 200
    assert rig.book.live.mode("dashvector", operation) is Mode.SHADOW


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({}, "mode: is missing"),
        ({"mode": "bypas"}, "mode: must be one of on, bypass, shadow; did you mean bypass?"),
        ({"mode": "BYPASS"}, "mode: must be one of on, bypass, shadow; did you mean bypass?"),
        ({"mode": "xyz"}, "mode: must be one of on, bypass, shadow"),
        ({"mode": 7}, "mode: must be one of on, bypass, shadow"),
        ({"mode": "on", "for_s": "600"}, "for_s: must be a number"),
        ({"mode": "on", "for_s": 0}, "for_s: must be above 0"),
        ({"mode": "on", "for_s": 1e12}, "for_s: must be at most 3.16224e+07"),
        ({"mode": "on", "reason": "x" * 201}, "reason: must have at most 200 characters"),
        ({"mode": "on", "reason": 1}, "reason: must be text"),
        ("on", "body: must be a JSON object"),
    ],
)
async def test_a_mistake_in_an_order_is_said_in_our_words(rig: Rig, order: Any, said: str) -> None:
    assert (await rig.ask("PUT", "/v1/mode", json=order)).json["mistakes"] == [said]


async def test_a_name_that_is_nearly_right_is_answered_with_the_right_one(rig: Rig) -> None:
    for answer in (await rig.switch(mode="on", operation="embeding"), await rig.purge(operation="embeding")):
        (mistake,) = answer.json["mistakes"]
        assert mistake.endswith("; did you mean embedding?")


async def test_writes_cannot_be_switched_and_that_is_said(rig: Rig) -> None:
    answer = await rig.switch(mode="bypass", operation="vector-write")
    assert answer.status == 400
    (mistake,) = answer.json["mistakes"]
    assert (
        "a write is always forwarded, and makes stale what it changes; allowed: *, embedding, vector-query" in mistake
    )
    assert rig.book.live.switched == Modes()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"mode":"on","mode":"bypass"}', b'{"all":true,"all":true}', b'{"mode":NaN}', b"\xff", b"[" * 5_000],
)
@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/mode"), ("POST", "/v1/purge")])
async def test_what_is_not_plain_json_is_refused(rig: Rig, method: str, path: str, body: bytes) -> None:
    answer = await rig.ask(method, path, data=body, headers={"Content-Type": "application/json"})
    assert (answer.status, answer.json["error"]) == (400, "BadRequest")
    assert rig.purges.held == NO_MARKS


async def test_a_body_too_large_is_refused(rig: Rig) -> None:
    assert (await rig.switch(mode="on", reason="x" * 100_000)).status == 413


# --- purges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "extent"),
    [
        ({"all": True}, ("*", "*", "*", "*")),
        ({"model": "text-embedding-v4"}, ("*", "*", "text-embedding-v4", "*")),
        ({"operation": "vector-query", "collection": "users"}, ("*", "vector-query", "*", "users")),
        ({"upstream": "dashvector"}, ("dashvector", "*", "*", "*")),
        ({"upstream": "dashscope", "operation": "embedding", "model": "模型"}, ("dashscope", "embedding", "模型", "*")),
    ],
)
async def test_a_purge_tells_its_token_and_how_far_it_came(make: Make, order: Any, extent: tuple[str, ...]) -> None:
    rig = await make(dashvector_url="https://cluster.example")
    answer = await rig.purge(**order)
    (mark,) = rig.purges.held.marks
    assert mark.extent == extent
    assert (answer.status, answer.json) == (
        200,
        {
            "token": mark.token,
            "scope": order,
            "unknown": {kind: name for kind, name in order.items() if kind in ("model", "collection")},
            "confirmed": 2,
            "workers": 2,
            "unconfirmed": [],
            "persisted": True,
            "replicas": "none",
        },
    )
    told = (await rig.ask("GET", "/v1/stats")).json["purges"]
    assert told == {"marks": 1, "last": {"scope": order, "token": mark.token, "age_s": told["last"]["age_s"]}}
    assert "dashcache_purges_total 1.0" in (await rig.ask("GET", "/metrics")).text


async def test_a_purge_of_what_nothing_is_known_of_says_so(make: Make) -> None:
    rig = await make(dashvector_url="https://cluster.example")
    for name in (("model", "text-embedding-v4"), ("collection", "users")):
        rig.workers.names.add(name)
    for known in ({"model": "text-embedding-v4"}, {"collection": "users"}, {"operation": "embedding"}, {"all": True}):
        assert (await rig.purge(**known)).json["unknown"] == {}
    for unknown in ({"model": "users"}, {"model": "text-embeding-v4"}, {"collection": "user"}):
        answer = await rig.purge(**unknown)
        assert (answer.status, answer.json["unknown"]) == (200, unknown)
        assert any(mark.token == answer.json["token"] for mark in rig.purges.held.marks)
    for number in range(2 * MOST_NAMES):
        rig.workers.names.add(("model", f"m{number}"))
    assert (await rig.purge(model="m9999")).json["unknown"] == {}  # perhaps one for which there was no room


async def test_without_a_purge_the_stats_say_so(rig: Rig) -> None:
    assert (await rig.ask("GET", "/v1/stats")).json["purges"] == {"marks": 0, "last": None}
    assert "dashcache_purges_total 0.0" in (await rig.ask("GET", "/metrics")).text


async def test_every_purge_has_a_token_of_its_own(rig: Rig) -> None:
    tokens = {(await rig.purge(model="m")).json["token"] for _ in range(3)}
    assert len(tokens) == 3


@pytest.mark.parametrize(
    ("order", "mistakes"),
    [
        ({}, ["body: say either"]),
        ({"all": False}, ["body: say either"]),
        ({"all": True, "model": "m"}, ["body: say either"]),
        ({"all": "yes"}, ["all: must be true or false"]),
        ({"all": 1}, ["all: must be true or false"]),
        ({"upstream": None}, ["body: say either"]),
        ({"upstream": "nowhere"}, ["upstream: unknown; allowed: dashscope, dashvector"]),
        ({"upstream": "*"}, ["upstream: unknown"]),
        (
            {"operation": "embeding"},
            ["operation: unknown; allowed: embedding, vector-query, vector"],
        ),
        ({"operation": "vector-write"}, ["operation: nothing of a write is kept; allowed: embedding"]),
        ({"model": ""}, ["model: must be 1 to 128 printable"]),
        ({"model": "a\nb"}, ["model: must be 1 to 128 printable"]),
        ({"model": "x" * 129}, ["model: must be 1 to 128 printable"]),
        ({"model": 4}, ["model: must be text"]),
        ({"collection": "*"}, ["collection: must be a collection's name"]),
        ({"collection": "no"}, ["collection: must be a collection's name"]),
        ({"collection": "%75sers"}, ["collection: must be a collection's name"]),
        ({"colection": "users", "all": True}, ["colection: unknown field; allowed: all, upstream"]),
        ({"upstream": "dashscope", "collection": "users"}, ["body: no upstream of this proxy"]),
        ({"upstream": "dashscope", "operation": "vector-query"}, ["body: no upstream of this proxy"]),
        ({"operation": "vector-stats", "model": "m"}, ["body: no upstream of this proxy"]),
        ({"model": "m", "collection": "users"}, ["body: no upstream of this proxy"]),
        ({"upstream": "x", "model": "", "z": 0}, ["upstream: ", "model: ", "z: "]),
        ([], ["body: must be a JSON object"]),
    ],
)
async def test_every_mistake_in_a_purge_is_named(make: Make, order: Any, mistakes: list[str]) -> None:
    rig = await make(dashvector_url="https://cluster.example")
    answer = await rig.ask("POST", "/v1/purge", json=order)
    assert answer.status == 400
    said = answer.json["mistakes"]
    assert len(said) == len(mistakes)
    assert all(mistake.startswith(start) for mistake, start in zip(said, mistakes, strict=True)), said
    assert rig.purges.held == NO_MARKS


async def test_what_no_upstream_here_has_cannot_be_purged(rig: Rig) -> None:
    for order in ({"operation": "vector-query"}, {"collection": "users"}):
        answer = await rig.purge(**order)
        assert answer.status == 400
        assert "no upstream of this proxy" in answer.json["mistakes"][0]


# --- who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer \u00ff"},
        {"X-Api-Key": TOKEN},
    ],
)
async def test_no_route_without_the_token(make: Make, method: str, path: str, headers: dict[str, str]) -> None:
    rig = await make(TOKEN)
    for target in (path, f"{path}?token={TOKEN}&access_token={TOKEN}"):
        answer = await rig.ask(method, target, headers=headers)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert TOKEN not in answer.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_with_the_token_any_name_of_ours_will_do(make: Make, scheme: str) -> None:
    rig = await make(TOKEN)
    headers = {"Authorization": f"{scheme} {TOKEN}", "Host": "dashcache.internal:9180"}
    assert (await rig.ask("GET", "/v1/mode", headers=headers)).status == 200


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9180", "127.0.0.1.evil.example", "10.0.0.1", "[::2]:80"]
)
async def test_a_rebound_name_gets_nothing(rig: Rig, method: str, path: str, host: str) -> None:
    """CVE-2018-5702: a page whose name resolves to 127.0.0.1 still sends its own name."""
    answer = await rig.ask(method, path, headers={"Host": host, "Content-Type": "application/json"}, data=b"{}")
    assert (answer.status, answer.json["error"]) == (403, "ForeignHost")


@pytest.mark.parametrize("host", ["localhost", "localhost:9180", "127.0.0.1:1", "127.8.8.8", "[::1]:9180", "LOCALHOST"])
async def test_names_of_loopback_are_ours(rig: Rig, host: str) -> None:
    assert (await rig.ask("GET", "/v1/mode", headers={"Host": host})).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://[evil"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_pages_of_others_get_nothing(make: Make, method: str, path: str, headers: dict[str, str]) -> None:
    rig = await make(TOKEN)
    answer = await rig.ask(method, path, headers={"Authorization": f"Bearer {TOKEN}", **headers}, json={"mode": "on"})
    assert answer.status == 403
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_page_of_our_own_is_welcome(rig: Rig) -> None:
    headers = {"Origin": rig.url, "Sec-Fetch-Site": "same-origin"}
    assert (await rig.ask("PUT", "/v1/mode", headers=headers, json={"mode": "on"})).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_change_must_be_declared_as_json(rig: Rig, kind: str) -> None:
    for method, path, body in (("PUT", "/v1/mode", b'{"mode":"bypass"}'), ("POST", "/v1/purge", b'{"all":true}')):
        answer = await rig.ask(method, path, data=body, headers={"Content-Type": kind})
        assert answer.status == 415
    assert rig.book.live.switched == Modes()
    assert rig.purges.held == NO_MARKS


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/mode", 405),
        ("DELETE", "/v1/mode", 405),
        ("OPTIONS", "/v1/mode", 405),
        ("PUT", "/healthz", 405),
        ("GET", "/v1/purge", 405),
        ("PUT", "/v1/purge", 405),
        ("DELETE", "/v1/purge", 405),
        ("POST", "/v1/purge/", 404),
        ("GET", "/v1/mode/", 404),
        ("GET", "/", 404),
        ("GET", "/compatible-mode/v1/embeddings", 404),
        ("GET", "/v1/mode/../../etc/passwd", 404),
    ],
)
async def test_other_routes_and_methods_are_refused_as_json(rig: Rig, method: str, path: str, status: int) -> None:
    answer = await rig.ask(method, path, headers={"Content-Type": "application/json"})
    assert answer.status == status
    assert set(answer.json) == {"error", "mistakes"}
    if status == 405:
        assert "Allow" in answer.headers


async def test_every_answer_has_the_security_headers(rig: Rig) -> None:
    for method, path in [*ROUTES, ("GET", "/nothing"), ("POST", "/v1/mode")]:
        answer = await rig.ask(method, path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Server"] == "dashcache"


async def test_trouble_of_ours_is_told_without_its_words(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("canary-of-an-exception")

    monkeypatch.setattr(admin_module, "modes_document", broken)
    answer = await rig.ask("GET", "/v1/mode")
    assert (answer.status, answer.json["error"]) == (500, "Internal")
    assert "canary" not in answer.text
    assert "Traceback" not in answer.text


# --- visitors: connections to the admin listener ---


async def _connected(rig: Rig, said: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(rig.url.rpartition(":")[2]))
    writer.write(said)
    return reader, writer


async def _is_shown_out(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True
    finally:
        writer.close()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: 127",
        b"PUT /v1/mode HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    ],
)
async def test_r21_admin_half_a_request_has_a_limited_time(rig: Rig, said: bytes) -> None:
    rig.admin.visitors.ask_s = 0.1
    assert await _is_shown_out(*await _connected(rig, said))
    await wait_until(lambda: len(rig.admin.visitors) == 0)


async def test_r21_admin_an_answer_that_nobody_takes_has_a_limited_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def large(_files: MetricFiles) -> bytes:
        return b"#" * (8 << 20)

    monkeypatch.setattr(MetricFiles, "render", large)
    rig.admin.visitors.take_s = 0.1
    _reader, writer = await _connected(rig, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await wait_until(lambda: len(rig.admin.visitors) == 1)
    await wait_until(lambda: len(rig.admin.visitors) == 0)
    writer.close()


async def test_r21_admin_the_oldest_of_the_address_with_the_most_makes_room(rig: Rig) -> None:
    rig.admin.visitors.most = 3
    waiting = [await _connected(rig) for _ in range(3)]
    await wait_until(lambda: len(rig.admin.visitors) == 3)
    assert (await rig.ask("GET", "/readyz")).status == 200
    assert await _is_shown_out(*waiting[0])
    for reader, writer in waiting[1:]:
        assert not reader.at_eof()
        writer.close()


async def test_r21_admin_an_order_that_is_carried_out_is_not_shown_out(rig: Rig) -> None:
    began, ends = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        began.set()
        await ends.wait()

    rig.admin.visitors.most, rig.admin.reload = 1, slow
    order = Tasks(lambda _: None).start(rig.ask("POST", "/v1/reload", json={}), is_awaited=True)
    await began.wait()
    for _ in range(3):
        assert await _is_shown_out(*await _connected(rig))
    ends.set()
    assert (await order).status == 200
