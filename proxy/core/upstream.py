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

ALLOWED = f"http(s)://host[:port], or a preset: {', '.join(PRESETS)}, workspace:{{WorkspaceId}}.{{region}}"
"""What may stand where a base URL is asked for, in words."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?/?")
_WORKSPACE = re.compile(r"workspace:(?P<id>[A-Za-z0-9-]+)\.(?P<region>[a-z0-9-]+)")


@dataclass(frozen=True, slots=True)
class Upstream:
    """
    One upstream, resolved.

    ``host`` is in lower case, an IPv6 address without brackets. ``hosts`` are the names of ours that select it and
    ``listen`` the data port of its own; the default upstream has neither and takes whatever no other claims.
    """

    name: str
    vendor: str
    scheme: str
    host: str
    port: int
    hosts: tuple[str, ...] = ()
    listen: str | None = None

    @property
    def authority(self) -> str:
        """What belongs in a Host header: the port only if it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port as one text: ``https://host``, or with the port if it is not the scheme's own."""
        return f"{self.scheme}://{self.authority}"


def split_base_url(text: str) -> tuple[str, str, int]:
    """
    Scheme, host and port of a configured *text*: a base URL or the name of a preset.

    Raises ValueError, with a message that names the fault and never repeats user info or a query.
    """
    if workspace := _WORKSPACE.fullmatch(text):
        return "https", f"{workspace['id']}.{workspace['region']}.maas.aliyuncs.com".lower(), 443
    match = _URL.fullmatch(PRESETS.get(text, text))
    if match is None:
        raise ValueError(_fault(text))
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
    """What keeps *text* from being a base URL, the fault that explains most first."""
    if "://" not in text:
        near = difflib.get_close_matches(text, PRESETS, n=1)
        return "neither a URL nor a preset" + (f" (nearest: {near[0]})" if near else "") + f"; allowed: {ALLOWED}"
    try:
        parts = urlsplit(text)
    except ValueError:
        return f"not a URL; allowed: {ALLOWED}"
    if parts.scheme not in _DEFAULT_PORTS:
        return f"the scheme must be http or https; allowed: {ALLOWED}"
    if "@" in parts.netloc:
        return f"leave out the user info: clients bring their own credentials; allowed: {ALLOWED}"
    if parts.query or "?" in text:
        return f"leave out the query: the client's is forwarded as it is; allowed: {ALLOWED}"
    if parts.fragment or "#" in text:
        return f"leave out the fragment; allowed: {ALLOWED}"
    if parts.path.strip("/"):
        return f"leave out {parts.path}: the client's path is forwarded as it is; allowed: {ALLOWED}"
    return f"the host or the port is not valid; allowed: {ALLOWED}"
