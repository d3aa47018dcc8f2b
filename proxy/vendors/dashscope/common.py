"""
What all DashScope operations share: who is asking, which headers matter, which requests are never keyed.

Facts: the vendor's API reference and its SDKs (dashscope 1.27.8 and 2.0.2, openai 3.54.0), read 2026-11.
"""

from proxy.core.plan import PassReason
from proxy.core.request import Request, list_items
from proxy.vendors import headers

CREDENTIALS = (b"authorization", b"x-dashscope-apikey", b"x-dashscope-workspace")
"""Two documented ways to authenticate, and the workspace, which selects a sub-account with permissions of its own."""

_NO_EFFECT = headers.NO_EFFECT | {b"x-dashscope-client"}  # free text of third parties
_NO_EFFECT_PREFIXES = (*headers.NO_EFFECT_PREFIXES, b"x-dashscope-sdk-")  # session id, client name: new per process
_OFF = ("disable", "false")


def precheck(request: Request) -> PassReason | None:
    """Why *request* cannot be keyed, as far as its headers tell; ``None`` when they raise no objection."""
    if not headers.has_any(request.headers, CREDENTIALS[:2]):
        return PassReason.NO_CREDENTIAL
    if _switched_on(request, b"x-dashscope-async"):
        return PassReason.ASYNC_TASK
    if _switched_on(request, b"x-dashscope-sse") or headers.accepts_event_stream(request):
        return PassReason.EVENT_STREAM
    if request.value(b"x-dashscope-encryptionkey") is not None:
        return PassReason.ENCRYPTED
    if _switched_on(request, b"x-dashscope-ossresourceresolve"):
        return PassReason.TEMPORARY_REFERENCE
    if headers.is_coded(request):
        return PassReason.CONTENT_CODING
    if not headers.is_json(request):
        return PassReason.CONTENT_TYPE
    if headers.refuses_identity(request):
        return PassReason.IDENTITY_REFUSED
    return None


def scope(request: Request) -> bytes:
    """The credential of *request* as a part of a key."""
    return headers.credential(request.headers, CREDENTIALS)


def other_headers(request: Request, ignored: frozenset[bytes]) -> bytes:
    """Every header that may change the answer, as a part of a key: all but credentials and those without effect."""
    return headers.relevant(request, _NO_EFFECT.union(CREDENTIALS, ignored), _NO_EFFECT_PREFIXES)


def _switched_on(request: Request, name: bytes) -> bool:
    return any(item not in _OFF for item in list_items(request.values(name)))
