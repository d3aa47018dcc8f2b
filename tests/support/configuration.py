"""Configuration files of a test's own, and the mistakes that are found in them."""

from pathlib import Path

import pytest

from proxy.core.errors import ConfigError
from proxy.settings.load import load

HOME = {"HOME": "/home/somebody"}


def empty_config(folder: Path) -> Path:
    """*folder* as a configuration folder: all files there, all empty."""
    for name in ("default", "development", "staging", "production"):
        (folder / f"{name}.toml").touch()
    return folder


def mistakes(environ: dict[str, str], folder: Path) -> list[str]:
    """The mistakes for which these variables and files are refused."""
    with pytest.raises(ConfigError) as refused:
        load(HOME | environ, folder)
    return refused.value.mistakes


def operator_mistakes(text: str, folder: Path, **environ: str) -> list[str]:
    """The mistakes in an operator's file, without its place."""
    file = folder / "mine.toml"
    file.write_text(text)
    return [line.removeprefix(f"{file}: ") for line in mistakes(environ | {"DASHCACHE_CONFIG": str(file)}, folder)]
