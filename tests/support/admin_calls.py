"""The admin listener's HTTP API, as methods. Mixed into `proxy_process`; each call is one request and blocks."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ADMIN_TIMEOUT_S = 30.0
RELOAD_TIMEOUT_S = 120.0
"""New workers start one after the other: seconds on a busy machine."""


@dataclass(frozen=True, slots=True)
class AdminAnswer:
    """What the admin listener said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, read as JSON; None when there is none."""
        return json.loads(self.body) if self.body else None


class AdminCalls:
    """For a class that knows where its admin listener is."""

    @property
    def admin_address(self) -> str:
        """Host and port."""
        raise NotImplementedError

    @property
    def admin_token(self) -> str | None:
        """What it asks for, if it does."""
        raise NotImplementedError

    @property
    def admin_url(self) -> str:
        """Its base URL, without a slash at the end."""
        return f"http://{self.admin_address}"

    def admin(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> AdminAnswer:
        """One request, whatever comes of it; *body* is sent as JSON, and the token goes along if there is one."""
        fields = {
            **({"Authorization": f"Bearer {self.admin_token}"} if self.admin_token else {}),
            **({"Content-Type": "application/json"} if body is not None else {}),
            **(headers or {}),
        }
        timeout_s = RELOAD_TIMEOUT_S if path == "/v1/reload" else ADMIN_TIMEOUT_S
        connection = http.client.HTTPConnection(self.admin_address, timeout=timeout_s)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), fields)
            answer = connection.getresponse()
            return AdminAnswer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def _admin_ok(self, method: str, path: str, body: Any = None) -> AdminAnswer:
        answer = self.admin(method, path, body)
        if not 200 <= answer.status < 300:
            raise AssertionError(f"{method} {path}: {answer.status} {answer.body!r}")
        return answer

    def stats(self) -> Any:
        """GET /v1/stats."""
        return self._admin_ok("GET", "/v1/stats").json()

    def metrics(self) -> str:
        """GET /metrics, as text."""
        return self._admin_ok("GET", "/metrics").body.decode()

    def modes(self) -> Any:
        """GET /v1/mode."""
        return self._admin_ok("GET", "/v1/mode").json()

    def mode(self, mode: str, **rest: Any) -> Any:
        """PUT /v1/mode: "on", "bypass" or "shadow", with operation=, for_s=, reason= as wanted."""
        return self._admin_ok("PUT", "/v1/mode", {"mode": mode, **rest}).json()

    def health(self) -> bool:
        """Whether GET /healthz answers 200: the process is alive. No answer at all is a no."""
        return self._says_yes("/healthz")

    def ready(self) -> bool:
        """Whether GET /readyz answers 200: send it requests. No answer at all is a no."""
        return self._says_yes("/readyz")

    def _says_yes(self, path: str) -> bool:
        try:
            return self.admin("GET", path).status == 200
        except (OSError, http.client.HTTPException):
            return False
