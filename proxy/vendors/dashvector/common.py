"""
What DashVector's two protocols share: who is asking, what hangs on what, and the request that may be answered.

The rule of the house: a route that is not known to be a read is a write. A write's scope is one collection only when
the route says so beyond doubt; in doubt it is everything under the endpoint, on which every read hangs.

Facts: the vendor's API reference and the descriptor inside its Python SDK (dashvector 1.0.23), read 2026-11.
"""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from proxy.core import judge
from proxy.core.entry import Row
from proxy.core.plan import ErrorKind, Refusal, Scope, Verdict
from proxy.core.request import HeaderLines, Request
from proxy.vendors import headers
from proxy.vendors.operations import VECTOR_QUERY, VECTOR_STATS, VECTOR_WRITE

QUERY, STATS, WRITE = (operation.name for operation in (VECTOR_QUERY, VECTOR_STATS, VECTOR_WRITE))

ENDPOINT: Scope = ("endpoint",)
CATALOG: Scope = ("catalog",)

ANYWHERE: tuple[Scope, ...] = (ENDPOINT,)
"""What a write could touch of which nothing is known: unknown routes and odd spellings."""

TOKEN = b"dashvector-auth-token"
CREDENTIALS = (TOKEN, b"authorization")
"""The documented way to authenticate, and the one that a gateway before the vendor may want."""

_NO_EFFECT = headers.NO_EFFECT.union(CREDENTIALS, {b"x-user-agent"})  # the SDK's version and platform
_GRPC_NO_EFFECT_PREFIXES = (*headers.NO_EFFECT_PREFIXES, b"grpc-")  # deadline, codings, tracing: the channel's own

_DASHSCOPE_PATHS = ("/api/", "/api-ws/", "/compatible-mode/", "/compatible-api/")

_NAME = re.compile(r"[a-zA-Z0-9_-]{3,32}")
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class AnswerForm(Protocol):
    """How one operation answers over one protocol."""

    def refusal(self, status: int, lines: HeaderLines) -> Refusal | None:
        """Why an answer with this head is not kept; ``None`` when its body decides."""

    def weight(self, body: bytes) -> int:
        """How many bytes of plain text would take about as long to split as *body*."""

    def split(self, body: bytes, *, is_widened: bool) -> Row:
        """*body* as a row. Raises NotStorable; if *is_widened* also when it cannot be cut at any length."""

    def join(self, row: Row, request_id: str, topk: int | None) -> bytes:
        """The answer kept in *row* with our *request_id*, cut to its first *topk* documents if that is given."""


SAFE_METHODS = frozenset({"HEAD", "OPTIONS", "TRACE"})
"""RFC 9110 §9.2.1. GET is not among them: a GET that is no known read may be something else by another name."""

# Nobody has heard the end of it: a gateway's word, a time that has passed, or work that was taken on. Codes in bodies
# are the vendor's "timeout", "client closed" and "unknown".
_OPEN_STATUSES = frozenset({408, 499, *range(201, 300), *range(500, 600)})
_GRPC_OPEN = frozenset({1, 2, 4, 13, 14, 15})  # CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS
_OPEN_CODES = frozenset({408, -998, -999, *range(500, 600)})
# What the vendor does not know either: probes and scanners must not be able to empty the cache.
_UNKNOWN_ROUTE = frozenset({404, 405, 501})
_GRPC_UNKNOWN_ROUTE = 12  # UNIMPLEMENTED

CodeOf = Callable[[bytes], int | None]
"""The code that an answer's body holds: 0 is success; ``None`` when it holds none."""


@dataclass(frozen=True, slots=True)
class VectorWrite:
    """A DashVector request that may change something; implements ``core.plan.Write``."""

    scopes: tuple[Scope, ...]
    credential: bytes
    code_of: CodeOf
    has_credential: bool

    @property
    def operation(self) -> str:
        """``vector-write``, whatever it writes."""
        return WRITE

    def verdict(self, status: int, grpc_code: int | None, body: bytes) -> Verdict:
        """See ``core.plan.Write``."""
        # What a wrong token is answered is not documented: as a status, in a gRPC code, or as a code in a body.
        if judge.refuses(status, grpc_code):
            return Verdict.REFUSED
        if self.scopes == ANYWHERE and (status in _UNKNOWN_ROUTE or grpc_code == _GRPC_UNKNOWN_ROUTE):
            return Verdict.NO_ROUTE
        if grpc_code:
            return Verdict.UNKNOWN if grpc_code in _GRPC_OPEN else Verdict.FAILED
        if status != 200:
            return Verdict.UNKNOWN if status in _OPEN_STATUSES else Verdict.FAILED
        code = self.code_of(body)
        if code in judge.REFUSED:
            return Verdict.REFUSED
        if code is None or code in _OPEN_CODES:  # without a code it is not the vendor who has spoken
            return Verdict.UNKNOWN
        return Verdict.FAILED if code else Verdict.DONE


@dataclass(frozen=True, slots=True)
class VectorRead:
    """
    A DashVector request that may be answered from the cache: one item, the whole; implements ``core.plan.Read``.

    With over-fetch, more documents are asked for than the client wants: ``ask`` is then not the client's body, and
    ``plain`` is the same request without that. Whoever sends ``ask`` gives no answer to the client but by ``join``.
    """

    operation: str
    identity: tuple[bytes, ...]
    item: bytes
    scopes: tuple[Scope, ...]
    ask: bytes
    answer: AnswerForm
    topk: int | None = None
    plain: "VectorRead | None" = None

    @property
    def model(self) -> str:
        """None: lifetimes are by operation."""
        return ""

    @property
    def credential(self) -> bytes:
        """See ``core.plan.Read``."""
        return self.identity[0]

    @property
    def items(self) -> tuple[bytes, ...]:
        """The whole request is the one item."""
        return (self.item,)

    def lasting_error(self, status: int, body: bytes) -> ErrorKind | None:  # noqa: ARG002
        """None: what a collection answers depends on what is in it."""
        return None

    @property
    def batchable(self) -> None:
        """None: it is one question, and has one answer."""

    @property
    def trial(self) -> None:
        """None: there is no more than one item."""

    def refusal(self, status: int, headers: HeaderLines) -> Refusal | None:
        """See ``core.plan.Read``."""
        return self.answer.refusal(status, headers)

    def narrowed(self, positions: Sequence[int]) -> bytes:  # noqa: ARG002  there is one item, and it is asked for
        """The client's own bytes, unless more is fetched than it asked for."""
        return self.ask

    def answer_weight(self, body: bytes) -> int:
        """See ``core.plan.Read``."""
        return self.answer.weight(body)

    def split(self, body: bytes, positions: Sequence[int]) -> tuple[Row, ...]:  # noqa: ARG002
        """The answer *body* as one row; see ``core.plan.Read``."""
        return (self.answer.split(body, is_widened=self.plain is not None),)

    def join(self, rows: Sequence[Row], request_id: str) -> bytes:
        """The answer that the row holds, with our id; see ``core.plan.Read``."""
        return self.answer.join(rows[0], request_id, self.topk)


def is_path(path: str) -> bool:
    """Whether *path* is one of the HTTP API's; none of them is DashScope's."""
    return path.startswith(("/v1/collections", "/service_version"))


def is_meant(path: str, lines: HeaderLines) -> bool:
    """
    Whether a request is for DashVector rather than DashScope, as far as its path and its headers tell.

    A path of neither goes where its token belongs; one of DashScope stays there, whatever else the client sends.
    """
    if path.startswith(_DASHSCOPE_PATHS):
        return False
    return is_path(path) or any(name.lower() == TOKEN for name, _ in lines)


def is_name(text: str) -> bool:
    """Whether *text* is a collection's or partition's name as the vendor allows it, and spelled without any coding."""
    return _NAME.fullmatch(text) is not None


def collection(name: str) -> Scope:
    """The scope of one collection and all in it."""
    return ("collection", name)


def credential(lines: HeaderLines) -> bytes:
    """Who is asking, as a part of a key."""
    return headers.credential(lines, CREDENTIALS)


def has_credential(lines: HeaderLines) -> bool:
    """Whether there is somebody to whom an entry could belong."""
    return headers.has_any(lines, CREDENTIALS)


def identity(request: Request, protocol: bytes, ignored: frozenset[bytes]) -> tuple[bytes, ...]:
    """
    What all keys of *request* are made of but its content.

    The protocols are kept apart: one user call differs between them (HTTP drops search parameters, gRPC adds some).
    """
    prefixes = _GRPC_NO_EFFECT_PREFIXES if protocol == b"grpc" else headers.NO_EFFECT_PREFIXES
    return (
        credential(request.headers),
        protocol,
        request.method.encode("utf-8", "surrogateescape"),
        request.target.encode("utf-8", "surrogateescape"),
        headers.relevant(request, _without_effect(ignored), prefixes),
    )


@functools.lru_cache(maxsize=16)
def _without_effect(ignored: frozenset[bytes]) -> frozenset[bytes]:
    return _NO_EFFECT | ignored


def error_of(code: int) -> Refusal:
    """Why an answer with this code, which is not success, is not kept."""
    return Refusal.CREDENTIAL if code in judge.REFUSED else Refusal.VENDOR_ERROR


def origin(request_id: object) -> str:
    """The vendor's id if it is one that may stand in a header line and a log; otherwise nothing."""
    return request_id if isinstance(request_id, str) and _ID.fullmatch(request_id) else ""


def is_ranked(scores: Sequence[float]) -> bool:
    """Whether *scores* only rise or only fall, so that the best of many are also the best of fewer."""
    pairs = list(itertools.pairwise(scores))
    return all(left <= right for left, right in pairs) or all(left >= right for left, right in pairs)
