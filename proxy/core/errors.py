"""
The errors of the proxy; a small tree.

::

    ProxyError
    |-- ClientError        the request cannot be served as it is: 400 to 505
    |   `-- LoopError      it came back to where it had been: 508
    |-- UpstreamError      the upstream cannot be asked, or answers nonsense: 502, 503, 504
    `-- ConfigError        start-up only; carries every mistake at once

Trouble with Redis is not here: it never reaches a client, so it has no status. Foreign exceptions are turned into these
where the foreign library is called, and nowhere else.
"""

import enum

from proxy.core.trouble import Trouble


class ErrorCode(enum.StrEnum):
    """Stable names for our own errors: body ``code``, log value, metric label."""

    BAD_REQUEST = "BadRequest"
    METHOD_NOT_ALLOWED = "MethodNotAllowed"
    REQUEST_TIMEOUT = "RequestTimeout"
    HEADER_TOO_LARGE = "HeaderTooLarge"
    NOT_IMPLEMENTED = "NotImplemented"
    VERSION_NOT_SUPPORTED = "VersionNotSupported"
    NOT_IN_CACHE = "NotInCache"
    LOOP_DETECTED = "LoopDetected"
    UPSTREAM_UNREACHABLE = "UpstreamUnreachable"
    UPSTREAM_TIMEOUT = "UpstreamTimeout"
    UPSTREAM_PROTOCOL = "UpstreamProtocolError"
    UPSTREAM_BUSY = "UpstreamBusy"
    TOO_MUCH_HELD = "TooMuchHeld"
    TOO_MANY_CONNECTIONS = "TooManyConnections"
    CLIENT_TOO_SLOW = "ClientTooSlow"
    NOT_INVALIDATED = "NotInvalidated"
    UNKNOWN_UPSTREAM = "UnknownUpstream"
    INTERNAL = "ProxyError"


class ProxyError(Exception):
    """Base: *code* names it, *status* is what an HTTP client is told, *message* is safe to show to anybody."""

    status = 500

    def __init__(self, code: ErrorCode, message: str, status: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        if status is not None:
            self.status = status


class ClientError(ProxyError):
    """The fault is in the request."""

    status = 400


class LoopError(ClientError):
    """A request that this proxy has sent to *upstream* has come back to it; RFC 5842 §7.2 has the status for it."""

    status = 508

    def __init__(self, upstream: str) -> None:
        text = f"the upstream {upstream} leads back to this proxy; look at its URL, at DNS and at the hosts file"
        super().__init__(ErrorCode.LOOP_DETECTED, text)
        self.upstream = upstream


class UpstreamError(ProxyError):
    """
    The fault is between us and the upstream; ``retryable`` when not a byte of an answer was seen.

    ``is_unseen``: the request was ready to be sent, and the upstream has certainly not seen it all the same.

    *trouble* is the upstream's; without it the fault is ours, as when there is no turn.
    """

    status = 502

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        status: int | None = None,
        *,
        retryable: bool = False,
        is_unseen: bool = False,
        trouble: Trouble | None = None,
    ) -> None:
        super().__init__(code, message, status)
        self.retryable = retryable
        self.is_unseen = is_unseen
        self.trouble = trouble


def no_room() -> ProxyError:
    """The error for a client that would exceed the budget of bytes that are held (``core.held_bytes``)."""
    return ProxyError(ErrorCode.TOO_MUCH_HELD, "the proxy holds too much that is not complete; try again", 503)


class ConfigError(Exception):
    """Settings that cannot be used; *mistakes* lists every one, ready to print."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes
