"""What ``dashcache run`` does before there is an event loop: settings, log, and then the supervisor."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from proxy.core.errors import ConfigError
from proxy.runtime import collector
from proxy.settings.load import config_folder, load_with_sources
from proxy.settings.model import Settings
from proxy.supervisor import floors
from proxy.supervisor.supervisor import Supervisor
from proxy.telemetry.log_output import configure, error_fields, logger


class RunFailedError(Exception):
    """The proxy had to end, and not for its settings; the message says why."""


def run(environ: Mapping[str, str]) -> None:
    """
    Run the proxy with the settings in *environ* until it is told to end.

    Raises:
        ConfigError: with every mistake.
        RunFailedError: it could not be run, or not any longer, for another reason; the log has it too.
    """
    collector.spare()
    if found := floors.mistakes():
        raise ConfigError(found)
    loaded = load_with_sources(environ)
    writer = configure(loaded.settings.log, "supervisor")
    try:
        for warning in loaded.warnings:
            logger().warning("settings", warning=warning)
        asyncio.run(_supervise(loaded.settings, config_folder(environ), environ))
    except ConfigError:
        raise
    except Exception as error:
        # While there is a log: whoever is called at night has nothing else to go by.
        why = _words(error)
        logger().error("run_failed", reason=why, **error_fields(error))
        raise RunFailedError(why) from error
    finally:
        writer.close()


def _words(error: Exception) -> str:
    """The reason of *error*: the system's own words, and nothing that may quote data."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return type(error).__name__


async def _supervise(settings: Settings, folder: Path, environ: Mapping[str, str]) -> None:
    await Supervisor(settings, folder, environ=environ).run()
