"""
Which header lines can change an answer: the rules that all vendors share.

Whatever is not known to be without effect is part of the key: a header invented tomorrow can cost hits until somebody
lists it, but can never cross two answers.
"""

import re

from proxy.core.key import prefixed
from proxy.core.request import HeaderLines, Request, list_items

NO_EFFECT = frozenset(
    {
        b"accept-encoding",  # the answer is kept decoded
        b"b3",
        b"baggage",
        b"cdn-loop",  # through whom a request came; the door looks at it (``core.loops``)
        b"cache-control",  # an instruction to caches: ``freshness`` obeys it
        b"content-length",
        b"content-type",  # only one kind is keyed at all
        b"date",
        b"dnt",
        b"forwarded",
        b"host",
        b"pragma",
        b"priority",
        b"sentry-trace",
        b"traceparent",
        b"tracestate",
        b"uber-trace-id",
        b"user-agent",
        b"via",
        b"x-accel-buffering",
        b"x-amzn-trace-id",
        b"x-cloud-trace-context",
        b"x-correlation-id",
        # By name: others that begin so (-user, -access-token, -client-cert) tell a gateway who is asking.
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-forwarded-server",
        b"x-real-ip",
        b"x-request-id",
    }
)
"""Headers that never change an answer, whoever the vendor is."""

NO_EFFECT_PREFIXES = (
    b"eagleeye-",
    b"x-b3-",
    b"x-datadog-",
    b"x-stainless-",  # the retry count changes on each retry
)

_READ_ON_THE_WAY = frozenset({b"accept-encoding", b"cache-control", b"cdn-loop", b"content-type", b"host", b"pragma"})
"""Without effect on an answer, but not on what becomes of a request."""

_IDLE_PREFIXES = NO_EFFECT_PREFIXES
_MAX_SPELLINGS, _LONGEST_NAME = 1_000, 64

_JSON_RANGE = re.compile(
    r"(application/json|application/\*|\*/\*)(\s*;\s*charset=utf-?8)?(\s*;\s*q=(?!0\.?0*$)[01](\.\d{0,3})?)?"
)


class _Idle(dict[bytes, bool]):
    """Whether lines of a name, as it is spelled, say nothing to anybody here; worked out once for each spelling."""

    def __missing__(self, name: bytes) -> bool:
        low = name.lower()
        is_idle = (low in NO_EFFECT and low not in _READ_ON_THE_WAY) or low.startswith(_IDLE_PREFIXES)
        if len(self) < _MAX_SPELLINGS and len(name) <= _LONGEST_NAME:
            self[name] = is_idle
        return is_idle


_idle = _Idle()


def decisive(lines: HeaderLines) -> HeaderLines:
    """
    Those of *lines* that decide what a request means: which upstream, which operation, keyed or not, under which key.

    Requests that differ in other lines only (ids, tracing, user agents) mean the same.
    """
    return tuple([line for line in lines if not _idle[line[0]]])


def credential(lines: HeaderLines, names: tuple[bytes, ...]) -> bytes:
    """The headers *names* among *lines* as a part of a key: raw values, so that no two ways of writing are merged."""
    return prefixed(prefixed((name, *(value for line, value in lines if line.lower() == name))) for name in names)


def relevant(request: Request, no_effect: frozenset[bytes], prefixes: tuple[bytes, ...]) -> bytes:
    """Every header of *request* as a part of a key, but those in *no_effect* or beginning like one of *prefixes*."""
    kept: dict[bytes, list[bytes]] = {}
    wants_json = _wants_json(request.values(b"accept"))
    for name, value in request.headers:
        low = name.lower()
        if low in no_effect or low.startswith(prefixes):
            continue
        if low == b"accept" and wants_json:
            continue
        if low == b"cookie":
            value = _without_affinity(value)  # noqa: PLW2901  one header line, seen without its cookie of chance
            if not value:
                continue
        kept.setdefault(low, []).append(value)
    return prefixed(prefixed((name, *kept[name])) for name in sorted(kept))


def has_any(lines: HeaderLines, names: tuple[bytes, ...]) -> bool:
    """Whether one of the headers *names* says anything."""
    return any(value.strip() for name, value in lines if name.lower() in names)


def accepts_event_stream(request: Request) -> bool:
    """Whether the client would take server-sent events."""
    return b"text/event-stream" in b",".join(request.values(b"accept")).lower()


def is_coded(request: Request) -> bool:
    """Whether the request body is compressed."""
    return list_items(request.values(b"content-encoding")) not in ((), ("identity",))


def is_json(request: Request) -> bool:
    """Whether the request body is declared, once, as JSON in UTF-8."""
    values = request.values(b"content-type")
    if len(values) != 1:
        return False
    kind, _, parameters = values[0].decode("latin-1").lower().partition(";")
    return kind.strip() == "application/json" and parameters.replace('"', "").strip() in (
        "",
        "charset=utf-8",
        "charset=utf8",
    )


def refuses_identity(request: Request) -> bool:
    """Whether an answer without coding is forbidden (RFC 9110 §12.5.3), which almost nobody does."""
    weights = {}
    for item in list_items(request.values(b"accept-encoding")):
        coding, _, parameter = item.partition(";")
        weights[coding.strip()] = parameter.replace(" ", "")
    identity = weights.get("identity", weights.get("*", ""))
    return identity.startswith("q=0") and not identity.strip("q=0.")


def _wants_json(values: tuple[bytes, ...]) -> bool:
    """
    Whether Accept can mean nothing but plain JSON. Another kind beside it, or a parameter, could choose another answer.

    ``text/plain`` behind JSON is what axios sends unless told otherwise.
    """
    first, *others = list_items(values) or ("",)
    return bool(_JSON_RANGE.fullmatch(first)) and all(
        item == "text/plain" or _JSON_RANGE.fullmatch(item) for item in others
    )


def _without_affinity(cookies: bytes) -> bytes:
    """*cookies* without ``acw_tc``: load-balancer affinity that the vendor hands out anew every half hour."""
    if b'"' in cookies:  # old servers read quotes, and then a semicolon between them separates nothing
        return cookies
    pairs = (pair.strip() for pair in cookies.split(b";"))
    return b"; ".join(pair for pair in pairs if pair and not pair.startswith(b"acw_tc="))
