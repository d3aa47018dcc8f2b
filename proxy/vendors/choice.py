"""Which upstream a request is for that came to the data port of all of them: by name, then by what it looks like."""

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.core.errors import ClientError, ErrorCode
from proxy.core.request import HeaderLines
from proxy.vendors.dashvector import common as dashvector

_VENDOR_DOMAIN = ".aliyuncs.com"


@dataclass(frozen=True, slots=True)
class Choice:
    """
    Chooses for one port.

    ``by_host`` maps names of ours (lower case, no port) to upstreams; ``dashscope`` and ``dashvector`` are the defaults
    for everything that asks for none of them. Without a default DashVector its requests are refused, not sent to
    somebody else along with a token that is none of theirs.
    """

    by_host: Mapping[str, str]
    dashscope: str
    dashvector: str | None

    def __call__(self, host: str, path: str, lines: HeaderLines) -> str:
        """
        The name of the upstream.

        Raises:
            ClientError: 421, it is for a DashVector that is not configured (RFC 9110 §15.5.20).
        """
        named = self.by_host.get(host)
        if named is not None:
            return named
        if not dashvector.is_meant(path, lines):
            return self.dashscope
        if self.dashvector is None:
            raise ClientError(ErrorCode.UNKNOWN_UPSTREAM, "no DashVector endpoint is configured", 421)
        if host.endswith(_VENDOR_DOMAIN):
            # The vendor's name for another cluster: what is stored there is not what is stored here.
            raise ClientError(ErrorCode.UNKNOWN_UPSTREAM, "this DashVector endpoint is not configured", 421)
        return self.dashvector
