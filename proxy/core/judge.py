"""Whether an answer's head allows its rows to be kept (RFC 9111 §3, and what we add to it)."""

from proxy.core.plan import Refusal
from proxy.core.request import HeaderLines, list_items

# Request fields that an answer may depend on without harm: the coding is undone before storing, and the rest stands in
# every key because it is not on the list of headers without effect.
_HARMLESS_VARY = frozenset(
    {
        "accept",
        "accept-encoding",
        "access-control-request-headers",
        "access-control-request-method",
        "authorization",
        "origin",
    }
)

REFUSED = frozenset({401, 403})
"""The codes of an upstream that does not accept who asks."""
_GRPC_REFUSED = frozenset({7, 16})  # PERMISSION_DENIED, UNAUTHENTICATED


def refuses(status: int, grpc_code: int | None) -> bool:
    """Whether an answer says by its head that the upstream does not accept who asks."""
    return status in REFUSED or grpc_code in _GRPC_REFUSED


def refusal(status: int, headers: HeaderLines) -> Refusal | None:
    """Why an answer with this head is not kept; ``None`` when its body decides."""
    if status != 200:
        return Refusal.STATUS
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(value)

    def items(name: bytes) -> tuple[str, ...]:
        return list_items(tuple(values.get(name, ())))

    if {directive.partition("=")[0] for directive in items(b"cache-control")} & {"no-cache", "no-store", "private"}:
        return Refusal.NO_STORE
    if set(items(b"vary")) - _HARMLESS_VARY:
        return Refusal.VARY
    # Load-balancer affinity is passed on and forgotten; any other cookie says that the answer is one person's.
    if any(not cookie.startswith(b"acw_tc=") for cookie in values.get(b"set-cookie", ())):
        return Refusal.SET_COOKIE
    kinds = [value.partition(b";")[0].strip().lower() for value in values.get(b"content-type", ())]
    if kinds != [b"application/json"]:  # of two, nobody knows which one a client goes by
        return Refusal.CONTENT_TYPE
    return None
