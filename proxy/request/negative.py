"""
Negative caching: a vendor's error to some content, given again to the very same content for moments.

Only errors that depend on the content alone, as the vendor's adapter says; each worker knows its own, in memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cachetools import TLRUCache

from proxy.core.answer import Answer
from proxy.core.coding import decoded
from proxy.core.outcome import CacheState
from proxy.core.plan import ErrorKind, NotStorable
from proxy.request.ask import Job, Landing

_MAX_KEPT = 1_000
# Longer errors are not kept: with the bound on their number, that is the most memory they take.
_MAX_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class _Kept:
    """A vendor's error, its body without content coding; kept at *kept_s* (monotonic) for *ttl_s*."""

    status: int
    reason: str
    content_type: bytes
    body: bytes
    kept_s: float
    ttl_s: float


class Negatives:
    """Errors by what was asked; *lifetimes_s* says for how long each kind is kept, absent or zero: not."""

    def __init__(self, lifetimes_s: Mapping[ErrorKind, float], monotonic: Callable[[], float]) -> None:
        self._lifetimes_s = {kind: ttl_s for kind, ttl_s in lifetimes_s.items() if ttl_s > 0}
        self._monotonic = monotonic
        self._kept: TLRUCache[tuple[bytes, ...], _Kept, float] = TLRUCache(
            _MAX_KEPT, ttu=lambda _key, kept, now: now + kept.ttl_s, timer=monotonic
        )

    @property
    def is_on(self) -> bool:
        """Whether any kind is kept at all."""
        return bool(self._lifetimes_s)

    def look(self, job: Job) -> Answer | None:
        """The error that the upstream gave a moment ago when it was asked for the very same items."""
        if not self._kept or job.wishes.no_cache or job.mark is not None:
            return None
        kept = self._kept.get(job.keys)
        if kept is None:
            return None
        age_s = self._monotonic() - kept.kept_s
        if job.wishes.max_age_s is not None and age_s > job.wishes.max_age_s:
            return None
        job.outcome.forget_hits()
        job.outcome.state = CacheState.NEGATIVE
        headers = ((b"Content-Type", kept.content_type), (b"Age", b"%d" % age_s))
        return Answer(kept.status, kept.reason, headers, kept.body)

    def note(self, job: Job, landing: Landing) -> None:
        """Keep what *landing* brought if it is an error to be kept, and was said of all that *job* asks for."""
        answer = landing.answer
        if not self.is_on or answer is None or not isinstance(answer.body, bytes) or not job.is_answered_by(landing):
            return
        lines = {name.lower(): value for name, value in answer.headers}
        codings = tuple(value for name, value in answer.headers if name.lower() == b"content-encoding")
        try:
            body = decoded(answer.body, codings, _MAX_BYTES)
        except NotStorable:
            return
        kind = job.plan.lasting_error(answer.status, body)
        ttl_s = self._lifetimes_s.get(kind) if kind is not None else None
        if ttl_s is not None and len(body) <= _MAX_BYTES and b"set-cookie" not in lines:
            content_type = lines.get(b"content-type", b"application/json")
            kept = _Kept(answer.status, answer.reason, content_type, body, self._monotonic(), ttl_s)
            # What the upstream was asked: keys hold all that could change its answer, the credential too.
            self._kept[job.keys] = kept
