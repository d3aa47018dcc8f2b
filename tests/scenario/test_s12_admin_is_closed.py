"""S12: the admin API answers operators and nobody else, and the data port does not know it (CVE-2018-5702)."""

import http.client
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import answers
from tests.support.canary import assert_absent, make_secret
from tests.support.proxy_process import ROOT, ProxyProcess
from tests.support.raw_client import RawClient
from tests.support.raw_upstream import RawUpstream

READS = ("/healthz", "/readyz", "/metrics", "/v1/stats", "/v1/mode")
NONE = ("/", "/v1", "/v1/modes", "/admin", "/healthz/", "//healthz", "/debug/pprof", "/.env")
CHANGES = (("PUT", "/v1/mode"), ("POST", "/v1/purge"), ("POST", "/v1/reload"))
ORDER = {"mode": "bypass"}
PURGE = {"all": True}


@pytest.fixture(scope="module")
def token() -> str:
    return make_secret("token-")


@pytest.fixture(scope="module")
def proxy(token: str):
    """With a token."""
    with ProxyProcess(dashscope_url="http://127.0.0.1:9", env={"DASHCACHE_ADMIN_TOKEN": token}) as process:
        yield process


@pytest.fixture(scope="module")
def open_proxy():
    """On loopback without a token, as on a developer's machine."""
    with ProxyProcess(dashscope_url="http://127.0.0.1:9") as process:
        yield process


def ask(proxy: ProxyProcess, method: str, path: str, headers=(), body: bytes | None = None):
    """One request with exactly these headers (and a Content-Length); status, headers, body."""
    connection = http.client.HTTPConnection(proxy.admin_address, timeout=10)
    try:
        lines = list(headers.items() if isinstance(headers, dict) else headers)
        names = {name.lower() for name, _ in lines}
        connection.putrequest(method, path, skip_host="host" in names, skip_accept_encoding=True)
        for name, value in lines:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def changed(proxy: ProxyProcess) -> tuple[object, object]:
    """All that changes have come to so far, without what ages."""
    last = proxy.stats()["purges"]["last"]
    return proxy.modes()["rules"], last and last["token"]


def assert_closed(headers: dict[str, str]) -> None:
    """What every answer says to a browser, whatever it is."""
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["server"] == "dashcache"
    assert "access-control-allow-origin" not in headers


def change_for(path: str) -> bytes:
    """A body that would change something."""
    return json.dumps(PURGE if path == "/v1/purge" else ORDER).encode()


def every_request() -> list[tuple[str, str, bytes | None]]:
    """Each route by each method, and routes that do not exist."""
    methods = ("GET", "HEAD", "OPTIONS", "PUT", "POST", "PATCH", "DELETE", "TRACE")
    return [
        (method, path, change_for(path) if method in ("PUT", "POST", "PATCH") else None)
        for path, method in itertools.product((*READS, "/v1/purge", *NONE), methods)
    ]


def test_s12_nothing_is_told_or_done_without_the_token(proxy: ProxyProcess, token: str) -> None:
    wrong = {
        "none": [],
        "wrong": [("Authorization", "Bearer nonsense")],
        "empty": [("Authorization", "")],
        "bare bearer": [("Authorization", "Bearer ")],
        "without scheme": [("Authorization", token)],
        "as basic": [("Authorization", f"Basic {token}")],
        "shorter": [("Authorization", f"Bearer {token[:-1]}")],
        "longer": [("Authorization", f"Bearer {token}1")],
        "other case": [("Authorization", f"Bearer {token.upper()}")],
        "twice": [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")],
        "behind a wrong one": [("Authorization", "Bearer x"), ("authorization", f"Bearer {token}")],
        "in another header": [("X-Admin-Token", token), ("Cookie", f"token={token}"), ("Proxy-Authorization", token)],
        "bytes": [("Authorization", "Bearer \xff\xfe")],
    }
    before = changed(proxy)  # tests come in any order, and others switch
    for (name, lines), (method, path, body) in itertools.product(wrong.items(), every_request()):
        json_line = [("Content-Type", "application/json")] if body else []
        status, headers, said = ask(proxy, method, path, [*lines, *json_line], body)
        assert status == 401, (name, method, path)
        assert headers["www-authenticate"] == 'Bearer realm="dashcache"'
        assert_closed(headers)
        assert method == "HEAD" or json.loads(said)["error"] == "TokenNeeded"
        assert_absent(said + repr(headers).encode(), token)
    for path in READS:
        for query in (f"?token={token}", f"?access_token={token}", f"?Authorization=Bearer+{token}"):
            assert ask(proxy, "GET", path + query)[0] == 401
    assert changed(proxy) == before
    assert_absent(proxy.output, token)


def test_s12_with_the_token_it_works(proxy: ProxyProcess, token: str) -> None:
    lines = [("Authorization", f"Bearer {token}")]
    for path in READS:
        status, headers, said = ask(proxy, "GET", path, lines)
        assert (status, bool(said)) == (200, True), path
        assert_closed(headers)
    # The token speaks for the caller, so that the listener may be reached under any name.
    assert ask(proxy, "GET", "/v1/stats", [*lines, ("Host", "dashcache.internal")])[0] == 200
    for spelled in (f"bearer {token}", f"BEARER   {token}"):
        assert ask(proxy, "GET", "/v1/stats", [("Authorization", spelled)])[0] == 200
    for path in NONE:
        assert ask(proxy, "GET", path, lines)[0] == 404
    order = [*lines, ("Content-Type", "application/json")]
    assert ask(proxy, "PUT", "/v1/mode", order, b'{"mode":"shadow","for_s":0.05}')[0] == 200
    assert ask(proxy, "PUT", "/v1/mode", order, b'{"mode":"on"}')[0] == 200
    assert ask(proxy, "POST", "/v1/purge", order, b'{"all":true}')[0] == 200


def test_s12_changes_are_json_by_put_and_nothing_else(proxy: ProxyProcess, token: str) -> None:
    lines = [("Authorization", f"Bearer {token}")]
    before = proxy.modes()
    change = json.dumps(ORDER).encode()
    for method in ("GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"):
        status, headers, _ = ask(
            proxy, method, "/v1/mode?mode=bypass", [*lines, ("Content-Type", "application/json")], change
        )
        assert status == (200 if method in ("GET", "HEAD") else 405), method
        assert_closed(headers)
    for override in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        ask(proxy, "GET", "/v1/mode", [*lines, (override, "PUT"), ("Content-Type", "application/json")], change)
    kinds = [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "text/json",
        "",
        "*/*",
    ]
    kinds += ["text/plain; a=application/json", "application/jsonp", "application/json-patch+json"]
    for kind in kinds:
        for body in (change, b"mode=bypass", b'{"mode":"bypass","reason":"="}'):
            assert ask(proxy, "PUT", "/v1/mode", [*lines, ("Content-Type", kind)], body)[0] == 415, kind
    assert ask(proxy, "PUT", "/v1/mode", lines, change)[0] == 415
    order = [*lines, ("Content-Type", "application/json")]
    bad = [b"", b"{", b"[]", b'"bypass"', b"mode=bypass", b'{"mode":"off"}', b'{"mode":"bypass","mode":"on"}']
    bad += [
        b'{"mode":"bypass","upstream":"nobody"}',
        b'{"mode":"bypass","extra":1}',
        b'{"mode":"bypass","for_s":1e999}',
    ]
    bad += [
        b'{"mode":"bypass","for_s":-1}',
        b'{"mode":"bypass","for_s":"1"}',
        b'{"mode":"bypass","reason":"a\\u0000b"}',
    ]
    bad += [b'{"mode":"bypass","reason":"' + b"x" * 201 + b'"}', b"\xff\xfe", b'{"mode":["bypass"]}']
    for body in bad:
        status, headers, _ = ask(proxy, "PUT", "/v1/mode", order, body)
        assert (status, body) == (400, body)
        assert_closed(headers)
    assert ask(proxy, "PUT", "/v1/mode", order, b" " * 20_000)[0] == 413
    assert proxy.modes() == before


def test_s12_a_purge_is_json_by_post_and_nothing_else(proxy: ProxyProcess, token: str) -> None:
    lines = [("Authorization", f"Bearer {token}")]
    order = [*lines, ("Content-Type", "application/json")]
    change, before = json.dumps(PURGE).encode(), changed(proxy)
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"):
        for body in (change, None):
            status, headers, _ = ask(proxy, method, "/v1/purge?all=true", order, body)
            assert (method, status) == (method, 405)
            assert_closed(headers)
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "", "*/*"):
        for body in (change, b"all=true", b'{"all":true,"x":"="}'):
            assert ask(proxy, "POST", "/v1/purge", [*lines, ("Content-Type", kind)], body)[0] == 415, kind
    assert ask(proxy, "POST", "/v1/purge", lines, change)[0] == 415
    bad = [b"", b"{", b"[]", b"{}", b"all=true", b'{"all":"true"}', b'{"all":true,"all":true}', b"\xff\xfe"]
    bad += [b'{"all":false}', b'{"all":true,"model":"m"}', b'{"upstream":"nobody"}', b'{"model":"a\\u0000b"}']
    bad += [b'{"model":"' + b"x" * 129 + b'"}', b'{"collection":"../x"}', b'{"model":"m","extra":1}']
    for body in bad:
        status, headers, _ = ask(proxy, "POST", "/v1/purge", order, body)
        assert (status, body) == (400, body)
        assert_closed(headers)
    assert ask(proxy, "POST", "/v1/purge", order, b" " * 20_000)[0] == 413
    assert changed(proxy) == before


FOREIGN = {
    "a rebound name": [("Host", "evil.test")],
    "a rebound name with our port": [("Host", "127.0.0.1.evil.test:9180")],
    "a name that ends like ours": [("Host", "evil-localhost")],
    "an address of somebody else's": [("Host", "10.0.0.1")],
    "the unspecified address": [("Host", "0.0.0.0")],
    "a foreign page": [("Origin", "https://evil.test")],
    "a foreign page on our machine": [("Origin", "http://127.0.0.1:3000")],
    "a page without an origin": [("Origin", "null")],
    "an empty origin": [("Origin", "")],
    "another site": [("Sec-Fetch-Site", "cross-site")],
    "a neighbour of the site": [("Sec-Fetch-Site", "same-site")],
    "an unknown relation": [("Sec-Fetch-Site", "elsewhere")],
}


@pytest.mark.parametrize("with_token", [False, True])
def test_s12_web_pages_in_the_operators_browser_get_nothing(
    proxy: ProxyProcess, open_proxy: ProxyProcess, token: str, *, with_token: bool
) -> None:
    """Without a token loopback is trusted, and so is whoever makes the operator's browser go there, unless refused."""
    asked = proxy if with_token else open_proxy
    lines = [("Authorization", f"Bearer {token}")] if with_token else []
    before = asked.modes(), changed(asked)
    for (name, foreign), (method, path) in itertools.product(
        FOREIGN.items(),
        [
            *(("GET", path) for path in READS),
            *CHANGES,
            ("OPTIONS", "/v1/mode"),
            ("OPTIONS", "/v1/purge"),
            ("GET", "/x"),
        ],
    ):
        if with_token and foreign[0][0] == "Host":
            continue  # a page cannot know the token, so any name will do
        is_change = (method, path) in CHANGES
        body, kind = (change_for(path), [("Content-Type", "application/json")]) if is_change else (None, [])
        status, headers, said = ask(asked, method, path, [*lines, *foreign, *kind], body)
        assert (name, status) == (name, 403)
        assert json.loads(said)["error"].startswith("Foreign")
        assert_closed(headers)
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"):
        for method, path in CHANGES:
            assert ask(asked, method, path, [*lines, ("Content-Type", kind)], change_for(path))[0] == 415
    assert (asked.modes(), changed(asked)) == before
    for own in (
        [],
        [("Host", "localhost:1")],
        [("Host", "[::1]:9180")],
        [("Sec-Fetch-Site", "none")],
        [("Host", "127.0.0.1")],
    ):
        assert ask(asked, "GET", "/v1/stats", [*lines, *own])[0] == 200
    host = asked.admin_address
    assert ask(asked, "GET", "/v1/stats", [*lines, ("Host", host), ("Origin", f"http://{host}")])[0] == 200


async def test_s12_the_data_port_forwards_the_admin_paths(token: str) -> None:
    async with (
        RawUpstream(answers.respond(b"the upstream's")) as upstream,
        ProxyProcess(dashscope_url=upstream.url, env={"DASHCACHE_ADMIN_TOKEN": token}) as proxy,
    ):
        before = changed(proxy)
        async with await RawClient.connect(proxy.http_port) as client:
            for number, path in enumerate((*READS, "/v1/purge", *NONE), 1):
                for at, (method, body) in enumerate(
                    (("GET", None), ("PUT", change_for(path)), ("POST", change_for(path)))
                ):
                    lines = [(b"Content-Type", b"application/json"), (b"Authorization", b"Bearer " + token.encode())]
                    response = await client.request(method, path, lines, body)
                    assert (response.status, response.body) == (200, b"the upstream's")
                    assert upstream.requests[-1].target == path.encode()
                    assert len(upstream.requests) == 3 * (number - 1) + at + 1
        assert changed(proxy) == before


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:9180", "admin.internal:9180"])
@pytest.mark.parametrize("given", ["", "  "])
def test_s12_an_exposed_listener_without_a_token_is_refused(address: str, given: str, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    settings = {"DASHCACHE_ADMIN_LISTEN": address, "DASHCACHE_ADMIN_TOKEN": given, "DASHCACHE_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "run"],
        env={**kept, **settings, "DASHCACHE_HTTP_LISTEN": "127.0.0.1:0"},
        cwd=ROOT,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert b"DASHCACHE_ADMIN_TOKEN" in done.stderr
    assert b"can be reached from outside" in done.stderr


def test_s12_an_exposed_listener_with_a_token_asks_for_it(token: str) -> None:
    settings = {"DASHCACHE_ADMIN_LISTEN": "0.0.0.0:0", "DASHCACHE_ADMIN_TOKEN": token}
    with ProxyProcess(dashscope_url="http://127.0.0.1:9", env=settings) as proxy:
        assert ask(proxy, "GET", "/healthz")[0] == 401
        assert ask(proxy, "GET", "/healthz", [("Authorization", f"Bearer {token}")])[0] == 200
