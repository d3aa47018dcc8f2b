"""
How the upstreams do, as one worker sees it: a warning per kind of trouble, not per request, and since when one fails.

A warning comes with the first call of its kind, then at most once a minute, with the number of calls since the last.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from proxy.core.trouble import OF_CALLERS, UNCONNECTED, WORDS, Trouble, of_status

LINE_EVERY_S = 60.0
_TELL_EVERY_S = 1.0
_FAILURES_IN_A_ROW = 3
"""One call may fail for its own sake, unless there is no connection."""


class _Watched:
    """One upstream: its run of failures, and what was said of it."""

    def __init__(self) -> None:
        self.failures = 0
        self.since_unix_s = 0.0
        self.cause: Trouble | None = None
        self.was_logged = False
        self.told: tuple[Trouble | None, float] = (None, -_TELL_EVERY_S)
        self.next_line_s: dict[Trouble, float] = {}
        self.unsaid: dict[Trouble, int] = {}


class UpstreamWatch:
    """
    One per worker; *hosts* are the upstreams with their addresses.

    *failing* is told why an upstream does not answer, and since when (Unix seconds); ``None``: it answers.
    """

    def __init__(
        self,
        log: Any,  # noqa: ANN401  structlog's loggers are made at run time
        hosts: Mapping[str, str],
        failing: Callable[[str, Trouble | None, float], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._hosts = hosts
        self._failing = failing
        self._monotonic = monotonic
        self._unix_s = unix_s
        self._watched = {name: _Watched() for name in hosts}

    def ended(self, upstream: str, end: int | Trouble) -> None:
        """A call to *upstream* ended with this HTTP status, or for this trouble."""
        watched = self._watched.get(upstream)
        if watched is None:
            return
        trouble = end if isinstance(end, Trouble) else of_status(end)
        if trouble is None or trouble in OF_CALLERS:
            self._answers(upstream, watched)
        else:
            self._fails(upstream, watched, trouble)
        # A kept connection that the upstream has closed meanwhile is no news; the request is sent again.
        if trouble is not None and not (trouble is Trouble.CLOSED and watched.failures == 1):
            self._warn(upstream, watched, trouble)

    def _answers(self, upstream: str, watched: _Watched) -> None:
        if watched.was_logged:
            after_s = round(self._unix_s() - watched.since_unix_s, 1)
            self._log.info("upstream_answers_again", upstream=upstream, host=self._hosts[upstream], after_s=after_s)
        watched.failures = 0
        watched.cause = None
        watched.was_logged = False
        self._tell(upstream, watched)

    def _fails(self, upstream: str, watched: _Watched, trouble: Trouble) -> None:
        if not watched.failures:
            watched.since_unix_s = self._unix_s()
        watched.failures += 1
        if trouble in UNCONNECTED or watched.failures >= _FAILURES_IN_A_ROW:
            watched.cause = trouble
            self._tell(upstream, watched)

    def _tell(self, upstream: str, watched: _Watched) -> None:
        """At once when it is news, or else once a second: another worker's word may be older than ours."""
        now_s = self._monotonic()
        cause, told_s = watched.told
        if cause is not watched.cause or now_s >= told_s + _TELL_EVERY_S:
            watched.told = (watched.cause, now_s)
            self._failing(upstream, watched.cause, watched.since_unix_s)

    def _warn(self, upstream: str, watched: _Watched, trouble: Trouble) -> None:
        watched.unsaid[trouble] = watched.unsaid.get(trouble, 0) + 1
        now_s = self._monotonic()
        if now_s < watched.next_line_s.get(trouble, now_s):
            return
        watched.next_line_s[trouble] = now_s + LINE_EVERY_S
        calls = watched.unsaid.pop(trouble)
        watched.was_logged = watched.was_logged or trouble not in OF_CALLERS
        self._log.warning(
            "upstream_trouble",
            upstream=upstream,
            host=self._hosts[upstream],
            reason=trouble,
            words=WORDS[trouble],
            calls=calls,
        )
