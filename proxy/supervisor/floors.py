"""What the installed packages must be for the proxy to serve at all: older ones are known to answer wrongly."""

import importlib.metadata
import re
from collections.abc import Callable

from aiohttp import http_parser

FLOORS = {
    "aiohttp": (3, 14, 3),  # CVE-2026-69243, -69244: request smuggling
    "redis": (4, 5, 5),  # CVE-2023-28858, -28859: after a cancelled call, another one's answer
    "orjson": (3, 11, 6),  # CVE-2024-27454, 2025-67221: documents that end the process
}
"""By distribution, the oldest version that is served with."""


def mistakes(version_of: Callable[[str], str] = importlib.metadata.version) -> list[str]:
    """Every reason not to serve with what is installed; none when all is well."""
    found = []
    for name, floor in FLOORS.items():
        installed = version_of(name)
        if not is_at_least(installed, floor):
            found.append(f"{name} {installed} is installed; {'.'.join(map(str, floor))} or later is needed")
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        # It reads about a dozen malformed requests otherwise than the C parser, and hangs on two.
        found.append("aiohttp runs without its C parser; unset AIOHTTP_NO_EXTENSIONS or install a wheel")
    return found


def is_at_least(version: str, floor: tuple[int, ...]) -> bool:
    """Whether *version* (PEP 440) is *floor* or later; a pre-release of the floor is not."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    if numbers is None:
        return False
    release = tuple(int(number) for number in numbers[0].split("."))
    if release[: len(floor)] != floor:
        return release > floor
    return not re.match(r"[._-]?(a|b|c|rc|alpha|beta|pre|preview|dev)", version[numbers.end() :], re.IGNORECASE)
