"""
The vendor's side of a settle probe: one document in a scratch collection of DashVector's, over HTTP and JSON.

Each call has a connection of its own, as with the vendor's SDK: a kept one might always lead to the same replica. The
key goes to the address that was named, or nowhere: no redirect, no proxy from the environment.
"""

import asyncio
import contextlib
import os
import re
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import orjson
from yarl import URL

from proxy.core.upstream import Endpoint, split_vector_url
from proxy.tools.settle_probe import Plan, ProbeError, RateLimitedError, Reader, Samples, SettleProbe

FIELD = "dashcache_probe"
ID_PREFIX = "dashcache-probe-"

KEY_VARIABLE = "DASHVECTOR_API_KEY"
"""Where the key is read from; an argument could be seen by every other user of the machine."""

T = TypeVar("T")

_CALL_TIMEOUT_S = 10.0
_SINGLE = "proxima_vector"
"""What a collection's only vector is called when it was created without a name."""

# The vendor's codes, which come in a body with status 200.
_RATE_LIMITED = -2034
_NO_COLLECTION = -2021
_NO_DOCUMENT = -2024
_REFUSED_KEY = (401, 403)
_NEVER_WRITTEN = 0
"""Stands for whatever a document says in the probe's field that is no value of the probe's."""

_COLLECTION_NAME = re.compile(r"[a-zA-Z0-9_-]{3,32}")
_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to measure: *url* is scheme, host and port; *key* is never shown."""

    url: str
    collection: str
    key: str

    def __repr__(self) -> str:
        return f"Target({self.url!r}, {self.collection!r})"


def checked_target(url: str | None, collection: str, environ: Mapping[str, str]) -> Target:
    """Raises ValueError with what is missing or wrong; the key is never in its message."""
    if not url:
        raise ValueError("no address: name the vendor's with --url or DASHCACHE_DASHVECTOR_URL")
    if not _COLLECTION_NAME.fullmatch(collection):
        raise ValueError("--collection: 3 to 32 letters, digits, _ or -")
    key = environ.get(KEY_VARIABLE, "").strip()
    if not _KEY.fullmatch(key):
        raise ValueError(f"{KEY_VARIABLE} {'is no API key' if key else 'must hold the API key'}")
    return Target(Endpoint(*split_vector_url(url)).origin, collection, key)


def measure(target: Target, plan: Plan, tell: Callable[[str], None]) -> Samples:
    """
    Measure, and leave nothing behind, also when SIGINT, SIGTERM or SIGHUP ends it. For a program's main thread.

    Raises ProbeError when it cannot be measured; *tell* is given what an operator has to know besides.
    """
    return asyncio.run(_measure(target, plan, tell))


async def _measure(target: Target, plan: Plan, tell: Callable[[str], None]) -> Samples:
    with _interruptible(tell):
        try:
            async with _session(target, min(plan.timeout_s, _CALL_TIMEOUT_S)) as session:
                api = _Api(session, target)
                document = ScratchDocument(api, await _dimensions(api))
                return await SettleProbe(document, plan, tell).run()
        except asyncio.CancelledError:
            raise ProbeError("interrupted, nothing was measured") from None


@contextlib.contextmanager
def _interruptible(tell: Callable[[str], None]) -> Iterator[None]:
    """Inside, a signal that would end the process cancels the task, which can then clean up."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def interrupt() -> None:
        tell("interrupted: deleting the probe's document (once more: give that up)")
        if task is not None:
            task.cancel()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # What nohup or a shell's background job has switched off stays so.
    caught = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    for number in caught:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def _session(target: Target, call_timeout_s: float) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"dashvector-auth-token": target.key, "Content-Type": "application/json"},
        timeout=aiohttp.ClientTimeout(total=call_timeout_s),
        trust_env=False,
    ) as session:
        yield session


class _Api:
    """The vendor's answers, or ProbeError."""

    def __init__(self, session: aiohttp.ClientSession, target: Target) -> None:
        self._session = session
        self._url = target.url
        self.collection = target.collection

    async def ask(self, kind: type[T], method: str, path: str = "", body: object = None) -> T:
        """The ``output`` of a call to *path* below the collection; an empty one when there is none."""
        url = URL(f"{self._url}/v1/collections/{self.collection}{path}", encoded=True)
        data = None if body is None else orjson.dumps(body)
        try:
            async with self._session.request(method, url, data=data, allow_redirects=False) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProbeError(f"{self._url}: {_in_words(error)}") from error
        if response.headers.get("Cache-Status", "").startswith("dashcache"):
            raise ProbeError(f"{self._url} is the cache itself; name the vendor's own address")
        output = self._accepted(response.status, content).get("output")
        if output is None:
            return kind()
        if not isinstance(output, kind):
            raise ProbeError(f"{self._url} answers {method} {url.path} in an unknown form")
        return output

    def _accepted(self, status: int, content: bytes) -> dict[str, Any]:
        """The answer, if it is the vendor's and says that all went well."""
        try:
            parsed = orjson.loads(content)
        except orjson.JSONDecodeError:
            parsed = None
        answer = parsed if isinstance(parsed, dict) and "code" in parsed else None
        code = answer["code"] if answer else None
        said = f"{self._url} answers status {status}"
        if answer:
            said += f", code {_printable(code)}: {_printable(answer.get('message'))}"
        if status in _REFUSED_KEY or code in _REFUSED_KEY:
            raise ProbeError(f"the key in {KEY_VARIABLE} is refused: {said}")
        if status == 429 or code == _RATE_LIMITED:
            raise RateLimitedError(f"too many calls: {said}")
        if code == _NO_COLLECTION:
            raise ProbeError(f"there is no collection {self.collection}: {said}")
        if status != 200 or (answer and code != 0):
            raise ProbeError(said)
        if answer is None:
            raise ProbeError(f"{said}, but not as DashVector does; is this the right address?")
        return answer


class ScratchDocument:
    """A document that nobody else writes; implements ``settle_probe.Document``."""

    def __init__(self, api: _Api, dimensions: Mapping[str, int]) -> None:
        self._api = api
        self._id = f"{ID_PREFIX}{secrets.token_hex(8)}"
        self.name = f"the document {self._id} in the collection {api.collection}"
        # Drawn, so that next to nothing else in the collection is as near to it.
        draw = secrets.SystemRandom()
        self._vectors = {
            name: [round(draw.uniform(-1.0, 1.0), 6) for _ in range(dimension)]
            for name, dimension in dimensions.items()
        }

    async def upsert(self, value: int) -> None:
        """See Document."""
        vectors: dict[str, Any] = {"vectors": self._vectors}
        if set(self._vectors) == {_SINGLE}:
            vectors = {"vector": self._vectors[_SINGLE]}
        document = {"id": self._id, **vectors, "fields": {FIELD: value}}
        _check_documents(await self._api.ask(list, "POST", "/docs/upsert", {"docs": [document]}), "upsert")

    async def delete(self) -> None:
        """See Document."""
        output = await self._api.ask(list, "DELETE", "/docs", {"ids": [self._id]})
        _check_documents(output, "delete", fine=_NO_DOCUMENT)

    async def read(self, reader: Reader, value: int) -> set[int | None]:
        """See Document."""
        if reader is Reader.FETCH:
            shown = await self._api.ask(dict, "GET", f"/docs?ids={self._id}")
            return {_value(shown[self._id]) if self._id in shown else None}
        values: set[int | None] = set()
        # One after the other: each vector has an index of its own, and a query of several would hide the slowest.
        for name, vector in self._vectors.items():
            asked = {"vector": vector} if name == _SINGLE else {"vectors": {name: {"vector": vector}}}
            query = {**asked, "topk": 10, "filter": f"{FIELD} = {value}", "output_fields": [FIELD]}
            found = await self._api.ask(list, "POST", "/query", query)
            values |= {_value(document) for document in found if _member(document, "id") == self._id} or {None}
        return values


async def _dimensions(api: _Api) -> dict[str, int]:
    """The collection's dense vectors and their dimensions, in the order of the schema."""
    schema = await api.ask(dict, "GET")
    if (status := schema.get("status", "SERVING")) != "SERVING":
        raise ProbeError(f"the collection {api.collection} is not ready: {_printable(status)}")
    # A collection with one unnamed vector may be described without a schema of vectors, by the older members alone.
    vectors = schema.get("vectors_schema") or ({_SINGLE: schema} if schema.get("dimension") else {})
    if not vectors:
        raise ProbeError(f"the collection {api.collection} has no dense vector, which the probe needs")
    dimensions: dict[str, int] = {}
    for name, vector in vectors.items():
        dtype, dimension = _member(vector, "dtype"), _member(vector, "dimension")
        if dtype != "FLOAT" or not isinstance(dimension, int):
            what = f"the vector {_printable(name)} of the collection {api.collection}"
            raise ProbeError(f"{what} is of type {_printable(dtype)}; the probe writes FLOAT only")
        dimensions[name] = dimension
    return dimensions


def _member(document: object, name: str) -> Any:  # noqa: ANN401  the vendor's JSON
    return document.get(name) if isinstance(document, dict) else None


def _value(document: object) -> int:
    """The probe's field in *document*."""
    value = _member(_member(document, "fields"), FIELD)
    return value if isinstance(value, int) else _NEVER_WRITTEN


def _check_documents(results: list[Any], operation: str, fine: int = 0) -> None:
    """Each document of a write has a code of its own, whatever the call's."""
    for result in results:
        if (code := _member(result, "code") or 0) not in (0, fine):
            message = _printable(_member(result, "message"))
            raise ProbeError(f"{operation}: the document is refused, code {_printable(code)}: {message}")


def _printable(text: object) -> str:
    """A vendor's text for a terminal: nothing that steers it, and not too much."""
    return "".join(character if character.isprintable() else " " for character in str(text))[:300]


def _in_words(error: BaseException) -> str:
    """What kept a call from being answered."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"no host of this name is known ({error.os_error.strerror or error.os_error})"
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
        return f"no trusted TLS connection ({error})"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        # asyncio's own text is "Connect call failed", with the address once more.
        return f"no connection ({os.strerror(error.errno) if error.errno else error.os_error})"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection ended without an answer"
    return f"not a complete HTTP answer ({str(error) or type(error).__name__})"
