"""The import rules of ``docs/architecture.md``, held by reading the code's own imports."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# package -> what of ours it may import, and which third-party modules
RULES: dict[str, tuple[set[str], set[str]]] = {
    "core": ({"core"}, set()),
    "errors": ({"core"}, set()),
    "vendors": ({"core", "errors", "vendors"}, {"orjson", "msgspec", "numpy"}),
    "cache": ({"core", "errors", "cache"}, {"orjson", "numpy", "cachetools", "pybreaker", "redis", "hiredis"}),
    "transport": ({"core", "errors", "transport"}, {"aiohttp", "grpc", "multidict", "yarl"}),
    "callers": ({"core", "cache"}, set()),
    "ask": ({"core", "errors", "cache", "callers", "watched"}, set()),
    "watched": ({"core", "errors"}, set()),
    "batching": ({"core", "errors", "cache", "ask"}, set()),
    "fetch": ({"core", "errors", "cache", "ask", "batching"}, set()),
    "grace": ({"core", "errors", "cache", "ask", "fetch"}, {"cachetools"}),
    "negative": ({"core", "errors", "ask"}, {"cachetools"}),
    "shown": ({"core", "ask"}, set()),
    "writes": ({"core", "errors", "cache", "callers", "planner", "ask"}, set()),
    "planner": ({"core", "callers"}, {"cachetools"}),
    "at_once": ({"core", "cache", "callers", "planner"}, set()),
    "flow": (
        {
            "core",
            "errors",
            "cache",
            "callers",
            "planner",
            "at_once",
            "ask",
            "fetch",
            "grace",
            "negative",
            "shown",
            "writes",
        },
        set(),
    ),
    "server": ({"core", "errors", "at_once", "flow", "server", "transport"}, {"aiohttp", "grpc", "cachetools"}),
}

# whoever replaces the library opens these files only
SOLE_IMPORTER = {
    "redis": {"redis_tier.py"},
    "hiredis": {"pipe.py"},
    "pybreaker": {"guard.py"},
    "cachetools": {"flights.py", "leases.py", "memory.py", "standings.py"},
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _files(package: str) -> list[Path]:
    folder = ROOT / "proxy" / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


@pytest.mark.parametrize("package", RULES)
def test_a_package_imports_only_what_lies_inwards(package: str) -> None:
    ours, theirs = RULES[package]
    for path in _files(package):
        for module in _imports(path):
            top, _, rest = module.partition(".")
            if top == "proxy":
                assert rest.partition(".")[0] in ours, f"{path.name} imports {module}"
            elif top not in sys.stdlib_module_names:
                assert top in theirs, f"{path.name} imports {module}"


@pytest.mark.parametrize("package", ["core", "vendors"])
def test_pure_packages_touch_no_clock_and_no_socket(package: str) -> None:
    # ``ports`` holds the system clock itself, to be handed in; ``tasks`` and ``heavy`` are the event loop's.
    exempt = {"ports.py", "tasks.py", "heavy.py"}
    for path in _files(package):
        if path.name not in exempt:
            assert not _imports(path) & {"time", "socket", "asyncio", "random"}, path.name


@pytest.mark.parametrize("library", SOLE_IMPORTER)
def test_a_library_behind_a_seam_is_imported_once(library: str) -> None:
    importers = {
        path.name for path in _files("cache") if any(module.partition(".")[0] == library for module in _imports(path))
    }
    assert importers == SOLE_IMPORTER[library]


def test_only_app_and_the_command_line_import_ops() -> None:
    outside = [path for path in (ROOT / "proxy").rglob("*.py") if "ops" not in path.parts]
    importers = {path.name for path in outside if any(module.startswith("proxy.ops") for module in _imports(path))}
    assert importers <= {"app.py", "parts.py", "cli.py", "__main__.py"}
