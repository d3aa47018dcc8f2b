"""What a request means is remembered: equal bytes get the same plan, others never, and memory is bounded."""

import asyncio
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from proxy.cache.credential_status import Standings
from proxy.cache.recently_accepted import Leases
from proxy.core.key import Secret
from proxy.core.plan import Pass, PassReason, Scope
from proxy.core.request import HeaderLines, Request
from proxy.request.credentials import Callers
from proxy.request.planner import Planned, Planner, Route
from proxy.runtime.tasks import Tasks
from proxy.vendors.dashscope.embedding_request import COMPATIBLE, NATIVE
from proxy.vendors.headers import NO_EFFECT, NO_EFFECT_PREFIXES, decisive
from proxy.vendors.registry import Adapters
from tests.support.clock import FakeClock

SECRET = Secret.derive(b"deployment")
LINES: HeaderLines = ((b"Authorization", b"Bearer sk-one"), (b"Content-Type", b"application/json"))
MIB = 2**20
READ_ON_THE_WAY = {b"accept-encoding", b"cache-control", b"cdn-loop", b"content-type", b"host", b"pragma"}


class Purges:
    """Marks of purges."""

    def __init__(self) -> None:
        self.now: tuple[bytes, ...] = ()

    def tokens_for(self, upstream: str, operation: str, model: str, scopes: tuple[Scope, ...]) -> tuple[bytes, ...]:
        return self.now


class Way:
    def __init__(self, upstream: str) -> None:
        self.origin = f"https://{upstream}.test"


class Rig:
    def __init__(self) -> None:
        self.purges, clock, tasks = Purges(), FakeClock(), Tasks(lambda _: None)
        self.routes = Adapters({"one": "dashscope", "two": "dashscope", "vectors": "dashvector"})
        transport_of: Any = lambda request: Way(request.upstream)  # noqa: E731
        self.planner = Planner(
            routes=self.routes,
            callers=Callers(
                secret=SECRET,
                endpoints={"one": "one", "two": "two", "vectors": "vectors"},
                credential_of=self.routes.credential,
                leases=Leases(60.0, clock.monotonic),
                standings=Standings(None, tasks, longest_ms=1_000, monotonic=clock.monotonic),
            ),
            transport_of=transport_of,
            purges=self.purges,
            secret=SECRET,
        )

    def ask(self, request: Request) -> tuple[Route, Planned | Pass]:
        route = self.planner.route(request)
        assert route is not None
        return route, asyncio.run(self.planner.plan(route, request))

    def planned(self, request: Request) -> Planned:
        _, planned = self.ask(request)
        assert isinstance(planned, Planned)
        return planned


def body(*texts: str, **more: Any) -> bytes:
    return json.dumps({"model": "text-embedding-v4", "input": {"texts": texts}, **more}).encode()


def post(
    lines: HeaderLines = LINES, content: bytes = body("a"), *, to: str = "one", path: str = NATIVE.path
) -> Request:
    return Request("POST", path, lines, to, content)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_equal_bytes_mean_the_same_and_are_planned_once(rig: Rig) -> None:
    route, planned = rig.ask(post())
    again, same = rig.ask(post(tuple(LINES), bytes(bytearray(body("a")))))
    assert again is route
    assert same is planned


IDLE = (b"X-Request-Id", b"user-agent", b"TRACEPARENT", b"X-Stainless-Retry-Count", b"Date", b"Via", b"X-B3-TraceId")


@pytest.mark.parametrize("name", IDLE)
def test_idle_lines_change_nothing(rig: Rig, name: bytes) -> None:
    planned = rig.planned(post())
    for value in (b"1", b"2"):
        assert rig.planned(post((*LINES, (name, value)))) is planned
        assert rig.planned(post(((name, value), *LINES))) is planned


OTHERS = {
    "another text": post(content=body("b")),
    "a field": post(content=body("a", parameters={"dimension": 64})),
    "blanks in the body": post(content=body("a") + b" "),
    "another credential": post(((b"Authorization", b"Bearer sk-two"), LINES[1])),
    "another workspace": post((*LINES, (b"X-DashScope-WorkSpace", b"w"))),
    "a line nobody knows": post((*LINES, (b"X-New", b"1"))),
    "a method override": post((*LINES, (b"X-HTTP-Method-Override", b"GET"))),
    "another target": post(path=NATIVE.path + "?a"),
    "another upstream": post(to="two"),
    "another host": post((*LINES, (b"Host", b"b"))),
    "a coding refused": post((*LINES, (b"Accept-Encoding", b"identity;q=0"))),
    "a wish": post((*LINES, (b"Cache-Control", b"max-age=1"))),
    "an old wish": post((*LINES, (b"Pragma", b"no-cache"))),
    "another type": post((LINES[0], (b"Content-Type", b"text/plain"))),
    "a line twice": post((*LINES, LINES[1])),
}


@pytest.mark.parametrize("other", [pytest.param(request, id=name) for name, request in OTHERS.items()])
def test_what_may_mean_something_else_is_planned_by_itself(rig: Rig, other: Request) -> None:
    fresh_route, fresh = Rig().ask(other)
    rig.ask(post())
    route, planned = rig.ask(other)
    assert route.objection == fresh_route.objection
    assert route.wishes == fresh_route.wishes
    if isinstance(planned, Pass) or isinstance(fresh, Pass):
        assert planned == fresh
    else:
        assert (planned.keys, planned.owner) == (fresh.keys, fresh.owner)
        assert planned is not rig.planned(post())


def test_what_is_read_on_the_way_is_never_idle() -> None:
    for name in NO_EFFECT:
        assert bool(decisive(((name.title(), b"x"),))) is (name in READ_ON_THE_WAY), name
    for prefix in NO_EFFECT_PREFIXES:
        assert not decisive(((prefix + b"any", b"x"),))
    for name in (b"connection", b"te", b"upgrade", b"expect", b"transfer-encoding", b"proxy-authorization", b"cookie"):
        assert decisive(((name, b"x"),))


def test_an_objection_and_a_wish_are_those_of_the_head(rig: Rig) -> None:
    plain, _ = rig.ask(post())
    coded, _ = rig.ask(post((*LINES, (b"Accept-Encoding", b"identity;q=0"))))
    wishing, _ = rig.ask(post((*LINES, (b"Cache-Control", b"max-age=7"))))
    assert (plain.objection, coded.objection) == (None, PassReason.IDENTITY_REFUSED)
    assert (plain.wishes.max_age_s, wishing.wishes.max_age_s) == (None, 7)


def test_a_purge_makes_new_keys_once(rig: Rig) -> None:
    before = rig.planned(post())
    rig.purges.now = (b"x" * 16,)
    assert not rig.planner.is_current(before)
    after = rig.planned(post())
    assert set(after.keys).isdisjoint(before.keys)
    assert after.owner == before.owner
    assert rig.planner.is_current(after)
    assert rig.planned(post()) is after
    rig.purges.now = ()  # what a purge has made new does not come back by itself, but its keys are what they were
    assert rig.planned(post()).keys == before.keys


def test_no_two_ports_share_a_meaning(rig: Rig) -> None:
    assert set(rig.planned(post()).keys).isdisjoint(rig.planned(post(to="two")).keys)


def test_what_only_passes_has_no_route(rig: Rig) -> None:
    for _ in range(2):
        assert rig.planner.route(Request("GET", "/x", LINES, "one")) is None
        assert rig.planner.route(Request("GET", NATIVE.path, LINES, "one")) is None
        assert rig.planner.route(Request("POST", COMPATIBLE.path, LINES, "one")) is not None


async def test_a_write_stays_one(rig: Rig) -> None:
    lines = ((b"dashvector-auth-token", b"t"), LINES[1])
    for _ in range(2):
        route = rig.planner.route(Request("POST", "/v1/collections/abc/docs", lines, "vectors"))
        assert route is not None
        assert route.write is not None
        read = rig.planner.route(Request("POST", "/v1/collections/abc/query", lines, "vectors"))
        assert read is not None
        assert read.write is None


def test_over_grpc_equal_bytes_mean_the_same_too(rig: Rig) -> None:
    call = Request(
        "GRPC", "/dashvector.proto.DashVectorService/query_doc", ((b"dashvector-auth-token", b"t"),), "vectors"
    )
    assert rig.planner.route(call) is rig.planner.route(call)
    http = Request("POST", call.target, call.headers, "vectors")
    assert rig.planner.route(http) is not rig.planner.route(call)


def hostile(kind: str, at: int) -> Request:
    if kind == "a long line":
        return post((*LINES, (b"X-Long", b"%d" % at + b"x" * 60_000)))
    if kind == "many lines":
        return post((*LINES, *((b"X%d" % line, b"%d" % (at * 1_000 + line)) for line in range(240))))
    if kind == "lines that are remembered":
        return post((*LINES, (b"X-Long", b"%d" % at + b"x" * 3_000)))
    if kind == "long texts":
        return post(content=body(f"{at}" + "x" * 16_000))
    if kind == "many members":
        return post(content=body(f"{at}", parameters={f"k{member}": member for member in range(250)}))
    return post(content=body(*(f"{at} {text}" for text in range(10))))


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("a long line", 400),
        ("many members", 400),
        *(
            pytest.param(kind, count, marks=pytest.mark.slow)
            for kind, count in (("many lines", 400), ("lines that are remembered", 1_500))
        ),
        ("long texts", 400),
        pytest.param("many texts", 1_500, marks=pytest.mark.slow),
    ],
)
def test_r9_what_is_remembered_of_strangers_is_bounded(
    kind: str, count: int, record_property: Callable[[str, object], None]
) -> None:
    rig = Rig()

    async def ask_all() -> float:
        for at in range(count):
            request = hostile(kind, at)
            route = rig.planner.route(request)
            assert route is not None
            assert isinstance(await rig.planner.plan(route, request), Planned)
        return tracemalloc.get_traced_memory()[0] / MIB

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0] / MIB
        held = asyncio.run(ask_all()) - before
    finally:
        tracemalloc.stop()
    assert held < 14, f"{held:.1f} MiB"
    record_property("figure", f"{count} plans of strangers, {kind}: {held:.1f} MiB")


def test_r9_what_is_let_in_is_remembered_within_bounds() -> None:
    """A head of many short lines takes far more memory than its text says."""
    from aiohttp import HttpVersion11  # noqa: PLC0415
    from multidict import CIMultiDict  # noqa: PLC0415

    from proxy.server.http.admission import Intake  # noqa: PLC0415

    class Raw:
        method, raw_path, version = "POST", "/x", HttpVersion11

        def __init__(self, lines: HeaderLines) -> None:
            self.raw_headers = lines
            self.headers = CIMultiDict((name.decode(), value.decode()) for name, value in lines)

    intake = Intake(lambda *_: "one", frozenset(), decisive)
    for at in range(50):
        many: Any = Raw(((b"Host", b"a"), *((b"X%d" % line, b"%d" % at) for line in range(240))))
        few: Any = Raw(((b"Host", b"a"), (b"X-One", b"1"), (b"X-Request-Id", b"%d" % at)))
        intake.request(many)
        # What was remembered is not passed on, but what has come.
        assert intake.request(few).headers == few.raw_headers
    assert len(intake._known) == 1
