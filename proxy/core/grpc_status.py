"""How a gRPC call ended, and what was said before its message: what HTTP has no place for."""

from dataclasses import dataclass

from proxy.core.request import HeaderLines


@dataclass(frozen=True, slots=True)
class GrpcStatus:
    """
    The end of a call as the upstream wrote it. ``code`` 0 is OK.

    Trailing metadata stands in the answer's header lines; ``initial`` is the metadata that came before the message.
    """

    code: int = 0
    details: str = ""
    initial: HeaderLines = ()
