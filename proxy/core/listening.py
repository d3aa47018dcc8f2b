"""Where clients reach the proxy: one data port, as the supervisor holds it and a worker serves it."""

from pathlib import Path
from typing import Literal, NamedTuple

Protocol = Literal["http", "https", "grpc", "grpcs"]
"""What is spoken on a data port; the s is TLS, ended by the proxy."""


class Port(NamedTuple):
    """
    One data port.

    *upstream* is the one that everything on it goes to; empty where the request's Host chooses (``http`` and
    ``https`` only). *host* has no brackets around an IPv6 address; *number* is the real one, never 0.
    """

    protocol: Protocol
    upstream: str
    host: str
    number: int

    @property
    def address(self) -> str:
        """``host:port`` as people write it."""
        return shown(self.host, self.number)


def shown(host: str, number: int) -> str:
    """``host:port``, with brackets around an IPv6 host."""
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


class Tls(NamedTuple):
    """Where the certificate (chain) and its key are, in PEM."""

    certificate: Path
    key: Path
