"""
The rooms of ``docs/architecture.md``, held by reading the code's own imports, those inside functions too.

A room is a folder directly under ``proxy/``; ``cli`` and ``__main__`` stand at the door.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PROXY = Path(__file__).parents[2] / "proxy"

ANY = None
"""Any third-party module: these rooms wire, or speak with people."""

# room -> the rooms that it may import, and which third-party modules
ROOMS: dict[str, tuple[set[str], set[str] | None]] = {
    "core": (set(), set()),
    "runtime": ({"core"}, {"msgspec"}),
    "vendors": ({"core"}, {"orjson", "msgspec", "numpy"}),
    "transport": ({"core"}, {"aiohttp", "grpc", "multidict", "yarl"}),
    "cache": ({"core", "runtime"}, {"orjson", "numpy", "cachetools", "pybreaker", "redis", "hiredis"}),
    "settings": ({"core", "vendors"}, {"pydantic", "pydantic_core", "annotated_types", "yaml", "typing_extensions"}),
    "request": ({"core", "runtime", "cache"}, {"cachetools"}),
    "telemetry": ({"core", "settings", "transport", "vendors"}, ANY),
    "server": ({"core", "runtime", "request", "transport"}, {"aiohttp", "grpc", "cachetools"}),
    "control": ({"core", "runtime", "cache", "settings", "telemetry"}, ANY),
    "admin": ({"core", "runtime", "vendors", "settings", "telemetry", "control"}, ANY),
    "worker": (
        {
            "core",
            "runtime",
            "vendors",
            "transport",
            "cache",
            "settings",
            "request",
            "telemetry",
            "server",
            "control",
        },
        ANY,
    ),
    "supervisor": ({"core", "runtime", "settings", "telemetry", "control", "admin"}, ANY),
    "tools": ({"core", "runtime", "cache", "settings", "control", "admin"}, ANY),
}

# a library behind a seam -> the files that are opened to replace it
SOLE_IMPORTERS = {
    "redis": {"cache/redis/tier.py"},
    "hiredis": {"cache/redis/pipe.py"},
    "pybreaker": {"cache/redis/breaker.py"},
    "cachetools": {
        "cache/flights.py",
        "cache/recently_accepted.py",
        "cache/memory.py",
        "cache/credential_status.py",
    },
}

# These hold the clock or the loop itself, to be handed in.
_WITH_A_CLOCK = {"core/ports.py"}


def _imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "proxy":
                yield from (f"proxy.{alias.name}" for alias in node.names)


def _sources() -> dict[str, str]:
    return {str(path.relative_to(PROXY)): path.read_text() for path in sorted(PROXY.rglob("*.py"))}


def _room(path: str) -> str:
    return path.partition("/")[0].removesuffix(".py")


def _graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """For each room, the other rooms that it imports."""
    graph: dict[str, set[str]] = {_room(path): set() for path in sources}
    for path, source in sources.items():
        for module in _imports(source):
            top, _, rest = module.partition(".")
            room = rest.partition(".")[0]
            if top == "proxy" and room in graph:
                graph[_room(path)].add(room)
    return {room: others - {room} for room, others in graph.items()}


def test_no_room_leads_back_to_itself() -> None:
    TopologicalSorter(_graph(_sources())).prepare()


def test_a_circle_is_found() -> None:
    circle = {**_sources(), "core/loops.py": "def late():\n    from proxy.request import flow\n"}
    with pytest.raises(CycleError):
        TopologicalSorter(_graph(circle)).prepare()


def test_every_file_is_in_a_room() -> None:
    assert {path for path in _sources() if "/" not in path} == {"__init__.py", "__main__.py", "cli.py"}


def test_the_page_tells_of_every_room_what_it_opens() -> None:
    page = (PROXY.parent / "docs" / "architecture.md").read_text()
    told = {
        room: set(re.findall(r"`(\w+)`", opens))
        for room, opens in re.findall(r"^\| `(\w+)/` \|.*\| ([^|]*) \|$", page, re.MULTILINE)
    }
    assert told == {room: ours for room, (ours, _) in ROOMS.items()}
    assert {_room(path) for path in _sources() if "/" in path} == set(ROOMS)


def test_every_room_says_what_lives_in_it() -> None:
    for path, source in _sources().items():
        if path.endswith("/__init__.py"):
            tree = ast.parse(source)
            assert ast.get_docstring(tree), path
            assert len(tree.body) == 1 or "_pb" in path, f"{path} holds more than its sentence"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    ours, theirs = ROOMS[room]
    for path, source in _sources().items():
        if _room(path) != room:
            continue
        for module in _imports(source):
            top, _, rest = module.partition(".")
            if top == "proxy":
                assert rest.partition(".")[0] in {*ours, room, ""}, f"{path} imports {module}"
            elif theirs is not ANY and top not in sys.stdlib_module_names:
                assert top in theirs, f"{path} imports {module}"


@pytest.mark.parametrize("room", ["core", "vendors"])
def test_pure_rooms_touch_no_clock_and_no_socket(room: str) -> None:
    for path, source in _sources().items():
        if _room(path) == room and path not in _WITH_A_CLOCK:
            assert not {*_imports(source)} & {"time", "socket", "asyncio", "random", "threading"}, path


@pytest.mark.parametrize("library", SOLE_IMPORTERS)
def test_a_library_behind_a_seam_is_imported_once(library: str) -> None:
    importers = {
        path
        for path, source in _sources().items()
        if _room(path) == "cache" and any(module.partition(".")[0] == library for module in _imports(source))
    }
    assert importers == SOLE_IMPORTERS[library]
