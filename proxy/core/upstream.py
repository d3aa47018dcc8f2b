"""
Where requests go: an upstream's address, and the reading of a configured URL or preset into one.

Pure. ``settings`` keeps what the operator wrote; the rest of the proxy sees only :class:`Upstream`.
"""

import difflib
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

PRESETS = {
    "china": "https://dashscope.aliyuncs.com",
    "international": "https://dashscope-intl.aliyuncs.com",
    "us": "https://dashscope-us.aliyuncs.com",
    "hongkong": "https://cn-hongkong.dashscope.aliyuncs.com",
    "finance": "https://dashscope-finance.aliyuncs.com",
}
"""The vendor's public deployments. The same key and path mean different things on each, so none stands for another."""

ALLOWED_VECTOR = "http(s)://host[:port]"
"""What may stand where DashVector's URL is asked for, in words: each cluster there has a host of its own."""

ALLOWED = f"{ALLOWED_VECTOR}, or a preset: {', '.join(PRESETS)}, workspace:{{WorkspaceId}}.{{region}}"
"""What may stand where a base URL is asked for, in words."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?/?")
_WORKSPACE = re.compile(r"workspace:(?P<id>[A-Za-z0-9-]+)\.(?P<region>[a-z0-9-]+)")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection goes. ``host`` is in lower case, an IPv6 address without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """What belongs in a Host header: the port only if it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port as one text: ``https://host``, or with the port if it is not the scheme's own."""
        return f"{self.scheme}://{self.authority}"


@dataclass(frozen=True, slots=True)
class Upstream:
    """
    One upstream, resolved.

    ``scheme``, ``host`` and ``port`` are its HTTP endpoint, ``grpc`` the one for gRPC, if its vendor speaks that.
    ``hosts`` are the names of ours that select it, ``listen`` and ``grpc_listen`` the data ports of its own; the
    default upstream has none of these and takes whatever no other claims.
    """

    name: str
    vendor: str
    scheme: str
    host: str
    port: int
    hosts: tuple[str, ...] = ()
    listen: str | None = None
    grpc: Endpoint | None = None
    grpc_listen: str | None = None

    @property
    def authority(self) -> str:
        """See Endpoint."""
        return Endpoint(self.scheme, self.host, self.port).authority

    @property
    def origin(self) -> str:
        """See Endpoint."""
        return Endpoint(self.scheme, self.host, self.port).origin


def split_base_url(text: str) -> tuple[str, str, int]:
    """
    Scheme, host and port of a configured *text*: a base URL or the name of a preset.

    Raises ValueError, with a message that names the fault and never repeats user info or a query.
    """
    if workspace := _WORKSPACE.fullmatch(text):
        return "https", f"{workspace['id']}.{workspace['region']}.maas.aliyuncs.com".lower(), 443
    if "://" not in text and text not in PRESETS:
        near = difflib.get_close_matches(text, PRESETS, n=1)
        nearest = f" (nearest: {near[0]})" if near else ""
        raise ValueError(f"neither a URL nor a preset{nearest}; allowed: {ALLOWED}")
    return _split(PRESETS.get(text, text), ALLOWED)


def split_vector_url(text: str) -> tuple[str, str, int]:
    """
    Scheme, host and port of a configured URL of DashVector's; there are no presets for it.

    Raises ValueError, as ``split_base_url``.
    """
    return _split(text, ALLOWED_VECTOR)


def _split(text: str, allowed: str) -> tuple[str, str, int]:
    match = _URL.fullmatch(text)
    if match is None:
        raise ValueError(f"{_fault(text)}; allowed: {allowed}")
    scheme, host = match["scheme"], match["host"].lower()
    if host.startswith("["):
        host = _ipv6(host.strip("[]"))
    port = int(match["port"] or _DEFAULT_PORTS[scheme])
    if not 1 <= port <= 65535:
        raise ValueError("the port must be from 1 to 65535")
    return scheme, host, port


def _ipv6(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise ValueError("what stands in brackets is not an IPv6 address") from None


def _fault(text: str) -> str:
    """What keeps *text* from being a URL, the fault that explains most first."""
    if "://" not in text:
        return "not a URL"
    try:
        parts = urlsplit(text)
    except ValueError:
        return "not a URL"
    if parts.scheme not in _DEFAULT_PORTS:
        return "the scheme must be http or https"
    if "@" in parts.netloc:
        return "leave out the user info: clients bring their own credentials"
    if parts.query or "?" in text:
        return "leave out the query: the client's is forwarded as it is"
    if parts.fragment or "#" in text:
        return "leave out the fragment"
    if parts.path.strip("/"):
        return f"leave out {parts.path}: the client's path is forwarded as it is"
    return "the host or the port is not valid"
