"""
What is let in: the checks that aiohttp's parser leaves to the application, before anything else looks at a request.

The parser has refused malformed framing, missing Host, spaces and raw UTF-8 in the target with 400 already.
"""

import re
from collections.abc import Callable

from aiohttp import HttpVersion, hdrs, web
from aiohttp.http import RawRequestMessage
from cachetools import LRUCache

from proxy.core import loops
from proxy.core.errors import ClientError, ErrorCode, LoopError
from proxy.core.request import Head, HeaderLines, Request, end_to_end, ending_here, held_bytes, list_items

# RFC 3986 §3.2: a registered name, an IPv4 address or a bracketed IPv6 address, then perhaps a port.
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")


UpstreamOf = Callable[[str, str, HeaderLines], str]
"""Host (without port), path and headers to the upstream's name. Raises ClientError."""


_MAX_KNOWN = 1_024
_MAX_HEAD_BYTES = 4 * 1024


class Intake:
    """
    Turns what aiohttp parsed into a plain request.

    *upstream_of* chooses the upstream; *own_names* are the authorities (host, or host:port) under which clients may
    address this proxy in absolute form; *decisive* picks the lines that can matter to both, or to whoever keys, and
    *identity* names (lower case) those that say who is asking. *own_id* is this proxy's in ``CDN-Loop``.
    """

    def __init__(
        self,
        upstream_of: UpstreamOf,
        own_names: frozenset[str],
        decisive: Callable[[HeaderLines], HeaderLines] = lambda lines: lines,
        identity: frozenset[str] = frozenset(),
        own_id: bytes = b"",
    ) -> None:
        self._upstream_of = upstream_of
        self._own_names = own_names
        self._decisive = decisive
        self._identity = identity
        self._own_id = own_id
        self._known: LRUCache[tuple[str, str, HttpVersion, HeaderLines], Head] = LRUCache(_MAX_KNOWN)

    def request(self, raw: web.BaseRequest) -> Request:
        """
        The plain request, hop-by-hop lines gone.

        Raises:
            ClientError: see the table in ``docs/architecture.md``, "What is refused at the door".
        """
        said = (raw.method, raw.raw_path, raw.version, self._decisive(raw.raw_headers))
        try:
            known = self._known[said]
        except KeyError:
            known = self._admitted(raw)
            if len(raw.raw_path) + held_bytes(said[3]) <= _MAX_HEAD_BYTES:
                self._known[said] = known
        return known.request(raw.method, raw.raw_headers)

    def recall(self, message: RawRequestMessage) -> Head | None:
        """What is known of the head *message*, if one with the same decisive lines was let in before."""
        try:
            return self._known[message.method, message.path, message.version, self._decisive(message.raw_headers)]
        except KeyError:
            return None

    def _admitted(self, raw: web.BaseRequest) -> Head:
        _check_framing(raw)
        host = raw.headers.get(hdrs.HOST, "")
        authority, target = self._split(raw.raw_path)
        if not _HOST.fullmatch(host) and not (raw.version < (1, 1) and hdrs.HOST not in raw.headers):
            raise ClientError(ErrorCode.BAD_REQUEST, "Host is empty or holds characters that no host has")
        if not self._identity.isdisjoint(_listed(raw, b"connection")):
            # Without the line another would be asking: RFC 9110 §7.6.1 forbids to name what is for all recipients.
            raise ClientError(ErrorCode.BAD_REQUEST, "Connection names a line that says who is asking")
        headers = end_to_end(raw.raw_headers)
        upstream = self._upstream_of(_without_port(authority or host), target.partition("?")[0], headers)
        if loops.has_passed(headers, self._own_id):  # before anybody waits for it, as it would wait for itself
            raise LoopError(upstream)
        return Head(target, upstream, ending_here(raw.raw_headers))

    def _split(self, target: str) -> tuple[str, str]:
        """
        The authority that *target* names, if it does, and the rest byte for byte.

        Source: RFC 9112 §3.2.2. In absolute form the authority decides, whatever Host says, and must be this proxy's.
        """
        if "#" in target:
            raise ClientError(ErrorCode.BAD_REQUEST, "a request target has no fragment")
        if target.startswith("/"):
            return "", target
        scheme, separator, rest = target.partition("://")
        authority, slash, path = rest.partition("/")
        if separator and scheme.lower() in ("http", "https") and authority.lower() in self._own_names:
            return authority, slash + path or "/"
        raise ClientError(ErrorCode.BAD_REQUEST, "this proxy forwards to its configured upstreams only")


def _check_framing(raw: web.BaseRequest) -> None:
    if raw.version not in ((1, 0), (1, 1)):
        raise ClientError(ErrorCode.VERSION_NOT_SUPPORTED, "HTTP/1.1 is spoken here", 505)
    if raw.method == hdrs.METH_CONNECT:
        raise ClientError(ErrorCode.METHOD_NOT_ALLOWED, "this is not a tunnel", 405)
    if hdrs.TRANSFER_ENCODING in raw.headers:
        codings = _listed(raw, b"transfer-encoding")
        if not codings:
            raise ClientError(ErrorCode.BAD_REQUEST, "Transfer-Encoding is empty")  # nobody knows who reads that how
        if raw.version < (1, 1):
            # RFC 9112 §6.1: such a message was probably framed by somebody who did not understand it.
            raise ClientError(ErrorCode.BAD_REQUEST, "Transfer-Encoding needs HTTP/1.1")
        if codings != ("chunked",):
            raise ClientError(ErrorCode.NOT_IMPLEMENTED, "chunked is the only transfer coding known here", 501)
    expectation = raw.headers.get(hdrs.EXPECT)
    if expectation is not None and expectation.lower() != "100-continue":
        raise ClientError(ErrorCode.BAD_REQUEST, "the only expectation met here is 100-continue", 417)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].removesuffix(".").lower()  # RFC 1034 §3.1: with the root's dot it is the same name


def wants_websocket(raw: web.BaseRequest) -> bool:
    """Whether the client asks to upgrade to WebSocket (RFC 6455 §4.1); any other upgrade is served as plain HTTP."""
    if raw.method != hdrs.METH_GET or raw.headers.get(hdrs.UPGRADE, "").lower() != "websocket":
        return False
    return "upgrade" in _listed(raw, b"connection")


def _listed(raw: web.BaseRequest, name: bytes) -> tuple[str, ...]:
    """The members of the list in the lines of that *name* (lower case)."""
    return list_items(tuple(value for line, value in raw.raw_headers if line.lower() == name))
