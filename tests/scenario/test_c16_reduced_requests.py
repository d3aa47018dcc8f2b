"""
C16: what a client is told when the upstream was asked for less than it wants, or for others too.

The upstream's answer is a function of the request alone, and names a position in it. So what the client's own request
would have got is known, and whatever was said of another request's positions shows.
"""

import asyncio
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.scenario.telling import COMPATIBLE, NATIVE, Lines, bearer
from tests.scenario.wire_rig import WireRig, wire_rig
from tests.support import answers, wire
from tests.support.raw_client import RawClient, RawResponse
from tests.support.recorded import RecordedRequest
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ID = "vendor-7"
DIALECTS = (NATIVE, COMPATIBLE)
STATUSES = [status for status in range(200, 600) if status not in (204, 205, 304)]
SOME_STATUSES = [*STATUSES[::9], 201, 206, 400, 401, 403, 404, 413, 422, 429, 500, 502, 503, 504, 599]
OF_NOBODY = frozenset({401, 403, 429, *range(500, 600)})
LINES = bearer("sk-one")


def asking(dialect: str, *texts: str) -> bytes:
    texts_of = {"input": {"texts": texts}} if dialect == NATIVE else {"input": texts}
    return json.dumps({"model": "text-embedding-v4", **texts_of}).encode()


def texts_of(body: bytes) -> list[str]:
    given = json.loads(body)["input"]
    return list(given["texts"] if isinstance(given, dict) else given)


def vector(text: str) -> list[float]:
    """Of a text, and of no other."""
    return [float(byte) for byte in text.encode().ljust(8)[:8]]


def rows(dialect: str, texts: Sequence[str], **members: Any) -> dict[str, Any]:
    """The answer that is right."""
    usage = {"total_tokens": 7 * len(texts)}
    if dialect == NATIVE:
        found = [{"embedding": vector(text), "text_index": at} for at, text in enumerate(texts)]
        return {"output": {"embeddings": found}, "usage": usage, "request_id": ID, **members}
    found = [{"embedding": vector(text), "index": at, "object": "embedding"} for at, text in enumerate(texts)]
    return {"object": "list", "data": found, "model": "m", "usage": usage, "id": ID, **members}


def error(dialect: str, message: str) -> dict[str, Any]:
    inner = {"code": "X", "message": message}
    return {**inner, "request_id": ID} if dialect == NATIVE else {"error": inner, "request_id": ID}


def naming(dialect: str, texts: Sequence[str]) -> dict[str, Any]:
    """An error that names the last position."""
    return error(dialect, f"input[{len(texts) - 1}] cannot be served")


@dataclass(frozen=True, slots=True)
class Told:
    """The upstream's answer about these texts."""

    status: int
    body: bytes
    lines: Lines = ((b"Content-Type", b"application/json"),)


Telling = Callable[[str, Sequence[str]], Told]


def as_json(status: int, document: Callable[[str, Sequence[str]], Any], *lines: tuple[bytes, bytes]) -> Telling:
    def tell(dialect: str, texts: Sequence[str]) -> Told:
        return Told(
            status, json.dumps(document(dialect, texts)).encode(), ((b"Content-Type", b"application/json"), *lines)
        )

    return tell


def right(dialect: str, texts: Sequence[str]) -> Told:
    return as_json(200, rows)(dialect, texts)


def changed(change: Callable[[list[dict[str, Any]], str], Any]) -> Telling:
    """A right answer whose rows were then changed."""

    def document(dialect: str, texts: Sequence[str]) -> dict[str, Any]:
        made = rows(dialect, texts)
        change(
            made["output"]["embeddings"] if dialect == NATIVE else made["data"],
            "text_index" if dialect == NATIVE else "index",
        )
        return made

    return as_json(200, document)


def spelled(edit: Callable[[bytes], bytes], *lines: tuple[bytes, bytes]) -> Telling:
    """A right answer with its bytes edited."""

    def tell(dialect: str, texts: Sequence[str]) -> Told:
        told = right(dialect, texts)
        return Told(200, edit(told.body), (*told.lines, *lines))

    return tell


# Status 200, and not complete and right all the same.
ODD: dict[str, Telling] = {
    "nothing": spelled(lambda _: b""),
    "no JSON": spelled(lambda body: body[:-1]),
    "a list": spelled(lambda body: b"[" + body + b"]"),
    "null": spelled(lambda _: b"null"),
    "an error and no rows": as_json(200, naming),
    "a code beside the rows": as_json(200, lambda dialect, texts: rows(dialect, texts, code="X", error={"code": "X"})),
    "another list beside the rows": as_json(200, lambda dialect, texts: rows(dialect, texts, failed=[0])),
    "no usage": as_json(200, lambda dialect, texts: {**rows(dialect, texts), "usage": None}),
    "one row less": changed(lambda found, _: found.pop()),
    "one row twice": changed(lambda found, _: found.append(found[0])),
    "an index twice": changed(lambda found, index: found[-1].update({index: 0})),
    "an index beyond": changed(lambda found, index: found[-1].update({index: 9})),
    "a negative index": changed(lambda found, index: found[0].update({index: -1})),
    "an index in words": changed(lambda found, index: found[0].update({index: "0"})),
    "no index": changed(lambda found, index: found[0].pop(index)),
    "another dimension": changed(lambda found, _: found[0].update(embedding=[1.0])),
    "an empty vector": changed(lambda found, _: found[0].update(embedding=[])),
    "no vector": changed(lambda found, _: found[0].pop("embedding")),
    "null in a vector": changed(lambda found, _: found[0].update(embedding=[None] * 8)),
    "NaN in a vector": changed(lambda found, _: found[0].update(embedding=[float("nan")] * 8)),
    "another content type": spelled(lambda body: body, (b"Content-Type", b"text/plain")),
    "broken gzip": spelled(lambda body: gzip.compress(body, mtime=0)[:-4], (b"Content-Encoding", b"gzip")),
    "an unknown coding": spelled(lambda body: body, (b"Content-Encoding", b"br")),
    "a cookie": spelled(lambda body: body, (b"Set-Cookie", b"a=b")),
    "no-store": spelled(lambda body: body, (b"Cache-Control", b"no-store")),
    "Vary by everything": spelled(lambda body: body, (b"Vary", b"*")),
}


def saying(telling: Telling, odd: frozenset[str]) -> Any:
    """An upstream that says so of every request with one of the *odd* texts in it, and is right about others."""

    async def answer(request: RecordedRequest, writer: asyncio.StreamWriter) -> None:
        texts, dialect = texts_of(request.body), request.target.decode()
        told = right(dialect, texts) if odd.isdisjoint(texts) else telling(dialect, texts)
        await answers.respond(told.body, told.status, told.lines)(request, writer)

    return answer


async def ask(client: RawClient, dialect: str, *texts: str, lines: Lines = LINES) -> RawResponse:
    return await client.request("POST", dialect, lines, asking(dialect, *texts))


def assert_own(response: RawResponse, telling: Telling, dialect: str, *texts: str) -> None:
    """The client has what its own request gets, byte for byte."""
    told = telling(dialect, texts)
    assert (response.status, response.body) == (told.status, told.body), (dialect, texts, response)


async def partial(rig: WireRig, client: RawClient, telling: Telling, name: str, key: str) -> None:
    """[odd, known, odd] in both dialects, of which the upstream is asked for two."""
    lines, odd = bearer(key), frozenset((f"a {name}", f"c {name}"))
    for dialect in DIALECTS:
        rig.upstream.answer = saying(telling, odd)
        assert (await ask(client, dialect, "known", lines=lines)).status == 200
        rig.forget()
        texts = (f"a {name}", "known", f"c {name}")
        assert_own(await ask(client, dialect, *texts, lines=lines), telling, dialect, *texts)
        asked = [texts_of(request.body) for request in rig.upstream.requests]
        assert asked[0] == [texts[0], texts[2]], "nothing was known"
        assert asked[1:] in ([], [list(texts)]), asked


async def test_c16_every_status_to_a_partial_miss_that_names_a_position(rig: WireRig) -> None:
    async with await rig.client() as client:
        for status in STATUSES:
            # Who was refused has no hits until it is accepted.
            key = f"sk-{status}" if status in (401, 403) else "sk-one"
            if status != 200:
                await partial(rig, client, as_json(status, naming), f"named {status}", key)
            if status < 300 and status != 200:
                await partial(rig, client, as_json(status, rows), f"rows {status}", key)


async def test_c16_statuses_without_a_position(rig: WireRig) -> None:
    """An error of nobody's items is passed on as it came, and costs no second call; any other is asked for anew."""

    def document(dialect: str, _texts: Sequence[str]) -> Any:
        return error(dialect, "cannot be served")

    async with await rig.client() as client:
        for status in sorted(set(SOME_STATUSES)):
            key = f"sk-general-{status}" if status in (401, 403) else "sk-one"
            await partial(rig, client, as_json(status, document), f"general {status}", key)
            assert len(rig.upstream.requests) == (1 if status in OF_NOBODY else 2), status


@pytest.mark.parametrize("name", ODD)
async def test_c16_every_odd_body_to_a_partial_miss(rig: WireRig, name: str) -> None:
    async with await rig.client() as client:
        await partial(rig, client, ODD[name], name, "sk-one")


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_c16_answers_without_a_body(rig: WireRig, status: int) -> None:
    async with await rig.client() as client:
        for dialect in DIALECTS:
            rig.upstream.answer = saying(right, frozenset())
            await ask(client, dialect, "known")
            rig.upstream.answer = answers.raw(wire.head_bytes(b"HTTP/1.1 %d X" % status, [(b"Content-Length", b"0")]))
            assert (await ask(client, dialect, f"a {status}", "known")).status == status


async def test_c16_a_text_that_stands_twice_is_asked_for_once_and_its_answer_shown_to_nobody(rig: WireRig) -> None:
    async with await rig.client() as client:
        for status in (201, 206, 400, 422, 500):
            telling = as_json(status, rows if status < 300 else naming)
            for dialect in DIALECTS:
                texts = (f"twice {status}", f"twice {status}", f"once {status}")
                rig.upstream.answer = saying(telling, frozenset(texts))
                assert_own(await ask(client, dialect, *texts), telling, dialect, *texts)


async def test_c16_who_waited_for_anothers_request_gets_its_own_answer(rig: WireRig) -> None:
    """Two ask for a text that is on its way; what is said of the first one's list is not said of theirs."""
    telling = as_json(500, naming)
    for dialect in DIALECTS:
        gate, odd = asyncio.Event(), frozenset(("shared",))

        async def answer(
            request: RecordedRequest, writer: asyncio.StreamWriter, gate: asyncio.Event = gate, odd: Any = odd
        ) -> None:
            if texts_of(request.body) == ["x", "x2", "shared"]:
                await gate.wait()
            await saying(telling, odd)(request, writer)

        await rig.renew()
        rig.upstream.answer = answer
        lists = (("x", "x2", "shared"), (f"y{dialect}", "shared"), ("shared", f"z{dialect}", "z2"))
        clients = [await rig.client() for _ in lists]
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(clients[0], dialect, *lists[0]))]
            await wait_until(lambda: len(rig.upstream.requests) >= 1, what="the first")
            for client, texts in zip(clients[1:], lists[1:], strict=True):
                asked.append(group.create_task(ask(client, dialect, *texts)))
            # The rest of what the two want has been asked for, so they wait for the first one's request.
            await wait_until(lambda: len(rig.upstream.requests) >= 3, what="the others")
            gate.set()
        for texts, response in zip(lists, asked, strict=True):
            assert_own(response.result(), telling, dialect, *texts)
        for client in clients:
            await client.close()


async def test_c16_several_clients_in_one_request_and_one_in_several() -> None:
    """Requests that were put together, and one that was cut: nobody is told of positions in those."""
    options = {"DASHCACHE_BATCHING_WINDOW_MS": "100", "DASHCACHE_BATCHING_CUT": "true"}
    async with wire_rig(**options) as rig:
        for status in (206, 400, 422, 429, 500, 503):
            telling = as_json(status, rows if status < 300 else naming)
            for dialect in DIALECTS:
                lists = [(f"{status} {number} a", f"{status} {number} b") for number in range(3)]
                long = tuple(f"{status} long {number}" for number in range(14))
                odd = frozenset({"", *(text for texts in lists for text in texts), *long})
                rig.upstream.answer = saying(telling, odd)
                clients = [await rig.client() for _ in lists]
                told = await asyncio.gather(
                    *(ask(client, dialect, *texts) for client, texts in zip(clients, lists, strict=True))
                )
                for texts, response in zip(lists, told, strict=True):
                    assert_own(response, telling, dialect, *texts)
                assert_own(await ask(clients[0], dialect, *long), telling, dialect, *long)
                for client in clients:
                    await client.close()


async def test_c16_an_error_that_is_repeated_is_the_clients_own() -> None:
    """With errors kept for a while: what was said of a part is not said of the whole, nor the other way round."""

    def document(dialect: str, texts: Sequence[str]) -> Any:
        code = "InvalidParameter" if dialect == NATIVE else "invalid_parameter_error"
        inner = {"code": code, "message": f"input[{len(texts) - 1}]"}
        return {**inner, "request_id": ID} if dialect == NATIVE else {"error": inner}

    telling = as_json(400, document)
    async with wire_rig(DASHCACHE_NEGATIVE_INVALID_PARAMETER_S="60") as rig, await rig.client() as client:
        for dialect in DIALECTS:
            rig.upstream.answer = saying(telling, frozenset({"bad"}))
            await ask(client, dialect, "known")
            for texts in (("known", "bad"), ("bad",), ("bad", "known"), ("known", "bad", "known")) * 2:
                assert_own(await ask(client, dialect, *texts), telling, dialect, *texts)
            assert len(rig.upstream.requests) == 1 + 2 * 4 - 1, "each once, and its part; one had no part"
            rig.forget()
