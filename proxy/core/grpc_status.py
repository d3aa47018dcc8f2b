"""How a gRPC call ended, and what was said before its message: what HTTP has no place for."""

from dataclasses import dataclass

from proxy.core.request import HeaderLines

# google/rpc/code.proto: each code's name, and its "HTTP Mapping".
_CODES = (
    ("OK", 200),
    ("CANCELLED", 499),
    ("UNKNOWN", 500),
    ("INVALID_ARGUMENT", 400),
    ("DEADLINE_EXCEEDED", 504),
    ("NOT_FOUND", 404),
    ("ALREADY_EXISTS", 409),
    ("PERMISSION_DENIED", 403),
    ("RESOURCE_EXHAUSTED", 429),
    ("FAILED_PRECONDITION", 400),
    ("ABORTED", 409),
    ("OUT_OF_RANGE", 400),
    ("UNIMPLEMENTED", 501),
    ("INTERNAL", 500),
    ("UNAVAILABLE", 503),
    ("DATA_LOSS", 500),
    ("UNAUTHENTICATED", 401),
)
_UNKNOWN = 2


def _known(code: int) -> tuple[str, int]:
    return _CODES[code if 0 <= code < len(_CODES) else _UNKNOWN]


def name_of(code: int | None) -> str | None:
    """The name of *code*; a code that nobody knows is ``UNKNOWN``, as the libraries have it."""
    return None if code is None else _known(code)[0]


@dataclass(frozen=True, slots=True)
class GrpcStatus:
    """
    The end of a call as the upstream wrote it. ``code`` 0 is OK.

    Trailing metadata stands in the answer's header lines; ``initial`` is the metadata that came before the message.
    """

    code: int = 0
    details: str = ""
    initial: HeaderLines = ()

    @property
    def as_http(self) -> int:
        """The HTTP status of the same meaning, for logs and metrics."""
        return _known(self.code)[1]
