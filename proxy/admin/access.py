"""
Who may use the admin API, and in which form: decided before any handler runs, and the same for every route.

Against other machines: a token, compared in constant time. Against web pages in the operator's own browser, which can
reach loopback: the Host must be ours (a page whose name was rebound to 127.0.0.1 sends its own), a foreign Origin is
refused, and a change must be declared as JSON, which a form cannot do.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

import orjson
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from proxy.admin.visitors import Visitor
from proxy.settings.model import Listen
from proxy.settings.types import split_address
from proxy.telemetry.log_output import error_fields, logger

SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Server": "dashcache",
}

_CHANGES = frozenset({"PUT", "POST", "PATCH", "DELETE"})
_OWN_FETCH_SITES = frozenset({"same-origin", "none"})


class Refused(Exception):  # noqa: N818  an answer, not a fault
    """The request ends here: *status*, a stable *code*, and every mistake in words."""

    def __init__(self, status: int, code: str, mistakes: tuple[str, ...]) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.mistakes = mistakes

    def response(self) -> web.Response:
        """As JSON."""
        headers = {"WWW-Authenticate": 'Bearer realm="dashcache"'} if self.status == 401 else {}
        return document({"error": self.code, "mistakes": list(self.mistakes)}, self.status, headers)


def document(content: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """*content* as a JSON answer."""
    body = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


class Guard:
    """The rules for one listener; *run_token* is as good as the operator's, where there is one."""

    def __init__(self, listen: Listen, run_token: str = "") -> None:
        token = listen.admin_token
        known = [] if token is None else [token.reveal(), *([run_token] if run_token else [])]
        self._token_digests = [_digest(each) for each in known]
        self._own_host = split_address(listen.admin)[0].lower()

    def check(self, request: web.Request) -> None:
        """
        Let *request* pass, or say why not.

        Raises:
            Refused: no token or a wrong one, a foreign Host, Origin or site, or a change that is not JSON.
        """
        presented = self._is_token_right(request)
        if not presented and not self._is_own_host(request.headers.get(hdrs.HOST, "")):
            raise Refused(403, "ForeignHost", ("the Host asked for is not this listener's; use its address",))
        _refuse_foreign_pages(request)
        if request.method in _CHANGES and request.content_type != "application/json":
            raise Refused(415, "NotJson", ("a change must have Content-Type: application/json",))

    def _is_token_right(self, request: web.Request) -> bool:
        """Whether the right token came with *request*; Refused if one is needed and did not."""
        if not self._token_digests:
            return False
        values = request.headers.getall(hdrs.AUTHORIZATION, [])
        scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
        # Digests have one length, so that the time of a comparison tells nothing about the token's.
        given = _digest(token.strip())
        is_right = any(hmac.compare_digest(given, known) for known in self._token_digests)
        if scheme.lower() != "bearer" or not is_right:
            raise Refused(401, "TokenNeeded", ("send the admin token as Authorization: Bearer",))
        return True

    def _is_own_host(self, host: str) -> bool:
        name = _without_port(host)
        if name in ("localhost", self._own_host):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


def middleware(guard: Guard) -> Middleware:
    """Runs *guard* before everything, and makes one form out of every error, known or not."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse
        try:
            guard.check(request)
            await request.read()  # at most a few KiB, in the time that a visitor has
            _visitor(request, Visitor.asked)
            response = await handler(request)
        except (ConnectionError, web.RequestPayloadError):
            raise  # the client has gone, or has been shown out
        except Refused as refused:
            response = refused.response()
        except web.HTTPException as error:
            response = _plain_error(error)
        except Exception as error:  # noqa: BLE001  nothing of it may reach the client
            logger().error("admin_failed", **error_fields(error))
            response = Refused(500, "Internal", ("the request could not be answered; the log says more",)).response()
        response.headers.update(SECURITY_HEADERS)
        # A connection that waits for nothing is one less for those who ask.
        response.force_close()
        _visitor(request, Visitor.answered)
        return response

    return guarded


def _visitor(request: web.Request, told: Callable[[Visitor], None]) -> None:
    if isinstance(request.protocol, Visitor):
        told(request.protocol)


def _plain_error(error: web.HTTPException) -> web.Response:
    codes = {404: "NotFound", 405: "MethodNotAllowed", 413: "TooLarge"}
    texts = {404: "there is no such route", 405: "the route does not know this method", 413: "the body is too large"}
    refused = Refused(error.status, codes.get(error.status, "Refused"), (texts.get(error.status, error.reason),))
    response = refused.response()
    if hdrs.ALLOW in error.headers:
        response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    return response


def _refuse_foreign_pages(request: web.Request) -> None:
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None and site.lower() not in _OWN_FETCH_SITES:
        raise Refused(403, "ForeignSite", ("requests from other sites are refused",))
    for origin in request.headers.getall(hdrs.ORIGIN, []):
        try:
            authority = urlsplit(origin).netloc
        except ValueError:
            authority = ""
        if not authority or authority.lower() != request.headers.get(hdrs.HOST, "").lower():
            raise Refused(403, "ForeignOrigin", ("requests from other origins are refused",))


def _without_port(host: str) -> str:
    """The host in a Host header, lower case, without brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _digest(token: str) -> bytes:
    return hashlib.blake2b(token.encode("utf-8", "surrogateescape"), person=b"admin-token").digest()
