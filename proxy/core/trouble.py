"""The kinds of trouble with an upstream, as they are logged, counted and shown in health."""

import enum
from collections.abc import Callable


class Trouble(enum.StrEnum):
    """Why a call brought no answer, or an answer that concerns an operator."""

    UNKNOWN_HOST = "unknown-host"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TLS = "tls"
    CONNECT_TIMEOUT = "connect-timeout"
    TIMEOUT = "timeout"
    CLOSED = "closed"
    PROTOCOL = "protocol"
    BROKEN_OFF = "broken-off"
    UNAUTHORIZED = "401"
    FORBIDDEN = "403"
    RATE_LIMITED = "429"
    SERVER_ERROR = "5xx"


WORDS = {
    Trouble.UNKNOWN_HOST: "its name has no address",
    Trouble.REFUSED: "refusing connections",
    Trouble.UNREACHABLE: "no way to its address",
    Trouble.TLS: "TLS fails: its certificate is not trusted, or it does not speak TLS there",
    Trouble.CONNECT_TIMEOUT: "not accepting connections in time",
    Trouble.TIMEOUT: "not answering in time",
    Trouble.CLOSED: "closing connections without an answer",
    Trouble.PROTOCOL: "its answers are not valid",
    Trouble.BROKEN_OFF: "its answers break off after their head",
    Trouble.UNAUTHORIZED: "refusing credentials (401)",
    Trouble.FORBIDDEN: "forbidding requests (403)",
    Trouble.RATE_LIMITED: "limiting the rate (429)",
    Trouble.SERVER_ERROR: "answering with errors of its own (5xx)",
}
"""In words, to stand after the upstream's name."""

UNCONNECTED = frozenset(
    {Trouble.UNKNOWN_HOST, Trouble.REFUSED, Trouble.UNREACHABLE, Trouble.TLS, Trouble.CONNECT_TIMEOUT}
)
"""There was no connection; no request can be the cause."""

OF_CALLERS = frozenset({Trouble.UNAUTHORIZED, Trouble.FORBIDDEN, Trouble.RATE_LIMITED})
"""Answers to one credential, which say nothing of the upstream's health."""

FAILS_FOR_ALL = frozenset(Trouble) - OF_CALLERS
"""Trouble of the upstream's own."""

CallEnded = Callable[[str, int | Trouble], None]
"""Told of each call: the upstream's name, and the HTTP status of its answer or why there was none."""


def of_status(status: int) -> Trouble | None:
    """The trouble that an answer with this HTTP status tells of, if any."""
    if status >= 500:
        return Trouble.SERVER_ERROR
    return Trouble(str(status)) if str(status) in OF_CALLERS else None


def ignored(_upstream: str, _end: int | Trouble) -> None:
    """For whom nothing is to be told."""
