"""
``dashcache reload`` and SIGHUP: settings read anew, judged whole, and put in force by new workers, or not at all.

Who is told to reload and cannot keeps what it has. What the supervisor itself was built with stays as it is until a
restart, and a file that wants it changed is refused, naming it: half a change would be worse than none.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping

from proxy.admin.health import Phase, State
from proxy.admin.orders import ReloadRefusedError
from proxy.core.errors import ConfigError
from proxy.settings.load import load_with_sources
from proxy.settings.model import Listener, Settings
from proxy.supervisor.workers import NotReplacedError
from proxy.telemetry.log_output import logger

_FIXED = (
    ("listen", "admin"),
    ("listen", "admin_token"),
    ("data_dir",),
    ("key_secret",),
    ("workers",),
    ("redis", "url"),
    ("redis", "key_prefix"),
)
"""What only a restart changes, beside the data ports."""


class Reloader:
    """
    One per supervisor. *environ* is the environment as it was at the start.

    *replace* puts settings in force; it raises NotReplacedError, with everything as before, when that does not work.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        state: State,
        replace: Callable[[Settings], Awaitable[None]],
    ) -> None:
        self.settings = settings
        self._environ = environ
        self._state = state
        self._replace = replace
        self._is_wanted_again = False
        self._over = asyncio.Event()
        """Set when a reload has ended, in whatever way."""
        state.loaded_unix_s = time.time()

    async def reload(self) -> None:
        """
        Put the settings of now in force, and return when every worker has them.

        Raises:
            ReloadRefusedError: they are wrong, or cannot be put in force, or this is no time for it.
        """
        try:
            await self._reload()
        except ReloadRefusedError as refused:
            logger().warning("reload_refused", reason=refused.code, mistakes=refused.mistakes)
            raise

    async def by_signal(self) -> None:
        """The same for who cannot be answered; asked while one is under way, whoever wanted it, another follows it."""
        if self._is_wanted_again:
            return
        self._is_wanted_again = True
        while self._state.is_reloading:
            self._over.clear()
            await self._over.wait()
        self._is_wanted_again = False
        with contextlib.suppress(ReloadRefusedError):  # the log has it
            await self.reload()

    async def _reload(self) -> None:
        if self._state.is_reloading or self._state.phase is not Phase.SERVING:
            busy = "a reload is under way" if self._state.is_reloading else f"the proxy is {self._state.phase}"
            raise ReloadRefusedError(409, "NotNow", [busy])
        self._state.is_reloading = True
        began_s, read_unix_s = time.monotonic(), time.time()
        try:
            settings = await self._read()
            logger().info("reloading", workers=self._state.wanted)
            await self._replace(settings)
        except NotReplacedError as error:
            mistake = f"{error}; the log says more, and the settings of before stay in force"
            raise ReloadRefusedError(500, "NotReplaced", [mistake]) from error
        finally:
            self._state.is_reloading = False
            self._over.set()
        self.settings = settings
        self._state.loaded_unix_s = read_unix_s
        logger().info("reloaded", workers=self._state.wanted, took_s=round(time.monotonic() - began_s, 3))

    async def _read(self) -> Settings:
        try:
            loaded = await asyncio.to_thread(load_with_sources, self._environ)
        except ConfigError as error:
            raise ReloadRefusedError(400, "BadSettings", error.mistakes) from error
        if changed := list(fixed_changes(self.settings, loaded.settings)):
            raise ReloadRefusedError(
                400, "NeedsRestart", [f"{name}: cannot change without a restart" for name in changed]
            )
        for warning in loaded.warnings:
            logger().warning("settings", warning=warning)
        return loaded.settings


def fixed_changes(old: Settings, new: Settings) -> Iterator[str]:
    """The names of the settings that differ and that only a restart can change; never their values."""
    for path in _FIXED:
        before, after = old, new
        for part in path:
            before, after = getattr(before, part), getattr(after, part)
        if before != after:
            yield ".".join(path)
    known, wanted = set(map(_port, old.listeners())), set(map(_port, new.listeners()))
    yield from sorted({name for _, _, _, name in known ^ wanted})


def _port(listener: Listener) -> tuple[str, str, str, str]:
    return listener.protocol, listener.upstream, listener.address, listener.name
