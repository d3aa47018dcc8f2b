"""The meaning of settings for the Redis that processes share: how they recognise its data and each other."""

import time
from collections.abc import Callable

from proxy.cache.invalidation.incarnation import Incarnation, Names
from proxy.core.key import Secret, item_key
from proxy.settings.model import Settings

LAYOUT = b"1"
"""The version of what stands in Redis for others to go by: names, tokens, standings. Other versions do not share."""


def incarnation(
    settings: Settings, secret: bytes, *, known: bytes = b"", monotonic: Callable[[], float] = time.monotonic
) -> Incarnation:
    """One process's knowledge of Redis' data; *known* is the latest record that an earlier one left."""
    return Incarnation(
        Names.under(settings.redis.key_prefix.encode("ascii")),
        # For the longer of both: the process that knew of a write of unknown outcome may have ended with Redis.
        hold_ms=max(1, round(max(settings.vector.settle_s, settings.vector.unknown_settle_s) * 1000)),
        fingerprints=(fingerprint(secret),) if settings.redis.check_fingerprint else (),
        known=known,
        monotonic=monotonic,
    )


def fingerprint(secret: bytes) -> bytes:
    """The mark of a deployment in Redis; a keyed hash, which tells nothing of *secret*."""
    return item_key(Secret.derive(secret), b"fingerprint", LAYOUT).hex()[:32].encode("ascii")
