"""Whether the configured Redis can be used, tried from the command line and without changing what is known there."""

import asyncio
import secrets

from proxy.cache.invalidation.incarnation import Names
from proxy.control.redis_link import LinkDown, RedisLink
from proxy.control.redis_watch import STRANGER
from proxy.control.shared_redis import fingerprint
from proxy.runtime.data_folder import SECRET_FILE
from proxy.runtime.tasks import Tasks
from proxy.settings.model import Settings

_DEADLINE_S = 2.0
_MOST_BYTES = 64
_PROBE_MS = 10_000

_TRY = """
local reply = redis.pcall(unpack(ARGV))
return type(reply) == 'table' and reply['err'] or ''
"""


def redis_trouble(settings: Settings) -> str:
    """Why the Redis of *settings*, which has a URL, cannot be used; empty if it can. Never with a password."""
    return asyncio.run(_trouble(settings))


async def _trouble(settings: Settings) -> str:
    assert settings.redis.url is not None  # noqa: S101  the caller's promise
    tasks = Tasks(lambda _: None)
    link = RedisLink(settings.redis.url.reveal(), settings.redis.key_prefix, tasks, _DEADLINE_S)
    try:
        await link.evaluate(("return 1", 0))
        await link.round_trip_ms()
        if lacking := await _lacking_right(link):
            return lacking
        held = await link.read(Names.under(link.prefix).fingerprint, _MOST_BYTES)
    except LinkDown as down:
        return down.words
    finally:
        await link.close()
        await tasks.wait_done(1.0)
    is_stranger = settings.redis.check_fingerprint and held and held != _own_fingerprint(settings)
    return STRANGER if is_stranger else ""


async def _lacking_right(link: RedisLink) -> str:
    """
    Which command the user may not run, among all that the proxy runs itself or within its scripts; empty if none.

    Each is tried on a key that nobody else has: a script stops at the first that is missing, and at some only then
    when there is something to do. INFO may be missing (see ``scripts.LOOK``).

    Raises:
        LinkDown: a command of the proxy's own is refused, which says which, or Redis cannot be reached.
    """
    key = link.prefix + b":probe:" + secrets.token_hex(8).encode()
    for name, arguments in rights(key).items():
        said = await link.evaluate((_TRY, 1, key, name, *arguments))
        if said:
            words = said.decode("utf-8", "replace") if isinstance(said, bytes) else "no answer that makes sense"
            return f"refused: NOPERM +{name.lower()} within scripts: {words.strip()}"
    await link.command("MGET", key)
    await link.remove_some(key, 0, 1)
    return ""


def rights(key: bytes) -> dict[str, tuple[bytes | str | int, ...]]:
    """The commands that scripts run, with arguments that do no harm to anybody but *key*."""
    return {
        "SET": (key, "1", "PX", _PROBE_MS),
        "GET": (key,),
        "EXISTS": (key,),
        "PTTL": (key,),
        "TIME": (),
        "UNLINK": (key,),
    }


def _own_fingerprint(settings: Settings) -> bytes:
    """Empty if there is no secret yet: one that is made at the start is another than that of whoever is there."""
    if settings.key_secret is not None:
        return fingerprint(settings.key_secret.reveal().encode())
    try:
        return fingerprint((settings.data_dir / SECRET_FILE).read_bytes().strip())
    except OSError:
        return b""
