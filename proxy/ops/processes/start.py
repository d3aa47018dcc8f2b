"""What ``dashcache run`` does before there is an event loop: settings, log, and then the supervisor."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from proxy.errors import ConfigError
from proxy.ops.processes import floors
from proxy.ops.processes.supervisor import Supervisor
from proxy.ops.telemetry.log_output import configure, logger
from proxy.settings import Settings
from proxy.settings_source import config_folder, load_with_sources


def run(environ: Mapping[str, str]) -> None:
    """
    Run the proxy with the settings in *environ* until it is told to end.

    Raises:
        ConfigError: with every mistake.
    """
    if found := floors.mistakes():
        raise ConfigError(found)
    loaded = load_with_sources(environ)
    writer = configure(loaded.settings.log, "supervisor")
    try:
        for warning in loaded.warnings:
            logger().warning("settings", warning=warning)
        asyncio.run(_supervise(loaded.settings, config_folder(environ), environ))
    finally:
        writer.close()


async def _supervise(settings: Settings, folder: Path, environ: Mapping[str, str]) -> None:
    await Supervisor(settings, folder, environ=environ).run()
