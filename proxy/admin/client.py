"""
How a command reaches the running proxy: where it is, which token it wants, and one request to its admin API.

The address is the one that was named; or the running proxy's own, by the note in its data folder; or the settings'. So
a mistake in a file on disk does not take the commands away that are needed then.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from proxy.runtime.running import Running, find
from proxy.settings.load import load, stated_data_dir
from proxy.settings.types import split_address

_LISTEN, _TOKEN = "DASHCACHE_ADMIN_LISTEN", "DASHCACHE_ADMIN_TOKEN"
_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  never listened on, only asked


class NoAnswerError(Exception):
    """There is no answer that could be used; the message says why."""


def ask(
    method: str,
    path: str,
    body: object,
    accept: tuple[int, ...],
    *,
    environ: Mapping[str, str],
    admin: str | None,
    timeout_s: float,
) -> tuple[int, dict[str, Any]]:
    """
    The status, one of *accept*, and the document that the admin API answers.

    Raises:
        NoAnswerError: nobody answers, or not so.
        ConfigError: no proxy runs here, and the settings do not say where one is.
    """
    url, token = _address(environ, admin)
    headers = {"Accept": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if body is not None:
        headers["Content-Type"] = "application/json"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, headers, method=method)  # noqa: S310  http or https
    # No proxy from the environment and no redirect: the token goes to the address that was named, or nowhere.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
    try:
        with opener.open(request, timeout=timeout_s) as response:
            return _read(response.status, response.read(), accept)
    except urllib.error.HTTPError as error:
        with error:
            return _read(error.code, error.read(), accept)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise NoAnswerError(
            f"no answer from {url}: {reason}; is the proxy running? --admin names another address"
        ) from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to ``_read``, which refuses them like any unexpected status."""

    def redirect_request(self, *_arguments: Any, **_named: Any) -> None:  # noqa: ANN401  urllib's form
        return None


def _read(status: int, body: bytes, accept: tuple[int, ...]) -> tuple[int, dict[str, Any]]:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise NoAnswerError(f"status {status}, and not the answer of an admin API; is this the right address?")
    if status == 401:
        raise NoAnswerError(
            "the admin API wants its token: set DASHCACHE_ADMIN_TOKEN to the one that the proxy was started with"
        )
    if status not in accept:
        raise NoAnswerError("\n".join(document.get("mistakes", [f"status {status}"])))
    return status, document


def _address(environ: Mapping[str, str], admin: str | None) -> tuple[str, str]:
    """The admin API's base URL, and the token, if one is wanted."""
    given = environ.get(_TOKEN, "").strip()
    if admin is not None:
        parts = urlsplit(admin)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/") or parts.query:
            raise NoAnswerError("--admin: must be http://host:port")
        return f"{parts.scheme}://{parts.netloc}", given
    stated = environ.get(_LISTEN, "").strip()
    running = _running(environ)
    # An address in the environment of the command may be another proxy's, on this machine or elsewhere.
    if running is not None and stated in ("", running.stated):
        return _url(running.admin), running.token or given
    listen = load(environ).listen
    if split_address(listen.admin)[1] == 0:
        raise NoAnswerError("the admin listener has a port of its own choice; name it with --admin")
    return _url(listen.admin), listen.admin_token.reveal() if listen.admin_token is not None else ""


def _running(environ: Mapping[str, str]) -> Running | None:
    folder = stated_data_dir(environ)
    return find(folder) if folder is not None else None


def _url(address: str) -> str:
    host, port = split_address(address)
    host = _UNSPECIFIED.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
