"""
What all DashScope operations share: who is asking, which headers matter, which requests are never keyed.

Facts: the vendor's API reference and its SDKs (dashscope 1.27.8 and 2.0.2, openai 3.54.0), read 2026-11.
"""

import re

from proxy.core.key import prefixed
from proxy.core.plan import PassReason
from proxy.core.request import Request, list_items

CREDENTIALS = (b"authorization", b"x-dashscope-apikey", b"x-dashscope-workspace")
"""Two documented ways to authenticate, and the workspace, which selects a sub-account with permissions of its own."""

# Headers that never change an answer. Whatever is not listed here is part of the key: a header invented tomorrow can
# cost hits until somebody lists it, but can never cross two answers.
_NO_EFFECT = frozenset(
    {
        b"accept-encoding",  # the answer is kept decoded
        b"b3",
        b"baggage",
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
        b"x-dashscope-client",  # free text of third parties
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
_NO_EFFECT_PREFIXES = (
    b"eagleeye-",
    b"x-b3-",
    b"x-datadog-",
    b"x-dashscope-sdk-",  # session id, client name: new per process
    b"x-stainless-",  # the retry count changes on each retry
)
_OFF = ("disable", "false")

_JSON_RANGE = re.compile(
    r"(application/json|application/\*|\*/\*)(\s*;\s*charset=utf-?8)?(\s*;\s*q=(?!0\.?0*$)[01](\.\d{0,3})?)?"
)


def precheck(request: Request) -> PassReason | None:
    """Why *request* cannot be keyed, as far as its headers tell; ``None`` when they raise no objection."""
    if not any(value.strip() for name in CREDENTIALS[:2] for value in request.values(name)):
        return PassReason.NO_CREDENTIAL
    if _switched_on(request, b"x-dashscope-async"):
        return PassReason.ASYNC_TASK
    if (
        _switched_on(request, b"x-dashscope-sse")
        or b"text/event-stream" in b",".join(request.values(b"accept")).lower()
    ):
        return PassReason.EVENT_STREAM
    if request.value(b"x-dashscope-encryptionkey") is not None:
        return PassReason.ENCRYPTED
    if _switched_on(request, b"x-dashscope-ossresourceresolve"):
        return PassReason.TEMPORARY_REFERENCE
    if list_items(request.values(b"content-encoding")) not in ((), ("identity",)):
        return PassReason.CONTENT_CODING
    if not _is_json(request.values(b"content-type")):
        return PassReason.CONTENT_TYPE
    if _refuses_identity(request):
        return PassReason.IDENTITY_REFUSED
    return None


def scope(request: Request) -> bytes:
    """The credential of *request* as a part of a key: raw values, so that no two ways of writing are merged."""
    return prefixed(prefixed((name, *request.values(name))) for name in CREDENTIALS)


def other_headers(request: Request, ignored: frozenset[bytes]) -> bytes:
    """Every header that may change the answer, as a part of a key: all but credentials and those without effect."""
    relevant: dict[bytes, list[bytes]] = {}
    wants_json = _wants_json(request.values(b"accept"))
    for name, value in request.headers:
        low = name.lower()
        if low in CREDENTIALS or low in _NO_EFFECT or low in ignored or low.startswith(_NO_EFFECT_PREFIXES):
            continue
        if low == b"accept" and wants_json:
            continue
        if low == b"cookie":
            value = _without_affinity(value)  # noqa: PLW2901  one header line, seen without its cookie of chance
            if not value:
                continue
        relevant.setdefault(low, []).append(value)
    return prefixed(prefixed((name, *relevant[name])) for name in sorted(relevant))


def _switched_on(request: Request, name: bytes) -> bool:
    return any(item not in _OFF for item in list_items(request.values(name)))


def _is_json(values: tuple[bytes, ...]) -> bool:
    if len(values) != 1:
        return False
    kind, _, parameters = values[0].decode("latin-1").lower().partition(";")
    return kind.strip() == "application/json" and parameters.replace('"', "").strip() in (
        "",
        "charset=utf-8",
        "charset=utf8",
    )


def _wants_json(values: tuple[bytes, ...]) -> bool:
    """
    Whether Accept can mean nothing but plain JSON. Another kind beside it, or a parameter, could choose another answer.

    ``text/plain`` behind JSON is what axios sends unless told otherwise.
    """
    first, *others = list_items(values) or ("",)
    return bool(_JSON_RANGE.fullmatch(first)) and all(
        item == "text/plain" or _JSON_RANGE.fullmatch(item) for item in others
    )


def _refuses_identity(request: Request) -> bool:
    """Whether an answer without coding is forbidden (RFC 9110 §12.5.3), which almost nobody does."""
    weights = {}
    for item in list_items(request.values(b"accept-encoding")):
        coding, _, parameter = item.partition(";")
        weights[coding.strip()] = parameter.replace(" ", "")
    identity = weights.get("identity", weights.get("*", ""))
    return identity.startswith("q=0") and not identity.strip("q=0.")


def _without_affinity(cookies: bytes) -> bytes:
    """*cookies* without ``acw_tc``: load-balancer affinity that the vendor hands out anew every half hour."""
    if b'"' in cookies:  # old servers read quotes, and then a semicolon between them separates nothing
        return cookies
    pairs = (pair.strip() for pair in cookies.split(b";"))
    return b"; ".join(pair for pair in pairs if pair and not pair.startswith(b"acw_tc="))
