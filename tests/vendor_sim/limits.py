"""Who may call and how often: keys, concurrent calls, calls per minute. Refusals are raised."""

import time
from collections import defaultdict, deque
from collections.abc import Mapping

from tests.vendor_sim.errors import refuse
from tests.vendor_sim.settings import SimSettings

_MINUTE_S = 60.0


class Limits:
    """Counts the calls of the last minute per model; all keys count as one account."""

    def __init__(self) -> None:
        self._started: dict[str | None, deque[float]] = defaultdict(deque)

    def clear(self) -> None:
        """Forget the calls of the last minute."""
        self._started.clear()

    def check(self, settings: SimSettings, model: str | None, in_flight: int) -> None:
        """Refuse when too many calls run (*in_flight* includes this one) or were started."""
        if settings.capacity is not None and in_flight > settings.capacity:
            raise refuse("throttling")
        if settings.rpm is None:
            return
        now = time.monotonic()
        recent = self._started[model]
        while recent and recent[0] <= now - _MINUTE_S:
            recent.popleft()
        if len(recent) >= settings.rpm:
            raise refuse("rate_quota")
        recent.append(now)


def key_of(headers: Mapping[str, str]) -> str:
    """The key a request carries, by either of the two documented headers; empty when there is none."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("X-DashScope-ApiKey", "").strip()


def check_key(settings: SimSettings, headers: Mapping[str, str]) -> None:
    """Refuse a missing or wrong key."""
    key = key_of(headers)
    is_known = settings.api_keys is None or key in settings.api_keys
    if not key or not is_known or key in settings.refused_keys:
        raise refuse("invalid_api_key")
